#include "merge_states.h"

#include <vector>

#include "../core/softmax_state.h"

namespace lean {

namespace {

template <class T>
void merge_typed(std::span<const FinishedPart> parts, int64_t rows, int64_t head_dim, T* out, float* lse) {
  std::vector<float> acc(static_cast<size_t>(head_dim));
  for (int64_t row = 0; row < rows; ++row) {
    SoftmaxState state;
    acc.assign(acc.size(), 0.0f);
    for (const FinishedPart& part : parts) {
      const Merge merged = merge(state, state_from_lse(part.lse[row]));
      state = merged.state;
      if (merged.weight_b == 0.0f) continue;  // an empty part: whatever its output holds
      const T* values = static_cast<const T*>(part.out) + row * head_dim;
      for (int64_t d = 0; d < head_dim; ++d) {
        float& sum = acc[static_cast<size_t>(d)];
        sum = merged.weight_a * sum + merged.weight_b * to_float(values[d]);
      }
    }
    const Finish finished = finish(state);
    for (int64_t d = 0; d < head_dim; ++d)
      out[row * head_dim + d] = from_float<T>(acc[static_cast<size_t>(d)] * finished.normalise);
    lse[row] = finished.lse;
  }
}

}  // namespace

void merge_states(std::span<const FinishedPart> parts, DType type, int64_t rows, int64_t head_dim, void* out,
                  float* lse) {
  switch (type) {
    case DType::kF32:
      return merge_typed(parts, rows, head_dim, static_cast<float*>(out), lse);
    case DType::kF16:
      return merge_typed(parts, rows, head_dim, static_cast<Float16*>(out), lse);
    case DType::kBF16:
      return merge_typed(parts, rows, head_dim, static_cast<BFloat16*>(out), lse);
  }
}

}  // namespace lean
