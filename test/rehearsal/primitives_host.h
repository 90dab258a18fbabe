// The host twin of csrc/cuda/primitives.h: the same names, executed by the rehearsal machine.
//
// Semantics are documented there. Every primitive that can go wrong takes its caller's line as a default argument,
// which is how a collective knows that all lanes stand at the same one, and how a report names the kernel's line.
// Bodies are kept out of this header: in the race build it is compiled with the kernel, whose every access is watched.
#pragma once

#include <cstdint>
#include <source_location>

#include "core/numeric.h"

#define LEAN_DEVICE inline

namespace lean {

inline constexpr int kWarpLanes = 32;

namespace rehearsal {

using Site = std::source_location;

// What a planted bug puts in the place of atomic_increment_wrap: it counts, and orders nothing.
uint32_t relaxed_increment_wrap(uint32_t* counter, uint32_t last, Site where = Site::current());

enum class Exchange { kIndex, kXor, kUp };
uint64_t exchange(Exchange kind, uint64_t value, int argument, const Site& where);
void multiply_matrices(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool bfloat, const Site& where);

template <class T>
T exchange_value(Exchange kind, T value, int argument, const Site& where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = exchange(kind, bits, argument, where);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace rehearsal

// ---- Who am I -----------------------------------------------------------------------------------------------------

int thread_index();
int lane_index();
int num_threads();
int warp_index(rehearsal::Site where = rehearsal::Site::current());
int cta_index_x();
int cta_index_y();
int num_ctas_x();
int num_ctas_y();
inline int opaque(int value) { return value; }

// ---- Barriers -----------------------------------------------------------------------------------------------------

void sync_cta(rehearsal::Site where = rehearsal::Site::current());
void sync_named(int barrier, int threads, rehearsal::Site where = rehearsal::Site::current());
void sync_warp(rehearsal::Site where = rehearsal::Site::current());

// ---- Exchange within a warp ---------------------------------------------------------------------------------------

template <class T>
T shuffle(T value, int source, rehearsal::Site where = rehearsal::Site::current()) {
  return rehearsal::exchange_value(rehearsal::Exchange::kIndex, value, source, where);
}

template <class T>
T shuffle_xor(T value, int mask, rehearsal::Site where = rehearsal::Site::current()) {
  return rehearsal::exchange_value(rehearsal::Exchange::kXor, value, mask, where);
}

template <class T>
T shuffle_up(T value, int delta, rehearsal::Site where = rehearsal::Site::current()) {
  return rehearsal::exchange_value(rehearsal::Exchange::kUp, value, delta, where);
}

uint32_t ballot(bool predicate, rehearsal::Site where = rehearsal::Site::current());
inline bool any_lane(bool predicate, rehearsal::Site where = rehearsal::Site::current()) {
  return ballot(predicate, where) != 0;
}
inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }

// ---- Global memory ------------------------------------------------------------------------------------------------

struct alignas(8) Float2 {
  float x, y;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};
struct alignas(8) Word2 {
  uint32_t x, y;
};

Float4 load_global(const Float4* source, rehearsal::Site where = rehearsal::Site::current());
Float2 load_global(const Float2* source, rehearsal::Site where = rehearsal::Site::current());
uint32_t load_global(const uint32_t* source, rehearsal::Site where = rehearsal::Site::current());
void store_global(Float4* target, Float4 value, rehearsal::Site where = rehearsal::Site::current());
void store_global(Float2* target, Float2 value, rehearsal::Site where = rehearsal::Site::current());
void store_global(Word2* target, Word2 value, rehearsal::Site where = rehearsal::Site::current());
void store_global(float* target, float value, rehearsal::Site where = rehearsal::Site::current());
uint32_t atomic_increment_wrap(uint32_t* counter, uint32_t last, rehearsal::Site where = rehearsal::Site::current());
void atomic_or_relaxed(uint32_t* word, uint32_t bits, rehearsal::Site where = rehearsal::Site::current());

// ---- Shared memory ------------------------------------------------------------------------------------------------

using SharedAddress = uint32_t;

SharedAddress shared_address(const void* pointer, rehearsal::Site where = rehearsal::Site::current());
void load_matrices(uint32_t (&registers)[4], SharedAddress row, rehearsal::Site where = rehearsal::Site::current());
void load_matrices_transposed(uint32_t (&registers)[4], SharedAddress row,
                              rehearsal::Site where = rehearsal::Site::current());

// ---- Asynchronous copies ------------------------------------------------------------------------------------------

using CachePolicy = uint64_t;

CachePolicy evict_first_policy();
CachePolicy evict_normal_policy();
void copy_async_16(SharedAddress target, const void* source, bool valid, CachePolicy policy,
                   rehearsal::Site where = rehearsal::Site::current());
void commit_copies(rehearsal::Site where = rehearsal::Site::current());

inline constexpr int kMaxPending = 4;
void wait_copies(int pending, rehearsal::Site where = rehearsal::Site::current());

void barrier_init(SharedAddress barrier, uint32_t arrivals, rehearsal::Site where = rehearsal::Site::current());
void barrier_arrive(SharedAddress barrier, rehearsal::Site where = rehearsal::Site::current());
void barrier_arrive_expect(SharedAddress barrier, uint32_t bytes, rehearsal::Site where = rehearsal::Site::current());
void barrier_wait(SharedAddress barrier, uint32_t parity, rehearsal::Site where = rehearsal::Site::current());
void copy_bulk(SharedAddress target, const void* source, uint32_t bytes, SharedAddress barrier, CachePolicy policy,
               rehearsal::Site where = rehearsal::Site::current());
void fence_async_proxy();

// ---- Arithmetic ---------------------------------------------------------------------------------------------------

struct SineCosine {
  float sine;
  float cosine;
};
inline SineCosine sine_cosine_of_turn(float turn) {
  const double angle = turn * 6.283185307179586;
  return {static_cast<float>(__builtin_sin(angle)), static_cast<float>(__builtin_cos(angle))};
}

float exp2_approx(float x);

template <class T>
uint32_t pack_pair(float low, float high) {
  return uint32_t{from_float<T>(low).bits} | uint32_t{from_float<T>(high).bits} << 16;
}

template <class T>
void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         rehearsal::Site where = rehearsal::Site::current());
template <>
inline void multiply_accumulate<Float16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                         rehearsal::Site where) {
  rehearsal::multiply_matrices(d, a, b0, b1, false, where);
}
template <>
inline void multiply_accumulate<BFloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                          rehearsal::Site where) {
  rehearsal::multiply_matrices(d, a, b0, b1, true, where);
}

}  // namespace lean
