// Device primitives: wrappers of one instruction (or a handful) each, and the only file with PTX or intrinsics.
//
// Two implementations of one interface: this one for nvcc, and a host twin that executes the kernels' unchanged source
// on any machine. So the comments below are the contract that both keep. Its rules for callers:
//   - "collective": all 32 lanes of a warp call it from one source line.
//   - whatever waits, waits inside a primitive; no kernel spins by itself.
//   - shared memory is named by SharedAddress (32 bits, the hardware's own) where an instruction takes such an address,
//     and by ordinary pointers elsewhere.
//   - data written in a launch and read in the same launch by another CTA goes through load_global / store_global.
#pragma once

#if !defined(__CUDACC__)
#include "rehearsal/primitives_host.h"
#else

#include <cstdint>

#include "../core/numeric.h"

// What marks a function of the device. The kernels are always inlined into one body: no calls, no stack.
#define LEAN_DEVICE __device__ __forceinline__

namespace lean {

inline constexpr int kWarpLanes = 32;

// ---- Who am I ---------------------------------------------------------------------------------------------------

LEAN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }             // within the CTA
LEAN_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarpLanes; }  // within the warp
LEAN_DEVICE int num_threads() { return static_cast<int>(blockDim.x); }               // of the CTA

// The warp within the CTA. Collective: read from lane 0, so that the compiler knows it to be the same for all lanes.
LEAN_DEVICE int warp_index() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpLanes, 0); }

LEAN_DEVICE int cta_index_x() { return static_cast<int>(blockIdx.x); }
LEAN_DEVICE int cta_index_y() { return static_cast<int>(blockIdx.y); }
LEAN_DEVICE int num_ctas_x() { return static_cast<int>(gridDim.x); }
LEAN_DEVICE int num_ctas_y() { return static_cast<int>(gridDim.y); }

// The same value, but the compiler cannot tell: what is computed from it is computed where the code says, and not ahead
// of a loop, to be kept in registers that the loop needs.
LEAN_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// ---- Barriers ---------------------------------------------------------------------------------------------------
// Each orders all memory accesses of the threads that take part: what was done before it is seen after it.

// All threads of the CTA.
LEAN_DEVICE void sync_cta() { __syncthreads(); }

// `threads` threads of the CTA (whole warps), on one of the barriers 1 to 15. Collective in every warp that takes part.
LEAN_DEVICE void sync_named(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// The lanes of one warp. Collective.
LEAN_DEVICE void sync_warp() { __syncwarp(); }

// ---- Exchange within a warp -------------------------------------------------------------------------------------
// All collective; all 32 lanes take part. They exchange values and order no memory. T: 32 or 64 bits, arithmetic.

// The value of lane `source`; each lane names its own source.
template <class T>
LEAN_DEVICE T shuffle(T value, int source) {
  return __shfl_sync(0xffffffffu, value, source);
}

// The value of lane (own index XOR mask).
template <class T>
LEAN_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// The value of lane (own index - delta); lanes below delta keep their own.
template <class T>
LEAN_DEVICE T shuffle_up(T value, int delta) {
  return __shfl_up_sync(0xffffffffu, value, delta);
}

// Bit i: lane i's predicate.
LEAN_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

LEAN_DEVICE bool any_lane(bool predicate) { return __any_sync(0xffffffffu, predicate); }

LEAN_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }

// ---- Global memory ----------------------------------------------------------------------------------------------
// Plain, coherent accesses of 4, 8 or 16 bytes; pointers aligned to that size. Never the read-only path: they see what
// other CTAs wrote earlier in this launch, once an acquire (atomic_increment_wrap) has ordered the two.

struct alignas(8) Float2 {
  float x, y;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};
struct alignas(8) Word2 {
  uint32_t x, y;
};

LEAN_DEVICE Float4 load_global(const Float4* source) {
  Float4 value;
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "l"(__cvta_generic_to_global(source))
               : "memory");
  return value;
}

