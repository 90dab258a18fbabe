// The second implementation of the thin interface (csrc/cuda/cuda_api.h): device memory is the rehearsal's, a launch
// runs the kernel's source on its machine, and it fails when it is told to. Streams do their work at once, in order.
#include "cuda_api_rehearsed.h"

#include <cstring>
#include <mutex>

#include "cuda/cuda_api.h"
#include "cuda/instances.h"
#include "cuda/kernel_params.h"
#include "cuda/read_kernel.h"
#include "rehearsal/kernel_instances.h"
#include "rehearsal/machine/machine.h"
#include "runtime/error.h"

namespace lean {

// The addresses that launches are given: the rehearsed instances themselves.
template <class T, int kHeadDim>
const void* DecodeInstances<T, kHeadDim>::kernel(Variant variant) {
  return rehearsal::find_instance(sizeof(T) == 2 && std::is_same_v<T, Float16> ? DType::kF16 : DType::kBF16, kHeadDim,
                                  variant);
}
#define LEAN_INSTANCES(head_dim)                      \
  template struct DecodeInstances<Float16, head_dim>; \
  template struct DecodeInstances<BFloat16, head_dim>;
LEAN_INSTANCES(64)
LEAN_INSTANCES(80)
LEAN_INSTANCES(96)
LEAN_INSTANCES(112)
LEAN_INSTANCES(128)
LEAN_INSTANCES(192)
LEAN_INSTANCES(256)
#undef LEAN_INSTANCES

const void* tile_map_kernel() { return &rehearsal::tile_map_instance; }

const void* read_kernel() {
  static const char address = 0;
  return &address;
}

}  // namespace lean

namespace lean::rehearsal {

CudaControl& cuda_control() {
  static CudaControl control;
  return control;
}

}  // namespace lean::rehearsal

namespace lean::cuda::api {

namespace {

using rehearsal::cuda_control;

constexpr int kProcessors = 3;  // few, so that launches are small; odd, so that cuts fall inside output tiles
constexpr size_t kMemoryBytes = size_t{1} << 30;

// The machine and its memory serve one thread at a time.
std::mutex& machine_mutex() {
  static std::mutex mutex;
  return mutex;
}

rehearsal::DeviceMemory& memory() {
  static rehearsal::DeviceMemory memory;
  return memory;
}

thread_local int current = 0;

bool counts_down(int64_t& counter) { return counter > 0 && --counter == 0; }

void check_alive() {
  if (cuda_control().lost)
    throw Error(ErrorCode::kDeviceLost,
                "The work on the device failed: an illegal memory access was encountered "
                "(rehearsed); the device can be used again only by a new process");
}

}  // namespace

int count_devices(std::string& problem) noexcept {
  switch (cuda_control().driver) {
    case rehearsal::Driver::kPresent:
      return cuda_control().devices;
    case rehearsal::Driver::kMissing:
      problem = describe_problem(0, 13000, false);
      return 0;
    case rehearsal::Driver::kTooOld:
      problem = describe_problem(11040, 13000, true);
      return 0;
    case rehearsal::Driver::kNoDevice:
      problem = describe_problem(13000, 13000, false);
      return 0;
  }
  return 0;
}

DeviceInfo device_info(int) { return {"Rehearsed GPU", 9, 0, kProcessors, kMemoryBytes, 227 * 1024}; }

void use_device(int device) { current = device; }
int current_device() { return current; }

void* allocate(size_t bytes) {
  const std::lock_guard lock(machine_mutex());
  check_alive();
  rehearsal::CudaControl& control = cuda_control();
  if (counts_down(control.fail_allocation) || static_cast<size_t>(control.live_bytes) + bytes > kMemoryBytes)
    throw Error(ErrorCode::kOutOfMemory,
                describe_shortage(bytes, kMemoryBytes - static_cast<size_t>(control.live_bytes), kMemoryBytes));
  rehearsal::Buffer& buffer = memory().allocate(bytes, rehearsal::Use::kCounter, "device memory");
  ++control.live_allocations;
  control.live_bytes += static_cast<int64_t>(bytes);
  return buffer.begin;
}

void release(void* address) noexcept {
  if (!address) return;
  const std::lock_guard lock(machine_mutex());
  rehearsal::Buffer* buffer = memory().find(address, 1);
  rehearsal::poison(buffer->begin, buffer->bytes);  // nobody may read it any more
  cuda_control().live_bytes -= static_cast<int64_t>(buffer->bytes);
  if (--cuda_control().live_allocations == 0) memory().clear();
}

void copy_to_device(void* target, const void* source, size_t bytes, Stream) {
  check_alive();
  memcpy(target, source, bytes);
}
void copy_to_host(void* target, const void* source, size_t bytes, Stream) {
  check_alive();
  memcpy(target, source, bytes);
}
void clear(void* address, size_t bytes, Stream) {
  check_alive();
  memset(address, 0, bytes);
}

Stream create_stream() {
  check_alive();
  ++cuda_control().live_streams;
  return new char;
}
void destroy_stream(Stream stream) noexcept {
  if (!stream) return;
  --cuda_control().live_streams;
  delete static_cast<char*>(stream);
}
void synchronize(Stream) { check_alive(); }

Event create_event() {
  check_alive();
  ++cuda_control().live_events;
  return new char;
}
void destroy_event(Event event) noexcept {
  if (!event) return;
  --cuda_control().live_events;
  delete static_cast<char*>(event);
}
void record(Event, Stream) { check_alive(); }
float milliseconds_between(Event, Event) { return 1.0f; }  // no timing means anything here

KernelCode kernel_code(const void* kernel) { return {kernel != nullptr, 90}; }
int resident_ctas(const void*, int, int shared_bytes) { return 228 * 1024 / (shared_bytes + 1024); }

void launch(const void* kernel, Grid grid, int threads, int shared_bytes, void* params, Stream) {
  const std::lock_guard lock(machine_mutex());
  check_alive();
  rehearsal::CudaControl& control = cuda_control();
  ++control.launches;
  if (counts_down(control.lose_device)) control.lost = true;
  if (control.lost) return;  // like a real one: a launch says nothing of what happens to it later
  if (counts_down(control.fail_launch))
    throw Error(ErrorCode::kDeviceLost,
                "Launching the kernel failed: too many resources requested for launch (rehearsed)");
  const auto body = [&](std::byte* bytes) {
    char* shared = reinterpret_cast<char*>(bytes);
    if (kernel == tile_map_kernel()) {
      const auto& map = *static_cast<const TileMapParams*>(params);
      rehearsal::tile_map_instance.run(map.kernel, map.tile_tokens, shared);
    } else if (kernel == read_kernel()) {
      ReadKernel::run(*static_cast<const ReadCall*>(params), shared);
    } else {
      static_cast<const rehearsal::KernelInstance*>(kernel)->run(*static_cast<const KernelParams*>(params), shared);
    }
  };
  rehearsal::Dispatch dispatch;
  dispatch.ctas = rehearsal::Order::kShuffled;
  dispatch.seed = static_cast<uint64_t>(control.launches);
  try {
    rehearsal::launch(memory(), {grid.x, grid.y, threads, static_cast<size_t>(shared_bytes)}, dispatch, body);
  } catch (const rehearsal::Failure& failure) {
    throw Error(ErrorCode::kDeviceLost, std::string("The rehearsal found a fault in the kernel: ") + failure.what());
  }
}

}  // namespace lean::cuda::api
