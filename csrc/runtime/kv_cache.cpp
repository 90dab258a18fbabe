#include "kv_cache.h"

#include <algorithm>
#include <string>

#include "error.h"

namespace lean {

namespace {

constexpr int32_t kMaxLayers = 32767;  // K and V of each are one axis of a launch

int64_t checked_block_bytes(const KvCacheShape& shape) {
  if (shape.layers < 1 || shape.layers > kMaxLayers || shape.num_pages < 1 || shape.page_tokens < 1 ||
      shape.num_kv_heads < 1 || shape.head_dim < 8 || shape.head_dim > kMaxHeadDim || shape.head_dim % 8 != 0)
    refuse("Expected a cache of at least one layer, page, token and head, and a head dim that decode supports");
  int64_t bytes = shape.token_bytes(), total;
  if (__builtin_mul_overflow(bytes, int64_t{shape.page_tokens}, &bytes) ||
      __builtin_mul_overflow(bytes, int64_t{shape.num_pages}, &bytes) ||
      __builtin_mul_overflow(bytes, 2 * int64_t{shape.layers}, &total))
    throw Error(ErrorCode::kOutOfMemory, "A KV cache of that shape does not fit 64-bit addresses");
  return bytes;
}

// A cache that no decode of the device could read is refused at once.
void expect_decodable(const Backend& backend, const KvCacheShape& shape) {
  PlanRequest request;
  request.num_kv_heads = shape.num_kv_heads;
  request.head_dim = shape.head_dim;
  request.kv_type = shape.dtype;
  backend.tile_tokens(request);
}

}  // namespace

KvCache::KvCache(Backend& backend, const KvCacheShape& shape)
    : shape_((expect_decodable(backend, shape), shape)),
      block_bytes_(checked_block_bytes(shape)),
      memory_(backend.allocate(static_cast<size_t>(bytes()))),
      copies_(backend.allocate(static_cast<size_t>(shape.num_pages) * sizeof(PageCopy))),
      pages_(shape.num_pages, shape.page_tokens) {}

int64_t KvCache::append(Backend& backend, std::span<const SequenceId> ids, std::span<const int32_t> counts) {
  make_copies(backend);
  Appended appended = pages_.append(ids, counts);
  pending_ = std::move(appended.copies);
  try {
    make_copies(backend);
  } catch (...) {  // the copies stay pending, all else is as it was
    for (size_t i = 0; i < ids.size(); ++i) pages_.truncate(ids[i], int64_t{pages_.length(ids[i])} - counts[i]);
    throw;
  }
  return appended.stamp;
}

void KvCache::make_copies(Backend& backend) {
  if (pending_.empty()) return;
  PageCopyParams params;
  params.memory = memory_.get();
  params.num_copies = static_cast<int64_t>(pending_.size());
  params.copies = static_cast<const PageCopy*>(copies_.get());
  params.num_blocks = 2 * int64_t{shape_.layers};
  params.block_bytes = block_bytes_;
  params.token_bytes = shape_.token_bytes();
  params.page_bytes = params.token_bytes * shape_.page_tokens;
  backend.upload(copies_.get(), pending_.data(), pending_.size() * sizeof(PageCopy));
  backend.copy_pages(params);
  pending_.clear();
}

void KvCache::check_layer(int32_t layer) const {
  if (layer < 0 || layer >= shape_.layers)
    refuse("Expected `layer` to be an integer from 0 to " + std::to_string(shape_.layers - 1) + ", got " +
           std::to_string(layer));
}

void KvCache::check_copied() const {
  if (!pending_.empty())
    throw Error(ErrorCode::kLaunchFailed, "A page of the KV cache could not be copied before: append again");
}

void KvCache::check_batch(const KvBatch& batch, bool writes) const {
  check_copied();
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    const auto name = [&] { return "`sequences[" + std::to_string(i) + "]`"; };
    if (batch.counts.empty()) {
      if (!pages_.is_live(batch.ids[i])) refuse("Expected " + name() + " to be live, got one that has been freed");
      continue;
    }
    if (!pages_.is_fresh(batch.ids[i], batch.stamp))
      refuse("Expected a step whose sequences are as its append left them, got one whose " + name() +
             " was appended to, truncated or freed since");
    if (writes && pages_.was_forked(batch.ids[i], batch.stamp))
      refuse("Expected a step to be written before its sequences are forked, got one whose " + name() +
             " was forked since");
    if (batch.counts[i] < 1 || batch.counts[i] > pages_.length(batch.ids[i]))
      refuse("Expected `counts` to be those of the append");
  }
}

CacheStrides KvCache::strides() const {
  const int64_t token = int64_t{shape_.num_kv_heads} * shape_.head_dim;
  return {token * shape_.page_tokens, token, shape_.head_dim};
}

