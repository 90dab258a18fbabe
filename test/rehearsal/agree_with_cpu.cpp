// The CPU backend and the rehearsed kernel on the same cases, with the same forced workers and the same tile: the same
// cuts, and results that differ by rounding alone. Both use one schedule, each derives it in its own way: the CPU from
// a plan, the kernel from the context lengths in device memory.
#include <cmath>
#include <cstdio>

#include "cpu/cpu_backend.h"
#include "rehearse.h"
#include "runtime/backend.h"

namespace lean::rehearsal {
namespace {

PlanRequest request_of(const cases::Case& c) {
  PlanRequest request;
  request.strategy = c.strategy;
  request.processors = c.workers;
  request.by_cost = c.by_cost;
  request.heads_per_tile = c.heads_per_tile;
  request.heads_at_once = c.heads_per_tile > 1;
  request.splits = c.splits;
  request.num_kv_heads = c.kv_heads;
  request.tile_tokens = c.config().tile_tokens;
  return request;
}

cases::Result run_on_cpu(const cases::Case& c, cases::Tensors& tensors, Backend& backend) {
  std::vector<std::byte> out(tensors.out_bytes());
  std::vector<float> lse(tensors.out_rows());
  DecodeCall call;
  call.plan = std::make_shared<const Plan>(request_of(c), tensors.contexts);
  call.page_table = tensors.page_table;
  call.params = tensors.params;
  call.params.q = tensors.q.data();
  call.params.k = tensors.k.data();
  call.params.v = tensors.v.data();
  call.params.out = out.data();
  call.params.lse = lse.data();
  call.params.context_lengths = call.plan->context_lengths().data();
  call.params.page_table = call.page_table.empty() ? nullptr : call.page_table.data();
  backend.decode(call);
  return cases::read_result(tensors, out.data(), lse.data());
}

// Slots of the plan's partials, as the kernel should have written them.
std::string compare_cuts(const cases::Case& c, const cases::Tensors& tensors, const std::vector<bool>& written) {
  const Plan plan(request_of(c), tensors.contexts);
  std::vector<bool> expected(written.size(), false);
  for (const PlacedSegment& placed : plan.segments()) {
    const Segment& s = placed.segment;
    if (s.covers_output()) continue;
    const auto slot = static_cast<size_t>(partial_slot(s.first_worker, placed.worker - s.first_worker));
    if (slot >= expected.size()) return "slot " + std::to_string(slot) + " of the plan is outside of the workspace";
    expected[slot] = true;
  }
  for (size_t slot = 0; slot < written.size(); ++slot)
    if (written[slot] != expected[slot])
      return "slot " + std::to_string(slot) + (expected[slot] ? " should hold a partial" : " should hold none");
  return {};
}

// Both round to the same type: each is within the contract of the exact result, so they are this near to each other.
std::string compare_results(const cases::Case& c, const cases::Result& kernel, const cases::Result& cpu) {
  double error = 0, size = 0;
  for (size_t i = 0; i < kernel.out.size(); ++i) {
    error += (kernel.out[i] - cpu.out[i]) * (kernel.out[i] - cpu.out[i]);
    size += cpu.out[i] * cpu.out[i];
  }
  const double bound = c.kv_type == DType::kF16 ? 5e-4 : 3.5e-3;
  if (!(std::sqrt(error) <= bound * std::sqrt(size)))
    return "relative difference " + std::to_string(std::sqrt(error / size));
  for (size_t i = 0; i < kernel.lse.size(); ++i)
    if (kernel.lse[i] != cpu.lse[i] && !(std::abs(kernel.lse[i] - cpu.lse[i]) <= 1e-4 * (1 + std::abs(cpu.lse[i]))))
      return "lse " + std::to_string(i) + ": " + std::to_string(kernel.lse[i]) + " and " + std::to_string(cpu.lse[i]);
  return {};
}

int run_all() {
  DeviceMemory memory;
  const std::shared_ptr<Backend> backend = cpu::open_cpu(2, "");
  int run = 0, failed = 0, with_partials = 0, position = 0;
  for (cases::Case c : cases::decode_grid()) {
    // The plan always lets cuts move; queries and cache share one type, and the CPU's tile is of 64 tokens.
    if (c.config().head_dim != 64 || c.config().tile_tokens != 64 || !c.snap_cuts ||
        c.corruption != cases::Corruption::kNone || c.q_type != c.kv_type)
      continue;
    if (position++ % 4 != 0 && c.workers < 32) continue;
    cases::Tensors tensors = cases::make_tensors(c, c.contexts);
    c.splits = static_cast<int>(Plan(request_of(c), c.contexts).schedule().num_splits);  // no more than there are tiles
    const Launched kernel =
        rehearse_once(c, tensors, cases::reference(tensors), memory, static_cast<uint64_t>(c.index));
    std::string wrong = kernel.failure;
    if (wrong.empty()) wrong = compare_cuts(c, tensors, kernel.slots);
    if (wrong.empty()) wrong = compare_results(c, kernel.result, run_on_cpu(c, tensors, *backend));
    for (const bool slot : kernel.slots) with_partials += slot;
    ++run;
    if (wrong.empty()) continue;
    ++failed;
    printf("FAIL %s: %s\n", c.describe().c_str(), wrong.c_str());
  }
  printf("%d cases, %d partials, %d failed\n", run, with_partials, failed);
  return failed || !run || !with_partials ? 1 : 0;
}

}  // namespace
}  // namespace lean::rehearsal

int main() { return lean::rehearsal::run_all(); }
