// Tile code for AVX2 with FMA and F16C. Built with those flags; called only where the processor has them.
#if defined(__AVX2__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#include "tile_code.h"

namespace lean::cpu {

#if defined(__AVX2__)

namespace {

struct Avx2 {
  using F = __m256;
  static constexpr int32_t kLanes = 8;
  // 16 registers: 12 sums or weights, 3 K or V vectors, a query or a vector of acc.
  static constexpr int32_t kRowBlock = 4;
  static constexpr int32_t kTokenBlock = 3;
  static constexpr int32_t kPrefetchBytes = 16 * 1024;

  static LEAN_INLINE F zero() { return _mm256_setzero_ps(); }
  static LEAN_INLINE F set1(float x) { return _mm256_set1_ps(x); }
  static LEAN_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static LEAN_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static LEAN_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static LEAN_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  static LEAN_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  static LEAN_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  static LEAN_INLINE F load(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static LEAN_INLINE F load(const BFloat16* p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  }
  template <class T>
  static LEAN_INLINE F load_half(const T*) {
    return zero();  // a head dimension is a multiple of 8: there is no half vector
  }
  static LEAN_INLINE void store(float* p, F a) { _mm256_storeu_ps(p, a); }

  static LEAN_INLINE float reduce_add(F a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  static LEAN_INLINE float reduce_max(F a) {
    __m128 high = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    high = _mm_max_ps(high, _mm_movehl_ps(high, high));
    return _mm_cvtss_f32(_mm_max_ss(high, _mm_movehdup_ps(high)));
  }

  // The totals of R x 3 vectors, times scale, in R rows; what is stored after a row's three is of no use.
  template <int32_t R>
  static LEAN_INLINE void store_sums(float* out, const F (&a)[R][kTokenBlock], float scale) {
    if constexpr (R == kRowBlock)
      store_block(out, a, scale);
    else
      for (int32_t r = 0; r < R; ++r) {
        const F abc = _mm256_hadd_ps(_mm256_hadd_ps(a[r][0], a[r][1]), _mm256_hadd_ps(a[r][2], a[r][2]));
        const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(abc), _mm256_extractf128_ps(abc, 1));
        _mm_storeu_ps(out + r * kScoreStride, _mm_mul_ps(sums, _mm_set1_ps(scale)));
      }
  }

  // Four rows together: two thirds of the instructions.
  static LEAN_INLINE void store_block(float* out, const F (&a)[4][3], float scale) {
    F token[3];  // [row 0, row 0, row 2, row 2 | row 1, row 1, row 3, row 3], each a half of the sum
    for (int32_t n = 0; n < 3; ++n) {
      const F low = add_halves(a[0][n], a[1][n]), high = add_halves(a[2][n], a[3][n]);
      token[n] = add(_mm256_blend_ps(low, high, 0xcc), _mm256_shuffle_ps(low, high, 0x4e));
    }
    // [0: row 0, row 2, 1: row 0, row 2 | 0: row 1, row 3, 1: row 1, row 3], and for token 2 twice each
    const F tokens_01 = add(_mm256_shuffle_ps(token[0], token[1], 0x88), _mm256_shuffle_ps(token[0], token[1], 0xdd));
    const F tokens_2 = add(token[2], _mm256_permute_ps(token[2], 0xb1));
    const F scales = set1(scale);
    store_halves(out, mul(_mm256_shuffle_ps(tokens_01, tokens_2, 0x08), scales));                     // rows 0 and 1
    store_halves(out + 2 * kScoreStride, mul(_mm256_shuffle_ps(tokens_01, tokens_2, 0xad), scales));  // rows 2 and 3
  }

  // [a's halves added | b's halves added]
  static LEAN_INLINE F add_halves(F a, F b) {
    return add(_mm256_blend_ps(a, b, 0xf0), _mm256_permute2f128_ps(a, b, 0x21));
  }
  static LEAN_INLINE void store_halves(float* out, F a) {
    _mm_storeu_ps(out, _mm256_castps256_ps128(a));
    _mm_storeu_ps(out + kScoreStride, _mm256_extractf128_ps(a, 1));
  }

  static LEAN_INLINE F exp2(F x) {
    // "Not less" lets NaN through: a NaN score must show in the result.
    const F kept = _mm256_cmp_ps(x, set1(kExp2Floor), _CMP_NLT_UQ);
    const F whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(kept, mul(exp2_fraction<Avx2>(sub(x, whole)), _mm256_castsi256_ps(power)));
  }
};

// Clang knows "f16c" from version 16 on only.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

void read(const void* bytes, size_t size) {
  const char* p = static_cast<const char*>(bytes);
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  size_t i = 0;
  for (; i + 128 <= size; i += 128) {
    a = _mm256_or_si256(a, _mm256_loadu_si256((const __m256i*)(p + i)));
    b = _mm256_or_si256(b, _mm256_loadu_si256((const __m256i*)(p + i + 32)));
    c = _mm256_or_si256(c, _mm256_loadu_si256((const __m256i*)(p + i + 64)));
    d = _mm256_or_si256(d, _mm256_loadu_si256((const __m256i*)(p + i + 96)));
  }
  const __m256i all = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
  char rest = 0;
  for (; i < size; ++i) rest |= p[i];
  __asm__ volatile("" ::"x"(all), "r"(rest));  // the loads must not be optimised away
}

}  // namespace

const TileCode kAvx2Tile = tile_code<Avx2>("avx2", supported, read);

#else
const TileCode kAvx2Tile = {"avx2", [] { return false; }, {}, {}, {}, 0, nullptr};
#endif

}  // namespace lean::cpu
