// The machine's own tests: for every check, a small kernel that violates it, and beside it the right kernel.
//
// Each kernel is run under several dispatches. A wrong one must be found under every one of them unless it says that it
// takes luck ("in some order"); a right one must pass under all. The race build runs those marked kRaces too.
#include <cstdio>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../machine/machine.h"
#include "../primitives_host.h"

namespace lean::rehearsal {
namespace {

#if defined(LEAN_REHEARSAL_RACES)
constexpr bool kRaceBuild = true;
#else
constexpr bool kRaceBuild = false;
#endif

// What the kernels work on: `in` holds 0, 1, 2, … as floats.
constexpr int kFloats = 4096;
struct Memory {
  DeviceMemory device;
  Buffer& in = device.allocate(kFloats * 4, Use::kInput, "in");
  Buffer& out = device.allocate(kFloats * 4, Use::kOutput, "out");
  Buffer& counter = device.allocate(4, Use::kCounter, "counter");

  void reset() {
    for (int i = 0; i < kFloats; ++i) in.as<float>()[i] = static_cast<float>(i);
    poison(out.begin, out.bytes);
    *counter.as<uint32_t>() = 0;
  }
};

struct Context {
  const float* in;
  float* out;
  uint32_t* counter;
  std::byte* shared;
  float* floats() const { return reinterpret_cast<float*>(shared); }
};

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitizeBuild = true;  // it ends the program at the first fault of its own
#else
constexpr bool kSanitizeBuild = false;
#endif

enum class Build { kAll, kRaces, kNotSanitized };

struct SelfTest {
  const char* name;
  std::optional<Fault> expected;  // none: the kernel is right
  Build build;
  int ctas;
  int threads;
  void (*kernel)(const Context&);
  bool (*right)(const float* out);  // null: the result is not looked at
  bool in_some_order = false;
};

const CachePolicy kPolicy = evict_first_policy();

// Each CTA has results of its own; those of the first are looked at.
void put(const Context& c, int index, float value) { store_global(&c.out[cta_index_x() * 512 + index], value); }

bool all_reversed(const float* out) {
  for (int i = 0; i < 128; ++i)
    if (out[i] != static_cast<float>(127 - i)) return false;
  return true;
}

// ---- Warps ------------------------------------------------------------------------------------------------------

void shuffles(const Context& c) {
  const int lane = lane_index();
  float value = c.in[thread_index()];
  value = shuffle_xor(value, 31);                   // reversed within the warp
  const int from = shuffle(lane, (lane + 1) % 32);  // each lane names its source
  const int below = shuffle_up(lane, 4);
  const uint32_t even = ballot(lane % 2 == 0);
  const bool right = from == (lane + 1) % 32 && below == (lane < 4 ? lane : lane - 4) && even == 0x55555555u &&
                     any_lane(lane == 7) && !any_lane(false) && warp_index() == thread_index() / 32;
  store_global(&c.out[(3 - thread_index() / 32) * 32 + lane], right ? value : -1.0f);
}

void divergent_lines(const Context&) {
  if (lane_index() < 16)
    sync_warp();
  else
    sync_warp();
}

void ended_lane(const Context&) {
  if (lane_index() == 5) return;
  sync_warp();
}

void different_collectives(const Context&) {
  if (lane_index() == 0)
    shuffle(1, 0);
  else
    ballot(true);
}

// ---- Barriers ---------------------------------------------------------------------------------------------------

void reverse_through_shared(const Context& c) {
  c.floats()[thread_index()] = c.in[thread_index()];
  sync_cta();
  put(c, thread_index(), c.floats()[num_threads() - 1 - thread_index()]);
}

void reverse_without_barrier(const Context& c) {
  c.floats()[thread_index()] = c.in[thread_index()];
  store_global(&c.out[thread_index()], c.floats()[num_threads() - 1 - thread_index()]);
}

void missing_warp_at_barrier(const Context&) {
  if (thread_index() >= 32) sync_cta();
}

void changing_counts(const Context&) { sync_named(1, thread_index() < 32 ? 64 : 128); }

void named_pairs(const Context& c) {
  const int pair = warp_index() / 2;
  c.floats()[thread_index()] = c.in[thread_index()];
  sync_named(1 + pair, 64);
  const float value = c.floats()[thread_index() ^ 63];
  store_global(&c.out[127 - (thread_index() ^ 63)], value);
}

void crossed_barriers(const Context&) { sync_named(thread_index() < 64 ? 1 : 2, 128); }

void half_warp_at_barrier(const Context&) {
  if (lane_index() < 16) sync_cta();
}

void endless_poll(const Context& c) {
  while (atomic_increment_wrap(c.counter, 1000) < 2000) {
  }
}

// ---- Memory -----------------------------------------------------------------------------------------------------

void past_the_end(const Context& c) {
  if (thread_index() == 0) store_global(&c.out[kFloats], 1.0f);
}

void write_to_input(const Context& c) {
  if (thread_index() == 0) store_global(const_cast<float*>(&c.in[0]), 1.0f);
}

void plain_write_past_the_end(const Context& c) {
  if (thread_index() == 0) *const_cast<volatile float*>(&c.out[kFloats + 2]) = 1.0f;
}

void plain_write_past_shared(const Context& c) {
  if (thread_index() == 0) *const_cast<volatile float*>(&c.floats()[8192 / 4]) = 1.0f;
}

void misaligned_load(const Context& c) { load_global(reinterpret_cast<const Float4*>(&c.in[1])); }

// ---- Asynchronous copies ----------------------------------------------------------------------------------------

void copy_tile(const Context& c, int stage) {
  copy_async_16(shared_address(c.floats() + stage * 512 + thread_index() * 4), &c.in[thread_index() * 4], true,
                kPolicy);
  commit_copies();
}

void copies(const Context& c) {
  copy_tile(c, 0);
  copy_tile(c, 1);
  wait_copies(1);
  sync_cta();
  put(c, 127 - thread_index(), c.floats()[thread_index()]);
  wait_copies(0);
  sync_cta();
}

void copy_of_nothing(const Context& c) {
  copy_async_16(shared_address(c.floats() + thread_index() * 4), c.in, false, kPolicy);
  commit_copies();
  wait_copies(0);
  store_global(&c.out[127 - thread_index()], c.floats()[thread_index() * 4] + static_cast<float>(thread_index()));
}

void missing_wait(const Context& c) {
  copy_tile(c, 0);
  sync_cta();
  uint32_t rows[4];
  load_matrices(rows, shared_address(c.floats() + lane_index() * 4));
  wait_copies(0);
}

void wait_for_too_few(const Context& c) {
  copy_tile(c, 0);
  wait_copies(1);
  sync_cta();
  uint32_t rows[4];
  load_matrices(rows, shared_address(c.floats() + lane_index() * 4));
  wait_copies(0);
}

void wait_for_more_than_there_can_be(const Context& c) {
  copy_tile(c, 0);
  wait_copies(kMaxPending + 1);
}

// Waits, but only its own bytes are sure to be there.
void missing_barrier_after_wait(const Context& c) {
  copy_tile(c, 0);
  wait_copies(0);
  uint32_t rows[4];
  load_matrices(rows, shared_address(c.floats() + (thread_index() ^ 64) / 32 * 32 * 4 + lane_index() * 4));
}

// Refills a buffer that other warps may still read.
void missing_barrier_before_refill(const Context& c) {
  float sum = 0;
  for (int i = 0; i < 8; ++i) {
    copy_tile(c, 0);
    wait_copies(0);
    sync_cta();
    uint32_t rows[4];
    load_matrices(rows, shared_address(c.floats() + (thread_index() ^ 64) / 32 * 32 * 4 + lane_index() * 4));
    sum += static_cast<float>(rows[0]);
  }
  store_global(&c.out[thread_index()], sum);
}

void unfinished_copy(const Context& c) { copy_tile(c, 0); }

void copy_past_the_end(const Context& c) {
  copy_async_16(shared_address(c.floats()), &c.in[kFloats], true, kPolicy);
  wait_copies(0);
}

void two_copies_to_one_place(const Context& c) { copy_async_16(shared_address(c.floats()), &c.in[0], true, kPolicy); }

// ---- Bulk copies ------------------------------------------------------------------------------------------------

SharedAddress full_barrier(const Context& c) { return shared_address(c.shared + 8000); }
SharedAddress empty_barrier(const Context& c) { return shared_address(c.shared + 8008); }

void begin_bulk(const Context& c, bool fence = true) {
  if (thread_index() == 0) {
    barrier_init(full_barrier(c), 1);
    barrier_init(empty_barrier(c), 3);
    if (fence) fence_async_proxy();
  }
  sync_cta();
}

// Warp 0 produces four tiles through one buffer, warps 1 to 3 consume.
void bulk_ring(const Context& c, bool wait_full, bool wait_empty, uint32_t announced) {
  begin_bulk(c);
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    if (warp_index() == 0) {
      if (wait_empty) barrier_wait(empty_barrier(c), (i & 1) ^ 1);
      sync_warp();  // a lane that waits late would miss a whole phase
      if (lane_index() == 0) {
        barrier_arrive_expect(full_barrier(c), announced);
        copy_bulk(shared_address(c.floats()), &c.in[i * 128], 512, full_barrier(c), kPolicy);
      }
    } else {
      if (wait_full) barrier_wait(full_barrier(c), i & 1);
      sync_warp();
      sum += c.floats()[thread_index()];
      uint32_t rows[4];
      load_matrices(rows, shared_address(c.floats() + lane_index() * 4));
      sync_warp();
      if (lane_index() == 0) barrier_arrive(empty_barrier(c));
    }
  }
  put(c, 127 - thread_index(), thread_index() < 32 ? static_cast<float>(thread_index()) : sum / 4 - 192);
}

void bulk(const Context& c) { bulk_ring(c, true, true, 512); }
void bulk_without_wait(const Context& c) { bulk_ring(c, false, true, 512); }
void bulk_refill_too_early(const Context& c) { bulk_ring(c, true, false, 512); }
void bulk_announced_too_much(const Context& c) { bulk_ring(c, true, true, 528); }
void bulk_announced_too_little(const Context& c) { bulk_ring(c, true, true, 496); }

void bulk_without_fence(const Context& c) {
  begin_bulk(c, false);
  if (thread_index() == 0) {
    barrier_arrive_expect(full_barrier(c), 512);
    copy_bulk(shared_address(c.floats()), c.in, 512, full_barrier(c), kPolicy);
  }
  barrier_wait(full_barrier(c), 0);
}

void uninitialised_barrier(const Context& c) { barrier_arrive(full_barrier(c)); }

void too_many_arrivals(const Context& c) {
  begin_bulk(c);
  if (thread_index() == 0) {
    barrier_arrive_expect(full_barrier(c), 16);
    barrier_arrive(full_barrier(c));
  }
}

void unaligned_bulk(const Context& c) {
  begin_bulk(c);
  if (thread_index() == 0) copy_bulk(shared_address(c.floats()), c.in + 1, 512, full_barrier(c), kPolicy);
}

void store_then_bulk(const Context& c, bool fence) {
  begin_bulk(c);
  c.floats()[thread_index()] = 1.0f;
  if (fence) fence_async_proxy();
  sync_cta();
  if (thread_index() == 0) {
    barrier_arrive_expect(full_barrier(c), 512);
    copy_bulk(shared_address(c.floats()), c.in, 512, full_barrier(c), kPolicy);
  }
  barrier_wait(full_barrier(c), 0);
  store_global(&c.out[127 - thread_index()], c.floats()[thread_index()]);
}
void fenced_store_then_bulk(const Context& c) { store_then_bulk(c, true); }
void unfenced_store_then_bulk(const Context& c) { store_then_bulk(c, false); }

// ---- Order of memory --------------------------------------------------------------------------------------------

// Every CTA but the last to arrive leaves a value; the last one sums.
void last_arriver(const Context& c, bool barrier, bool coherent) {
  c.out[1024 + cta_index_x() * 128 + thread_index()] = 1.0f;
  if (barrier) sync_cta();
  auto* flag = reinterpret_cast<int*>(c.shared);
  if (thread_index() == 0)
    *flag = atomic_increment_wrap(c.counter, num_ctas_x() - 1) + 1 == static_cast<uint32_t>(num_ctas_x());
  sync_cta();
  if (!*flag) return;
  float sum = 0;
  for (int i = 0; i < num_ctas_x(); ++i)
    sum += coherent ? *reinterpret_cast<const volatile float*>(&c.out[1024 + i * 128 + (thread_index() ^ 64)]) : 0.0f;
  store_global(&c.out[thread_index()], sum + static_cast<float>(127 - thread_index() - num_ctas_x()));
}
void fix_up(const Context& c) { last_arriver(c, true, true); }
void fix_up_without_barrier(const Context& c) { last_arriver(c, false, true); }

// A relaxed increment: arrivals are counted, but nothing is released.
void fix_up_relaxed(const Context& c) {
  c.out[1024 + cta_index_x()] = 1.0f;
  atomic_or_relaxed(c.counter, 1u << cta_index_x());
  if (cta_index_x() == num_ctas_x() - 1) store_global(&c.out[0], c.out[1024]);
}

void read_nobody_wrote(const Context& c) { store_global(&c.out[thread_index()], c.floats()[thread_index()]); }

// The read-only path, which no primitive takes: the machine is asked directly.
void stale_read(const Context& c) {
  store_global(&c.out[thread_index()], 1.0f);
  machine->touch(&c.out[thread_index()], 4, Access::global_non_coherent(), Site::current());
}

void policy_that_nobody_created(const Context& c) { copy_async_16(shared_address(c.floats()), c.in, true, 0); }

void named_barrier_zero(const Context&) { sync_named(0, 32); }

void warp_exchange_without_sync(const Context& c) {
  c.floats()[lane_index()] = 1.0f;
  shuffle(0, 0);  // a rendezvous that orders nothing
  store_global(&c.out[lane_index()], c.floats()[lane_index() ^ 1]);
}

void warp_exchange(const Context& c) {
  c.floats()[thread_index()] = c.in[thread_index()];
  sync_warp();
  store_global(&c.out[127 - (thread_index() ^ 1)], c.floats()[thread_index() ^ 1]);
}

// ---- Matrices ---------------------------------------------------------------------------------------------------

// An identity times a matrix of known elements, loaded in both ways.
void matrices(const Context& c) {
  auto* elements = reinterpret_cast<uint16_t*>(c.shared);  // [16][16], pitch 24 elements: no bank conflicts
  for (int i = thread_index(); i < 256; i += num_threads())
    elements[i / 16 * 24 + i % 16] = from_float<Float16>(static_cast<float>(i % 16 == 3 ? i : -i)).bits;
  sync_cta();
  const int lane = lane_index();
  uint32_t a[4] = {}, b[4];
  const int g = lane / 4, column = 2 * (lane % 4);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 2; ++j)
      if (g + 8 * (i & 1) == column + 8 * (i >> 1) + j) a[i] |= 0x3c00u << 16 * j;
  load_matrices_transposed(b, shared_address(elements + lane % 16 * 24 + lane / 16 * 8));
  float d[2][4] = {};
  multiply_accumulate<Float16>(d[0], a, b[0], b[1]);
  multiply_accumulate<Float16>(d[1], a, b[2], b[3]);
  uint32_t rows[4];  // the same matrix, straight: element (g, column) of the upper left quarter
  load_matrices(rows, shared_address(elements + lane % 16 * 24 + lane / 16 * 8));
  bool right = true;
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i / 2), col = 8 * n + column + i % 2, index = row * 16 + col;
      right = right && d[n][i] == static_cast<float>(col == 3 ? index : -index);
      const int register_index = n * 2 + i / 2;
      const uint16_t element = static_cast<uint16_t>(rows[register_index] >> 16 * (i % 2));
      right = right && to_float(Float16{element}) == d[n][i];
    }
  store_global(&c.out[127 - thread_index()], right ? static_cast<float>(thread_index()) : -1.0f);
}

