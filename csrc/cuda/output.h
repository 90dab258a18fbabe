// Where results go: rows of `out` and `lse`, or a worker's partial slot.
#pragma once

#include "../core/decode_params.h"
#include "../core/softmax_state.h"
#include "kernel_params.h"
#include "traits.h"

namespace lean {

LEAN_DEVICE Float4 operator*(float factor, Float4 v) {
  return {factor * v.x, factor * v.y, factor * v.z, factor * v.w};
}
LEAN_DEVICE Float4 operator+(Float4 a, Float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// rescale_factor() by the approximate exponential, in two instructions: what l and acc of a state with maximum `m`
// weigh in one with maximum `merged`. The empty state weighs nothing.
LEAN_DEVICE float weight_of(float m, float merged) { return exp2_approx(m - safe_max(merged)); }

// Four neighbouring dims of an output row, rounded to q's type. Dims past the tensors' head dim are dropped.
LEAN_DEVICE void store_output(const DecodeParams& decode, int64_t output_row, int32_t dim, Float4 value) {
  if (dim >= decode.head_dim) return;
  const int64_t offset = output_row * decode.head_dim + dim;
  if (decode.q_type == DType::kF32) {
    store_global(reinterpret_cast<Float4*>(static_cast<float*>(decode.out) + offset), value);
    return;
  }
  const Word2 words = decode.q_type == DType::kF16
                          ? Word2{pack_pair<Float16>(value.x, value.y), pack_pair<Float16>(value.z, value.w)}
                          : Word2{pack_pair<BFloat16>(value.x, value.y), pack_pair<BFloat16>(value.z, value.w)};
  store_global(reinterpret_cast<Word2*>(static_cast<uint16_t*>(decode.out) + offset), words);
}

// One partial in the workspace: float acc[rows][kHeadDim], then SoftmaxState[rows].
template <class K>
struct PartialSlot {
  float* base;
  int32_t rows;  // that it has room for

  LEAN_DEVICE Float4* acc(int32_t row, int32_t dim) const {
    return reinterpret_cast<Float4*>(base + row * K::kHeadDim + dim);
  }
  LEAN_DEVICE Float2* state(int32_t row) const {
    return reinterpret_cast<Float2*>(base + rows * K::kHeadDim + 2 * row);
  }
};

// The part of the workspace that belongs to the CTA's row block and KV head. `rows` is the space of a slot: the rows of
// the first, fullest block.
template <class K>
struct Workspace {
  float* partials;
  uint32_t* counters;
  int32_t rows;
  int64_t slots;
  int64_t slot_size;  // in floats

  LEAN_DEVICE static Workspace of_cta(const KernelParams& params, int32_t rows) {
    const int32_t block = opaque(cta_index_y()) * params.heads_per_tile + Team::of_cta(params).head;
    const int64_t slot_size = slot_floats(rows, K::kHeadDim);
    const int64_t slots = 2 * params.workers;
    return {params.partials + block * slots * slot_size, params.counters + block * 2 * slots, rows, slots, slot_size};
  }

  LEAN_DEVICE PartialSlot<K> slot(int64_t index) const { return {partials + index * slot_size, rows}; }

  // Arrivals at a group of contributors, named by the slot of its first; last level: of a whole output tile.
  LEAN_DEVICE uint32_t* group_counter(int64_t slot) const { return counters + slot; }
  LEAN_DEVICE uint32_t* output_counter(int64_t slot) const { return counters + slots + slot; }
};

// Sequences without tokens own no tile, so no worker meets them in its range: the CTAs share them out, and in each its
// first `threads` threads.
template <class K>
LEAN_DEVICE void write_empty_outputs(const DecodeParams& decode, const TileMap& map, const RowBlock& block,
                                     int threads) {
  const int32_t quads = decode.head_dim / 4;
  const int32_t items = decode.num_kv_heads * block.count * quads;
  for (int32_t sequence = cta_index_x(); sequence < decode.batch; sequence += num_ctas_x()) {
    if (map.cost_before[sequence] != map.cost_before[sequence + 1]) continue;
#pragma unroll 1
    for (int32_t i = thread_index(); i < items; i += threads) {
      const int32_t row = i / quads;
      const QueryRow query =
          lean::query_row(block.query_len, block.group_size, row / block.count, block.first + row % block.count);
      const int64_t target = output_row(decode, sequence, query);
      store_output(decode, target, i % quads * 4, Float4{0, 0, 0, 0});
      if (i % quads == 0) store_global(decode.lse + target, kNegInf);
    }
  }
}

}  // namespace lean
