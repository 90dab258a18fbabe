// The machine: runs a kernel's CUDA threads as fibers on one thread of the host, CTA by CTA and warp by warp.
//
// What CUDA leaves open is an option here: the order in which CTAs start, how many are resident at once, which warp and
// which lane goes first, when a thread is interrupted. A right kernel gives the same result under all of them.
//
// Collectives of a warp are a rendezvous: each of the 32 lanes leaves its operands and stops; the last to arrive
// carries the instruction out for all. Barriers count whole warps. Blocking waits stop a lane until another lane's act
// wakes it; when nothing can run, the machine reports who waits where.
//
// The twins of the device primitives (primitives_host.h) are the only callers of Machine's members; tests call
// launch().
#pragma once

#include <array>
#include <bit>
#include <functional>
#include <memory>
#include <vector>

#include "copies.h"
#include "fault.h"
#include "fiber.h"
#include "memory.h"
#include "race.h"

namespace lean::rehearsal {

enum class Order { kInOrder, kReversed, kShuffled };

struct Dispatch {
  Order ctas = Order::kInOrder;
  Order warps = Order::kInOrder;
  Order lanes = Order::kInOrder;
  int resident_ctas = 4;
  uint32_t interrupt_every =
      0;  // a thread gives way at every so many primitives, on average; 0: only where it must wait
  uint64_t seed = 1;
  uint64_t max_steps =
      400'000'000;  // primitives and waits of all threads; no kernel of these tests takes a tenth of it

  std::string describe() const;
};

struct LaunchShape {
  int64_t ctas_x;
  int64_t ctas_y;
  int threads;          // per CTA, a multiple of 32
  size_t shared_bytes;  // dynamic shared memory
  int64_t num_ctas() const { return ctas_x * ctas_y; }
};

struct Counters {
  int64_t bytes_copied = 0;           // by asynchronous copies, all buffers together
  int64_t matrix_loads = 0;           // ldmatrix, counted in 8x8 matrices
  int64_t bank_conflict_replays = 0;  // of matrix loads: 0 when the swizzle does its work
  int64_t collectives = 0;
};

using Kernel = std::function<void(std::byte* shared)>;

// Runs a grid to its end. Throws Failure at the first fault. With `check_races`, memory is watched as well: the
// kernel's file must then be compiled with -fsanitize=thread (see race.h).
Counters launch(DeviceMemory& memory, LaunchShape shape, const Dispatch& dispatch, const Kernel& kernel,
                bool check_races = false);

// ---- What the primitives' twins use -----------------------------------------------------------------------------

inline constexpr int kWarpLanes = 32;
inline constexpr int kMaxBarriers = 16;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

struct Warp;
struct Cta;

struct Lane {
  Fiber fiber;
  Warp* warp = nullptr;
  int lane = 0;
  int thread = 0;              // in the CTA
  const char* waits_for = "";  // what it stopped at, for reports
  Site where;
  void* operands = nullptr;  // of the collective at which it stands
  LaneCopies copies;
  LaneClock clock;
};

struct Warp {
  Cta* cta = nullptr;
  int index = 0;
  uint32_t runnable = 0;  // bit per lane
  uint32_t arrived = 0;   // lanes at the pending collective
  uint32_t live = 0;      // lanes that have not ended
  const char* collective = nullptr;
  Site where;
  std::array<Lane*, kWarpLanes> lanes{};
};

struct Barrier {
  int expected = 0;  // threads; 0: no phase under way
  int arrived = 0;
  uint64_t warps = 0;  // that arrived
  std::vector<Warp*> waiting;
  SyncClock clock;
};

struct Cta {
  int64_t index = 0;
  int live_threads = 0;
  std::vector<Lane> lanes;
  std::vector<Warp> warps;
  std::array<Barrier, kMaxBarriers> barriers;
  SharedMemory shared;
};

class Machine {
 public:
  Machine(DeviceMemory& memory, LaunchShape shape, const Dispatch& dispatch, const Kernel& kernel, bool check_races);
  ~Machine();
  Counters run();

  // Called once by each of a warp's lanes, from one line. `execute` is called once, with all lanes' operands; when it
  // returns false the warp stays blocked until wake().
  using Execute = bool (*)(Warp& warp, void* const* operands);
  void collective(const char* name, const Site& where, void* operands, Execute execute);

  void barrier(int id, int threads, bool wait, const Site& where);
  void sync_warp(const Site& where);

  // A point at which a thread may be interrupted: every primitive that is no collective calls it first.
  void point();
  // Gives way to another lane, if any can run.
  void yield();
  // Stops the current lane until wake().
  void block(const char* waits_for, const Site& where);
  void wake(Lane& lane) { lane.warp->runnable |= 1u << lane.lane; }
  void wake(Warp& warp) { warp.runnable |= warp.live; }

  [[noreturn]] void fail(Fault fault, const std::string& text);
  // As fail, with the current thread and its line in front.
  [[noreturn]] void fail_here(Fault fault, const std::string& text, const Site& where);

  // Every access that a primitive makes passes here: bounds, bytes in flight, races.
  void touch(const void* address, size_t bytes, Access access, const Site& where);

  Lane& lane() { return *current_; }
  Cta& cta() { return *current_->warp->cta; }
  const LaunchShape& shape() const { return shape_; }
  DeviceMemory& memory() { return memory_; }
  Counters& counters() { return counters_; }
  RaceChecker* races() { return races_.get(); }
  std::string name(const Lane& lane) const;  // "CTA 3 warp 1 lane 17"
  std::vector<std::unique_ptr<Cta>>& residents() { return slots_; }

 private:
  void start_cta(Cta& cta);
  void end_cta(Cta& cta);
  void lane_main();
  [[noreturn]] void exit_lane();
  Lane* pick();
  Lane* pick_lane(Warp& warp);
  void resume(Lane* next);
  std::string who_waits_where() const;
  uint64_t random();
  void step();

  static void fiber_main();

  DeviceMemory& memory_;
  LaunchShape shape_;
  Dispatch dispatch_;
  const Kernel& kernel_;
  Counters counters_;
  std::unique_ptr<RaceChecker> races_;
  std::vector<int64_t> cta_order_;
  size_t next_cta_ = 0;
  std::vector<std::unique_ptr<Cta>> slots_;
  std::vector<Warp*> warps_;  // of all residents
  size_t warp_cursor_ = 0;
  Fiber host_;
  Lane* current_ = nullptr;
  Cta* ended_ = nullptr;  // the CTA whose last lane has just ended
  uint32_t countdown_ = 0;
  uint64_t random_;
  uint64_t steps_ = 0;
  std::unique_ptr<Failure> failure_;
};

// The machine that is running; null outside of a launch.
extern Machine* machine;

}  // namespace lean::rehearsal
