#include "copies.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "machine.h"

namespace lean::rehearsal {

namespace {

// More than any GPU's shared memory, so that neighbours' red zones lie far apart.
constexpr size_t kSlotBytes = 512 << 10;
constexpr int64_t kMaxSlots = 2048;

std::byte* slots() {
  static std::byte* const base = [] {
    void* memory = mmap(nullptr, kSlotBytes * kMaxSlots, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return static_cast<std::byte*>(memory);
  }();
  return base;
}

std::string describe_copy(const Copy& copy) {
  return "the copy of " + std::to_string(copy.bytes) + " bytes that " + machine->name(*copy.issuer) + " issued at " +
         describe(copy.where);
}

}  // namespace

void SharedMemory::allocate(int64_t slot, size_t bytes) {
  if (slot >= kMaxSlots || bytes + 2 * kRedZoneBytes + 1024 > kSlotBytes)
    throw Failure(Fault::kArgument, std::to_string(bytes) + " bytes of shared memory in slot " + std::to_string(slot));
  begin_ = slots() + slot * kSlotBytes + 1024;  // the slot itself is aligned to a page
  bytes_ = bytes;
  flights_.assign((bytes + kGranule - 1) / kGranule, 0);
  reveal_red_zone(begin_ - 1024, kSlotBytes);  // an earlier launch had its red zones elsewhere
}

void SharedMemory::start_cta() {
  poison(begin_, bytes_);
  fill_red_zone(begin_ - kRedZoneBytes, kRedZoneBytes);
  fill_red_zone(begin_ + bytes_, kRedZoneBytes);
  std::fill(flights_.begin(), flights_.end(), 0);
  copies_.clear();
  free_copies_.clear();
  mbarriers_.clear();
}

std::string SharedMemory::end_cta() {
  if (!red_zone_whole(begin_ - kRedZoneBytes, kRedZoneBytes)) return "the red zone before shared memory was written";
  if (!red_zone_whole(begin_ + bytes_, kRedZoneBytes)) return "the red zone after shared memory was written";
  return {};
}

std::string SharedMemory::copy_under_way() const {
  for (const Copy& copy : copies_)
    if (copy.bytes) return describe_copy(copy);
  return {};
}

std::string SharedMemory::locate(const void* address) const {
  return "byte " + std::to_string(static_cast<const std::byte*>(address) - begin_) + " of shared memory (" +
         std::to_string(bytes_) + " bytes)";
}

const Copy* SharedMemory::in_flight(const void* address) const {
  const uint32_t flight = flights_[(static_cast<const std::byte*>(address) - begin_) / kGranule];
  return flight ? &copies_[flight - 1] : nullptr;
}

void SharedMemory::check(const void* address, size_t bytes, const Site& where) const {
  if (!holds(address, bytes))
    machine->fail_here(Fault::kOutOfBounds, std::to_string(bytes) + " bytes at " + locate(address), where);
  const size_t first = (static_cast<const std::byte*>(address) - begin_) / kGranule;
  for (size_t g = first; g < first + (bytes + kGranule - 1) / kGranule; ++g)
    if (flights_[g])
      machine->fail_here(Fault::kInFlight,
                         locate(begin_ + g * kGranule) + " is in flight: " + describe_copy(copies_[flights_[g] - 1]) +
                             " has not been waited for",
                         where);
}

void SharedMemory::mark(const Copy& copy, uint32_t value) {
  const size_t first = (copy.destination - begin_) / kGranule;
  std::fill_n(flights_.begin() + first, copy.bytes / kGranule, value);
}

uint32_t SharedMemory::take_off(Copy copy) {
  Machine& m = *machine;
  if (!holds(copy.destination, copy.bytes))
    m.fail_here(Fault::kOutOfBounds,
                "a copy of " + std::to_string(copy.bytes) + " bytes to " + locate(copy.destination), copy.where);
  check(copy.destination, copy.bytes, copy.where);
  if (copy.source_bytes) {
    Buffer* buffer = m.memory().find(copy.source, copy.source_bytes);
    if (!buffer)
      m.fail_here(Fault::kOutOfBounds,
                  "a copy of " + std::to_string(copy.source_bytes) + " bytes from " + m.memory().locate(copy.source),
                  copy.where);
    buffer->bytes_copied += copy.source_bytes;
    m.counters().bytes_copied += copy.source_bytes;
  }
  poison(copy.destination, copy.bytes);
  uint32_t index;
  if (free_copies_.empty()) {
    index = static_cast<uint32_t>(copies_.size());
    copies_.push_back(copy);
  } else {
    index = free_copies_.back();
    free_copies_.pop_back();
    copies_[index] = copy;
  }
  mark(copy, index + 1);
  return index;
}

void SharedMemory::land(uint32_t index) {
  Copy& copy = copies_[index];
  mark(copy, 0);
  memcpy(copy.destination, copy.source, copy.source_bytes);
  memset(copy.destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
  copy.bytes = 0;
  free_copies_.push_back(index);
}

// ---- cp.async ---------------------------------------------------------------------------------------------------

void SharedMemory::copy_async(void* destination, const void* source, uint32_t bytes, uint32_t source_bytes,
                              const Site& where) {
  Machine& m = *machine;
  m.point();
  if ((bytes != 4 && bytes != 8 && bytes != 16) || source_bytes > bytes)
    m.fail_here(Fault::kArgument,
                "cp.async of " + std::to_string(source_bytes) + " into " + std::to_string(bytes) + " bytes", where);
  if ((reinterpret_cast<uintptr_t>(destination) | reinterpret_cast<uintptr_t>(source)) % bytes)
    m.fail_here(Fault::kAlignment,
                "cp.async of " + std::to_string(bytes) + " bytes from or to an address that is no multiple", where);
  LaneCopies& mine = m.lane().copies;
  mine.pending.push_back(take_off({static_cast<std::byte*>(destination), static_cast<const std::byte*>(source), bytes,
                                   source_bytes, where, &m.lane()}));
  ++mine.uncommitted;
  if (RaceChecker* races = m.races()) {
    if (source_bytes) races->access(source, source_bytes, Access::global_read(), where);
    races->access(destination, bytes, Access::shared_write(), where);
  }
}

void SharedMemory::commit_group(const Site&) {
  machine->point();
  LaneCopies& mine = machine->lane().copies;
  mine.groups.push_back(mine.uncommitted);
  mine.uncommitted = 0;
}

void SharedMemory::wait_group(size_t groups_left, const Site& where) {
  machine->point();
  LaneCopies& mine = machine->lane().copies;
  if (mine.groups.size() <= groups_left) return;
  const size_t groups = mine.groups.size() - groups_left;
  size_t copies = 0;
  for (size_t g = 0; g < groups; ++g) copies += mine.groups[g];
  for (size_t i = 0; i < copies; ++i) {
    const Copy copy = copies_[mine.pending[i]];
    land(mine.pending[i]);
    if (RaceChecker* races = machine->races())
      races->access(copy.destination, copy.bytes, Access::shared_write(), where);
  }
  mine.pending.erase(mine.pending.begin(), mine.pending.begin() + copies);
  mine.groups.erase(mine.groups.begin(), mine.groups.begin() + groups);
}

void SharedMemory::wait_all(const Site& where) {
  commit_group(where);
  wait_group(0, where);
}

// ---- cp.async.bulk and mbarriers --------------------------------------------------------------------------------

void SharedMemory::copy_bulk(void* destination, const void* source, uint32_t bytes, void* mbarrier, const Site& where) {
  Machine& m = *machine;
  m.point();
  if (bytes == 0 || bytes % 16)
    m.fail_here(Fault::kArgument, "a bulk copy of " + std::to_string(bytes) + " bytes: expected a multiple of 16",
                where);
  if ((reinterpret_cast<uintptr_t>(destination) | reinterpret_cast<uintptr_t>(source)) % 16)
    m.fail_here(Fault::kAlignment, "a bulk copy from or to an address that is no multiple of 16", where);
  Mbarrier& barrier = find_mbarrier(mbarrier, "a bulk copy", where);
  if (!barrier.fenced)
    m.fail_here(Fault::kProxyFence, "a bulk copy reports to an mbarrier whose initialisation no fence made visible",
                where);
  const Copy copy{
      static_cast<std::byte*>(destination), static_cast<const std::byte*>(source), bytes, bytes, where, &m.lane()};
  barrier.copies.push_back(take_off(copy));
  barrier.issued_bytes += bytes;
  if (RaceChecker* races = m.races()) {
    races->access(source, bytes, Access::global_read(), where);
    races->access(destination, bytes, Access::bulk_write(), where);
    races->release(m.lane(), barrier.arriving);
  }
  check_bytes(mbarrier, barrier, where);
  complete_if_due(barrier);
}

void SharedMemory::mbarrier_init(void* mbarrier, int64_t count, const Site& where) {
  Machine& m = *machine;
  m.point();
  if (reinterpret_cast<uintptr_t>(mbarrier) % 8)
    m.fail_here(Fault::kAlignment, "an mbarrier at an address that is no multiple of 8", where);
  check(mbarrier, 8, where);
  if (count <= 0 || count >= 1 << 20)
    m.fail_here(Fault::kArgument, "an mbarrier for " + std::to_string(count) + " arrivals", where);
  if (mbarriers_.count(mbarrier))
    m.fail_here(Fault::kMbarrier, "the mbarrier at " + locate(mbarrier) + " is initialised a second time", where);
  Mbarrier& barrier = mbarriers_[mbarrier];
  barrier.count = barrier.pending = count;
  barrier.initialised_by = &m.lane();
  if (m.races()) m.races()->access(mbarrier, 8, Access::shared_write(), where);
}

Mbarrier& SharedMemory::find_mbarrier(void* mbarrier, const char* what, const Site& where) {
  const auto found = mbarriers_.find(mbarrier);
  if (found == mbarriers_.end())
    machine->fail_here(Fault::kMbarrier,
                       std::string(what) + ": there is no initialised mbarrier at " + locate(mbarrier), where);
  if (machine->races()) machine->races()->access(mbarrier, 8, Access::shared_atomic(), where);
  return found->second;
}

void SharedMemory::fence_initialised_mbarriers() {
  for (auto& [address, barrier] : mbarriers_)
    if (barrier.initialised_by == &machine->lane()) barrier.fenced = true;
}

void SharedMemory::mbarrier_arrive(void* mbarrier, int64_t expected_bytes, int64_t arrivals, const Site& where) {
  Machine& m = *machine;
  m.point();
  Mbarrier& barrier = find_mbarrier(mbarrier, "an arrival", where);
  if (barrier.pending < arrivals)
    m.fail_here(Fault::kMbarrier,
                "the mbarrier at " + locate(mbarrier) + " has had all of its " + std::to_string(barrier.count) +
                    " arrivals in this phase",
                where);
  barrier.expected_bytes += expected_bytes;
  barrier.pending -= arrivals;
  if (m.races() && arrivals) m.races()->release(m.lane(), barrier.arriving);
  check_bytes(mbarrier, barrier, where);
  complete_if_due(barrier);
}

// Once nobody can arrive, nobody can announce more either.
void SharedMemory::check_bytes(void* mbarrier, const Mbarrier& barrier, const Site& where) const {
  if (barrier.pending || barrier.issued_bytes <= barrier.expected_bytes) return;
  machine->fail_here(Fault::kMbarrier,
                     "the mbarrier at " + locate(mbarrier) + " expects " + std::to_string(barrier.expected_bytes) +
                         " bytes, copies of " + std::to_string(barrier.issued_bytes) + " report to it",
                     where);
}

// A phase without copies completes at its last arrival. One with copies completes no sooner than somebody waits for it:
// the copies stay in flight for as long as the hardware might keep them there.
void SharedMemory::complete_if_due(Mbarrier& barrier) {
  if (barrier.pending || barrier.issued_bytes != barrier.expected_bytes) return;
  if (!barrier.copies.empty() && barrier.waiting.empty()) return;
  Machine& m = *machine;
  for (uint32_t index : barrier.copies) {
    const Copy copy = copies_[index];
    land(index);
    if (m.races()) m.races()->land_bulk(m.cta(), copy, barrier.arriving);
  }
  barrier.copies.clear();
  barrier.completed = barrier.arriving;
  barrier.arriving = {};
  barrier.pending = barrier.count;
  barrier.expected_bytes = barrier.issued_bytes = 0;
  ++barrier.phase;
  for (Lane* lane : barrier.waiting) m.wake(*lane);
  barrier.waiting.clear();
}

void SharedMemory::mbarrier_wait(void* mbarrier, uint32_t parity, const Site& where) {
  Machine& m = *machine;
  m.point();
  Mbarrier& barrier = find_mbarrier(mbarrier, "a wait", where);
  if (parity > 1) m.fail_here(Fault::kArgument, "parity " + std::to_string(parity) + " of an mbarrier", where);
  if ((barrier.phase & 1) == parity) {
    barrier.waiting.push_back(&m.lane());
    const uint32_t phase = barrier.phase;
    complete_if_due(barrier);
    // Woken lanes run later; by then the phase may have gone on by one at most, or somebody did not wait for them.
    if (barrier.phase == phase) m.block("mbarrier wait", where);
  }
  if (m.races()) m.races()->acquire(m.lane(), barrier.completed);
}

std::string SharedMemory::describe_mbarriers() const {
  std::string report;
  for (const auto& [address, b] : mbarriers_)
    if (!b.waiting.empty())
      report += "    mbarrier at " + locate(address) + ": phase " + std::to_string(b.phase) + ", " +
                std::to_string(b.count - b.pending) + " of " + std::to_string(b.count) + " arrivals, copies of " +
                std::to_string(b.issued_bytes) + " of " + std::to_string(b.expected_bytes) + " expected bytes, " +
                std::to_string(b.waiting.size()) + " threads wait\n";
  return report;
}

}  // namespace lean::rehearsal
