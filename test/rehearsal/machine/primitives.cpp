// What the host twins of the device primitives do (their contract: csrc/cuda/primitives.h).
#include "../primitives_host.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "machine.h"

namespace lean {

using rehearsal::Access;
using rehearsal::Fault;
using rehearsal::Lane;
using rehearsal::machine;
using rehearsal::Machine;
using rehearsal::Site;
using rehearsal::Warp;

// ---- Who am I -----------------------------------------------------------------------------------------------------

int thread_index() { return machine->lane().thread; }
int lane_index() { return machine->lane().lane; }
int num_threads() { return machine->shape().threads; }

int warp_index(Site where) {
  machine->collective("warp_index", where, nullptr, [](Warp&, void* const*) { return true; });
  return machine->lane().warp->index;
}

int cta_index_x() { return static_cast<int>(machine->cta().index % machine->shape().ctas_x); }
int cta_index_y() { return static_cast<int>(machine->cta().index / machine->shape().ctas_x); }
int num_ctas_x() { return static_cast<int>(machine->shape().ctas_x); }
int num_ctas_y() { return static_cast<int>(machine->shape().ctas_y); }

// ---- Barriers and exchange ----------------------------------------------------------------------------------------

void sync_cta(Site where) { machine->barrier(0, machine->shape().threads, true, where); }

void sync_named(int barrier, int threads, Site where) {
  if (barrier == 0) machine->fail_here(Fault::kArgument, "named barrier 0 is the CTA's own", where);
  machine->barrier(barrier, threads, true, where);
}

void sync_warp(Site where) { machine->sync_warp(where); }

uint64_t rehearsal::exchange(Exchange kind, uint64_t value, int argument, const Site& where) {
  struct Operands {
    Exchange kind;
    uint64_t value;
    int argument;
    uint64_t result;
  } mine{kind, value, argument, 0};
  machine->collective("shuffle", where, &mine, [](Warp&, void* const* all) {
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      auto& to = *static_cast<Operands*>(all[lane]);
      int source = to.argument & (kWarpLanes - 1);
      if (to.kind == Exchange::kXor) source = lane ^ source;
      if (to.kind == Exchange::kUp) source = lane >= source ? lane - source : lane;
      to.result = static_cast<const Operands*>(all[source])->value;
    }
    return true;
  });
  return mine.result;
}

uint32_t ballot(bool predicate, Site where) {
  struct Operands {
    bool predicate;
    uint32_t result;
  } mine{predicate, 0};
  machine->collective("ballot", where, &mine, [](Warp&, void* const* all) {
    uint32_t bits = 0;
    for (int lane = 0; lane < kWarpLanes; ++lane)
      bits |= uint32_t{static_cast<Operands*>(all[lane])->predicate} << lane;
    for (int lane = 0; lane < kWarpLanes; ++lane) static_cast<Operands*>(all[lane])->result = bits;
    return true;
  });
  return mine.result;
}

// ---- Global memory ------------------------------------------------------------------------------------------------

namespace {

template <class T>
T load(const T* source, const Site& where) {
  machine->point();
  machine->touch(source, sizeof(T), Access::global_read(), where);
  T value;
  memcpy(&value, source, sizeof value);
  return value;
}

template <class T>
void store(T* target, T value, const Site& where) {
  machine->point();
  machine->touch(target, sizeof(T), Access::global_write(), where);
  memcpy(target, &value, sizeof value);
}

}  // namespace

Float4 load_global(const Float4* source, Site where) { return load(source, where); }
Float2 load_global(const Float2* source, Site where) { return load(source, where); }
uint32_t load_global(const uint32_t* source, Site where) { return load(source, where); }
void store_global(Float4* target, Float4 value, Site where) { store(target, value, where); }
void store_global(Float2* target, Float2 value, Site where) { store(target, value, where); }
void store_global(Word2* target, Word2 value, Site where) { store(target, value, where); }
void store_global(float* target, float value, Site where) { store(target, value, where); }

uint32_t atomic_increment_wrap(uint32_t* counter, uint32_t last, Site where) {
  const uint32_t before = rehearsal::relaxed_increment_wrap(counter, last, where);
  if (rehearsal::RaceChecker* races = machine->races()) {
    races->acquire(machine->lane(), races->clock_of(counter));
    races->release(machine->lane(), races->clock_of(counter));
  }
  return before;
}