const SelfTest kTests[] = {
    {"shuffles and votes", {}, Build::kAll, 1, 128, shuffles, all_reversed},
    {"a collective at two lines", Fault::kDivergence, Build::kAll, 1, 32, divergent_lines, nullptr},
    {"a collective after a lane has ended", Fault::kDivergence, Build::kAll, 1, 32, ended_lane, nullptr},
    {"two collectives at once", Fault::kDivergence, Build::kAll, 1, 32, different_collectives, nullptr},
    {"exchange through shared memory", {}, Build::kAll, 2, 128, reverse_through_shared, all_reversed},
    {"exchange without a barrier", Fault::kRace, Build::kRaces, 1, 128, reverse_without_barrier, nullptr, true},
    {"a warp that misses a barrier", Fault::kDeadlock, Build::kAll, 1, 128, missing_warp_at_barrier, nullptr},
    {"a barrier with two counts", Fault::kBarrier, Build::kAll, 1, 128, changing_counts, nullptr},
    {"named barriers in pairs", {}, Build::kAll, 1, 128, named_pairs, all_reversed},
    {"warps at different barriers", Fault::kDeadlock, Build::kAll, 1, 128, crossed_barriers, nullptr},
    {"half a warp at a barrier", Fault::kDivergence, Build::kAll, 1, 32, half_warp_at_barrier, nullptr},
    {"a poll in vain", Fault::kLivelock, Build::kAll, 1, 32, endless_poll, nullptr},
    {"a store past a buffer's end", Fault::kOutOfBounds, Build::kAll, 1, 32, past_the_end, nullptr},
    {"a store to an input", Fault::kReadOnly, Build::kAll, 1, 32, write_to_input, nullptr},
    {"a plain write past a buffer's end", Fault::kOutOfBounds, Build::kNotSanitized, 1, 32, plain_write_past_the_end,
     nullptr},
    {"a plain write past shared memory", Fault::kOutOfBounds, Build::kNotSanitized, 1, 32, plain_write_past_shared,
     nullptr},
    {"a misaligned load", Fault::kAlignment, Build::kAll, 1, 32, misaligned_load, nullptr},
    {"asynchronous copies", {}, Build::kAll, 2, 128, copies, all_reversed},
    {"asynchronous copies of nothing", {}, Build::kAll, 1, 128, copy_of_nothing, all_reversed},
    {"a missing wait", Fault::kInFlight, Build::kAll, 1, 128, missing_wait, nullptr},
    {"a wait for too few groups", Fault::kInFlight, Build::kAll, 1, 128, wait_for_too_few, nullptr},
    {"a wait that leaves too many groups", Fault::kArgument, Build::kAll, 1, 128, wait_for_more_than_there_can_be,
     nullptr},
    {"a missing barrier after a wait", Fault::kInFlight, Build::kAll, 1, 128, missing_barrier_after_wait, nullptr,
     true},
    {"a missing barrier after a wait, as a race", Fault::kRace, Build::kRaces, 1, 128, missing_barrier_after_wait,
     nullptr, true},
    {"a missing barrier before a refill", Fault::kInFlight, Build::kAll, 1, 128, missing_barrier_before_refill, nullptr,
     true},
    {"a missing barrier before a refill, as a race", Fault::kRace, Build::kRaces, 1, 128, missing_barrier_before_refill,
     nullptr, true},
    {"a copy that nobody waits for", Fault::kUnfinishedCopy, Build::kAll, 1, 128, unfinished_copy, nullptr},
    {"a copy from past a buffer's end", Fault::kOutOfBounds, Build::kAll, 1, 32, copy_past_the_end, nullptr},
    {"two copies to one place", Fault::kInFlight, Build::kAll, 1, 32, two_copies_to_one_place, nullptr},
    {"bulk copies", {}, Build::kAll, 2, 128, bulk, all_reversed},
    {"bulk copies without a wait", Fault::kInFlight, Build::kAll, 1, 128, bulk_without_wait, nullptr, true},
    {"a bulk copy refilled too early", Fault::kInFlight, Build::kAll, 1, 128, bulk_refill_too_early, nullptr, true},
    {"more bytes announced than copied", Fault::kDeadlock, Build::kAll, 1, 128, bulk_announced_too_much, nullptr},
    {"fewer bytes announced than copied", Fault::kMbarrier, Build::kAll, 1, 128, bulk_announced_too_little, nullptr},
    {"an mbarrier without a fence", Fault::kProxyFence, Build::kAll, 1, 32, bulk_without_fence, nullptr},
    {"an mbarrier that nobody initialised", Fault::kMbarrier, Build::kAll, 1, 32, uninitialised_barrier, nullptr},
    {"too many arrivals", Fault::kMbarrier, Build::kAll, 1, 32, too_many_arrivals, nullptr},
    {"a misaligned bulk copy", Fault::kAlignment, Build::kAll, 1, 32, unaligned_bulk, nullptr},
    {"a fence between a store and a bulk copy", {}, Build::kAll, 1, 128, fenced_store_then_bulk, all_reversed},
    {"no fence between a store and a bulk copy", Fault::kProxyFence, Build::kRaces, 1, 128, unfenced_store_then_bulk,
     nullptr},
    {"last arriver", {}, Build::kAll, 6, 128, fix_up, all_reversed},
    {"last arriver without a barrier", Fault::kRace, Build::kRaces, 6, 128, fix_up_without_barrier, nullptr},
    {"relaxed instead of release", Fault::kRace, Build::kRaces, 6, 32, fix_up_relaxed, nullptr, true},
    {"a read of what nobody wrote", Fault::kUninitialised, Build::kRaces, 1, 32, read_nobody_wrote, nullptr},
    {"a non-coherent read of this launch's data", Fault::kNonCoherent, Build::kRaces, 1, 32, stale_read, nullptr},
    {"a cache policy that nobody created", Fault::kArgument, Build::kAll, 1, 32, policy_that_nobody_created, nullptr},
    {"the CTA's barrier by its number", Fault::kArgument, Build::kAll, 1, 32, named_barrier_zero, nullptr},
    {"a shuffle taken for a barrier", Fault::kRace, Build::kRaces, 1, 32, warp_exchange_without_sync, nullptr},
    {"exchange within a warp", {}, Build::kAll, 1, 128, warp_exchange, all_reversed},
    {"matrix loads and products", {}, Build::kAll, 1, 128, matrices, all_reversed},
};