LEAN_DEVICE Float2 load_global(const Float2* source) {
  Float2 value;
  asm volatile("ld.global.v2.f32 {%0, %1}, [%2];"
               : "=f"(value.x), "=f"(value.y)
               : "l"(__cvta_generic_to_global(source))
               : "memory");
  return value;
}

LEAN_DEVICE uint32_t load_global(const uint32_t* source) {
  uint32_t value;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(source)) : "memory");
  return value;
}

LEAN_DEVICE void store_global(Float4* target, Float4 value) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)), "f"(value.x),
               "f"(value.y), "f"(value.z), "f"(value.w)
               : "memory");
}

LEAN_DEVICE void store_global(Float2* target, Float2 value) {
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(target)), "f"(value.x), "f"(value.y)
               : "memory");
}

LEAN_DEVICE void store_global(Word2* target, Word2 value) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(target)), "r"(value.x), "r"(value.y)
               : "memory");
}

LEAN_DEVICE void store_global(float* target, float value) {
  asm volatile("st.global.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(target)), "f"(value) : "memory");
}

// Adds one, or returns to 0 from `last`; gives the value before. One thread calls it for its CTA, between barriers.
// Acquire and release at the GPU's scope: writes that came before it in its CTA (ordered by a barrier) are seen by
// whoever finds this increment already made, and the reverse.
LEAN_DEVICE uint32_t atomic_increment_wrap(uint32_t* counter, uint32_t last) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter)), "r"(last)
               : "memory");
  return before;
}

// Sets bits. Orders nothing: for a word that the host reads after the launch.
LEAN_DEVICE void atomic_or_relaxed(uint32_t* word, uint32_t bits) {
  asm volatile("red.relaxed.gpu.global.or.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(word)), "r"(bits) : "memory");
}

// ---- Shared memory ----------------------------------------------------------------------------------------------

using SharedAddress = uint32_t;

// The address of a place in the CTA's dynamic shared memory. Address arithmetic in bytes is allowed.
LEAN_DEVICE SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 matrices of 16-bit elements. Collective: lane 8 i + r gives the address of row r of matrix i: 16 bytes,
// aligned to 16. Lane t receives in registers[i] the elements 2 (t % 4) and 2 (t % 4) + 1 of row t / 4 of matrix i, the
// first one in the low half.
LEAN_DEVICE void load_matrices(uint32_t (&registers)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(row)
               : "memory");
}

// The same, each matrix transposed: lane t receives the elements of rows 2 (t % 4) and 2 (t % 4) + 1 in column t / 4.
LEAN_DEVICE void load_matrices_transposed(uint32_t (&registers)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(row)
               : "memory");
}

// ---- Asynchronous copies, global to shared ----------------------------------------------------------------------

// How the L2 cache treats what a copy reads.
using CachePolicy = uint64_t;

// Read once: evicted before anything else, so that a stream of K and V leaves the rest of the L2 alone.
LEAN_DEVICE CachePolicy evict_first_policy() {
  CachePolicy policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// As without a hint: for what another CTA will read again.
LEAN_DEVICE CachePolicy evict_normal_policy() {
  CachePolicy policy;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Starts a copy of 16 bytes by this thread, or, where `valid` is false, a write of 16 zero bytes that reads nothing
// (the source must still be some device pointer aligned to 16). Both addresses are aligned to 16. The target must not
// be read or written by anybody until the copy's group was waited for.
LEAN_DEVICE void copy_async_16(SharedAddress target, const void* source, bool valid, CachePolicy policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(target),
               "l"(__cvta_generic_to_global(source)), "r"(valid ? 16 : 0), "l"(policy)
               : "memory");
}

// Closes this thread's group of the copies started since the last call. An empty group is allowed, and is complete.
LEAN_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Blocks until at most `pending` (0 to kMaxPending) of this thread's latest groups are incomplete. What the others
// copied is then seen by this thread; by other threads after a barrier that follows.
inline constexpr int kMaxPending = 4;
LEAN_DEVICE void wait_copies(int pending) {
  switch (pending) {  // the instruction wants an immediate
    case 4:
      asm volatile("cp.async.wait_group 4;" ::: "memory");
      break;
    case 3:
      asm volatile("cp.async.wait_group 3;" ::: "memory");
      break;
    case 2:
      asm volatile("cp.async.wait_group 2;" ::: "memory");
      break;
    case 1:
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      break;
    default:
      asm volatile("cp.async.wait_group 0;" ::: "memory");
  }
}

// ---- Bulk copies and their barriers (sm_90 and later) -----------------------------------------------------------
// A barrier object is 8 aligned bytes of shared memory. Its phase completes when the pending arrivals are 0 and all
// bytes expected in it have come; then the next phase begins with the initial count. Parity names phases 0, 1, 0, 1, …

// By one thread, before any use; then fence_async_proxy() by the same thread and sync_cta() by all.
LEAN_DEVICE void barrier_init(SharedAddress barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// One arrival; releases the caller's earlier accesses (and, through a sync_warp before it, its warp's) to the waiters.
LEAN_DEVICE void barrier_arrive(SharedAddress barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(barrier) : "memory");
}

// The same, and the current phase expects `bytes` more from bulk copies. Call before the copies are started.
LEAN_DEVICE void barrier_arrive_expect(SharedAddress barrier, uint32_t bytes) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(barrier),
               "r"(bytes)
               : "memory");
}

