// Tile code for AVX-512 (F, BW, DQ, VL). Built with those flags; called only where the processor has them.
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "tile_code.h"

namespace lean::cpu {

#if defined(__AVX512F__)

namespace {

struct Avx512 {
  using F = __m512;
  static constexpr int32_t kLanes = 16;
  static constexpr int32_t kRowBlock = 4;
  static constexpr int32_t kTokenBlock = 4;
  static constexpr int32_t kPrefetchBytes = 32 * 1024;

  static LEAN_INLINE F zero() { return _mm512_setzero_ps(); }
  static LEAN_INLINE F set1(float x) { return _mm512_set1_ps(x); }
  static LEAN_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static LEAN_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static LEAN_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static LEAN_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static LEAN_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static LEAN_INLINE float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
  static LEAN_INLINE float reduce_max(F a) { return _mm512_reduce_max_ps(a); }

  static LEAN_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  static LEAN_INLINE F load(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  static LEAN_INLINE F load(const BFloat16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
  // Eight elements; the other lanes are 0.
  static LEAN_INLINE F load_half(const float* p) { return _mm512_zextps256_ps512(_mm256_loadu_ps(p)); }
  static LEAN_INLINE F load_half(const Float16* p) { return _mm512_cvtph_ps(half((const __m128i*)p)); }
  static LEAN_INLINE F load_half(const BFloat16* p) { return widen(half((const __m128i*)p)); }
  static LEAN_INLINE void store(float* p, F a) { _mm512_storeu_ps(p, a); }

  // The totals of R x 4 vectors, times scale, in R rows.
  template <int32_t R>
  static LEAN_INLINE void store_sums(float* out, const F (&a)[R][kTokenBlock], float scale) {
    for (int32_t r = 0; r < R; ++r) store_row(out + r * kScoreStride, a[r], scale);
  }
  static LEAN_INLINE void store_row(float* out, const F (&a)[kTokenBlock], float scale) {
    const F ab = add(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
    const F cd = add(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
    const F abcd = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    _mm_storeu_ps(out, _mm_mul_ps(sums, _mm_set1_ps(scale)));
  }

  static LEAN_INLINE F exp2(F x) {
    // "Not less" lets NaN through: a NaN score must show in the result.
    const __mmask16 kept = _mm512_cmp_ps_mask(x, set1(kExp2Floor), _CMP_NLT_UQ);
    const F whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_maskz_scalef_ps(kept, exp2_fraction<Avx512>(sub(x, whole)), whole);
  }

 private:
  static LEAN_INLINE __m256i half(const __m128i* p) { return _mm256_zextsi128_si256(_mm_loadu_si128(p)); }
  static LEAN_INLINE F widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
};

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

void read(const void* bytes, size_t size) {
  const char* p = static_cast<const char*>(bytes);
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  size_t i = 0;
  for (; i + 256 <= size; i += 256) {
    a = _mm512_or_si512(a, _mm512_loadu_si512(p + i));
    b = _mm512_or_si512(b, _mm512_loadu_si512(p + i + 64));
    c = _mm512_or_si512(c, _mm512_loadu_si512(p + i + 128));
    d = _mm512_or_si512(d, _mm512_loadu_si512(p + i + 192));
  }
  const __m512i all = _mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d));
  char rest = 0;
  for (; i < size; ++i) rest |= p[i];
  __asm__ volatile("" ::"v"(all), "r"(rest));  // the loads must not be optimised away
}

}  // namespace

const TileCode kAvx512Tile = tile_code<Avx512>("avx512", supported, read);

#else
const TileCode kAvx512Tile = {"avx512", [] { return false; }, {}, {}, {}, 0, nullptr};
#endif

}  // namespace lean::cpu
