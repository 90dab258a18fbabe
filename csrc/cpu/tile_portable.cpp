// Tile code for any processor: vectors of four floats that the compiler maps to SSE2, NEON or plain registers. Where
// the language has no words for what AArch64 can do, its intrinsics stand beside.
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "tile_code.h"

namespace lean::cpu {

namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

struct Portable {
  using F = Float4;
  static constexpr int32_t kLanes = 4;
#if defined(__aarch64__)
  static constexpr int32_t kRowBlock = 4;  // 32 registers: 16 sums or weights, 4 K or V vectors, a query or a sum of V
#else
  static constexpr int32_t kRowBlock = 2;
#endif
  static constexpr int32_t kTokenBlock = 4;
  static constexpr int32_t kPrefetchBytes = 32 * 1024;

  static LEAN_INLINE F zero() { return F{0, 0, 0, 0}; }
  static LEAN_INLINE F set1(float x) { return F{x, x, x, x}; }
  static LEAN_INLINE F add(F a, F b) { return a + b; }
  static LEAN_INLINE F sub(F a, F b) { return a - b; }
  static LEAN_INLINE F mul(F a, F b) { return a * b; }
  static LEAN_INLINE F max(F a, F b) { return a > b ? a : b; }
  static LEAN_INLINE float reduce_add(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static LEAN_INLINE float reduce_max(F a) {
    const float low = a[0] > a[1] ? a[0] : a[1], high = a[2] > a[3] ? a[2] : a[3];
    return low > high ? low : high;
  }

  static LEAN_INLINE F load(const float* p) {
    F a;
    memcpy(&a, p, sizeof a);
    return a;
  }
  template <class T>
  static LEAN_INLINE F load_half(const T*) {
    return zero();  // a head dimension is a multiple of 8: there is no half vector
  }
  static LEAN_INLINE void store(float* p, F a) { memcpy(p, &a, sizeof a); }

#if defined(__aarch64__)
  static LEAN_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static LEAN_INLINE F load(const Float16* p) { return vcvt_f32_f16(vld1_f16((const __fp16*)p)); }
  static LEAN_INLINE F load(const BFloat16* p) { return (F)vshll_n_u16(vld1_u16((const uint16_t*)p), 16); }
  static LEAN_INLINE F totals(const F (&a)[kTokenBlock]) {
    return vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3]));
  }
#else
  static LEAN_INLINE F fma(F a, F b, F c) { return a * b + c; }
  template <class T>
  static LEAN_INLINE F load(const T* p) {
    return F{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
  }
  static LEAN_INLINE F totals(const F (&a)[kTokenBlock]) {
    return F{reduce_add(a[0]), reduce_add(a[1]), reduce_add(a[2]), reduce_add(a[3])};
  }
#endif

  // The totals of R x 4 vectors, times scale, in R rows.
  template <int32_t R>
  static LEAN_INLINE void store_sums(float* out, const F (&a)[R][kTokenBlock], float scale) {
    for (int32_t r = 0; r < R; ++r) store(out + r * kScoreStride, totals(a[r]) * set1(scale));
  }

  static LEAN_INLINE F exp2(F x) {
    // "Not less" lets NaN through: a NaN score must show in the result.
    const Int4 dropped = x < set1(kExp2Floor);
    const F clamped = dropped ? zero() : x;
    // Adding 1.5 x 2^23 rounds to an integer, which then stands in the low bits.
    const F shifted = clamped + set1(12582912.0f);
    const F whole = shifted - set1(12582912.0f);
    Int4 bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000 + 127) << 23;
    F power;
    memcpy(&power, &bits, sizeof power);
    const F result = exp2_fraction<Portable>(clamped - whole) * power;
    return dropped ? zero() : result;
  }
};

void read(const void* bytes, size_t size) {
  const char* p = static_cast<const char*>(bytes);
  Int4 a = {0, 0, 0, 0}, b = a;
  size_t i = 0;
  for (; i + 32 <= size; i += 32) {
    Int4 x, y;
    memcpy(&x, p + i, sizeof x);
    memcpy(&y, p + i + 16, sizeof y);
    a |= x;
    b |= y;
  }
  const Int4 all = a | b;
  int32_t rest = all[0] | all[1] | all[2] | all[3];
  for (; i < size; ++i) rest |= p[i];
  __asm__ volatile("" ::"r"(rest));  // the loads must not be optimised away
}

}  // namespace

const TileCode kPortableTile = tile_code<Portable>("portable", [] { return true; }, read);

}  // namespace lean::cpu
