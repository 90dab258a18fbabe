// syncwarp and the CTA's barriers: a warp arrives as a whole, the last one lets all go on.
#include "machine.h"

namespace lean::rehearsal {

void Machine::sync_warp(const Site& where) {
  collective("syncwarp", where, nullptr, [](Warp& warp, void* const*) {
    if (machine->races()) machine->races()->synchronise(warp);
    return true;
  });
}

namespace {

struct BarrierOperands {
  int id;
  int threads;
  bool wait;
};

bool arrive_at_barrier(Warp& warp, void* const* operands) {
  Machine& m = *machine;
  const Site where = m.lane().where;
  const auto& asked = *static_cast<const BarrierOperands*>(operands[0]);
  for (int l = 1; l < kWarpLanes; ++l) {
    const auto& other = *static_cast<const BarrierOperands*>(operands[l]);
    if (other.id != asked.id || other.threads != asked.threads)
      m.fail_here(Fault::kDivergence, "the lanes of a warp name different barriers", where);
  }
  const std::string name = "barrier " + std::to_string(asked.id);
  if (asked.id < 0 || asked.id >= kMaxBarriers) m.fail_here(Fault::kArgument, name + ": expected 0 to 15", where);
  if (asked.threads <= 0 || asked.threads % kWarpLanes || asked.threads > m.shape().threads)
    m.fail_here(
        Fault::kArgument,
        name + " for " + std::to_string(asked.threads) + " threads in a CTA of " + std::to_string(m.shape().threads),
        where);
  Barrier& barrier = warp.cta->barriers[asked.id];
  if (barrier.expected && barrier.expected != asked.threads)
    m.fail_here(
        Fault::kBarrier,
        name + " for " + std::to_string(asked.threads) + " threads, begun for " + std::to_string(barrier.expected),
        where);
  if (barrier.warps >> warp.index & 1) m.fail_here(Fault::kBarrier, name + ": this warp has arrived before", where);
  barrier.expected = asked.threads;
  barrier.arrived += kWarpLanes;
  barrier.warps |= uint64_t{1} << warp.index;
  if (m.races()) m.races()->release(warp, barrier.clock);
  if (asked.wait) barrier.waiting.push_back(&warp);
  if (barrier.arrived < barrier.expected) return !asked.wait;

  for (Warp* waiting : barrier.waiting) {
    if (m.races()) m.races()->acquire(*waiting, barrier.clock);
    m.wake(*waiting);
  }
  barrier = {};
  return true;
}

}  // namespace

void Machine::barrier(int id, int threads, bool wait, const Site& where) {
  BarrierOperands operands{id, threads, wait};
  collective(wait ? "barrier sync" : "barrier arrive", where, &operands, arrive_at_barrier);
}

}  // namespace lean::rehearsal
