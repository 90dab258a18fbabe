// The softmax state: what a set of context tokens contributes to one query row.
//
//   m = max s_i,   l = sum 2^(s_i - m),   acc = sum 2^(s_i - m) v_i
//
// Scores s are in base 2: log2(e) is folded into the softmax scale, because 2^x is the cheaper exponential.
// States of disjoint token sets merge, associatively and commutatively up to rounding; the empty state (-inf, 0, 0) is
// the identity. `acc` is a vector that the caller keeps where it is fastest; these functions give the factors for it.
#pragma once

#include <cmath>

#include "numeric.h"

namespace lean {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;
inline constexpr float kNegInf = -__builtin_huge_valf();

struct SoftmaxState {
  float m = kNegInf;  // base-2 maximum; -inf: nothing attended to yet
  float l = 0.0f;     // sum of 2^(s - m)
};

// What a state's l and acc are multiplied by when its maximum rises from `from` to `to`.
// The guard keeps the empty state empty: -inf - (-inf) would be NaN.
LEAN_HD inline float rescale_factor(float from, float to) { return from == kNegInf ? 0.0f : exp2f(from - to); }

// The maximum that scores are measured against: 0 stands in for -inf, so that 2^(-inf - m) is 0 and not NaN.
LEAN_HD inline float safe_max(float m) { return m == kNegInf ? 0.0f : m; }

struct Merge {
  SoftmaxState state;  // the merged (m, l)
  float weight_a;      // merged acc = weight_a * a.acc + weight_b * b.acc
  float weight_b;
};

LEAN_HD inline Merge merge(SoftmaxState a, SoftmaxState b) {
  const float m = a.m > b.m ? a.m : b.m;
  // A NaN maximum, which stands for a NaN score, may lose that comparison; its weight is NaN then, and so is l.
  const float weight_a = rescale_factor(a.m, m);
  const float weight_b = rescale_factor(b.m, m);
  return {{m, weight_a * a.l + weight_b * b.l}, weight_a, weight_b};
}

// An attention sink is one more element with v = 0: merge it into a row exactly once.
LEAN_HD inline SoftmaxState sink_state(float sink) { return {sink * kLog2E, 1.0f}; }

struct Finish {
  float normalise;  // out = normalise * acc
  float lse;        // natural logarithm of the sum of exp(score); -inf: nothing attended to
};

LEAN_HD inline Finish finish(SoftmaxState state) {
  if (state.l == 0.0f) return {0.0f, kNegInf};
  return {1.0f / state.l, (state.m + log2f(state.l)) * kLn2};
}

// A caller's finished result (out, lse) as a state again: m = lse in base 2, l = 1, acc = out.
LEAN_HD inline SoftmaxState state_from_lse(float lse) {
  return lse == kNegInf ? SoftmaxState{} : SoftmaxState{lse * kLog2E, 1.0f};
}

}  // namespace lean