uint32_t rehearsal::relaxed_increment_wrap(uint32_t* counter, uint32_t last, Site where) {
  machine->point();
  machine->touch(counter, sizeof *counter, Access::global_atomic(), where);
  const uint32_t before = *counter;
  *counter = before >= last ? 0 : before + 1;
  return before;
}

void atomic_or_relaxed(uint32_t* word, uint32_t bits, Site where) {
  machine->point();
  machine->touch(word, sizeof *word, Access::global_atomic(), where);
  *word |= bits;
}

// ---- Shared memory ------------------------------------------------------------------------------------------------

namespace {

// Where shared memory begins among 32-bit addresses: not at 0, so that a forgotten address is no valid one.
constexpr SharedAddress kSharedBase = 1024;

std::byte* shared_pointer(SharedAddress address) {
  return machine->cta().shared.begin() + (static_cast<int64_t>(address) - kSharedBase);
}

struct MatrixOperands {
  uint32_t* registers;
  std::byte* row;
};

// Replays of one 8x8 matrix's read: its 8 rows of 16 bytes should lie in 32 different banks of 4 bytes.
int bank_conflicts(void* const* all, int first_lane) {
  int rows_in_banks[8] = {};  // of 16 bytes each
  int most = 0;
  for (int r = 0; r < 8; ++r) {
    const std::byte* row = static_cast<const MatrixOperands*>(all[first_lane + r])->row;
    bool again = false;  // the same bytes are read once for all
    for (int s = 0; s < r; ++s) again = again || static_cast<const MatrixOperands*>(all[first_lane + s])->row == row;
    if (!again) most = std::max(most, ++rows_in_banks[(reinterpret_cast<uintptr_t>(row) / 16) % 8]);
  }
  return most - 1;
}

template <bool kTransposed>
bool execute_load_matrices(Warp&, void* const* all) {
  for (int lane = 0; lane < rehearsal::kWarpLanes; ++lane)
    machine->cta().shared.check(static_cast<MatrixOperands*>(all[lane])->row, 16, machine->lane().where);
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t elements[8][8];
    for (int r = 0; r < 8; ++r) memcpy(elements[r], static_cast<MatrixOperands*>(all[8 * matrix + r])->row, 16);
    for (int lane = 0; lane < rehearsal::kWarpLanes; ++lane) {
      const int row = lane / 4, column = 2 * (lane % 4);
      const uint16_t low = kTransposed ? elements[column][row] : elements[row][column];
      const uint16_t high = kTransposed ? elements[column + 1][row] : elements[row][column + 1];
      static_cast<MatrixOperands*>(all[lane])->registers[matrix] = uint32_t{low} | uint32_t{high} << 16;
    }
    machine->counters().bank_conflict_replays += bank_conflicts(all, 8 * matrix);
  }
  machine->counters().matrix_loads += 4;
  return true;
}

void load_rows(const char* name, uint32_t (&registers)[4], SharedAddress row, Machine::Execute execute,
               const Site& where) {
  MatrixOperands mine{registers, shared_pointer(row)};
  if (row % 16) machine->fail_here(Fault::kAlignment, "a matrix row at an address that is no multiple of 16", where);
  machine->touch(mine.row, 16, Access::matrix_read(), where);
  machine->collective(name, where, &mine, execute);
}

}  // namespace

SharedAddress shared_address(const void* pointer, Site where) {
  const rehearsal::SharedMemory& shared = machine->cta().shared;
  if (!shared.near(pointer))
    machine->fail_here(Fault::kArgument, "the pointer is not to this CTA's shared memory", where);
  return static_cast<SharedAddress>(static_cast<const std::byte*>(pointer) - shared.begin() + kSharedBase);
}

void load_matrices(uint32_t (&registers)[4], SharedAddress row, Site where) {
  load_rows("load_matrices", registers, row, execute_load_matrices<false>, where);
}

void load_matrices_transposed(uint32_t (&registers)[4], SharedAddress row, Site where) {
  load_rows("load_matrices_transposed", registers, row, execute_load_matrices<true>, where);
}

// ---- Asynchronous copies ------------------------------------------------------------------------------------------

namespace {

constexpr CachePolicy kEvictFirst = 0x12f0000000000000, kEvictNormal = 0x16f0000000000000;

void check_policy(CachePolicy policy, const Site& where) {
  if (policy != kEvictFirst && policy != kEvictNormal)
    machine->fail_here(Fault::kArgument, "a cache policy that nobody created", where);
}

}  // namespace

CachePolicy evict_first_policy() { return kEvictFirst; }
CachePolicy evict_normal_policy() { return kEvictNormal; }

