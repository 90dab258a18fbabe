// The parameters of one decode call: what a backend, its kernels and the tests all receive.
//
// Strides count elements. The head dimension is contiguous everywhere (stride 1). A contiguous cache is a paged one
// whose page is the whole capacity and whose page table is the identity, so one addressing rule serves both.
#pragma once

#include <cstdint>

#include "numeric.h"

namespace lean {

// What the kernels support. Head dims are multiples of 8.
inline constexpr int32_t kMaxHeadDim = 512;
inline constexpr int32_t kMaxQueryLen = 16;

struct QueryStrides {
  int64_t sequence;
  int64_t query;
  int64_t head;
};

struct CacheStrides {
  int64_t page;  // contiguous cache: from one sequence to the next
  int64_t token;
  int64_t head;
};

struct DecodeParams {
  const void* q;  // [batch, query_len, num_query_heads, head_dim] of q_type
  const void* k;  // [num_pages, page_tokens, num_kv_heads, head_dim] of kv_type, axes in any order through k_strides
  const void* v;  // as k, with v_strides
  void* out;      // [batch, query_len, num_query_heads, head_dim] of q_type, contiguous
  float* lse;     // [batch, query_len, num_query_heads], contiguous; natural logarithm
  const int32_t* context_lengths;  // [batch]; 0 is allowed
  const int32_t* page_table;       // [batch, max_pages]; null: contiguous, page index = sequence

  QueryStrides q_strides;
  CacheStrides k_strides;
  CacheStrides v_strides;

  DType q_type;
  DType kv_type;

  int32_t batch;
  int32_t query_len;        // 1 to kMaxQueryLen; query i sees positions <= context_length - query_len + i
  int32_t num_query_heads;  // a multiple of num_kv_heads
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t num_pages;    // contiguous: batch
  int32_t page_tokens;  // contiguous: the capacity
  int32_t max_pages;    // contiguous: 1

  float scale;  // softmax scale, natural base

  LEAN_HD int32_t group_size() const { return num_query_heads / num_kv_heads; }
  // The query rows that share one output tile's K and V: row = query * group_size + head within the group.
  LEAN_HD int32_t rows() const { return group_size() * query_len; }
};

// A row of an output tile, as the tensors name it.
struct QueryRow {
  int32_t query;
  int32_t head;
};

LEAN_HD inline QueryRow query_row(int32_t query_len, int32_t group_size, int32_t kv_head, int32_t row) {
  const int32_t query = query_len == 1 ? 0 : row / group_size;
  return {query, kv_head * group_size + row - query * group_size};
}
LEAN_HD inline QueryRow query_row(const DecodeParams& params, int32_t kv_head, int32_t row) {
  return query_row(params.query_len, params.group_size(), kv_head, row);
}

// How many context tokens a query sees: the last query sees them all, each earlier one a token less.
LEAN_HD inline int32_t visible_tokens(const DecodeParams& params, int32_t context_length, int32_t query) {
  const int32_t visible = context_length - (params.query_len - 1 - query);
  return visible > 0 ? visible : 0;
}

// Element offsets; the page of a token comes from page_index.
LEAN_HD inline int64_t query_offset(const DecodeParams& params, int32_t sequence, QueryRow row) {
  return sequence * params.q_strides.sequence + row.query * params.q_strides.query + row.head * params.q_strides.head;
}

// The row of `out` and `lse`, counted in query rows.
LEAN_HD inline int64_t output_row(const DecodeParams& params, int32_t sequence, QueryRow row) {
  return (int64_t{sequence} * params.query_len + row.query) * params.num_query_heads + row.head;
}

LEAN_HD inline int32_t page_index(const DecodeParams& params, int32_t sequence, int32_t page) {
  return params.page_table ? params.page_table[int64_t{sequence} * params.max_pages + page] : sequence;
}

}  // namespace lean
