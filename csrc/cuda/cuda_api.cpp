// The thin interface over the CUDA runtime itself.
#include "cuda_api.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>

#include "../runtime/error.h"

namespace lean::cuda::api {

namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky must not be met again by the next call
  throw error_of(static_cast<int>(status),
                 std::string(what) + " failed: " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

int count_devices(Problem& problem) noexcept {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const bool known =
      driver == 0 || status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice || status == cudaSuccess;
  problem = known ? describe_problem(driver, runtime, status == cudaErrorInsufficientDriver)
                  : Problem{"runtime", std::string("the CUDA runtime did not start: ") + cudaGetErrorString(status)};
  return 0;
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "Reading the device's properties");
  return {properties.name,
          properties.major,
          properties.minor,
          properties.multiProcessorCount,
          properties.totalGlobalMem,
          static_cast<size_t>(properties.l2CacheSize),
          properties.sharedMemPerBlockOptin};
}

void use_device(int device) { check(cudaSetDevice(device), "Choosing the device"); }

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "Reading the current device");
  return device;
}

void memory_info(size_t& free, size_t& total) { check(cudaMemGetInfo(&free, &total), "Reading the device's memory"); }

void* allocate(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw Error(ErrorCode::kOutOfMemory, describe_shortage(bytes, free, total));
  }
  check(status, "Allocating device memory");
  return memory;
}

void release(void* memory) noexcept {
  if (memory) cudaFree(memory);
}

void* allocate_pinned(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMallocHost(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(ErrorCode::kOutOfMemory, describe_pinned_shortage(bytes));
  }
  check(status, "Pinning host memory");
  return memory;
}

void release_pinned(void* memory) noexcept {
  if (memory) cudaFreeHost(memory);
}

void copy_to_device(void* target, const void* source, size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, native(stream)), "Copying to the device");
}

void copy_to_host(void* target, const void* source, size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, native(stream)), "Copying to the host");
}

void copy_on_device(void* target, const void* source, size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, native(stream)), "Copying on the device");
}

void clear(void* memory, size_t bytes, Stream stream) {
  check(cudaMemsetAsync(memory, 0, bytes, native(stream)), "Clearing device memory");
}

Stream create_stream() {
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "Creating a stream");
  return stream;
}

void destroy_stream(Stream stream) noexcept {
  if (stream) cudaStreamDestroy(native(stream));
}

void synchronize(Stream stream) { check(cudaStreamSynchronize(native(stream)), "The work on the device"); }

Event create_event() {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventBlockingSync | cudaEventDisableTiming), "Creating an event");
  return event;
}

Event create_timed_event() {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventBlockingSync), "Creating an event");
  return event;
}

void destroy_event(Event event) noexcept {
  if (event) cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

void record(Event event, Stream stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event), native(stream)), "Recording an event");
}

bool has_happened(Event event) {
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(event));
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check(status, "The work on the device");
  return true;
}

void wait(Event event) { check(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), "The work on the device"); }

void wait(Stream stream, Event event) {
  check(cudaStreamWaitEvent(native(stream), static_cast<cudaEvent_t>(event), 0), "Waiting for an event");
}

float milliseconds_between(Event start, Event end) {
  float milliseconds = 0;
  const cudaError_t status =
      cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(start), static_cast<cudaEvent_t>(end));
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    throw Error(ErrorCode::kInvalidArgument, "Expected both events to have happened; await finish() first");
  }
  check(status, "Timing");
  return milliseconds;
}

// Relaxed: other threads, and the allocation of a workspace, may go on meanwhile.
void begin_capture(Stream stream) {
  check(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeRelaxed), "Beginning a capture");
}

Graph end_capture(Stream stream) {
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(native(stream), &graph);
  const bool is_of_captures = ended >= cudaErrorStreamCaptureUnsupported && ended <= cudaErrorStreamCaptureWrongThread;
  if (!is_of_captures) check(ended, "Ending the capture");
  if (!graph) {
    cudaGetLastError();
    return nullptr;
  }
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "Making the graph executable");
  return executable;
}

void launch_graph(Graph graph, Stream stream) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), native(stream)), "Launching the graph");
}

void destroy_graph(Graph graph) noexcept {
  if (graph) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

KernelCode kernel_code(const void* kernel) {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  if (status == cudaErrorInvalidDeviceFunction || status == cudaErrorNoKernelImageForDevice) {
    cudaGetLastError();
    return {false, 0};
  }
  check(status, "Loading the kernel");
  return {true, attributes.ptxVersion};
}

int resident_ctas(const void* kernel, int threads, int shared_bytes) {
  // Always the most that there is: the limit is the kernel's, and launches of other sizes must go on working.
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "Reading the current device");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "Shared memory");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "Shared memory");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        "Shared memory");
  int ctas = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&ctas, kernel, threads, static_cast<size_t>(shared_bytes)),
        "Occupancy");
  return ctas;
}

namespace {

// Whether a kernel waits by itself for those before it in its stream (kernel_entry.h), so that it may start meanwhile.
// Code that was compiled for older architectures does not; and drivers before 12.3 cannot capture such launches.
bool overlaps(const void* kernel) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, bool> known;
  const std::pair key(current_device(), kernel);
  const std::lock_guard lock(mutex);
  auto found = known.find(key);
  if (found == known.end()) {
    int driver = 0;
    check(cudaDriverGetVersion(&driver), "Reading the driver's version");
    found = known.emplace(key, driver >= 12030 && kernel_code(kernel).ptx_architecture >= 90).first;
  }
  return found->second;
}

}  // namespace

void launch(const void* kernel, Grid grid, int threads, int shared_bytes, void* params, Stream stream) {
  void* arguments[] = {params};
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = native(stream);
  config.attrs = &overlap;
  config.numAttrs = overlaps(kernel) ? 1 : 0;
  check(cudaLaunchKernelExC(&config, kernel, arguments), "Launching the kernel");
}

}  // namespace lean::cuda::api
