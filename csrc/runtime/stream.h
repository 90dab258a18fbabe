// Work in order on a device: calls enqueue and return, and one completion is awaited for all that came before it.
//
// A stream belongs to one JavaScript environment, so only `done` is called on another thread. It keeps what enqueued
// work uses alive until that work is over, whatever its caller drops meanwhile.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "../core/append_params.h"
#include "../core/decode_params.h"
#include "backend.h"
#include "plan.h"

namespace lean {

// A piece of the device's memory, and what keeps it alive.
struct DeviceView {
  std::shared_ptr<void> owner;
  std::byte* data;
  size_t bytes;
};

// A decode whose tensors, context lengths and page table all lie in the device's memory: the schedule is derived there.
struct StreamDecode {
  PlanRequest request;
  DecodeParams params{};
  std::vector<std::shared_ptr<void>> owners;  // of all that the parameters point to
};

// Rows to write into a KV cache whose places are found from context lengths and a page table in the device's memory.
struct StreamAppend {
  AppendParams params{};                    // its inverse_frequencies point into this call
  std::vector<double> inverse_frequencies;  // empty: nothing is rotated
  std::vector<std::shared_ptr<void>> owners;
};

class StreamEvent {
 public:
  virtual ~StreamEvent() = default;
  virtual float milliseconds_since(const StreamEvent& earlier) const = 0;
};

// What was captured from a stream, to be launched on it any number of times.
class StreamGraph {
 public:
  virtual ~StreamGraph() = default;
};

class Stream {
 public:
  virtual ~Stream() = default;

  virtual void decode(const StreamDecode& call) = 0;
  virtual void append(const StreamAppend& call) = 0;
  virtual void upload(const DeviceView& target, const void* source) = 0;  // the source may change afterwards
  virtual void copy(const DeviceView& target, const DeviceView& source) = 0;
  virtual void read(const DeviceView& source) = 0;  // its whole units of 16 bytes, once, and nothing else: the roofline
  // Calls `done` once this copy, and all before it, is over; the target must stay until then.
  virtual void download(const DeviceView& source, void* target, Done done) = 0;
  virtual void finish(Done done) = 0;

  virtual std::shared_ptr<StreamEvent> record() = 0;
  virtual void wait(const std::shared_ptr<StreamEvent>& event) = 0;

  virtual void begin_capture() = 0;
  virtual std::shared_ptr<StreamGraph> end_capture() = 0;
  virtual void launch(const std::shared_ptr<StreamGraph>& graph) = 0;
};

}  // namespace lean
