// Number types of the tensors, and their conversion to and from float32.
// Plain integer arithmetic on bit patterns, so that host, device and tests round alike: to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

// Code in csrc/core runs on the host and on the device from one source.
#if defined(__CUDACC__)
#define LEAN_HD __host__ __device__
#else
#define LEAN_HD
#endif

namespace lean {

// Of numbers that are not negative: unsigned division is the shorter one on a GPU.
LEAN_HD constexpr int64_t divide(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) / static_cast<uint64_t>(b));
}

enum class DType : int32_t { kF32 = 0, kF16 = 1, kBF16 = 2 };

LEAN_HD constexpr int64_t dtype_size(DType type) { return type == DType::kF32 ? 4 : 2; }

// Storage types: 16 bits that only the conversions below interpret.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

LEAN_HD inline uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

LEAN_HD inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

LEAN_HD inline float to_float(float value) { return value; }

LEAN_HD inline float to_float(BFloat16 value) { return float_from_bits(uint32_t{value.bits} << 16); }

LEAN_HD inline float to_float(Float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return float_from_bits(sign | ((magnitude << 13) + (112u << 23)));
  // Zero and subnormals: magnitude counts units of 2^-24, which float32 holds exactly.
  return float_from_bits(sign | float_bits(static_cast<float>(magnitude) * 5.9604644775390625e-8f));
}

template <class T>
LEAN_HD T from_float(float value);

template <>
LEAN_HD inline float from_float<float>(float value) {
  return value;
}

template <>
LEAN_HD inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};  // NaN stays NaN
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
LEAN_HD inline Float16 from_float<Float16>(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu))};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above round to infinity
  if (magnitude >= 0x38800000u) {                                                // normal: 2^-14 and above
    const uint32_t rebased = magnitude - (112u << 23);
    return {static_cast<uint16_t>(sign | (rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13)};
  }
  // Subnormal: adding 0.5 aligns the value to units of 2^-24 in the low bits, and rounds as the addition does.
  const float aligned = float_from_bits(magnitude) + 0.5f;
  return {static_cast<uint16_t>(sign | (float_bits(aligned) - 0x3f000000u))};
}

}  // namespace lean
