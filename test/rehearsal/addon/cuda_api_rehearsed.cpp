// The second implementation of the thin interface (csrc/cuda/cuda_api.h): device memory is the rehearsal's, a launch
// runs the kernel's source on its machine, and it fails when it is told to. Streams do their work as late as they may,
// when somebody waits for it, so that memory which is let go too early is found poisoned; the default stream at once.
#include "cuda_api_rehearsed.h"

#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <utility>
#include <vector>

#include "cuda/append_kernel.h"
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

const void* append_kernel() {
  static const char address = 0;
  return &address;
}

const void* page_copy_kernel() {
  static const char address = 0;
  return &address;
}

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

// The machine, its memory and the streams' work serve one thread at a time.
std::recursive_mutex& machine_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

using Work = std::vector<std::function<void()>>;

struct RehearsedStream {
  int device;
  std::deque<std::function<void()>> work;
  bool capturing = false;
  Work captured;
};

struct RehearsedEvent {
  int device;
  bool timed;
  RehearsedStream* stream = nullptr;
  std::shared_ptr<std::atomic<bool>> happened = std::make_shared<std::atomic<bool>>(true);
};

RehearsedStream* opened(Stream stream) { return static_cast<RehearsedStream*>(stream); }

void enqueue(Stream stream, std::function<void()> work) {
  const std::lock_guard lock(machine_mutex());
  if (!stream)
    work();
  else if (opened(stream)->capturing)
    opened(stream)->captured.push_back(std::move(work));
  else
    opened(stream)->work.push_back(std::move(work));
}

// All of its work, or until an event has happened and no further.
void drain(RehearsedStream& stream, const std::atomic<bool>* happened = nullptr) {
  const std::lock_guard lock(machine_mutex());
  while (!stream.work.empty() && !(happened && *happened)) {
    const std::function<void()> next = std::move(stream.work.front());
    stream.work.pop_front();
    if (!cuda_control().lost) next();
  }
}

// The calling thread.
void wait_for(RehearsedStream& stream, const std::atomic<bool>* happened = nullptr) {
  const std::lock_guard lock(machine_mutex());
  if (!stream.work.empty()) ++cuda_control().waits;
  drain(stream, happened);
}

rehearsal::DeviceMemory& memory() {
  static rehearsal::DeviceMemory memory;
  return memory;
}

// By their beginning: how many bytes.
std::map<const std::byte*, size_t>& pinned_memory() {
  static std::map<const std::byte*, size_t> blocks;
  return blocks;
}

bool is_pinned(const std::byte* first, size_t bytes) {
  const std::lock_guard lock(machine_mutex());
  const auto after = pinned_memory().upper_bound(first);
  if (after == pinned_memory().begin()) return false;
  const auto& [begin, size] = *std::prev(after);
  return first + bytes <= begin + size;
}

thread_local int current = 0;

// Kernels whose code is on a device, by (device, kernel).
std::set<std::pair<int, const void*>>& loaded() {
  static std::set<std::pair<int, const void*>> kernels;
  return kernels;
}

thread_local int captures = 0;  // that this thread has begun

// A driver that loads code when it is first used may have to wait for the device to do so.
void load(const void* kernel, bool in_capture) {
  if (loaded().emplace(current, kernel).second && in_capture)
    throw Error(ErrorCode::kLaunchFailed, "Launching the kernel failed: it is loaded in a capture (rehearsed)");
}

bool counts_down(int64_t& counter) { return counter > 0 && --counter == 0; }

void check_alive() {
  if (cuda_control().lost)
    throw error_of(700, "The work on the device failed: an illegal memory access was encountered (rehearsed)");
}

}  // namespace

