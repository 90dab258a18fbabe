// The parameters of what fills a paged KV cache: writing rows into their pages, and copying pages.
//
// Strides count elements; the head dimension is contiguous everywhere (stride 1).
#pragma once

#include <cstdint>

#include "decode_params.h"
#include "numeric.h"
#include "rotary.h"

namespace lean {

struct RowStrides {
  int64_t row;
  int64_t head;
};

// Writes K and V of `rows` tokens into one layer's pages, converted to the cache's type. With inverse frequencies, K is
// rotated before it is stored, and q, where there is one, into q_out.
struct AppendParams {
  const void* k;                      // [rows, num_kv_heads, head_dim] of k_type, with k_strides
  const void* v;                      // [rows, num_kv_heads, head_dim] of v_type, with v_strides
  const void* q;                      // [rows, num_query_heads, head_dim] of q_type, with q_strides; null: no queries
  void* q_out;                        // as q, with q_out_strides; may be q itself; null with q
  void* k_pages;                      // [num_pages, page_tokens, num_kv_heads, head_dim] of kv_type, with cache_strides
  void* v_pages;                      // as k_pages
  const int64_t* slots;               // [rows] page x page_tokens + slot in the page, each row its own
  const int32_t* positions;           // [rows] what rows are rotated by
  const double* inverse_frequencies;  // [rotary_dims / 2]; null: nothing is rotated

  RowStrides k_strides;
  RowStrides v_strides;
  RowStrides q_strides;
  RowStrides q_out_strides;
  CacheStrides cache_strides;

  DType k_type;
  DType v_type;
  DType q_type;
  DType kv_type;
  RotaryPairing pairing;

  int32_t rows;
  int32_t num_kv_heads;
  int32_t num_query_heads;  // 0 without q
  int32_t head_dim;
  int32_t num_pages;
  int32_t page_tokens;
  int32_t rotary_dims;  // even, up to head_dim; the dimensions after them stay as they are
  double amplitude;     // what rotated dimensions are multiplied by
};

// Where a row of K or V goes, in elements.
LEAN_HD inline int64_t slot_offset(const AppendParams& params, int32_t row) {
  const int64_t slot = params.slots[row];
  return slot / params.page_tokens * params.cache_strides.page + slot % params.page_tokens * params.cache_strides.token;
}

// The first tokens of a page, copied to another page in every layer.
struct PageCopy {
  int32_t source;
  int32_t target;
  int32_t tokens;
};

struct PageCopyParams {
  void* memory;            // [num_blocks, num_pages, page_bytes]: K and V of every layer
  const PageCopy* copies;  // [num_copies] no target is a source or another copy's target
  int64_t num_copies;
  int64_t num_blocks;
  int64_t block_bytes;  // from one block to the next
  int64_t page_bytes;
  int64_t token_bytes;  // tokens of a page lie one after the other
};

}  // namespace lean
