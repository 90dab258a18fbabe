// The rehearsed CUDA runtime, as the tests steer it: what it pretends to be, when it fails, and what is still alive.
#pragma once

#include <atomic>
#include <cstdint>

namespace lean::rehearsal {

enum class Driver { kPresent, kMissing, kTooOld, kNoDevice };

struct CudaControl {
  Driver driver = Driver::kPresent;
  int devices = 2;
  int capability = 90;          // of the first device, 10 x major + minor; the others have 8.6
  int unreadable = -1;          // nothing is told of this device
  bool unload_kernels = false;  // once, when a stream is made: no kernel has been used yet
  int64_t fail_allocation = 0;  // the n-th allocation from now on fails for want of memory; 0: none
  int64_t fail_pinned = 0;      // the same of pinned memory alone
  int64_t fail_launch = 0;      // the n-th launch from now on is refused
  int fail_stream = 0;          // making the next stream fails with this number of cudaError_t
  int64_t lose_device = 0;      // at the n-th launch from now on the device is lost, until this control is set again
  bool lost = false;

  // Counted on every thread that uses CUDA.
  std::atomic<int64_t> live_allocations = 0;
  std::atomic<int64_t> live_bytes = 0;
  std::atomic<int64_t> live_pinned = 0;
  std::atomic<int64_t> live_streams = 0;
  std::atomic<int64_t> live_events = 0;
  std::atomic<int64_t> live_graphs = 0;
  std::atomic<int64_t> launches = 0;  // asked for
  std::atomic<int64_t> runs = 0;      // done
  std::atomic<int64_t> faults = 0;    // copies from pinned memory that had been freed
  std::atomic<int64_t> waits = 0;     // of a thread for work that had not been done
};

CudaControl& cuda_control();

}  // namespace lean::rehearsal
