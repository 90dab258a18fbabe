// float16 and bfloat16: every bit pattern there and back, and rounding at every tie and beside it.
#include <cmath>
#include <limits>

#include "../../csrc/core/numeric.h"
#include "../../csrc/runtime/convert.h"
#include "harness.h"

namespace lean::test {

namespace {

// A format by its definition: sign, exponent, fraction. Independent of the bit tricks under test.
template <int exponent_bits, int fraction_bits>
double value_of(uint32_t bits) {
  constexpr int kLargest = (1 << exponent_bits) - 1;
  const int exponent = static_cast<int>(bits >> fraction_bits) & kLargest;
  const double fraction = static_cast<double>(bits & ((1u << fraction_bits) - 1)) / (1 << fraction_bits);
  const double sign = bits >> 15 & 1 ? -1.0 : 1.0;
  if (exponent == kLargest) return fraction == 0.0 ? sign * INFINITY : NAN;
  const int bias = kLargest / 2;
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias) : sign * std::ldexp(1.0 + fraction, exponent - bias);
}

template <class T>
T from_bits(uint32_t bits) {
  return T{static_cast<uint16_t>(bits)};
}

template <class T, int exponent_bits, int fraction_bits>
void check_widening() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = value_of<exponent_bits, fraction_bits>(bits);
    const float value = to_float(from_bits<T>(bits));
    if (std::isnan(expected)) {
      CHECK(std::isnan(value));
      CHECK(std::isnan(to_float(from_float<T>(value))));  // NaN stays NaN
      continue;
    }
    CHECK_EQUAL(value, static_cast<float>(expected));
    CHECK_EQUAL(std::signbit(value), (bits & 0x8000u) != 0);
    CHECK_EQUAL(from_float<T>(value).bits, bits);
  }
}

// Between two neighbours of a format: the midpoint goes to the even one, everything beside it to the nearer one.
template <class T>
void check_rounding(uint32_t largest_finite) {
  for (uint32_t bits = 0; bits < largest_finite; ++bits) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float low = to_float(from_bits<T>(sign | bits)), high = to_float(from_bits<T>(sign | (bits + 1)));
      const auto middle = static_cast<float>((double{low} + double{high}) / 2);  // exact: one more bit of 24
      const auto nearest = [](float value) { return uint32_t{from_float<T>(value).bits}; };
      CHECK_EQUAL(nearest(middle), sign | (bits % 2 == 0 ? bits : bits + 1));
      CHECK_EQUAL(nearest(std::nextafterf(middle, low)), sign | bits);
      CHECK_EQUAL(nearest(std::nextafterf(middle, high)), sign | (bits + 1));
    }
  }
}

TEST(numeric_every_float16_widens_exactly_and_comes_back) { check_widening<Float16, 5, 10>(); }
TEST(numeric_every_bfloat16_widens_exactly_and_comes_back) { check_widening<BFloat16, 8, 7>(); }
TEST(numeric_float16_rounds_to_nearest_ties_to_even) { check_rounding<Float16>(0x7bff); }
TEST(numeric_bfloat16_rounds_to_nearest_ties_to_even) { check_rounding<BFloat16>(0x7f7f); }

TEST(numeric_overflow_rounds_to_infinity) {
  CHECK_EQUAL(from_float<Float16>(65519.996f).bits, 0x7bff);
  CHECK_EQUAL(from_float<Float16>(65520.0f).bits, 0x7c00);
  CHECK_EQUAL(from_float<Float16>(-65520.0f).bits, 0xfc00);
  CHECK_EQUAL(from_float<Float16>(INFINITY).bits, 0x7c00);
  CHECK_EQUAL(from_float<BFloat16>(std::numeric_limits<float>::max()).bits, 0x7f80);
  CHECK_EQUAL(from_float<BFloat16>(-INFINITY).bits, 0xff80);
  CHECK_EQUAL(from_float<Float16>(1e-30f).bits, 0);
  CHECK_EQUAL(from_float<Float16>(-1e-30f).bits, 0x8000);
}

TEST(numeric_nan_payloads_never_become_infinity) {
  for (uint32_t low = 1; low < 1u << 23; low += 4093) {
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const float nan = float_from_bits(sign | 0x7f800000u | low);
      CHECK(std::isnan(to_float(from_float<Float16>(nan))));
      CHECK(std::isnan(to_float(from_float<BFloat16>(nan))));
    }
  }
}

TEST(numeric_convert_goes_between_all_types) {
  const float values[] = {0.0f, -1.5f, 3.1415927f, 65519.0f, 1e-7f, -2.0f};
  constexpr size_t kCount = std::size(values);
  Float16 half[kCount], half_of_brain[kCount];
  BFloat16 brain[kCount], brain_of_half[kCount];
  float back[kCount];
  convert(values, DType::kF32, half, DType::kF16, kCount);
  convert(values, DType::kF32, brain, DType::kBF16, kCount);
  convert(half, DType::kF16, brain_of_half, DType::kBF16, kCount);
  convert(brain, DType::kBF16, half_of_brain, DType::kF16, kCount);
  convert(half, DType::kF16, back, DType::kF32, kCount);
  for (size_t i = 0; i < kCount; ++i) {
    CHECK_EQUAL(half[i].bits, from_float<Float16>(values[i]).bits);
    CHECK_EQUAL(brain[i].bits, from_float<BFloat16>(values[i]).bits);
    CHECK_EQUAL(brain_of_half[i].bits, from_float<BFloat16>(to_float(half[i])).bits);
    CHECK_EQUAL(half_of_brain[i].bits, from_float<Float16>(to_float(brain[i])).bits);
    CHECK_EQUAL(back[i], to_float(half[i]));
  }
  convert(nullptr, DType::kF32, nullptr, DType::kF16, 0);
}

}  // namespace

}  // namespace lean::test
