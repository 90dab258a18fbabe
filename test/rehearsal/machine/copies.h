// Shared memory, asynchronous copies into it, and the mbarriers that count them.
//
// A copy poisons its destination with NaN when it is issued and delivers the bytes at the wait. That one rule catches
// both mistakes there are: a reader who did not wait finds NaN, and so does a reader for whom a buffer was refilled too
// early. Between the two, a map of bytes in flight knows who issued what, so that a primitive that touches them says
// so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fault.h"
#include "memory.h"
#include "race.h"

namespace lean::rehearsal {

struct Lane;

struct Copy {
  std::byte* destination = nullptr;
  const std::byte* source = nullptr;
  uint32_t bytes = 0;         // 0: this entry of the table is free
  uint32_t source_bytes = 0;  // what follows them becomes zero
  Site where;
  Lane* issuer = nullptr;
};

// cp.async: the copies of one thread, by index into its CTA's table, oldest first, and the groups it committed.
struct LaneCopies {
  std::vector<uint32_t> pending;
  std::vector<uint32_t> groups;  // copies in each committed group, oldest first
  uint32_t uncommitted = 0;      // the last ones of `pending`
};

struct Mbarrier {
  int64_t count = 0;           // arrivals that complete a phase
  int64_t pending = 0;         // arrivals missing in this phase
  int64_t expected_bytes = 0;  // of this phase
  int64_t issued_bytes = 0;
  uint32_t phase = 0;   // completed phases
  bool fenced = false;  // the initialisation is visible to the asynchronous proxy
  Lane* initialised_by = nullptr;
  std::vector<uint32_t> copies;  // that report to this phase
  std::vector<Lane*> waiting;
  SyncClock arriving;   // what this phase's arrivals release
  SyncClock completed;  // what waiters for the last completed phase acquire
};

class SharedMemory {
 public:
  // Block number `slot` of the process, at a multiple of 1024 bytes, a red zone on either side.
  void allocate(int64_t slot, size_t bytes);
  std::byte* begin() const { return begin_; }
  size_t bytes() const { return bytes_; }

  void start_cta();       // everything is NaN, no mbarrier exists
  std::string end_cta();  // a damaged red zone, described; empty: all is well
  std::string copy_under_way() const;
  std::string describe_mbarriers() const;  // those that somebody waits for

  // In the block or its red zones.
  bool near(const void* address) const {
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(begin_ - kRedZoneBytes) <
           bytes_ + 2 * kRedZoneBytes;
  }
  bool holds(const void* address, size_t bytes) const {
    const auto* at = static_cast<const std::byte*>(address);
    return at >= begin_ && at + bytes <= begin_ + bytes_;
  }
  // Fails when the bytes are outside of the block or in flight.
  void check(const void* address, size_t bytes, const Site& where) const;
  const Copy* in_flight(const void* address) const;
  std::string locate(const void* address) const;

  // cp.async of 4, 8 or 16 bytes, of which the first `source_bytes` are read and the rest become zero.
  void copy_async(void* destination, const void* source, uint32_t bytes, uint32_t source_bytes, const Site& where);
  void commit_group(const Site& where);
  void wait_group(size_t groups_left, const Site& where);
  void wait_all(const Site& where);

  // cp.async.bulk: completes on `mbarrier`.
  void copy_bulk(void* destination, const void* source, uint32_t bytes, void* mbarrier, const Site& where);

  void mbarrier_init(void* mbarrier, int64_t count, const Site& where);
  // `expected_bytes` are added to what the phase waits for, then `arrivals` (0 or 1) arrive.
  void mbarrier_arrive(void* mbarrier, int64_t expected_bytes, int64_t arrivals, const Site& where);
  // Blocks until the phase of that parity has completed, as try_wait.parity in a loop does.
  void mbarrier_wait(void* mbarrier, uint32_t parity, const Site& where);
  // fence.mbarrier_init or fence.proxy.async by the current thread.
  void fence_initialised_mbarriers();

 private:
  static constexpr size_t kGranule = 4;  // the smallest copy

  uint32_t take_off(Copy copy);
  void land(uint32_t index);
  void mark(const Copy& copy, uint32_t value);
  Mbarrier& find_mbarrier(void* mbarrier, const char* what, const Site& where);
  void check_bytes(void* mbarrier, const Mbarrier& barrier, const Site& where) const;
  void complete_if_due(Mbarrier& barrier);

  std::byte* begin_ = nullptr;
  size_t bytes_ = 0;
  std::vector<uint32_t> flights_;  // per granule: 1 + index of the copy on its way there; 0: none
  std::vector<Copy> copies_;
  std::vector<uint32_t> free_copies_;
  std::map<void*, Mbarrier> mbarriers_;
};

}  // namespace lean::rehearsal
