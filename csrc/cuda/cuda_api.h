// The CUDA runtime calls that the backend makes, as one thin interface. Two implementations are linked in its place:
// cuda_api.cpp makes the calls; the tests' (test/rehearsal) keeps "device memory" on the host, runs the rehearsed
// kernels and can be told to fail. No CUDA header here, so that code above it builds without the toolkit.
//
// Every function throws Error with the code that fits: kOutOfMemory with what was asked and what is free, kDeviceLost
// for a fault that the device does not recover from, kLaunchFailed for work that it refused, kCudaUnavailable where
// there is nothing to run on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../runtime/error.h"

namespace lean::cuda::api {

using Stream = void*;  // null: the default stream
using Event = void*;

struct DeviceInfo {
  std::string name;
  int major;  // compute capability
  int minor;
  int num_processors;
  size_t memory_bytes;
  size_t l2_bytes;
  size_t shared_bytes_per_block;  // the most that a kernel may ask for
};

// The sentences that both implementations use. Versions are CUDA's numbers, 13000 for 13.0; driver 0: there is none.
struct Problem {
  std::string reason;    // for programs, as lib/errors.ts names it
  std::string sentence;  // for people, and what to do
};
Problem describe_problem(int driver, int runtime, bool driver_too_old);
std::string describe_shortage(size_t asked, size_t free, size_t total);
std::string describe_pinned_shortage(size_t asked);
// What one of the runtime's error numbers means to a caller, with advice; `text` says what failed, and how.
Error error_of(int number, const std::string& text);

// How many devices there are; none with the reason in `problem`. Never throws.
int count_devices(Problem& problem) noexcept;
DeviceInfo device_info(int device);
void use_device(int device);  // for the calling thread
int current_device();

void memory_info(size_t& free, size_t& total);  // of the current device
void* allocate(size_t bytes);
void release(void* memory) noexcept;
void* allocate_pinned(size_t bytes);  // host memory that the device copies from and to while the host goes on
void release_pinned(void* memory) noexcept;

// In stream order. Host memory that is not pinned may change once copy_to_device has returned, and holds the result
// once copy_to_host has.
void copy_to_device(void* target, const void* source, size_t bytes, Stream stream);
void copy_to_host(void* target, const void* source, size_t bytes, Stream stream);
void copy_on_device(void* target, const void* source, size_t bytes, Stream stream);
void clear(void* memory, size_t bytes, Stream stream);

Stream create_stream();
void destroy_stream(Stream stream) noexcept;
void synchronize(Stream stream);  // reports what went wrong in the work before it

Event create_event();        // to wait for
Event create_timed_event();  // to measure with, too
void destroy_event(Event event) noexcept;
void record(Event event, Stream stream);
bool has_happened(Event event);         // reports what went wrong in the work before it
void wait(Event event);                 // the calling thread; reports what went wrong in the work before it
void wait(Stream stream, Event event);  // the stream
float milliseconds_between(Event start, Event end);  // kInvalidArgument: one of them has not happened yet

// Between the two calls, what is enqueued on the stream becomes the graph's nodes and does not run.
using Graph = void*;
void begin_capture(Stream stream);
Graph end_capture(Stream stream);  // null: what was captured cannot be used
void launch_graph(Graph graph, Stream stream);
void destroy_graph(Graph graph) noexcept;

// A kernel is named by its function's address (instances.h).
struct KernelCode {
  bool present;          // there is machine code for the current device
  int ptx_architecture;  // 10 x major + minor of what it was compiled from
};
KernelCode kernel_code(const void* kernel);
// CTAs with this much shared memory that a processor holds at once. Makes the kernel ready to be launched so.
int resident_ctas(const void* kernel, int threads, int shared_bytes);

struct Grid {
  unsigned x;
  unsigned y;
};
// A kernel that says that it waits for those before it in its stream (kernel_entry.h) may start before they end.
void launch(const void* kernel, Grid grid, int threads, int shared_bytes, void* params, Stream stream);

}  // namespace lean::cuda::api
