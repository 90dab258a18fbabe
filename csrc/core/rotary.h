// Rotary position embedding: each pair of a row's leading dimensions turns by position x inverse frequency.
#pragma once

#include <cmath>
#include <cstdint>

#include "numeric.h"

namespace lean {

// Which dimensions make a pair: i and i + dims / 2, or 2i and 2i + 1.
enum class RotaryPairing : int32_t { kHalfSplit = 0, kInterleaved = 1 };

struct RotaryPair {
  int32_t first;
  int32_t second;
};

LEAN_HD inline RotaryPair rotary_pair(RotaryPairing pairing, int32_t dims, int32_t index) {
  if (pairing == RotaryPairing::kInterleaved) return {2 * index, 2 * index + 1};
  return {index, index + dims / 2};
}

// Cosine and sine, both multiplied by the amplitude.
struct Rotation {
  float cosine;
  float sine;
};

inline constexpr double kTurn = 6.283185307179586;

// How far a pair turns, as a part of a whole turn from -1/2 to 1/2. The angle is taken in double and its whole turns
// are dropped before it becomes a float: at position 10^6 the product in float32 would be off by up to 0.03 radians.
LEAN_HD inline double part_of_turn(int32_t position, double inverse_frequency) {
  const double turns = position * inverse_frequency / kTurn;
  return turns - rint(turns);
}

// On the host; kernels have a primitive for sine and cosine.
inline Rotation rotation(int32_t position, double inverse_frequency, double amplitude) {
  const auto angle = static_cast<float>(part_of_turn(position, inverse_frequency) * kTurn);
  const auto scale = static_cast<float>(amplitude);
  return {cosf(angle) * scale, sinf(angle) * scale};
}

LEAN_HD inline void rotate(Rotation by, float& first, float& second) {
  const float turned = first * by.cosine - second * by.sine;
  second = first * by.sine + second * by.cosine;
  first = turned;
}

}  // namespace lean