void copy_async_16(SharedAddress target, const void* source, bool valid, CachePolicy policy, Site where) {
  check_policy(policy, where);
  machine->cta().shared.copy_async(shared_pointer(target), source, 16, valid ? 16 : 0, where);
}

void commit_copies(Site where) { machine->cta().shared.commit_group(where); }
void wait_copies(int pending, Site where) {
  if (pending < 0 || pending > kMaxPending)
    machine->fail_here(Fault::kArgument, "a wait that leaves " + std::to_string(pending) + " groups", where);
  machine->cta().shared.wait_group(static_cast<size_t>(pending), where);
}

void barrier_init(SharedAddress barrier, uint32_t arrivals, Site where) {
  machine->cta().shared.mbarrier_init(shared_pointer(barrier), arrivals, where);
}

void barrier_arrive(SharedAddress barrier, Site where) {
  machine->cta().shared.mbarrier_arrive(shared_pointer(barrier), 0, 1, where);
}

void barrier_arrive_expect(SharedAddress barrier, uint32_t bytes, Site where) {
  machine->cta().shared.mbarrier_arrive(shared_pointer(barrier), bytes, 1, where);
}

void barrier_wait(SharedAddress barrier, uint32_t parity, Site where) {
  machine->cta().shared.mbarrier_wait(shared_pointer(barrier), parity, where);
}

void copy_bulk(SharedAddress target, const void* source, uint32_t bytes, SharedAddress barrier, CachePolicy policy,
               Site where) {
  check_policy(policy, where);
  machine->cta().shared.copy_bulk(shared_pointer(target), source, bytes, shared_pointer(barrier), where);
}

void fence_async_proxy() {
  machine->point();
  machine->cta().shared.fence_initialised_mbarriers();
  if (machine->races()) machine->races()->fence_async_proxy(machine->lane());
}

// ---- Arithmetic ---------------------------------------------------------------------------------------------------

float exp2_approx(float x) {
  const float result = exp2f(x);
  return result < 0x1p-126f ? 0.0f : result;
}

namespace {

struct MultiplyOperands {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

// Without branches, so that a compiler may vectorise it: the exponent is rebased by a multiplication, which brings
// subnormals along; infinities and NaN get float32's exponent.
inline float half_bits_to_float(uint32_t bits) {
  const uint32_t magnitude = (bits & 0x7fffu) << 13;
  uint32_t rebased = float_bits(float_from_bits(magnitude) * 0x1p112f);
  rebased |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return float_from_bits(rebased | (bits & 0x8000u) << 16);
}

template <bool kBFloat>
bool execute_multiply(Warp&, void* const* all) {
  uint32_t a_bits[16][16], b_bits[16][8];
  for (int lane = 0; lane < rehearsal::kWarpLanes; ++lane) {
    const auto& mine = *static_cast<const MultiplyOperands*>(all[lane]);
    const int g = lane / 4, c = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i & 1), column = c + 8 * (i >> 1);
      a_bits[row][column] = mine.a[i] & 0xffffu;
      a_bits[row][column + 1] = mine.a[i] >> 16;
    }
    for (int i = 0; i < 2; ++i) {
      b_bits[c + 8 * i][g] = mine.b[i] & 0xffffu;
      b_bits[c + 8 * i + 1][g] = mine.b[i] >> 16;
    }
  }
  float a[16][16], b[16][8];
  for (int i = 0; i < 256; ++i)
    (&a[0][0])[i] = kBFloat ? float_from_bits((&a_bits[0][0])[i] << 16) : half_bits_to_float((&a_bits[0][0])[i]);
  for (int i = 0; i < 128; ++i)
    (&b[0][0])[i] = kBFloat ? float_from_bits((&b_bits[0][0])[i] << 16) : half_bits_to_float((&b_bits[0][0])[i]);
  for (int row = 0; row < 16; ++row) {
    float sum[8] = {};
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) sum[n] += a[row][k] * b[k][n];
    for (int n = 0; n < 8; ++n)
      static_cast<MultiplyOperands*>(all[row % 8 * 4 + n / 2])->d[2 * (row / 8) + n % 2] += sum[n];
  }
  return true;
}

}  // namespace

void rehearsal::multiply_matrices(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool bfloat,
                                  const Site& where) {
  MultiplyOperands mine{d, a, {b0, b1}};
  if (bfloat)
    machine->collective("multiply_accumulate", where, &mine, execute_multiply<true>);
  else
    machine->collective("multiply_accumulate", where, &mine, execute_multiply<false>);
}

}  // namespace lean
