#include "machine.h"

#include <algorithm>
#include <numeric>

namespace lean::rehearsal {

Machine* machine = nullptr;

namespace {

// Stacks outlive launches: mapping thousands of them anew each time would cost more than most launches do.
StackPool& stack_pool() {
  static StackPool pool;
  return pool;
}

const char* order_name(Order order) {
  return order == Order::kInOrder ? "in order" : order == Order::kReversed ? "reversed" : "shuffled";
}

}  // namespace

const char* fault_name(Fault fault) {
  constexpr const char* kNames[] = {"divergence",         "barrier",     "mbarrier",         "deadlock",
                                    "livelock",           "in flight",   "unfinished copy",  "out of bounds",
                                    "read only",          "alignment",   "argument",         "race",
                                    "uninitialised read", "proxy fence", "non-coherent load"};
  return kNames[static_cast<int>(fault)];
}

std::string describe(const Site& site) {
  std::string file = site.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(site.line());
}

std::string Dispatch::describe() const {
  return std::string("CTAs ") + order_name(ctas) + ", " + std::to_string(resident_ctas) + " resident, warps " +
         order_name(warps) + ", lanes " + order_name(lanes) +
         (interrupt_every ? ", interrupted every " + std::to_string(interrupt_every) : "") + ", seed " +
         std::to_string(seed);
}

Counters launch(DeviceMemory& memory, LaunchShape shape, const Dispatch& dispatch, const Kernel& kernel,
                bool check_races) {
  return Machine(memory, shape, dispatch, kernel, check_races).run();
}

Machine::Machine(DeviceMemory& memory, LaunchShape shape, const Dispatch& dispatch, const Kernel& kernel,
                 bool check_races)
    : memory_(memory), shape_(shape), dispatch_(dispatch), kernel_(kernel), random_(dispatch.seed * 2 + 1) {
  if (machine) throw Failure(Fault::kArgument, "a launch inside a launch");
  if (shape.threads <= 0 || shape.threads % kWarpLanes || shape.threads > 1024)
    throw Failure(Fault::kArgument,
                  std::to_string(shape.threads) + " threads a CTA: expected a multiple of 32 up to 1024");
  for (Buffer& buffer : memory.buffers()) buffer.bytes_copied = 0;
  if (check_races) races_ = std::make_unique<RaceChecker>(*this);

  cta_order_.resize(shape.num_ctas());
  std::iota(cta_order_.begin(), cta_order_.end(), int64_t{0});
  if (dispatch.ctas == Order::kReversed) std::reverse(cta_order_.begin(), cta_order_.end());
  if (dispatch.ctas == Order::kShuffled)
    for (size_t i = cta_order_.size(); i > 1; --i) std::swap(cta_order_[i - 1], cta_order_[random() % i]);

  const int64_t residents = std::min<int64_t>(std::max(dispatch.resident_ctas, 1), shape.num_ctas());
  for (int64_t slot = 0; slot < residents; ++slot) {
    Cta& cta = *slots_.emplace_back(std::make_unique<Cta>());
    cta.shared.allocate(slot, shape.shared_bytes);
    cta.lanes = std::vector<Lane>(shape.threads);
    cta.warps = std::vector<Warp>(shape.threads / kWarpLanes);
    for (size_t w = 0; w < cta.warps.size(); ++w) {
      Warp& warp = cta.warps[w];
      warp.cta = &cta;
      warp.index = static_cast<int>(w);
      warps_.push_back(&warp);
      for (int l = 0; l < kWarpLanes; ++l) {
        Lane& lane = cta.lanes[w * kWarpLanes + l];
        lane.warp = &warp;
        lane.lane = l;
        lane.thread = static_cast<int>(w) * kWarpLanes + l;
        warp.lanes[l] = &lane;
        stack_pool().assign(lane.fiber, slot * shape.threads + lane.thread);
      }
    }
  }
  if (dispatch.interrupt_every) countdown_ = 1 + random() % (2 * dispatch.interrupt_every);
  machine = this;
}

Machine::~Machine() { machine = nullptr; }

Counters Machine::run() {
  for (auto& slot : slots_)
    if (next_cta_ < cta_order_.size()) start_cta(*slot);
  while (Lane* next = pick()) {
    current_ = next;
    switch_fiber(host_, next->fiber);
    // Back on the host's stack: something failed, a CTA has ended, or nothing can run.
    if (failure_) throw *failure_;
    if (ended_) {
      end_cta(*ended_);
      if (next_cta_ < cta_order_.size()) start_cta(*ended_);
      ended_ = nullptr;
    }
  }
  for (auto& slot : slots_)
    if (slot->live_threads) throw Failure(Fault::kDeadlock, "nothing can run:\n" + who_waits_where());
  const std::string damaged = memory_.damaged_red_zone();
  if (!damaged.empty()) throw Failure(Fault::kOutOfBounds, "the red zone " + damaged + " was written");
  return counters_;
}

void Machine::start_cta(Cta& cta) {
  cta.index = cta_order_[next_cta_++];
  cta.live_threads = shape_.threads;
  cta.barriers = {};
  cta.shared.start_cta();
  if (races_) races_->start_cta(cta);
  for (Lane& lane : cta.lanes) {
    lane.copies = {};
    lane.waits_for = "";
    prepare(lane.fiber, &Machine::fiber_main);
  }
  for (Warp& warp : cta.warps) warp.runnable = warp.live = kAllLanes, warp.arrived = 0;
}

void Machine::end_cta(Cta& cta) {
  const std::string wrong = cta.shared.end_cta();
  if (!wrong.empty()) throw Failure(Fault::kOutOfBounds, "CTA " + std::to_string(cta.index) + ": " + wrong);
  const std::string under_way = cta.shared.copy_under_way();
  if (!under_way.empty())
    throw Failure(Fault::kUnfinishedCopy,
                  "CTA " + std::to_string(cta.index) + " ended with a copy under way: " + under_way);
}

void Machine::fiber_main() {
  fiber_entered();
  machine->lane_main();
}

void Machine::lane_main() {
  kernel_(cta().shared.begin());
  exit_lane();
}

void Machine::exit_lane() {
  Lane& lane = *current_;
  Warp& warp = *lane.warp;
  const uint32_t bit = 1u << lane.lane;
  if (warp.arrived)
    fail(Fault::kDivergence, name(lane) + " ended while other lanes of its warp wait at " + warp.collective + " (" +
                                 rehearsal::describe(warp.where) + ")");
  warp.live &= ~bit;
  warp.runnable &= ~bit;
  lane.waits_for = nullptr;
  if (--cta().live_threads == 0) {
    ended_ = warp.cta;
    switch_fiber(lane.fiber, host_);
  }
  resume(pick());
  __builtin_unreachable();
}

uint64_t Machine::random() {
  random_ += 0x9e3779b97f4a7c15u;  // splitmix64
  uint64_t z = random_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

Lane* Machine::pick_lane(Warp& warp) {
  const uint32_t mask = warp.runnable;
  switch (dispatch_.lanes) {
    case Order::kInOrder:
      return warp.lanes[std::countr_zero(mask)];
    case Order::kReversed:
      return warp.lanes[31 - std::countl_zero(mask)];
    case Order::kShuffled:
      break;
  }
  const int turn = static_cast<int>(random() & 31);
  return warp.lanes[(std::countr_zero(std::rotr(mask, turn)) + turn) & 31];
}

// A warp goes on for as long as one of its lanes can; then the next warp in ring order, or any.
Lane* Machine::pick() {
  const size_t count = warps_.size();
  if (warps_[warp_cursor_]->runnable) return pick_lane(*warps_[warp_cursor_]);
  const size_t start = dispatch_.warps == Order::kShuffled ? random() % count : warp_cursor_;
  for (size_t i = 0; i < count; ++i) {
    size_t index = dispatch_.warps == Order::kReversed ? start + count - i : start + i;
    index %= count;
    if (!warps_[index]->runnable) continue;
    warp_cursor_ = index;
    return pick_lane(*warps_[index]);
  }
  return nullptr;
}

void Machine::resume(Lane* next) {
  Lane* from = current_;
  if (next == from) return;
  if (!next) {  // the host finds out whether that is an end or a deadlock
    switch_fiber(from->fiber, host_);
    return;
  }
  current_ = next;
  switch_fiber(from->fiber, next->fiber);
}

void Machine::step() {
  if (++steps_ > dispatch_.max_steps) fail(Fault::kLivelock, "no end in sight:\n" + who_waits_where());
}

void Machine::block(const char* waits_for, const Site& where) {
  step();
  Lane& lane = *current_;
  lane.waits_for = waits_for;
  lane.where = where;
  lane.warp->runnable &= ~(1u << lane.lane);
  resume(pick());
  lane.waits_for = "";
}

void Machine::yield() {
  step();
  // Any warp but the first one found: a thread that polls must not be picked again and again.
  warp_cursor_ = random() % warps_.size();
  Warp& here = *current_->warp;
  const uint32_t bit = 1u << current_->lane;
  const bool alone = here.runnable == bit;
  if (!alone) here.runnable &= ~bit;
  Lane* next = pick();
  here.runnable |= bit;
  resume(next);
}

void Machine::point() {
  step();
  if (countdown_ && --countdown_ == 0) {
    countdown_ = 1 + random() % (2 * dispatch_.interrupt_every);
    yield();
  }
}

void Machine::collective(const char* name, const Site& where, void* operands, Execute execute) {
  Lane& lane = *current_;
  Warp& warp = *lane.warp;
  if (warp.live != kAllLanes)
    fail_here(Fault::kDivergence, std::string(name) + " after other lanes of the warp have ended", where);
  if (warp.arrived == 0) {
    warp.collective = name;
    warp.where = where;
  } else if (warp.where.line() != where.line() || warp.collective != name) {
    fail_here(Fault::kDivergence,
              std::string(name) + " while other lanes of the warp wait at " + warp.collective + " (" +
                  rehearsal::describe(warp.where) + ")",
              where);
  }
  lane.operands = operands;
  warp.arrived |= 1u << lane.lane;
  if (warp.arrived != kAllLanes) {
    block(name, where);
    return;
  }
  point();
  ++counters_.collectives;
  warp.arrived = 0;
  void* all[kWarpLanes];
  for (int l = 0; l < kWarpLanes; ++l) all[l] = warp.lanes[l]->operands;
  lane.where = where;
  if (execute(warp, all)) {
    warp.runnable = kAllLanes;
  } else {
    for (Lane* waiting : warp.lanes) waiting->waits_for = name;
    block(name, where);
  }
}

void Machine::touch(const void* address, size_t bytes, Access access, const Site& where) {
  if (reinterpret_cast<uintptr_t>(address) % std::bit_floor(bytes) && bytes <= 16)
    fail_here(Fault::kAlignment, std::to_string(bytes) + " bytes at an address that is no multiple of it", where);
  SharedMemory& shared = cta().shared;
  if (shared.near(address)) {
    shared.check(address, bytes, where);
  } else if (memory_.contains(address)) {
    const Buffer* buffer = memory_.find(address, bytes);
    if (!buffer)
      fail_here(Fault::kOutOfBounds,
                std::string(access.write ? "write" : "read") + " of " + std::to_string(bytes) + " bytes at " +
                    memory_.locate(address),
                where);
    if (access.write && buffer->use == Use::kInput)
      fail_here(Fault::kReadOnly, "write to " + memory_.locate(address), where);
  } else if (access.global) {
    fail_here(Fault::kOutOfBounds, "a global access far from every buffer", where);
  }
  if (races_) races_->access(address, bytes, access, where);
}

std::string Machine::name(const Lane& lane) const {
  return "CTA " + std::to_string(lane.warp->cta->index) + " warp " + std::to_string(lane.warp->index) + " lane " +
         std::to_string(lane.lane);
}

void Machine::fail(Fault fault, const std::string& text) {
  failure_ = std::make_unique<Failure>(fault, std::string(fault_name(fault)) + ": " + text);
  switch_fiber(current_->fiber, host_);
  __builtin_unreachable();
}

void Machine::fail_here(Fault fault, const std::string& text, const Site& where) {
  fail(fault, name(*current_) + " at " + rehearsal::describe(where) + ": " + text);
}

// Lanes of a warp that stand at the same place are reported together.
std::string Machine::who_waits_where() const {
  std::string report;
  int lines = 0;
  for (const auto& slot : slots_)
    for (const Warp& warp : slot->warps) {
      uint32_t left = warp.live;
      while (left && lines < 64) {
        const Lane& first = *warp.lanes[std::countr_zero(left)];
        uint32_t same = 0;
        for (int l = 0; l < kWarpLanes; ++l)
          if (left >> l & 1 && warp.lanes[l]->waits_for == first.waits_for &&
              warp.lanes[l]->where.line() == first.where.line())
            same |= 1u << l;
        left &= ~same;
        ++lines;
        const int count = std::popcount(same);
        report += "  CTA " + std::to_string(slot->index) + " warp " + std::to_string(warp.index) + ": " +
                  (count == kWarpLanes ? "all lanes"
                                       : std::to_string(count) + " lanes from lane " + std::to_string(first.lane)) +
                  (first.waits_for[0]
                       ? std::string(" wait at ") + first.waits_for + " (" + rehearsal::describe(first.where) + ")"
                       : std::string(" can run")) +
                  "\n";
      }
    }
  if (lines >= 64) report += "  …\n";
  for (const auto& slot : slots_) report += slot->shared.describe_mbarriers();
  return report;
}

}  // namespace lean::rehearsal
