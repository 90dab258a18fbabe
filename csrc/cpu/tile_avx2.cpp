// Tile code for AVX2 with FMA and F16C. Built with those flags; called only where the processor has them.
#if defined(__AVX2__)
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

  // The totals of three vectors, times scale; what is stored after them is of no use.
  static LEAN_INLINE void store_sums(float* out, const F (&a)[kTokenBlock], float scale) {
    const F abc = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[2]));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(abc), _mm256_extractf128_ps(abc, 1));
    _mm_storeu_ps(out, _mm_mul_ps(sums, _mm_set1_ps(scale)));
  }

  static LEAN_INLINE F exp2(F x) {
    // "Not less" lets NaN through: a NaN score must show in the result.
    const F kept = _mm256_cmp_ps(x, set1(kExp2Floor), _CMP_NLT_UQ);
    const F whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(kept, mul(exp2_fraction<Avx2>(sub(x, whole)), _mm256_castsi256_ps(power)));
  }
};

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

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
