// The tile code, written once over a SIMD type; each tile_*.cpp defines one and instantiates it for an instruction set.
//
// Three steps per LeanTile: scores = q k^T, weights = softmax step, recent += weights v. K and V are read in the order
// of their addresses: a block of tokens, all heads of the bundle, the next block. All rows of a group run against a
// token's K or V while it is in the L1 cache, so memory is read once for the group. Prefetches mirror the loads, a
// fixed way ahead. Registers hold the sums, or the weights, of kRowBlock rows x kTokenBlock tokens; queries and sums of
// V pass through.
#pragma once

#include "tile.h"

namespace lean::cpu {

#define LEAN_INLINE inline __attribute__((always_inline))
#define LEAN_LAMBDA_INLINE __attribute__((always_inline))

inline constexpr int32_t kCacheLine = 64;

// Prefetches stop at the L2: the L1 and its few miss registers then serve the loads alone. The L2 is near enough.
inline constexpr int kToL2 = 2;

// For one head dimension and whole blocks of rows only, so that the compiler knows every stride; kHeadDim = 0: for any.
template <class Simd, class T, int32_t kHeadDim>
struct TileKernel {
  using F = typename Simd::F;
  static constexpr int32_t kLanes = Simd::kLanes;
  static constexpr int32_t kTokens = Simd::kTokenBlock;
  static_assert(kTokens <= kMaxTokenBlock);

  const TileFold& fold;
  const int32_t stride;  // floats from one row's q or acc to the next
  const int32_t whole;   // vectors that lie inside head_dim
  const bool has_half;   // head_dim ends in half a vector

  LEAN_INLINE explicit TileKernel(const TileFold& tile) : TileKernel(tile, kHeadDim != 0 ? kHeadDim : tile.head_dim) {}
  LEAN_INLINE TileKernel(const TileFold& tile, int32_t head_dim)
      : fold(tile), stride(padded(head_dim)), whole(head_dim / kLanes), has_half(head_dim % kLanes != 0) {}

  LEAN_INLINE const T* at(const char* row, int32_t head) const {
    return reinterpret_cast<const T*>(row + head * fold.head_bytes);
  }
  LEAN_INLINE int64_t bundle_row(int32_t head, int32_t row) const { return int64_t{head} * fold.rows + row; }

  static constexpr int32_t kLineVectors = kCacheLine / static_cast<int32_t>(sizeof(T)) / kLanes;  // vectors of a line

  // Calls step(load, c) for every vector c of the head dimension, and prefetches as much from each of `ahead`.
  template <int32_t N, bool kPrefetch, class Step>
  LEAN_INLINE void for_vectors(const T* const (&ahead)[N], Step step) const {
    const auto load = [](const T* p) LEAN_LAMBDA_INLINE { return Simd::load(p); };
    int32_t c = 0;
    for (; c + kLineVectors <= whole; c += kLineVectors) {
      if (kPrefetch)
        for (int32_t n = 0; n < N; ++n) __builtin_prefetch(ahead[n] + c * kLanes, 0, kToL2);
      for (int32_t i = 0; i < kLineVectors; ++i) step(load, c + i);
    }
    if constexpr (kHeadDim != 0 && kHeadDim % (kLanes * kLineVectors) == 0) return;  // whole lines, known to be
    if (kPrefetch && (c < whole || has_half))
      for (int32_t n = 0; n < N; ++n) __builtin_prefetch(ahead[n] + c * kLanes, 0, kToL2);
    for (; c < whole; ++c) step(load, c);
    if (has_half) step([](const T* p) LEAN_LAMBDA_INLINE { return Simd::load_half(p); }, c);
  }

