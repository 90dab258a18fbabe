// The race checker: happens-before under CUDA's rules, for every access of a kernel.
//
// It works in the race build only. There the kernel's file is compiled with -fsanitize=thread, so that the compiler
// calls
// __tsan_read4(p) and its like at every access; race_hooks.cpp defines those functions and brings them here. No part of
// ThreadSanitizer's own runtime is linked: its rules are the host's, not CUDA's.
//
// What orders memory: CTA and named barriers, syncwarp, mbarriers (arrive releases, wait acquires), acquire-release
// atomics at the GPU's scope. What does not: shuffles, votes, matrix instructions, relaxed atomics, and luck.
// The method is FastTrack's: each thread has a clock that ticks at releases; each cell of memory remembers its last
// write and the reads since, as (thread, clock); an access must come after them by what its thread knows of others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "fault.h"

namespace lean::rehearsal {

struct Lane;
struct Warp;
struct Cta;
struct Copy;
struct Buffer;
class Machine;

// What a primitive does to memory.
struct Access {
  bool write = false;
  bool atomic = false;        // does not race with other atomics
  bool bulk = false;          // through the asynchronous proxy
  bool non_coherent = false;  // through the read-only path
  bool global = false;        // must lie in a buffer
  bool plain = false;         // the compiler's, not a primitive's
  bool padded = false;        // some of its bytes were written: the others may be a struct's padding

  static Access global_read() { return {.global = true}; }
  static Access global_write() { return {.write = true, .global = true}; }
  static Access global_atomic() { return {.write = true, .atomic = true, .global = true}; }
  static Access global_non_coherent() { return {.non_coherent = true, .global = true}; }
  static Access shared_read() { return {}; }
  static Access matrix_read() { return {}; }
  static Access shared_write() { return {.write = true}; }
  static Access shared_atomic() { return {.write = true, .atomic = true}; }
  static Access bulk_write() { return {.write = true, .bulk = true}; }
};

// By thread of the grid: the latest tick of it that is known. Threads beyond the end are unknown.
using Ticks = std::vector<uint32_t>;
using SyncClock = Ticks;  // what a release leaves behind for an acquire

struct LaneClock {
  uint32_t thread = 0;                  // in the grid
  uint32_t tick = 1;                    // own time
  std::shared_ptr<const Ticks> known;   // of others; shared by lanes that synchronised together
  uint32_t fenced_tick = 0;             // own writes up to here are visible to the asynchronous proxy
  std::shared_ptr<const Ticks> fenced;  // others' writes likewise
};

class RaceChecker {
 public:
  explicit RaceChecker(Machine& machine);
  void start_cta(Cta& cta);

  // An access by the current lane. Primitives give their line, the compiler's hooks an address in the program.
  void access(const void* address, size_t bytes, Access access, const Site& where);
  void plain_access(const void* address, size_t bytes, bool write, const void* program_counter);
  // Bulk copies are written by an agent of the CTA, whom nobody knows who has not waited.
  void land_bulk(Cta& cta, const Copy& copy, SyncClock& released_to);

  void release(Lane& lane, SyncClock& clock);
  void acquire(Lane& lane, const SyncClock& clock);
  void release(Warp& warp, SyncClock& clock);
  void acquire(Warp& warp, const SyncClock& clock);
  void synchronise(Warp& warp);
  void fence_async_proxy(Lane& lane);
  // An acquire-release atomic's clock, by address.
  SyncClock& clock_of(const void* address) { return atomic_clocks_[address]; }

 private:
  struct Stamp {
    uint32_t thread;
    uint32_t tick;  // 0: none
    uint32_t site;
  };
  struct Cell {
    Stamp write{};
    Stamp read{};          // one reader; more of them stand in more_reads_
    uint32_t more = 0;     // 1 + index
    bool atomic = false;   // the last write was
    bool generic = false;  // the last write went through the generic proxy
  };
  // The cells of one region; pages of cells appear as they are touched.
  struct Shadow {
    std::vector<std::unique_ptr<Cell[]>> pages;
    Cell& at(size_t index);
  };
  static constexpr size_t kCellBytes = 2;  // the narrowest store
  static constexpr size_t kPageCells = 1024;

  void visit(const void* address, size_t bytes, Access access, uint32_t site);
  void check(Cell& cell, Access access, const Stamp& now, const void* address);
  bool knows(const LaneClock& clock, const Stamp& stamp) const;
  uint32_t intern(uintptr_t key, const Site* site);
  std::string place(uint32_t site) const;
  std::string who(uint32_t thread) const;
  [[noreturn]] void report(Fault fault, const std::string& what, const Stamp& now, const Stamp& before,
                           const void* address);

  Machine& machine_;
  uint32_t threads_per_cta_;  // the agent is the last one
  std::vector<uint32_t> agent_ticks_;
  std::map<const Cta*, Shadow> shared_;
  std::map<const Buffer*, Shadow> global_;
  std::vector<std::vector<Stamp>> more_reads_;
  std::vector<uint32_t> free_reads_;
  std::map<const void*, SyncClock> atomic_clocks_;
  std::unordered_map<uintptr_t, uint32_t> site_ids_;
  std::vector<std::pair<uintptr_t, std::string>> sites_;  // address in the program or a line
};

// "tile.h:123" for an address in this program, by addr2line where it is installed.
std::string source_line(const void* program_counter);

}  // namespace lean::rehearsal