// Runs one test under one dispatch; what is wrong with the outcome, or nothing.
std::string run(const SelfTest& test, Memory& memory, const Dispatch& dispatch, bool& found) {
  memory.reset();
  const LaunchShape shape{test.ctas, 1, test.threads, 8192};
  const Kernel kernel = [&](std::byte* shared) {
    test.kernel({memory.in.as<float>(), memory.out.as<float>(), memory.counter.as<uint32_t>(), shared});
  };
  try {
    launch(memory.device, shape, dispatch, kernel, kRaceBuild);
  } catch (const Failure& failure) {
    // Restores the red zones that a test has damaged.
    for (const Buffer& buffer : memory.device.buffers()) {
      fill_red_zone(buffer.begin - kRedZoneBytes, kRedZoneBytes);
      fill_red_zone(buffer.end(), kRedZoneBytes);
    }
    if (test.expected == failure.fault()) {
      found = true;
      return {};
    }
    // The race build may see a wrong kernel's race before its other consequences.
    if (test.expected && kRaceBuild &&
        (failure.fault() == Fault::kRace || failure.fault() == Fault::kInFlight ||
         failure.fault() == Fault::kUninitialised)) {
      found = true;
      return {};
    }
    if (test.in_some_order) return {};  // another consequence of the same mistake
    return std::string("unexpected ") + failure.what();
  }
  if (!test.expected && test.right && !test.right(memory.out.as<float>())) return "a wrong result";
  return {};
}

