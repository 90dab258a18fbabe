#include "check.h"

#include <cstdint>
#include <limits>
#include <string>

#include "error.h"

namespace lean {

namespace {

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
      refuse_stride(stride);
    return *this;
  }

  size_t bytes(DType type) const {
    int64_t bytes;
    if (__builtin_mul_overflow(elements_, dtype_size(type), &bytes)) refuse_stride(elements_);
    return static_cast<size_t>(bytes);
  }

 private:
  [[noreturn]] void refuse_stride(int64_t stride) const {
    refuse("Expected strides of `" + std::string(name_) + "` that are not negative and stay in 64 bits, got " +
           std::to_string(stride));
  }

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

size_t cache_bytes(const char* name, const DecodeParams& params, const CacheStrides& strides) {
  if (params.num_pages == 0) return 0;
  return Extent(name)
      .axis(params.num_pages, strides.page)
      .axis(params.page_tokens, strides.token)
      .axis(params.num_kv_heads, strides.head)
      .axis(params.head_dim, 1)
      .bytes(params.kv_type);
}

size_t rows_bytes(const char* name, const AppendParams& params, int32_t heads, const RowStrides& strides, DType type) {
  return Extent(name).axis(params.rows, strides.row).axis(heads, strides.head).axis(params.head_dim, 1).bytes(type);
}

void expect_fits(const char* name, size_t needed, size_t held, DType type) {
  const auto size = static_cast<size_t>(dtype_size(type));
  if (needed > held)
    refuse("Expected `" + std::string(name) + "` to hold " + std::to_string(needed / size) + " elements, got " +
           std::to_string(held / size));
}

}  // namespace

BufferSizes needed_bytes(const DecodeParams& params) {
  const int64_t rows = int64_t{params.batch} * params.query_len * params.num_query_heads;
  const Extent q = Extent("q")
                       .axis(params.batch, params.q_strides.sequence)
                       .axis(params.query_len, params.q_strides.query)
                       .axis(params.num_query_heads, params.q_strides.head)
                       .axis(params.head_dim, 1);
  return {q.bytes(params.q_type), cache_bytes("k", params, params.k_strides),
          cache_bytes("v", params, params.v_strides),
          Extent("out").axis(rows, params.head_dim).axis(params.head_dim, 1).bytes(params.q_type),
          Extent("lse").axis(rows, 1).bytes(DType::kF32)};
}

namespace {

void check_sizes(const DecodeParams& params, const BufferSizes& sizes, bool reads_cache) {
  const BufferSizes needed = needed_bytes(params);
  expect_fits("q", needed.q, sizes.q, params.q_type);
  expect_fits("out", needed.out, sizes.out, params.q_type);
  expect_fits("lse", needed.lse, sizes.lse, DType::kF32);
  if (!reads_cache) return;
  expect_fits("k", needed.k, sizes.k, params.kv_type);
  expect_fits("v", needed.v, sizes.v, params.kv_type);
}

}  // namespace

void check_params(const DecodeParams& params, const BufferSizes& sizes) {
  check_shape(params);
  check_sizes(params, sizes, check_contexts(params));
}

void check_params_on_device(const DecodeParams& params, const BufferSizes& sizes) {
  check_shape(params);
  check_sizes(params, sizes, /*reads_cache=*/true);
}

AppendSizes needed_bytes(const AppendParams& params) {
  const auto bytes = [&](const char* name, int32_t heads, const RowStrides& strides, DType type) {
    return heads == 0 ? 0 : rows_bytes(name, params, heads, strides, type);
  };
  const int32_t q_heads = params.q ? params.num_query_heads : 0;
  return {bytes("k", params.num_kv_heads, params.k_strides, params.k_type),
          bytes("v", params.num_kv_heads, params.v_strides, params.v_type),
          bytes("q", q_heads, params.q_strides, params.q_type),
          bytes("qOut", q_heads, params.q_out_strides, params.q_type),
          params.inverse_frequencies ? static_cast<size_t>(params.rotary_dims / 2) * sizeof(double) : 0};
}

namespace {

// Where a call's rows lie, [rows, heads, head_dim].
struct Rows {
  const char* name;
  intptr_t begin;
  int64_t bytes;      // from the first element to past the last
  int64_t row_bytes;  // from one row to the next

  Rows(const char* rows_name, const void* data, size_t size, int64_t stride, DType type)
      : name(rows_name),
        begin(reinterpret_cast<intptr_t>(data)),
        bytes(static_cast<int64_t>(size)),
        row_bytes(stride * dtype_size(type)) {}
};

// Rows may lie between each other's, as those of a fused projection of q, k and v do.
bool share_memory(const Rows& a, const Rows& b, int64_t rows) {
  if (a.begin >= b.begin + b.bytes || b.begin >= a.begin + a.bytes) return false;
  const int64_t step = a.row_bytes;
  if (b.row_bytes != step || step <= 0) return true;
  const int64_t row_of_a = a.bytes - (rows - 1) * step, row_of_b = b.bytes - (rows - 1) * step;
  const int64_t between = ((b.begin - a.begin) % step + step) % step;
  return between < row_of_a || between + row_of_b > step;
}

// Rotated queries are written while others still read K and V.
void expect_queries_apart(const AppendParams& params, const AppendSizes& sizes) {
  if (!params.q) return;
  const bool same_rows = params.rows == 1 || params.q_strides.row == params.q_out_strides.row;
  const bool same_heads = params.num_query_heads == 1 || params.q_strides.head == params.q_out_strides.head;
  const bool in_place = params.q == params.q_out && same_rows && same_heads;
  const Rows target(in_place ? "q" : "qOut", params.q_out, sizes.q_out, params.q_out_strides.row, params.q_type);
  const Rows k("k", params.k, sizes.k, params.k_strides.row, params.k_type);
  const Rows v("v", params.v, sizes.v, params.v_strides.row, params.v_type);
  const Rows q("q", params.q, sizes.q, params.q_strides.row, params.q_type);
  for (const Rows* other : {&k, &v, in_place ? nullptr : &q})
    if (other && share_memory(target, *other, params.rows))
      refuse("Expected `" + std::string(target.name) + "` to have memory of its own, got memory that `" + other->name +
             "` uses too");
}

}  // namespace

void check_append(const AppendParams& params, const AppendSizes& sizes) {
  constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
  expect_range("rows", params.rows, 1, kMaxInt32);
  expect_range("numQueryHeads", params.num_query_heads, params.q ? 1 : 0, params.q ? kMaxInt32 : 0);
  const AppendSizes needed = needed_bytes(params);
  expect_fits("k", needed.k, sizes.k, params.k_type);
  expect_fits("v", needed.v, sizes.v, params.v_type);
  expect_fits("q", needed.q, sizes.q, params.q_type);
  expect_fits("qOut", needed.q_out, sizes.q_out, params.q_type);
  expect_range("rotary dims", params.rotary_dims, 0, params.head_dim);
  if (needed.frequencies > sizes.frequencies)
    refuse("Expected an inverse frequency for each pair of " + std::to_string(params.rotary_dims) + " rotary dims");
  expect_queries_apart(params, needed);
  if (!params.slots) return;
  const int64_t num_slots = int64_t{params.num_pages} * params.page_tokens;
  for (int32_t row = 0; row < params.rows; ++row) expect_range("slots", params.slots[row], 0, num_slots - 1);
}

}  // namespace lean
