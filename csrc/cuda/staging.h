// Pinned memory that copies to the device start from, so that one costs its caller a memcpy: memory that is not pinned
// has to be staged by the driver, which may wait for the work before it.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>

#include "owned.h"

namespace lean::cuda {

// A ring of blocks. Uploads fill the newest; a full one is used again once the event behind its last copy has happened.
// It grows as the device falls behind, up to kBlocks; with all of them in use an upload waits for the oldest. Small
// uploads thus share two blocks, and never wait while the device is less than kBlocks behind.
class StagingRing {
 public:
  static constexpr size_t kBlockBytes = size_t{1} << 20;
  static constexpr size_t kBlocks = 8;

  explicit StagingRing(api::Stream stream) : stream_(stream) {}
  ~StagingRing();  // waits for the copies

  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  // Enqueues a copy on the stream; `source` may change afterwards.
  void upload(void* target, const void* source, size_t bytes);

 private:
  struct Block {
    OwnPinned pinned{api::allocate_pinned(kBlockBytes)};
    OwnEvent read{api::create_event()};
  };

  void close_block();
  void open_block();

  const api::Stream stream_;
  std::deque<std::unique_ptr<Block>> full_;  // oldest first
  std::unique_ptr<Block> open_;
  size_t used_ = 0;  // of the open block
};

}  // namespace lean::cuda
