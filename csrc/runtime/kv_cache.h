// A KV cache: one allocation for K and V of all layers, and the bookkeeping of its pages. Builds the calls that write
// to it and read from it. Belongs to one thread; calls in flight keep the memory alive.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend.h"
#include "check.h"
#include "kv_pages.h"

namespace lean {

struct KvCacheShape {
  int32_t layers;
  int32_t num_pages;
  int32_t page_tokens;
  int32_t num_kv_heads;
  int32_t head_dim;
  DType dtype;

  int64_t token_bytes() const { return int64_t{num_kv_heads} * head_dim * dtype_size(dtype); }
};

// The sequences of a call. With counts they are those of an append: the last counts[i] tokens of sequence i, in order.
struct KvBatch {
  std::vector<SequenceId> ids;
  std::vector<int32_t> counts;  // empty: none
  int64_t stamp = 0;            // with counts: the append's
};

class KvCache {
 public:
  // Throws Error(kInvalidArgument) for a shape that no decode could read, Error(kOutOfMemory).
  KvCache(Backend& backend, const KvCacheShape& shape);

  const KvCacheShape& shape() const { return shape_; }
  int64_t block_bytes() const { return block_bytes_; }  // K, or V, of one layer
  int64_t bytes() const { return 2 * shape_.layers * block_bytes_; }
  KvPages& pages() { return pages_; }

  // As KvPages::append, with the copies made. Returns the stamp.
  int64_t append(Backend& backend, std::span<const SequenceId> ids, std::span<const int32_t> counts);

  // Writes the rows of an append to a layer. `call` holds what the caller gives: rows, queries and rotation.
  void write(Backend& backend, const KvBatch& batch, int32_t layer, AppendCall& call, const AppendSizes& sizes);

  // Context lengths of a decode: with counts a row for each token of the append, else one for each sequence.
  std::vector<int32_t> context_lengths(const KvBatch& batch) const;
  // Gives a decode call K, V, the page table of those rows and a share in the memory.
  void read(const KvBatch& batch, int32_t layer, DecodeCall& call) const;

  // K (0) or V (1) of a layer, as [num_pages, page_tokens, num_kv_heads, head_dim], for those who decode on their own.
  struct Block {
    std::shared_ptr<void> owner;
    std::byte* data;
    size_t bytes;
  };
  Block layer_block(int32_t layer, int32_t which) const;

  // Puts sequences into the first rows of a table, and leaves the others idle: lengths[rows] and pages[rows,
  // max_pages]. Returns the range of rows whose pages have changed. Throws Error(kInvalidArgument) for a sequence of
  // more pages.
  struct Rows {
    int32_t begin;
    int32_t end;
  };
  Rows fill_table(std::span<const SequenceId> ids, std::span<int32_t> lengths, std::span<int32_t> pages);

 private:
  void check_copied() const;
  void check_batch(const KvBatch& batch, bool writes) const;
  void check_layer(int32_t layer) const;
  void make_copies(Backend& backend);
  char* block(int32_t layer, int32_t which) const {
    return static_cast<char*>(memory_.get()) + (2 * int64_t{layer} + which) * block_bytes_;
  }
  CacheStrides strides() const;

  KvCacheShape shape_;
  int64_t block_bytes_;
  std::shared_ptr<void> memory_;   // [layers, 2, num_pages, page_tokens, num_kv_heads, head_dim]: K, then V
  std::shared_ptr<void> copies_;   // [num_pages] PageCopy, for the device: a step allocates nothing
  std::vector<PageCopy> pending_;  // copies that failed: to be made before anything else
  KvPages pages_;
};

}  // namespace lean
