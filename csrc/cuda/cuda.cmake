# CUDA: the backend and its kernels where a toolkit works, one file that stands in for them, and says why, where none does.
#   LEAN_ATTENTION_CUDA           auto (default) or off
#   LEAN_ATTENTION_NVCC           the compiler; default: the first of CUDA_PATH, CUDA_HOME, /usr/local/cuda and PATH
#   LEAN_ATTENTION_CUDA_ARCHS     such as 80-real;90a-real;86-virtual; default: the GPUs found, else sm_80, sm_86, sm_90a and PTX
set(LEAN_ATTENTION_CUDA auto CACHE STRING "Build the CUDA backend: auto or off")
set(LEAN_ATTENTION_CUDA_ARCHS "" CACHE STRING "Architectures to build the CUDA kernels for")

find_program(LEAN_ATTENTION_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES bin)
set(why "")
if(LEAN_ATTENTION_CUDA STREQUAL "off")
  set(why "it was built with LEAN_ATTENTION_CUDA=off")
elseif(NOT LEAN_ATTENTION_CUDA STREQUAL "auto")
  message(FATAL_ERROR "Expected LEAN_ATTENTION_CUDA to be auto or off, got '${LEAN_ATTENTION_CUDA}'")
elseif(NOT LEAN_ATTENTION_NVCC)
  set(why "the CUDA toolkit was not found when it was built; install it, then run: node scripts/build.cjs")
elseif(NOT LEAN_ATTENTION_NVCC STREQUAL LEAN_ATTENTION_NVCC_WORKS)
  # Old toolkits know no C++20, and each knows host compilers up to some version. Tried once for each that works.
  file(WRITE ${CMAKE_BINARY_DIR}/nvcc_probe.cu "#include <concepts>\n__global__ void probe() {}\n")
  execute_process(COMMAND ${LEAN_ATTENTION_NVCC} -std=c++20 -arch=sm_80 -c nvcc_probe.cu -o nvcc_probe.o
    WORKING_DIRECTORY ${CMAKE_BINARY_DIR} RESULT_VARIABLE failure OUTPUT_VARIABLE said ERROR_VARIABLE said)
  if(NOT failure EQUAL 0)
    message(WARNING "${LEAN_ATTENTION_NVCC}: ${failure}\n${said}")
    set(why "${LEAN_ATTENTION_NVCC} compiled no C++20 when it was built; CUDA 12.0 or newer is needed, and a C++ compiler that it knows")
  else()
    set(LEAN_ATTENTION_NVCC_WORKS ${LEAN_ATTENTION_NVCC} CACHE INTERNAL "The nvcc that has compiled C++20 here")
  endif()
endif()

if(why)
  message(STATUS "CUDA: no, ${why}")
  add_library(lean_attention_cuda OBJECT csrc/cuda/cuda_stand_in.cpp)
  string(REPLACE ";" "\\;" why "${why}")  # definitions are a list
  set_source_files_properties(csrc/cuda/cuda_stand_in.cpp PROPERTIES COMPILE_DEFINITIONS "LEAN_ATTENTION_WHY=\"${why}\"")
else()
  set(archs ${LEAN_ATTENTION_CUDA_ARCHS})
  if(NOT archs)
    # PTX of sm_86 holds the variant that every later GPU can run. Its machine code is for sm_86 and sm_89: they would be
    # given that of sm_80, which wants more shared memory than they have.
    find_program(LEAN_ATTENTION_NVIDIA_SMI nvidia-smi)
    if(LEAN_ATTENTION_NVIDIA_SMI)
      execute_process(COMMAND ${LEAN_ATTENTION_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
        OUTPUT_VARIABLE capabilities OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      string(REGEX MATCHALL "[0-9]+[.][0-9]+" capabilities "${capabilities}")
      foreach(capability IN LISTS capabilities)
        string(REPLACE "." "" capability ${capability})
        if(capability STREQUAL "90" OR capability STREQUAL "100")
          string(APPEND capability "a")
        endif()
        list(APPEND archs ${capability}-real)
      endforeach()
      list(REMOVE_DUPLICATES archs)
    endif()
    if(NOT archs)
      set(archs 80-real 86 90a-real)
    endif()
  endif()
  message(STATUS "CUDA: ${LEAN_ATTENTION_NVCC} for ${archs}")

  # Before the language is enabled: CMake tests the compiler with them.
  set(CMAKE_CUDA_COMPILER ${LEAN_ATTENTION_NVCC})
  set(CMAKE_CUDA_ARCHITECTURES ${archs})
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  enable_language(CUDA)
  include(csrc/cuda/cuda_cxx20.cmake)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
  file(GLOB instances CONFIGURE_DEPENDS csrc/cuda/instances/*.cu)
  set_source_files_properties(csrc/cuda/cuda_api.cpp PROPERTIES LANGUAGE CUDA)  # for the toolkit's headers
  list(JOIN archs " " targets)
  set_source_files_properties(csrc/cuda/architectures.cpp PROPERTIES
    COMPILE_DEFINITIONS "LEAN_ATTENTION_ARCHITECTURES=\"${targets}\"")
  add_library(lean_attention_cuda OBJECT csrc/cuda/architectures.cpp csrc/cuda/cuda_api.cpp csrc/cuda/cuda_backend.cpp csrc/cuda/cuda_stream.cpp
    csrc/cuda/cuda_problems.cpp csrc/cuda/launch.cpp csrc/cuda/staging.cpp ${instances})
  # The static runtime and no driver library: the addon loads on machines without a driver, and finds no devices there.
  find_package(CUDAToolkit REQUIRED)
  target_link_libraries(lean_attention_core PUBLIC CUDA::cudart_static)
endif()
target_sources(lean_attention_core PRIVATE $<TARGET_OBJECTS:lean_attention_cuda>)

# The shared headers must also compile as device code.
if(LEAN_ATTENTION_NATIVE_TESTS AND LEAN_ATTENTION_NVCC)
  add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/core_device_check.o
    COMMAND ${LEAN_ATTENTION_NVCC} -std=c++20 -arch=sm_80 -c ${CMAKE_SOURCE_DIR}/test/native/core_device_check.cu
            -o ${CMAKE_BINARY_DIR}/core_device_check.o
    DEPENDS test/native/core_device_check.cu csrc/core/schedule.h csrc/core/softmax_state.h csrc/core/numeric.h
            csrc/core/decode_params.h csrc/core/append_params.h csrc/core/rotary.h)
  add_custom_target(core_device_check ALL DEPENDS ${CMAKE_BINARY_DIR}/core_device_check.o)
endif()