// Rows that lie 128 bytes apart share their banks: each of the four matrices is read in eight turns instead of one.
std::string count_bank_conflicts(Memory& memory) {
  const auto replays = [&memory](int pitch) {
    return launch(memory.device, {1, 1, 32, 8192}, {},
                  [pitch](std::byte* shared) {
                    uint32_t registers[4];
                    for (int i = lane_index(); i < 2048; i += 32) reinterpret_cast<uint32_t*>(shared)[i] = 0;
                    sync_warp();
                    load_matrices(registers, shared_address(shared + lane_index() * pitch));
                  })
        .bank_conflict_replays;
  };
  if (replays(128) != 4 * 7 || replays(64) != 4 * 3 || replays(144) != 0 || replays(16) != 0) return "counted wrongly";
  return {};
}

int run_all() {
  Memory memory;
  std::vector<Dispatch> dispatches;
  for (Order order : {Order::kInOrder, Order::kReversed, Order::kShuffled})
    for (int resident : {1, 4})
      for (uint32_t interrupt : {0u, 3u})
        dispatches.push_back({order, order, order, resident, interrupt, 7 + dispatches.size(), 100'000});
  int failed = 0;
  const std::string conflicts = count_bank_conflicts(memory);
  printf("%s bank conflicts%s%s\n", conflicts.empty() ? "ok  " : "FAIL", conflicts.empty() ? "" : ": ",
         conflicts.c_str());
  failed += !conflicts.empty();
  for (const SelfTest& test : kTests) {
    if (test.build == Build::kRaces && !kRaceBuild) continue;
    if (test.build == Build::kNotSanitized && kSanitizeBuild) continue;
    std::string wrong;
    int times = 0;
    for (const Dispatch& dispatch : dispatches) {
      bool found = false;
      std::string text = run(test, memory, dispatch, found);
      if (text.empty() && test.expected && !found && !test.in_some_order) text = "not found";
      if (!text.empty() && wrong.empty()) wrong = text + " (" + dispatch.describe() + ")";
      times += found;
    }
    if (wrong.empty() && test.expected && times == 0) wrong = "never found";
    printf("%s %s%s%s\n", wrong.empty() ? "ok  " : "FAIL", test.name, wrong.empty() ? "" : ": ", wrong.c_str());
    failed += !wrong.empty();
  }
  return failed;
}

}  // namespace
}  // namespace lean::rehearsal

int main() { return lean::rehearsal::run_all() ? 1 : 0; }
