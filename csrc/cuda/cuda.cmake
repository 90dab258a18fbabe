# Looks for the CUDA toolkit where people have it, and builds what stands for CUDA in this addon.
find_program(LEAN_ATTENTION_NVCC_PATH nvcc
  HINTS ENV CUDA_PATH ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES bin)
if(LEAN_ATTENTION_NVCC_PATH)
  set(LEAN_ATTENTION_NVCC "found")
else()
  set(LEAN_ATTENTION_NVCC "not found")
endif()
message(STATUS "CUDA toolkit: ${LEAN_ATTENTION_NVCC}")

target_sources(lean_attention_core PRIVATE csrc/cuda/cuda_stand_in.cpp)
set_source_files_properties(csrc/cuda/cuda_stand_in.cpp PROPERTIES
  COMPILE_DEFINITIONS "LEAN_ATTENTION_NVCC=\"${LEAN_ATTENTION_NVCC}\"")

# The shared headers must also compile as device code.
if(LEAN_ATTENTION_NATIVE_TESTS AND LEAN_ATTENTION_NVCC_PATH)
  add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/core_device_check.o
    COMMAND ${LEAN_ATTENTION_NVCC_PATH} -std=c++20 -arch=sm_80 -c ${CMAKE_SOURCE_DIR}/test/native/core_device_check.cu
            -o ${CMAKE_BINARY_DIR}/core_device_check.o
    DEPENDS test/native/core_device_check.cu csrc/core/schedule.h csrc/core/softmax_state.h csrc/core/numeric.h
            csrc/core/decode_params.h)
  add_custom_target(core_device_check ALL DEPENDS ${CMAKE_BINARY_DIR}/core_device_check.o)
endif()
