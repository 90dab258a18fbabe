// The tile code, written once over a SIMD type (simd_*.h); each tile_*.cpp instantiates it for one instruction set.
//
// Three steps per LeanTile: scores = q k^T, weights = softmax step, acc += weights v. All rows of the group run against
// each K and V row while it is in cache, so memory is read once for the group. Register blocks: kTokenBlock tokens x
// kRowBlock rows for the scores, kDimBlock vectors x kRowBlock rows for the sum.
#pragma once

#include "tile.h"

namespace lean::cpu {

#define LEAN_INLINE inline __attribute__((always_inline))

template <class Simd, class T>
struct TileKernel {
  using F = typename Simd::F;
  static constexpr int32_t kLanes = Simd::kLanes;

  const TileFold& fold;
  const int32_t stride;       // floats from one row's q or acc to the next
  const int32_t whole;        // vectors that lie inside head_dim
  const bool has_half;        // head_dim ends in half a vector

  explicit TileKernel(const TileFold& tile)
      : fold(tile), stride(padded(tile.head_dim)), whole(tile.head_dim / kLanes), has_half(tile.head_dim % kLanes != 0) {}

  LEAN_INLINE const T* k_row(int32_t token) const { return reinterpret_cast<const T*>(fold.k_rows[token] + fold.k_offset); }
  LEAN_INLINE const T* v_row(int32_t token) const { return reinterpret_cast<const T*>(fold.v_rows[token] + fold.v_offset); }

  // Scores of R rows against kTokenBlock tokens. Past the last token the last one is read again; its scores are dropped.
  template <int32_t R>
  LEAN_INLINE void score_block(int32_t row, int32_t token) const {
    const T* k[kTokenBlock];
    for (int32_t n = 0; n < kTokenBlock; ++n) k[n] = k_row(token + n < fold.count ? token + n : fold.count - 1);
    const float* q = fold.q + int64_t{row} * stride;
    F sum[R][kTokenBlock];
    for (int32_t r = 0; r < R; ++r)
      for (int32_t n = 0; n < kTokenBlock; ++n) sum[r][n] = Simd::zero();
    for (int32_t c = 0; c < whole; ++c) {
      F kv[kTokenBlock];
      for (int32_t n = 0; n < kTokenBlock; ++n) kv[n] = Simd::load(k[n] + c * kLanes);
      for (int32_t r = 0; r < R; ++r) {
        const F query = Simd::load(q + int64_t{r} * stride + c * kLanes);
        for (int32_t n = 0; n < kTokenBlock; ++n) sum[r][n] = Simd::fma(query, kv[n], sum[r][n]);
      }
    }
    if (has_half)
      for (int32_t n = 0; n < kTokenBlock; ++n) {
        const F kv = Simd::load_half(k[n] + whole * kLanes);
        for (int32_t r = 0; r < R; ++r)
          sum[r][n] = Simd::fma(Simd::load(q + int64_t{r} * stride + whole * kLanes), kv, sum[r][n]);
      }
    for (int32_t r = 0; r < R; ++r)
      Simd::store_sums(fold.scores + int64_t{row + r} * kTileTokens + token, sum[r], fold.scale);
  }

  template <int32_t R>
  LEAN_INLINE void score_rows(int32_t row) const {
    for (int32_t token = 0; token < fold.count; token += kTokenBlock) {
      if (row == 0) fold.prefetch_k->step();
      score_block<R>(row, token);
    }
  }

  // The softmax step of one row: raises the maximum, rescales what was summed, turns scores into weights.
  // Tokens that the row does not see get the weight 0 whatever their K holds.
  LEAN_INLINE void weigh_row(int32_t row) const {
    float* scores = fold.scores + int64_t{row} * kTileTokens;
    const int32_t visible = fold.visible ? fold.visible[row] : fold.count;
    const int32_t vectors = (fold.count + kLanes - 1) / kLanes;
    for (int32_t token = visible; token < vectors * kLanes; ++token) scores[token] = kNegInf;
    F highest = Simd::load(scores);
    for (int32_t i = 1; i < vectors; ++i) highest = Simd::max(highest, Simd::load(scores + i * kLanes));
    SoftmaxState& state = fold.states[row];
    const float tile_max = Simd::reduce_max(highest);
    const float m = tile_max > state.m ? tile_max : state.m;
    if (m != state.m) {
      const float factor = rescale_factor(state.m, m);
      state.m = m;
      state.l *= factor;
      float* acc = fold.acc + int64_t{row} * stride;
      const F factors = Simd::set1(factor);
      for (int32_t d = 0; d < stride; d += kLanes) Simd::store(acc + d, Simd::mul(Simd::load(acc + d), factors));
    }
    const F origin = Simd::set1(safe_max(m));
    F total = Simd::zero();
    for (int32_t i = 0; i < vectors; ++i) {
      const F weight = Simd::exp2(Simd::sub(Simd::load(scores + i * kLanes), origin));
      Simd::store(scores + i * kLanes, weight);
      total = Simd::add(total, weight);
    }
    state.l += Simd::reduce_add(total);
  }

