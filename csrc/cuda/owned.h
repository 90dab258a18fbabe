// What the CUDA runtime hands out, each in the hands of one owner.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "cuda_api.h"

namespace lean::cuda {

// Device memory of undefined content, freed with its last owner, on whatever thread that is.
inline std::shared_ptr<void> allocate_shared(int device, size_t bytes) {
  api::use_device(device);
  return std::shared_ptr<void>(api::allocate(bytes), [](void* memory) { api::release(memory); });
}

// Memory that grows to what the largest call needs. Growing lets the old block go first, unless it is shared: what lies
// in it is scratch. Work that is still enqueued keeps its block alive by a share of its own.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(int device) : device_(device) {}

  // True: the memory is new, its content undefined.
  bool reserve(size_t bytes) {
    if (bytes <= bytes_) return false;
    memory_.reset();
    bytes_ = 0;
    memory_ = allocate_shared(device_, bytes);
    bytes_ = bytes;
    return true;
  }

  void* data() const { return memory_.get(); }
  size_t size() const { return bytes_; }
  const std::shared_ptr<void>& shared() const { return memory_; }

 private:
  int device_;
  std::shared_ptr<void> memory_;
  size_t bytes_ = 0;
};

template <class Handle, void (*kDestroy)(Handle) noexcept>
class Owned {
 public:
  explicit Owned(Handle handle) : handle_(handle) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() { kDestroy(handle_); }
  operator Handle() const { return handle_; }

 private:
  Handle handle_;
};

using OwnEvent = Owned<api::Event, api::destroy_event>;
using OwnStream = Owned<api::Stream, api::destroy_stream>;
using OwnGraph = Owned<api::Graph, api::destroy_graph>;
using OwnPinned = Owned<void*, api::release_pinned>;

// Pinned memory that grows to what the largest call needs.
class PinnedBuffer {
 public:
  void reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    pinned_.reset();
    bytes_ = 0;
    pinned_ = std::make_unique<OwnPinned>(api::allocate_pinned(bytes));
    bytes_ = bytes;
  }

  std::byte* data() const { return static_cast<std::byte*>(static_cast<void*>(*pinned_)); }

 private:
  std::unique_ptr<OwnPinned> pinned_;
  size_t bytes_ = 0;
};

}  // namespace lean::cuda
