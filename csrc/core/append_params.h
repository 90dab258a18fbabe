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
  const void* k;  // [rows, num_kv_heads, head_dim] of k_type, with k_strides
  const void* v;  // [rows, num_kv_heads, head_dim] of v_type, with v_strides
  const void* q;  // [rows, num_query_heads, head_dim] of q_type, with q_strides; null: no queries
  void* q_out;    // as q, with q_out_strides; may be q itself; null with q
  void* k_pages;  // [num_pages, page_tokens, num_kv_heads, head_dim] of kv_type, with cache_strides
  void* v_pages;  // as k_pages
  // Where rows go: given by the host, or found from a decode's own arguments, row i being sequence i's last token.
  const int64_t* slots;            // [rows] page x page_tokens + slot in the page, each row its own; null: the latter
  const int32_t* positions;        // [rows] what rows are rotated by; null with slots
  const int32_t* context_lengths;  // [rows] with this token counted; 0: the row is idle; null: slots
  const int32_t* page_table;       // [rows, max_pages]; null: slots
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
  int32_t max_pages;    // of the page table
  int32_t rotary_dims;  // even, up to head_dim; the dimensions after them stay as they are
  double amplitude;     // what rotated dimensions are multiplied by
};

// Instead of a slot, why a row goes nowhere.
inline constexpr int64_t kIdleRow = -1;
inline constexpr int64_t kBadLengthRow = -2;  // below 0, or more than the page table can hold
inline constexpr int64_t kBadPageRow = -3;    // a page that the cache does not have

// A row's slot, below 0 for one that goes nowhere, and its position in its sequence.
struct RowPlace {
  int64_t slot;
  int32_t position;
};

// Of lengths and page indices in device memory, only those that the cache can hold are followed.
LEAN_HD inline RowPlace row_place(const AppendParams& params, int32_t row) {
  if (params.slots) return {params.slots[row], params.positions[row]};
  const int32_t length = params.context_lengths[row];
  if (length == 0) return {kIdleRow, 0};
  if (length < 0 || length > int64_t{params.max_pages} * params.page_tokens) return {kBadLengthRow, 0};
  const int32_t position = length - 1;
  const int32_t page = params.page_table[int64_t{row} * params.max_pages + position / params.page_tokens];
  if (page < 0 || page >= params.num_pages) return {kBadPageRow, 0};
  return {int64_t{page} * params.page_tokens + position % params.page_tokens, position};
}

// Where a slot of K or V lies, in elements.
LEAN_HD inline int64_t slot_offset(const AppendParams& params, int64_t slot) {
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
  const PageCopy* copies;  // [num_copies] in the device's memory too; no target is a source or another copy's target
  int64_t num_copies;
  int64_t num_blocks;
  int64_t block_bytes;  // from one block to the next
  int64_t page_bytes;
  int64_t token_bytes;  // tokens of a page lie one after the other
};

}  // namespace lean
