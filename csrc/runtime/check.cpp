#include "check.h"

#include <limits>
#include <string>

#include "error.h"

namespace lean {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

void expect_range(const char* what, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    refuse("Expected " + std::string(what) + " from " + std::to_string(low) + " to " + std::to_string(high) + ", got " +
           std::to_string(value));
}

// One past the last element that `count` steps of `stride` reach, added up over the axes; refuses what overflows.
class Extent {
 public:
  explicit Extent(const char* name) : name_(name) {}

  Extent& axis(int64_t count, int64_t stride) {
    int64_t reach;
    if (stride < 0 || __builtin_mul_overflow(count - 1, stride, &reach) ||
        __builtin_add_overflow(elements_, reach, &elements_))
      refuse("Expected strides of `" + std::string(name_) + "` that are not negative and stay in 64 bits, got " +
             std::to_string(stride));
    return *this;
  }

  void fits(size_t bytes, DType type) const {
    const size_t held = bytes / static_cast<size_t>(dtype_size(type));
    if (static_cast<uint64_t>(elements_) > held)
      refuse("Expected `" + std::string(name_) + "` to hold " + std::to_string(elements_) + " elements, got " +
             std::to_string(held));
  }

 private:
  const char* name_;
  int64_t elements_ = 1;
};

void check_shape(const DecodeParams& params) {
  constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
  expect_range("batch", params.batch, 1, kMaxInt32);
  expect_range("queryLen", params.query_len, 1, kMaxQueryLen);
  expect_range("numKvHeads", params.num_kv_heads, 1, kMaxInt32);
  expect_range("numQueryHeads", params.num_query_heads, params.num_kv_heads, kMaxInt32);
  if (params.num_query_heads % params.num_kv_heads != 0)
    refuse("Expected numQueryHeads to be a multiple of numKvHeads " + std::to_string(params.num_kv_heads) + ", got " +
           std::to_string(params.num_query_heads));
  expect_range("group size x queryLen", int64_t{params.group_size()} * params.query_len, 1, 1 << 16);
  expect_range("headDim", params.head_dim, 8, kMaxHeadDim);
  if (params.head_dim % 8 != 0)
    refuse("Expected headDim to be a multiple of 8, got " + std::to_string(params.head_dim));
  expect_range("pageTokens", params.page_tokens, 1, kMaxInt32);
  expect_range("the number of pages", params.num_pages, 0, kMaxInt32);
  expect_range("maxPages", params.max_pages, 0, kMaxInt32);
}

// Returns whether any context is longer than 0.
bool check_contexts(const DecodeParams& params) {
  const int64_t capacity = int64_t{params.max_pages} * params.page_tokens;
  bool any = false;
  for (int32_t sequence = 0; sequence < params.batch; ++sequence) {
    const int64_t length = params.context_lengths[sequence];
    const auto name = [&] { return "`contextLengths`[" + std::to_string(sequence) + "]"; };
    if (length < 0 || length > capacity)
      refuse("Expected " + name() + " from 0 to the capacity " + std::to_string(capacity) + ", got " +
             std::to_string(length));
    any |= length > 0;
    if (!params.page_table) continue;
    const int64_t pages = (length + params.page_tokens - 1) / params.page_tokens;
    for (int32_t page = 0; page < pages; ++page) {
      const int32_t index = page_index(params, sequence, page);
      if (index < 0 || index >= params.num_pages)
        refuse("Expected `pageTable`[" + std::to_string(sequence) + "][" + std::to_string(page) + "] from 0 to " +
               std::to_string(params.num_pages - 1) + ", got " + std::to_string(index));
    }
  }
  return any;
}

}  // namespace

void check_params(const DecodeParams& params, const BufferSizes& sizes) {
  check_shape(params);
  const int64_t rows = int64_t{params.batch} * params.query_len * params.num_query_heads;
  Extent("q")
      .axis(params.batch, params.q_strides.sequence)
      .axis(params.query_len, params.q_strides.query)
      .axis(params.num_query_heads, params.q_strides.head)
      .axis(params.head_dim, 1)
      .fits(sizes.q, params.q_type);
  Extent("out").axis(rows, params.head_dim).axis(params.head_dim, 1).fits(sizes.out, params.q_type);
  Extent("lse").axis(rows, 1).fits(sizes.lse, DType::kF32);
  if (!check_contexts(params)) return;  // nothing of K or V is read
  const auto check_cache = [&](const char* name, const CacheStrides& strides, size_t bytes) {
    Extent(name)
        .axis(params.num_pages, strides.page)
        .axis(params.page_tokens, strides.token)
        .axis(params.num_kv_heads, strides.head)
        .axis(params.head_dim, 1)
        .fits(bytes, params.kv_type);
  };
  check_cache("k", params.k_strides, sizes.k);
  check_cache("v", params.v_strides, sizes.v);
}

}  // namespace lean