int count_devices(Problem& problem) noexcept {
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

// Device 0 is of Hopper's class unless a test says otherwise, all others of the one with the least shared memory.
DeviceInfo device_info(int device) {
  if (device == cuda_control().unreadable) throw error_of(101, "Reading the device failed: invalid device (rehearsed)");
  const int capability = device == 0 ? cuda_control().capability : 86;
  const size_t shared_bytes = size_t{1024} * (device == 0 ? 227 : 99);
  return {"Rehearsed GPU", capability / 10, capability % 10, kProcessors, kMemoryBytes, 1 << 20, shared_bytes};
}

void use_device(int device) { current = device; }
int current_device() { return current; }

void memory_info(size_t& free, size_t& total) {
  check_alive();
  total = kMemoryBytes;
  free = kMemoryBytes - static_cast<size_t>(cuda_control().live_bytes.load());
}

void* allocate(size_t bytes) {
  const std::lock_guard lock(machine_mutex());
  check_alive();
  rehearsal::CudaControl& control = cuda_control();
  if (counts_down(control.fail_allocation) || static_cast<size_t>(control.live_bytes.load()) + bytes > kMemoryBytes)
    throw Error(ErrorCode::kOutOfMemory,
                describe_shortage(bytes, kMemoryBytes - static_cast<size_t>(control.live_bytes.load()), kMemoryBytes));
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

void* allocate_pinned(size_t bytes) {
  const std::lock_guard lock(machine_mutex());
  check_alive();
  rehearsal::CudaControl& control = cuda_control();
  if (counts_down(control.fail_allocation) || counts_down(control.fail_pinned))
    throw Error(ErrorCode::kOutOfMemory, describe_pinned_shortage(bytes));
  ++control.live_pinned;
  void* memory = ::operator new(bytes);
  rehearsal::poison(memory, bytes);
  pinned_memory().emplace(static_cast<std::byte*>(memory), bytes);
  return memory;
}
void release_pinned(void* memory) noexcept {
  if (!memory) return;
  const std::lock_guard lock(machine_mutex());
  --cuda_control().live_pinned;
  pinned_memory().erase(static_cast<std::byte*>(memory));
  ::operator delete(memory);
}

// Pinned memory is read and written when the copy runs. Other host memory is copied at once; the driver may wait for
// the stream to do so, which is counted, and does wait for what comes back.
void copy_to_device(void* target, const void* source, size_t bytes, Stream stream) {
  check_alive();
  const auto* first = static_cast<const std::byte*>(source);
  if (is_pinned(first, bytes)) {
    enqueue(stream, [=] {
      if (is_pinned(first, bytes))
        memcpy(target, first, bytes);
      else
        ++cuda_control().faults;
    });
    return;
  }
  if (stream && !opened(stream)->work.empty()) ++cuda_control().waits;
  enqueue(stream, [target, copy = std::vector<std::byte>(first, first + bytes)] {
    if (!copy.empty()) memcpy(target, copy.data(), copy.size());
  });
}
void copy_to_host(void* target, const void* source, size_t bytes, Stream stream) {
  check_alive();
  enqueue(stream, [=] { memcpy(target, source, bytes); });
  if (!is_pinned(static_cast<std::byte*>(target), bytes)) synchronize(stream);
}
void copy_on_device(void* target, const void* source, size_t bytes, Stream stream) {
  check_alive();
  enqueue(stream, [=] { memcpy(target, source, bytes); });
}
void clear(void* address, size_t bytes, Stream stream) {
  check_alive();
  enqueue(stream, [=] { memset(address, 0, bytes); });
}

Stream create_stream() {
  check_alive();
  const std::lock_guard lock(machine_mutex());
  if (const int number = std::exchange(cuda_control().fail_stream, 0))
    throw error_of(number, "Creating a stream failed: rehearsed");
  if (std::exchange(cuda_control().unload_kernels, false))
    std::erase_if(loaded(), [](const auto& entry) { return entry.first == current; });
  ++cuda_control().live_streams;
  return new RehearsedStream{current, {}, false, {}};
}
void destroy_stream(Stream stream) noexcept {
  if (!stream) return;
  const std::lock_guard lock(machine_mutex());
  try {
    drain(*opened(stream));
  } catch (const Error&) {
  }
  --cuda_control().live_streams;
  delete opened(stream);
}
void synchronize(Stream stream) {
  check_alive();
  if (stream) wait_for(*opened(stream));
  check_alive();
}

Event create_event() {
  check_alive();
  ++cuda_control().live_events;
  return new RehearsedEvent{current, false};
}
Event create_timed_event() {
  check_alive();
  ++cuda_control().live_events;
  return new RehearsedEvent{current, true};
}
void destroy_event(Event event) noexcept {
  if (!event) return;
  --cuda_control().live_events;
  delete static_cast<RehearsedEvent*>(event);
}
void record(Event event, Stream stream) {
  check_alive();
  auto& recorded = *static_cast<RehearsedEvent*>(event);
  if (recorded.device != opened(stream)->device)
    throw Error(ErrorCode::kLaunchFailed, "Recording an event failed: it is another device's (rehearsed)");
  recorded.stream = opened(stream);
  recorded.happened = std::make_shared<std::atomic<bool>>(false);
  enqueue(stream, [happened = recorded.happened] { *happened = true; });
}
bool has_happened(Event event) {
  check_alive();
  return *static_cast<RehearsedEvent*>(event)->happened;
}
void wait(Event event) {
  const auto& awaited = *static_cast<RehearsedEvent*>(event);
  if (!*awaited.happened) wait_for(*awaited.stream, awaited.happened.get());
  check_alive();
}
void wait(Stream stream, Event event) {
  check_alive();
  const auto& awaited = *static_cast<RehearsedEvent*>(event);
  enqueue(stream, [happened = awaited.happened, other = awaited.stream] {
    if (!*happened) drain(*other, happened.get());
  });
}
float milliseconds_between(Event start, Event end) {
  for (const Event event : {start, end}) {
    if (!static_cast<RehearsedEvent*>(event)->timed)
      throw Error(ErrorCode::kLaunchFailed, "Timing failed: the event was made without (rehearsed)");
    if (!*static_cast<RehearsedEvent*>(event)->happened)
      throw Error(ErrorCode::kInvalidArgument, "Expected both events to have happened; await finish() first");
  }
  return 1.0f;  // no timing means anything here
}

void begin_capture(Stream stream) {
  check_alive();
  opened(stream)->capturing = true;
  ++captures;
}
Graph end_capture(Stream stream) {
  opened(stream)->capturing = false;
  --captures;
  ++cuda_control().live_graphs;
  return new Work(std::exchange(opened(stream)->captured, {}));
}
void launch_graph(Graph graph, Stream stream) {
  check_alive();
  for (const auto& node : *static_cast<Work*>(graph)) enqueue(stream, node);
}
void destroy_graph(Graph graph) noexcept {
  if (!graph) return;
  --cuda_control().live_graphs;
  delete static_cast<Work*>(graph);
}

KernelCode kernel_code(const void* kernel) {
  const std::lock_guard lock(machine_mutex());
  if (kernel) load(kernel, captures > 0);
  return {kernel != nullptr, current == 0 ? 90 : 86};
}
int resident_ctas(const void*, int, int shared_bytes) {
  return (current == 0 ? 228 : 100) * 1024 / (shared_bytes + 1024);
}

namespace {

// The kernel's own copy of its parameters, as a launch makes one.
std::function<void(std::byte*)> kernel_body(const void* kernel, const void* params) {
  const auto shared_memory = [](std::byte* bytes) { return reinterpret_cast<char*>(bytes); };
  if (kernel == tile_map_kernel())
    return [=, call = *static_cast<const KernelParams*>(params)](std::byte* bytes) {
      rehearsal::tile_map_instance.run(call, shared_memory(bytes));
    };
  if (kernel == append_kernel())
    return [=, call = *static_cast<const AppendLaunch*>(params)](std::byte* bytes) {
      AppendKernel::run(call, shared_memory(bytes));
    };
  if (kernel == page_copy_kernel())
    return [=, call = *static_cast<const PageCopyParams*>(params)](std::byte* bytes) {
      PageCopyKernel::run(call, shared_memory(bytes));
    };
  if (kernel == read_kernel())
    return [=, call = *static_cast<const ReadCall*>(params)](std::byte* bytes) {
      ReadKernel::run(call, shared_memory(bytes));
    };
  return [=, call = *static_cast<const KernelParams*>(params)](std::byte* bytes) {
    static_cast<const rehearsal::KernelInstance*>(kernel)->run(call, shared_memory(bytes));
  };
}

}  // namespace

void launch(const void* kernel, Grid grid, int threads, int shared_bytes, void* params, Stream stream) {
  check_alive();
  rehearsal::CudaControl& control = cuda_control();
  ++control.launches;
  if (counts_down(control.lose_device)) control.lost = true;
  if (control.lost) return;  // like a real one: a launch says nothing of what happens to it later
  if (counts_down(control.fail_launch))
    throw Error(ErrorCode::kLaunchFailed,
                "Launching the kernel failed: too many resources requested for launch (rehearsed)");
  {
    const std::lock_guard lock(machine_mutex());
    if (stream && opened(stream)->device != current)
      throw Error(ErrorCode::kLaunchFailed, "Launching the kernel failed: the stream is another device's (rehearsed)");
    load(kernel, stream && opened(stream)->capturing);
  }
  enqueue(stream, [=, body = kernel_body(kernel, params)] {
    rehearsal::Dispatch dispatch;
    dispatch.ctas = rehearsal::Order::kShuffled;
    dispatch.seed = static_cast<uint64_t>(++cuda_control().runs);
    try {
      rehearsal::launch(memory(), {grid.x, grid.y, threads, static_cast<size_t>(shared_bytes)}, dispatch, body);
    } catch (const rehearsal::Failure& failure) {
      throw Error(ErrorCode::kDeviceLost, std::string("The rehearsal found a fault in the kernel: ") + failure.what());
    }
  });
}

}  // namespace lean::cuda::api
