#include "staging.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "../runtime/error.h"

namespace lean::cuda {

StagingRing::~StagingRing() {
  try {
    if (open_ || !full_.empty()) api::synchronize(stream_);
  } catch (const Error&) {
  }
}

void StagingRing::upload(void* target, const void* source, size_t bytes) {
  constexpr size_t kAlignment = 64;  // a cache line
  auto* to = static_cast<std::byte*>(target);
  const auto* from = static_cast<const std::byte*>(source);
  while (bytes > 0) {
    if (open_ && used_ == kBlockBytes) close_block();
    if (!open_) open_block();
    const size_t part = std::min(bytes, kBlockBytes - used_);
    void* staged = static_cast<std::byte*>(static_cast<void*>(open_->pinned)) + used_;
    memcpy(staged, from, part);
    api::copy_to_device(to, staged, part, stream_);
    used_ += (part + kAlignment - 1) / kAlignment * kAlignment;
    to += part;
    from += part;
    bytes -= part;
  }
  if (open_ && used_ == kBlockBytes) close_block();
}

// As soon as it is full, so that its event stands behind its copies and nothing else.
void StagingRing::close_block() {
  api::record(open_->read, stream_);
  full_.push_back(std::move(open_));
}

// Whatever fails here fails before anything has changed hands: the next upload begins anew.
void StagingRing::open_block() {
  if (full_.empty() || (full_.size() < kBlocks && !api::has_happened(full_.front()->read))) {
    try {
      open_ = std::make_unique<Block>();
      used_ = 0;
      return;
    } catch (const Error& error) {  // without more memory, what there is does
      if (full_.empty() || error.code() != ErrorCode::kOutOfMemory) throw;
    }
  }
  api::wait(full_.front()->read);
  open_ = std::move(full_.front());
  full_.pop_front();
  used_ = 0;
}

}  // namespace lean::cuda