  // Scores of R rows against a block of tokens; those past the last token are dropped.
  template <int32_t R, bool kPrefetch>
  LEAN_INLINE void score_block(int32_t head, int32_t row, int32_t token) const {
    const T* k[kTokens];
    const T* ahead[kTokens];
    for (int32_t n = 0; n < kTokens; ++n) {
      k[n] = at(fold.k_rows[token + n], head);
      ahead[n] = at(fold.k_ahead[token + n], head);
    }
    const float* q = fold.q + bundle_row(head, row) * stride;
    F sum[R][kTokens];
    for (int32_t r = 0; r < R; ++r)
      for (int32_t n = 0; n < kTokens; ++n) sum[r][n] = Simd::zero();
    for_vectors<kTokens, kPrefetch>(ahead, [&](auto load, int32_t c) LEAN_LAMBDA_INLINE {
      F kv[kTokens];
      for (int32_t n = 0; n < kTokens; ++n) kv[n] = load(k[n] + c * kLanes);
      for (int32_t r = 0; r < R; ++r) {
        const F query = Simd::load(q + r * stride + c * kLanes);
        for (int32_t n = 0; n < kTokens; ++n) sum[r][n] = Simd::fma(query, kv[n], sum[r][n]);
      }
    });
    Simd::store_sums(fold.scores + bundle_row(head, row) * kScoreStride + token, sum, fold.scale);
  }

  LEAN_INLINE void scale_row(float* row, float factor) const {
    const F factors = Simd::set1(factor);
    for (int32_t d = 0; d < stride; d += kLanes) Simd::store(row + d, Simd::mul(Simd::load(row + d), factors));
  }

