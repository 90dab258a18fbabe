#include "race.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "machine.h"

namespace lean::rehearsal {

namespace {

void join(Ticks& into, const Ticks& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

void join_own(Ticks& into, const LaneClock& clock) {
  if (into.size() <= clock.thread) into.resize(clock.thread + 1);
  into[clock.thread] = std::max(into[clock.thread], clock.tick);
}

}  // namespace

RaceChecker::RaceChecker(Machine& machine)
    : machine_(machine),
      threads_per_cta_(machine.shape().threads + 1),
      agent_ticks_(machine.shape().num_ctas(), 0),
      sites_(1) {}

RaceChecker::Cell& RaceChecker::Shadow::at(size_t index) {
  const size_t page = index / kPageCells;
  if (page >= pages.size()) pages.resize(page + 1);
  if (!pages[page]) pages[page] = std::make_unique<Cell[]>(kPageCells);
  return pages[page][index % kPageCells];
}

void RaceChecker::start_cta(Cta& cta) {
  shared_[&cta] = {};
  for (Lane& lane : cta.lanes) {
    lane.clock = {};
    lane.clock.thread = static_cast<uint32_t>(cta.index) * threads_per_cta_ + lane.thread;
  }
}

// ---- Clocks -----------------------------------------------------------------------------------------------------

bool RaceChecker::knows(const LaneClock& clock, const Stamp& stamp) const {
  if (stamp.tick == 0 || stamp.thread == clock.thread) return true;
  return clock.known && stamp.thread < clock.known->size() && (*clock.known)[stamp.thread] >= stamp.tick;
}

void RaceChecker::release(Lane& lane, SyncClock& clock) {
  if (lane.clock.known) join(clock, *lane.clock.known);
  join_own(clock, lane.clock);
  ++lane.clock.tick;
}

void RaceChecker::acquire(Lane& lane, const SyncClock& clock) {
  auto known = std::make_shared<Ticks>(clock);
  if (lane.clock.known) join(*known, *lane.clock.known);
  lane.clock.known = std::move(known);
}

void RaceChecker::release(Warp& warp, SyncClock& clock) {
  const Ticks* joined = nullptr;  // lanes that synchronised together share what they know
  for (Lane* lane : warp.lanes) {
    if (lane->clock.known && lane->clock.known.get() != joined) join(clock, *(joined = lane->clock.known.get()));
    join_own(clock, lane->clock);
    ++lane->clock.tick;
  }
}

void RaceChecker::acquire(Warp& warp, const SyncClock& clock) {
  auto known = std::make_shared<Ticks>(clock);
  const Ticks* joined = nullptr;
  for (Lane* lane : warp.lanes)
    if (lane->clock.known && lane->clock.known.get() != joined) join(*known, *(joined = lane->clock.known.get()));
  for (Lane* lane : warp.lanes) lane->clock.known = known;
}

void RaceChecker::synchronise(Warp& warp) {
  SyncClock clock;
  release(warp, clock);
  acquire(warp, clock);
}

void RaceChecker::fence_async_proxy(Lane& lane) {
  lane.clock.fenced_tick = lane.clock.tick++;
  lane.clock.fenced = lane.clock.known;
}

// ---- Accesses ---------------------------------------------------------------------------------------------------

void RaceChecker::access(const void* address, size_t bytes, Access access, const Site& where) {
  visit(address, bytes, access, intern(reinterpret_cast<uintptr_t>(where.file_name()) * 31 + where.line(), &where));
}

void RaceChecker::plain_access(const void* address, size_t bytes, bool write, const void* program_counter) {
  const SharedMemory& shared = machine_.cta().shared;
  std::string wrong;
  Fault fault = Fault::kOutOfBounds;
  if (shared.near(address)) {
    if (!shared.holds(address, bytes)) {
      wrong = shared.locate(address);
    } else if (const Copy* copy = shared.in_flight(address)) {
      fault = Fault::kInFlight;
      wrong = shared.locate(address) + ", on its way there since " + describe(copy->where);
    }
  } else if (machine_.memory().contains(address)) {
    const Buffer* buffer = machine_.memory().find(address, bytes);
    if (!buffer) wrong = machine_.memory().locate(address);
    if (buffer && write && buffer->use == Use::kInput)
      fault = Fault::kReadOnly, wrong = machine_.memory().locate(address);
  } else {
    return;  // the thread's own stack, or the host's
  }
  if (!wrong.empty())
    machine_.fail(fault, machine_.name(machine_.lane()) + " at " + source_line(program_counter) + ": " +
                             (write ? "write of " : "read of ") + std::to_string(bytes) + " bytes at " + wrong);
  visit(address, bytes, {.write = write, .plain = true}, intern(reinterpret_cast<uintptr_t>(program_counter), nullptr));
}

void RaceChecker::visit(const void* address, size_t bytes, Access access, uint32_t site) {
  Cta& cta = machine_.cta();
  const auto* at = static_cast<const std::byte*>(address);
  Shadow* shadow;
  size_t offset;
  if (cta.shared.near(address)) {
    shadow = &shared_[&cta];
    offset = at - cta.shared.begin();
  } else {
    const Buffer* buffer = machine_.memory().find(address, bytes);
    if (!buffer || buffer->use == Use::kInput) return;
    shadow = &global_[buffer];
    offset = at - buffer->begin;
  }
  const LaneClock& clock = machine_.lane().clock;
  const Stamp now{clock.thread, clock.tick, site};
  const size_t first = offset / kCellBytes, end = (offset + bytes + kCellBytes - 1) / kCellBytes;
  if (access.plain && !access.write) {
    // A struct is copied with its padding, which nobody writes: such an access must find something written, not all.
    for (size_t index = first; index < end; ++index) access.padded = access.padded || shadow->at(index).write.tick;
  }
  for (size_t index = first; index < end; ++index) check(shadow->at(index), access, now, at);
}

void RaceChecker::check(Cell& cell, Access access, const Stamp& now, const void* address) {
  const LaneClock& clock = machine_.lane().clock;
  const bool both_atomic = access.atomic && cell.atomic;
  if (!both_atomic && !knows(clock, cell.write))
    report(Fault::kRace, access.write ? "write after an unordered write" : "read after an unordered write", now,
           cell.write, address);
  if (!access.write) {
    if (cell.write.tick == 0) {
      const Buffer* buffer = machine_.memory().contains(address) ? machine_.memory().find(address, 1) : nullptr;
      if (!access.padded && (!buffer || buffer->use != Use::kCounter))
        report(Fault::kUninitialised, "read of bytes that nobody wrote", now, {}, address);
    } else if (access.non_coherent) {
      report(Fault::kNonCoherent, "non-coherent read of bytes written in this launch", now, cell.write, address);
    }
    if (cell.read.tick == 0 || cell.read.thread == now.thread) {
      cell.read = now;
      return;
    }
    if (cell.more == 0) {
      if (free_reads_.empty()) {
        more_reads_.emplace_back();
        cell.more = static_cast<uint32_t>(more_reads_.size());
      } else {
        cell.more = free_reads_.back();
        free_reads_.pop_back();
      }
    }
    auto& reads = more_reads_[cell.more - 1];
    for (Stamp& read : reads)
      if (read.thread == now.thread) {
        read = now;
        return;
      }
    reads.push_back(now);
    return;
  }

  if (!knows(clock, cell.read)) report(Fault::kRace, "write after an unordered read", now, cell.read, address);
  if (cell.more) {
    for (const Stamp& read : more_reads_[cell.more - 1])
      if (!knows(clock, read)) report(Fault::kRace, "write after an unordered read", now, read, address);
    more_reads_[cell.more - 1].clear();
    free_reads_.push_back(cell.more);
    cell.more = 0;
  }
  if (access.bulk && cell.write.tick && cell.generic) {
    const Cta& cta = machine_.cta();
    const Lane& writer = cta.lanes[cell.write.thread % threads_per_cta_];
    const bool by_writer = writer.clock.fenced_tick >= cell.write.tick;
    const bool by_issuer = clock.fenced && cell.write.thread < clock.fenced->size() &&
                           (*clock.fenced)[cell.write.thread] >= cell.write.tick;
    if (!by_writer && !by_issuer)
      report(Fault::kProxyFence, "bulk copy over bytes last written by an ordinary store, with no fence between", now,
             cell.write, address);
  }
  cell.read = {};
  cell.write = now;
  cell.atomic = access.atomic;
  cell.generic = !access.bulk;
}

void RaceChecker::land_bulk(Cta& cta, const Copy& copy, SyncClock& released_to) {
  const auto agent = static_cast<uint32_t>(cta.index) * threads_per_cta_ + threads_per_cta_ - 1;
  const uint32_t tick = ++agent_ticks_[cta.index];
  Shadow& shadow = shared_[&cta];
  const size_t offset = copy.destination - cta.shared.begin();
  const size_t bytes = copy.source_bytes;
  for (size_t index = offset / kCellBytes; index * kCellBytes < offset + bytes; ++index) {
    Cell& cell = shadow.at(index);
    cell.write = {agent, tick, cell.write.site};
    cell.generic = false;
  }
  if (released_to.size() <= agent) released_to.resize(agent + 1);
  released_to[agent] = tick;
}

// ---- Reports ----------------------------------------------------------------------------------------------------

uint32_t RaceChecker::intern(uintptr_t key, const Site* site) {
  auto [entry, fresh] = site_ids_.try_emplace(key, static_cast<uint32_t>(sites_.size()));
  if (fresh) sites_.emplace_back(key, site ? describe(*site) : std::string());
  return entry->second;
}

std::string RaceChecker::place(uint32_t site) const {
  const auto& [key, line] = sites_[site];
  return line.empty() ? source_line(reinterpret_cast<const void*>(key)) : line;
}

std::string RaceChecker::who(uint32_t thread) const {
  const uint32_t in_cta = thread % threads_per_cta_;
  const std::string cta = "CTA " + std::to_string(thread / threads_per_cta_);
  if (in_cta == threads_per_cta_ - 1) return cta + " (a bulk copy)";
  return cta + " warp " + std::to_string(in_cta / kWarpLanes) + " lane " + std::to_string(in_cta % kWarpLanes);
}

void RaceChecker::report(Fault fault, const std::string& what, const Stamp& now, const Stamp& before,
                         const void* address) {
  const SharedMemory& shared = machine_.cta().shared;
  machine_.fail(fault,
                what + " at " + (shared.near(address) ? shared.locate(address) : machine_.memory().locate(address)) +
                    ": " + who(now.thread) + " at " + place(now.site) +
                    (before.tick ? ", before it " + who(before.thread) + " at " + place(before.site) : std::string()));
}

std::string source_line(const void* program_counter) {
  char command[256], line[512] = "";
  // The instruction before the return address is the one that called.
  snprintf(command, sizeof command, "addr2line -e /proc/%d/exe 0x%lx 2>/dev/null", static_cast<int>(getpid()),
           reinterpret_cast<unsigned long>(program_counter) - 1);
  if (FILE* pipe = popen(command, "r")) {
    if (!fgets(line, sizeof line, pipe)) line[0] = 0;
    pclose(pipe);
  }
  std::string text = line;
  text = text.substr(0, text.find_first_of(" \n"));
  if (text.empty() || text[0] == '?') {
    snprintf(line, sizeof line, "%p", program_counter);
    return line;
  }
  return text.substr(text.find_last_of('/') + 1);
}

}  // namespace lean::rehearsal
