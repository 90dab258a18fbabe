// The tensors of a case in host memory: values, layouts, page tables, and poison wherever a kernel must not look.
//
// Values depend on what they are the value of (sequence, token, head, dim) and on nothing else: not on the group size,
// the layout or the pages. So results compare between cases, and no mistake hides in a correlation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cases.h"

namespace lean::cases {

struct Tensors {
  DecodeParams params;  // without pointers
  std::vector<std::byte> q, k, v;
  std::vector<int32_t> page_table;       // empty: contiguous
  std::vector<int32_t> context_lengths;  // as a kernel finds them, corrupt ones included
  int64_t tokens_in_cache = 0;           // that contexts reach and pages hold
  // Every value in float32, as rounded to its type; what the reference works on. Row-major.
  std::vector<float> q_values;  // [batch][query][head][dim], rounded to the type of K, which the products see
  std::vector<float> k_values;  // [sequence start + token][kv_head][dim]
  std::vector<float> v_values;
  std::vector<int64_t> first_token;  // [batch] where a sequence starts in k_values
  std::vector<int32_t> contexts;     // [batch] lengths as they count

  size_t out_bytes() const;
  size_t out_rows() const;  // [batch][query][head]
};

// `contexts` are those of the first launch or of the next one; the cache has room for both.
Tensors make_tensors(const Case& c, const std::vector<int32_t>& contexts);

}  // namespace lean::cases