  template <int32_t R, int32_t C, bool kHalf>
  LEAN_INLINE void sum_block(int32_t row, int32_t dim) const {
    float* acc = fold.acc + int64_t{row} * stride + dim;
    const float* weights = fold.scores + int64_t{row} * kTileTokens;
    const bool prefetches = row == 0 && dim == 0;
    F sum[R][C];
    for (int32_t r = 0; r < R; ++r)
      for (int32_t c = 0; c < C; ++c) sum[r][c] = Simd::load(acc + int64_t{r} * stride + c * kLanes);
    for (int32_t token = 0; token < fold.count; ++token) {
      if (prefetches && token % kTokenBlock == 0) fold.prefetch_v->step();
      const T* v = v_row(token) + dim;
      F kv[C];
      for (int32_t c = 0; c < C; ++c) kv[c] = kHalf ? Simd::load_half(v + c * kLanes) : Simd::load(v + c * kLanes);
      for (int32_t r = 0; r < R; ++r) {
        const F weight = Simd::set1(weights[int64_t{r} * kTileTokens + token]);
        for (int32_t c = 0; c < C; ++c) sum[r][c] = Simd::fma(weight, kv[c], sum[r][c]);
      }
    }
    for (int32_t r = 0; r < R; ++r)
      for (int32_t c = 0; c < C; ++c) Simd::store(acc + int64_t{r} * stride + c * kLanes, sum[r][c]);
  }

  template <int32_t R>
  LEAN_INLINE void sum_rows(int32_t row) const {
    int32_t c = 0;
    for (; c + Simd::kDimBlock <= whole; c += Simd::kDimBlock) sum_block<R, Simd::kDimBlock, false>(row, c * kLanes);
    for (; c + 2 <= whole; c += 2) sum_block<R, 2, false>(row, c * kLanes);
    for (; c < whole; ++c) sum_block<R, 1, false>(row, c * kLanes);
    if (has_half) sum_block<R, 1, true>(row, c * kLanes);
  }

  // Rows in blocks of kRowBlock, the rest one by one or in pairs.
  LEAN_INLINE void run() const {
    int32_t row = 0;
    for (; row + Simd::kRowBlock <= fold.rows; row += Simd::kRowBlock) score_rows<Simd::kRowBlock>(row);
    for (; row + 2 <= fold.rows; row += 2) score_rows<2>(row);
    for (; row < fold.rows; ++row) score_rows<1>(row);
    for (row = 0; row < fold.rows; ++row) weigh_row(row);
    row = 0;
    for (; row + Simd::kRowBlock <= fold.rows; row += Simd::kRowBlock) sum_rows<Simd::kRowBlock>(row);
    for (; row + 2 <= fold.rows; row += 2) sum_rows<2>(row);
    for (; row < fold.rows; ++row) sum_rows<1>(row);
  }
};

template <class Simd, class T>
void fold_tile(const TileFold& tile) {
  TileKernel<Simd, T>(tile).run();
}

// 2^x for x <= 0, the polynomial part: |fraction| <= 1/2, Taylor's series to degree 7, error 5e-9 relative.
template <class Simd>
LEAN_INLINE typename Simd::F exp2_fraction(typename Simd::F fraction) {
  typename Simd::F p = Simd::set1(1.5252733804e-5f);
  p = Simd::fma(p, fraction, Simd::set1(1.5403530393e-4f));
  p = Simd::fma(p, fraction, Simd::set1(1.3333558146e-3f));
  p = Simd::fma(p, fraction, Simd::set1(9.6181291076e-3f));
  p = Simd::fma(p, fraction, Simd::set1(5.5504108665e-2f));
  p = Simd::fma(p, fraction, Simd::set1(2.4022650696e-1f));
  p = Simd::fma(p, fraction, Simd::set1(6.9314718056e-1f));
  return Simd::fma(p, fraction, Simd::set1(1.0f));
}

// Below this, 2^x counts as 0: it would be subnormal, and -inf must give 0.
inline constexpr float kExp2Floor = -126.0f;

template <class Simd>
constexpr TileCode tile_code(const char* name, bool (*supported)(), void (*read)(const void*, size_t)) {
  return {name, supported, fold_tile<Simd, float>, fold_tile<Simd, Float16>, fold_tile<Simd, BFloat16>, read};
}

}  // namespace lean::cpu