  // The softmax step of one row: raises the maximum, rescales what was summed, turns scores into weights.
  // Tokens that the row does not see get the weight 0 whatever their K holds.
  LEAN_INLINE void weigh_row(int32_t head, int32_t row) const {
    const int64_t index = bundle_row(head, row);
    float* scores = fold.scores + index * kScoreStride;
    const int32_t visible = fold.visible ? fold.visible[row] : fold.count;
    const int32_t vectors = (fold.count + kLanes - 1) / kLanes;
    for (int32_t token = visible; token < vectors * kLanes; ++token) scores[token] = kNegInf;
    F highest = Simd::load(scores);
    for (int32_t i = 1; i < vectors; ++i) highest = Simd::max(highest, Simd::load(scores + i * kLanes));
    SoftmaxState& state = fold.states[index];
    const float tile_max = Simd::reduce_max(highest);
    const float m = tile_max > state.m ? tile_max : state.m;
    if (m != state.m) {
      const float factor = rescale_factor(state.m, m);
      state.m = m;
      state.l *= factor;
      scale_row(fold.acc + index * stride, factor);
      scale_row(fold.recent + index * stride, factor);
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

  // recent += weights x V for R rows and N tokens.
  template <int32_t R, int32_t N, bool kPrefetch>
  LEAN_INLINE void sum_tokens(int32_t head, int32_t row, int32_t token) const {
    const T* v[N];
    const T* ahead[N];
    for (int32_t n = 0; n < N; ++n) {
      v[n] = at(fold.v_rows[token + n], head);
      ahead[n] = at(fold.v_ahead[token + n], head);
    }
    const int64_t index = bundle_row(head, row);
    const float* weights = fold.scores + index * kScoreStride + token;
    F weight[R][N];
    for (int32_t r = 0; r < R; ++r)
      for (int32_t n = 0; n < N; ++n) weight[r][n] = Simd::set1(weights[r * kScoreStride + n]);
    float* const sums = fold.recent + index * stride;
    for_vectors<N, kPrefetch>(ahead, [&](auto load, int32_t c) LEAN_LAMBDA_INLINE {
      F kv[N];
      for (int32_t n = 0; n < N; ++n) kv[n] = load(v[n] + c * kLanes);
      for (int32_t r = 0; r < R; ++r) {
        float* const sum = sums + r * stride + c * kLanes;
        F total = Simd::load(sum);
        for (int32_t n = 0; n < N; ++n) total = Simd::fma(weight[r][n], kv[n], total);
        Simd::store(sum, total);
      }
    });
  }

  // A block of the tokens before `end`; the last one, where it is not whole, token by token.
  template <int32_t R, bool kPrefetch>
  LEAN_INLINE void sum_block(int32_t head, int32_t row, int32_t token, int32_t end) const {
    if (token + kTokens <= end) return sum_tokens<R, kTokens, kPrefetch>(head, row, token);
    for (; token < end; ++token) sum_tokens<R, 1, kPrefetch>(head, row, token);
  }

  // Where rows see different tokens, each by itself: the weight of a token that is not seen is 0, but 0 x NaN is not.
  // Only a sequence's last tiles are such, so nothing is prefetched.
  LEAN_INLINE void sum_visible() const {
    for (int32_t head = 0; head < fold.heads; ++head)
      for (int32_t row = 0; row < fold.rows; ++row)
        for (int32_t token = 0; token < fold.visible[row]; token += kTokens)
          sum_block<1, false>(head, row, token, fold.visible[row]);
  }

  // All rows of a head, in blocks of kRowBlock and one of the rest. The first block prefetches for all.
  template <class Block>
  LEAN_INLINE void for_row_blocks(Block block) const {
    constexpr int32_t kR = Simd::kRowBlock;
    if constexpr (kHeadDim == 0)
      if (fold.rows < kR) return rest_of_rows<kR - 1, true>(fold.rows, 0, block);
    block(Rows<kR, true>{}, 0);
    int32_t row = kR;
    for (; row + kR <= fold.rows; row += kR) block(Rows<kR, false>{}, row);
    if constexpr (kHeadDim == 0) rest_of_rows<kR - 1, false>(fold.rows - row, row, block);
  }
  template <int32_t R, bool kPrefetch, class Block>
  LEAN_INLINE void rest_of_rows(int32_t count, int32_t row, Block block) const {
    if constexpr (R > 0) {
      if (count == R)
        block(Rows<R, kPrefetch>{}, row);
      else
        rest_of_rows<R - 1, kPrefetch>(count, row, block);
    }
  }

  LEAN_INLINE void run() const {
    for (int32_t token = 0; token < fold.count; token += kTokens)
      for (int32_t head = 0; head < fold.heads; ++head)
        for_row_blocks([&](auto rows, int32_t row)
                           LEAN_LAMBDA_INLINE { score_block<rows.kCount, rows.kPrefetch>(head, row, token); });
    for (int32_t head = 0; head < fold.heads; ++head)
      for (int32_t row = 0; row < fold.rows; ++row) weigh_row(head, row);
    if (fold.visible)
      sum_visible();
    else
      for (int32_t token = 0; token < fold.count; token += kTokens)
        for (int32_t head = 0; head < fold.heads; ++head)
          for_row_blocks([&](auto rows, int32_t row) LEAN_LAMBDA_INLINE {
            sum_block<rows.kCount, rows.kPrefetch>(head, row, token, fold.count);
          });
  }

 private:
  template <int32_t kCount_, bool kPrefetch_>
  struct Rows {
    static constexpr int32_t kCount = kCount_;
    static constexpr bool kPrefetch = kPrefetch_;
  };
};

// What most models have is worth code of its own: 5 % of the time.
template <class Simd, class T>
void fold_tile(const TileFold& tile) {
  if (tile.head_dim == 128 && tile.rows % Simd::kRowBlock == 0)
    TileKernel<Simd, T, 128>(tile).run();
  else
    TileKernel<Simd, T, 0>(tile).run();
}

template <class Simd, class T>
void widen_row(const void* row, int32_t head_dim, float* out) {
  const T* values = static_cast<const T*>(row);
  int32_t i = 0;
  for (; i + Simd::kLanes <= head_dim; i += Simd::kLanes) Simd::store(out + i, Simd::load(values + i));
  if (i < head_dim) Simd::store(out + i, Simd::load_half(values + i));
}

template <class Simd, class T>
constexpr TileFunctions tile_functions() {
  return {fold_tile<Simd, T>, widen_row<Simd, T>};
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
  return {name,
          supported,
          tile_functions<Simd, float>(),
          tile_functions<Simd, Float16>(),
          tile_functions<Simd, BFloat16>(),
          Simd::kPrefetchBytes,
          read};
}

}  // namespace lean::cpu