void KvCache::write(Backend& backend, const KvBatch& batch, int32_t layer, AppendCall& call, const AppendSizes& sizes) {
  check_layer(layer);
  check_batch(batch, true);
  AppendParams& params = call.params;
  for (size_t i = 0; i < batch.counts.size(); ++i) {
    const std::span<const int32_t> pages = pages_.pages(batch.ids[i]);
    const int32_t length = pages_.length(batch.ids[i]);
    for (int32_t position = length - batch.counts[i]; position < length; ++position) {
      call.positions.push_back(position);
      call.slots.push_back(int64_t{pages[static_cast<size_t>(position / shape_.page_tokens)]} * shape_.page_tokens +
                           position % shape_.page_tokens);
    }
  }
  params.slots = call.slots.data();
  params.positions = call.positions.data();
  params.k_pages = block(layer, 0);
  params.v_pages = block(layer, 1);
  params.cache_strides = strides();
  params.kv_type = shape_.dtype;
  params.num_kv_heads = shape_.num_kv_heads;
  params.head_dim = shape_.head_dim;
  params.num_pages = shape_.num_pages;
  params.page_tokens = shape_.page_tokens;
  params.rows = static_cast<int32_t>(call.slots.size());
  check_append(params, sizes);
  backend.append(call);
}

std::vector<int32_t> KvCache::context_lengths(const KvBatch& batch) const {
  check_batch(batch, false);
  std::vector<int32_t> lengths;
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    const int32_t length = pages_.length(batch.ids[i]);
    const int32_t rows = batch.counts.empty() ? 1 : batch.counts[i];
    for (int32_t row = rows - 1; row >= 0; --row) lengths.push_back(length - row);
  }
  return lengths;
}

KvCache::Block KvCache::layer_block(int32_t layer, int32_t which) const {
  check_layer(layer);
  char* data = block(layer, which);
  return {std::shared_ptr<void>(memory_, data), reinterpret_cast<std::byte*>(data), static_cast<size_t>(block_bytes_)};
}

KvCache::Rows KvCache::fill_table(std::span<const SequenceId> ids, std::span<int32_t> lengths,
                                  std::span<int32_t> pages) {
  check_copied();
  pages_.expect_once(ids);
  const size_t rows = lengths.size(), max_pages = rows == 0 ? 0 : pages.size() / rows;
  if (ids.size() > rows)
    refuse("Expected at most " + std::to_string(rows) + " sequences, the table's rows, got " +
           std::to_string(ids.size()));
  for (size_t i = 0; i < ids.size(); ++i)
    if (pages_.pages(ids[i]).size() > max_pages)
      refuse("Expected `sequences[" + std::to_string(i) + "]` to take at most " + std::to_string(max_pages) +
             " pages, the table's columns, got " + std::to_string(pages_.pages(ids[i]).size()));
  Rows changed{0, 0};
  for (size_t i = 0; i < rows; ++i) {
    lengths[i] = i < ids.size() ? pages_.length(ids[i]) : 0;
    if (i >= ids.size()) continue;  // of an idle row nobody reads the pages
    const std::span<const int32_t> now = pages_.pages(ids[i]);
    const auto row = pages.subspan(i * max_pages, now.size());
    if (std::equal(now.begin(), now.end(), row.begin())) continue;
    std::copy(now.begin(), now.end(), row.begin());
    if (changed.begin == changed.end) changed.begin = static_cast<int32_t>(i);
    changed.end = static_cast<int32_t>(i + 1);
  }
  return changed;
}

void KvCache::read(const KvBatch& batch, int32_t layer, DecodeCall& call) const {
  check_layer(layer);
  check_batch(batch, false);
  size_t max_pages = 1;
  for (const SequenceId id : batch.ids) max_pages = std::max(max_pages, pages_.pages(id).size());
  call.page_table.clear();
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    const std::span<const int32_t> pages = pages_.pages(batch.ids[i]);
    for (int32_t row = batch.counts.empty() ? 1 : batch.counts[i]; row > 0; --row) {
      call.page_table.insert(call.page_table.end(), pages.begin(), pages.end());
      call.page_table.insert(call.page_table.end(), max_pages - pages.size(), -1);
    }
  }
  DecodeParams& params = call.params;
  params.page_table = call.page_table.data();
  params.max_pages = static_cast<int32_t>(max_pages);
  params.k = block(layer, 0);
  params.v = block(layer, 1);
  params.k_strides = params.v_strides = strides();
  params.kv_type = shape_.dtype;
  params.num_kv_heads = shape_.num_kv_heads;
  params.head_dim = shape_.head_dim;
  params.num_pages = shape_.num_pages;
  params.page_tokens = shape_.page_tokens;
  call.owners.push_back(memory_);
  call.k_on_device = call.v_on_device = true;
}

}  // namespace lean
