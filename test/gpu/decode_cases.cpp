// The registry of decode cases on a GPU: the data and the bounds of the rehearsal, launched through the library's own
// host interface.
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "device_buffer.h"
#include "parts.h"
#include "rehearsal/cases.h"
#include "rehearsal/reference.h"
#include "rehearsal/tensors.h"
#include "runtime/error.h"

namespace lean::gpu {
namespace {

// A case's inputs on the device, for one set of context lengths, and what must come of them.
struct Inputs {
  cases::Tensors tensors;
  cases::Reference expected;
  DeviceBuffer q, k, v, page_table, context_lengths;

  Inputs(const cases::Case& c, const std::vector<int32_t>& contexts)
      : tensors(cases::make_tensors(c, contexts)),
        expected(cases::reference(tensors)),
        q(tensors.q.data(), tensors.q.size()),
        k(tensors.k.data(), tensors.k.size()),
        v(tensors.v.data(), tensors.v.size()),
        page_table(tensors.page_table.data(), tensors.page_table.size() * sizeof(int32_t)),
        context_lengths(tensors.context_lengths.data(), tensors.context_lengths.size() * sizeof(int32_t)) {}

  DecodeParams params(DeviceBuffer& out, DeviceBuffer& lse) const {
    DecodeParams decode = tensors.params;
    decode.q = q.data();
    decode.k = k.data();
    decode.v = v.data();
    decode.out = out.data();
    decode.lse = lse.data<float>();
    decode.context_lengths = context_lengths.data<int32_t>();
    decode.page_table = tensors.page_table.empty() ? nullptr : page_table.data<int32_t>();
    return decode;
  }
};

LaunchRequest request_of(const cases::Case& c) {
  LaunchRequest request;
  request.strategy = c.strategy;
  request.workers = c.workers;
  request.num_splits = c.splits;
  request.snap_cuts = c.snap_cuts;
  request.by_cost = c.by_cost;
  request.heads_per_tile = c.heads_per_tile;
  const CopyPath copies = c.variant == Variant::kHopperBulk ? CopyPath::kBulk : CopyPath::kAsync;
  request.options = {copies, c.choice.tile_tokens, c.choice.stages, c.choice.warps, c.choice.ctas_per_sm};
  return request;
}

// Three launches on one workspace, the second with other lengths; the third must repeat the first's bits.
std::string run_case(const cases::Case& c) {
  const Inputs first(c, c.contexts), next(c, c.next_contexts);
  LaunchRequest request = request_of(c);
  DeviceBuffer out(first.tensors.out_bytes()), lse(first.tensors.out_rows() * sizeof(float));
  request.decode = first.params(out, lse);
  const LaunchPlan plan = plan_launch(request);
  DeviceBuffer counters(plan.counter_bytes), scratch(plan.scratch_bytes, 0xff);
  request.counters = counters.data();
  request.scratch = scratch.data();

  std::vector<std::byte> bits;
  for (int launch = 0; launch < 3; ++launch) {
    const Inputs& inputs = launch == 1 ? next : first;
    const std::string name = "launch " + std::to_string(launch + 1) + ": ";
    out.fill(0xff);
    lse.fill(0xff);
    scratch.fill(0xff);
    request.decode = inputs.params(out, lse);
    launch_decode(request, plan, nullptr);
    require(cudaDeviceSynchronize(), c.describe().c_str());
    std::vector<uint32_t> words = counters.read<uint32_t>();
    if (words[0] != cases::expected_status(c)) return name + "status " + std::to_string(words[0]) + " was reported";
    words[0] = 0;
    counters.write(words.data());
    for (const uint32_t word : words)
      if (word != 0) return name + "a counter is left at " + std::to_string(word);
    for (const DeviceBuffer* buffer : {&out, &lse, &counters, &scratch})
      if (!buffer->guards_intact()) return name + "something was written beside a buffer";
    std::vector<std::byte> written = out.read();
    const std::vector<float> written_lse = lse.read<float>();
    const std::string wrong = cases::compare(c, inputs.tensors, inputs.expected,
                                             cases::read_result(inputs.tensors, written.data(), written_lse.data()));
    if (!wrong.empty()) return name + wrong;
    written.insert(written.end(), reinterpret_cast<const std::byte*>(written_lse.data()),
                   reinterpret_cast<const std::byte*>(written_lse.data() + written_lse.size()));
    if (launch == 0) bits = written;
    if (launch == 2 && bits != written) return name + "other bits than in the first launch";
  }
  return {};
}

}  // namespace

int test_cases(int every, int only) {
  int run = 0, failed = 0, skipped = 0;
  for (const cases::Case& c : cases::decode_grid()) {
    if (only >= 0 ? c.index != only : c.index % every != 0) continue;
    try {
      const std::string wrong = run_case(c);
      ++run;
      if (wrong.empty()) continue;
      ++failed;
      printf("FAIL %s: %s\n", c.describe().c_str(), wrong.c_str());
    } catch (const Error& error) {
      const bool refused = error.code() == ErrorCode::kInvalidArgument && c.chooses();
      if (error.code() != ErrorCode::kCudaUnavailable && !refused) throw;
      ++skipped;  // a copy path that this GPU does not have, or a configuration that it has no room for
    }
  }
  printf("cases: %d run, %d failed, %d need another GPU\n", run, failed, skipped);
  if (run == 0) ++failed;  // nothing was found wrong because nothing could be launched
  return failed;
}

}  // namespace lean::gpu