// Blocks until the phase of this parity has completed; returns at once if the current phase has the other parity. On a
// new barrier, parity 1 returns at once: "the phase before the first" counts as complete. Then the caller sees what the
// arriving threads wrote before their arrival, and all bytes that bulk copies delivered to the phase. Any lanes may
// call.
LEAN_DEVICE void barrier_wait(SharedAddress barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
      "@complete bra done;\n"
      "bra again;\n"
      "done:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Starts a copy of `bytes` (a multiple of 16, not 0; both addresses aligned to 16) by this thread alone. Its bytes
// count towards the barrier's current phase. It runs in the asynchronous proxy: see fence_async_proxy.
LEAN_DEVICE void copy_bulk(SharedAddress target, const void* source, uint32_t bytes, SharedAddress barrier,
                           CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(target),
      "l"(__cvta_generic_to_global(source)), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// Orders the caller's ordinary writes to shared memory before bulk copies to the same bytes that are started after it,
// by the caller or by whoever synchronises with the caller afterwards.
LEAN_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Arithmetic -------------------------------------------------------------------------------------------------

struct SineCosine {
  float sine;
  float cosine;
};

// Of an angle in whole turns, from -1/2 to 1/2; to a few units in the last place, without a slow path for large angles.
LEAN_DEVICE SineCosine sine_cosine_of_turn(float turn) {
  SineCosine result;
  sincospif(2.0f * turn, &result.sine, &result.cosine);
  return result;
}

// 2^x with a relative error of about 2^-22; 2^-inf is 0, results under 2^-126 are 0.
LEAN_DEVICE float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Two floats rounded to T (to nearest, ties to even), `low` in the low half. T: Float16 or BFloat16.
template <class T>
LEAN_DEVICE uint32_t pack_pair(float low, float high);

template <>
LEAN_DEVICE uint32_t pack_pair<Float16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

template <>
LEAN_DEVICE uint32_t pack_pair<BFloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// d (16 x 8, float32) += a (16 x 16) b (16 x 8), elements of a and b of type T. Collective. Lane t, g = t / 4, c = 2 (t
// % 4):
//   a[0]: row g,     columns c, c + 1        b0: rows c, c + 1 of column g
//   a[1]: row g + 8, columns c, c + 1        b1: rows c + 8, c + 9 of column g
//   a[2]: row g,     columns c + 8, c + 9    d[0], d[1]: row g,     columns c, c + 1
//   a[3]: row g + 8, columns c + 8, c + 9    d[2], d[3]: row g + 8, columns c, c + 1
template <class T>
LEAN_DEVICE void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
LEAN_DEVICE void multiply_accumulate<Float16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
LEAN_DEVICE void multiply_accumulate<BFloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace lean

#endif  // __CUDACC__
