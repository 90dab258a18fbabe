// Merges results that were computed over disjoint parts of a context, each given by its output and log-sum-exp.
#pragma once

#include <cstdint>
#include <span>

#include "../core/numeric.h"

namespace lean {

struct FinishedPart {
  const void* out;   // [rows, head_dim] of `type`, contiguous
  const float* lse;  // [rows]
};

// out [rows, head_dim] of `type` and lse [rows] may be those of a part. Parts merge in the order given.
void merge_states(std::span<const FinishedPart> parts, DType type, int64_t rows, int64_t head_dim, void* out,
                  float* lse);

}  // namespace lean
