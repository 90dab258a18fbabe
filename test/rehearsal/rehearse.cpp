#include "rehearse.h"

#include <algorithm>
#include <cstring>

#include "kernel_instances.h"
#include "reference.h"

namespace lean::rehearsal {

namespace {

// Three dispatches unlike each other in every respect; the seed turns which comes first.
Dispatch dispatch_of(int launch, uint64_t seed) {
  const auto pick = [seed](uint64_t salt, int count) {
    return static_cast<int>((seed * 0x9e3779b97f4a7c15u + salt * 0xbf58476d1ce4e5b9u) >> 33) % count;
  };
  constexpr Order kOrders[] = {Order::kInOrder, Order::kReversed, Order::kShuffled};
  constexpr int kResidents[] = {1, 3, 16, 2, 132};
  constexpr uint32_t kInterrupts[] = {0, 50, 7};
  Dispatch d;
  d.ctas = kOrders[(pick(1, 3) + launch) % 3];
  d.warps = kOrders[(pick(2, 3) + launch) % 3];
  d.lanes = kOrders[(pick(3, 3) + 2 * launch) % 3];
  d.resident_ctas = kResidents[(pick(4, 5) + launch) % 5];
  d.interrupt_every = kInterrupts[(pick(5, 3) + launch) % 3];
  d.seed = seed * 16 + launch;
  return d;
}

// The buffers of a case; the workspace and the counters stay from launch to launch.
class Rehearsal {
 public:
  Rehearsal(const cases::Case& c, const KernelInstance& instance, DeviceMemory& memory, bool check_races)
      : case_(c), instance_(instance), memory_(memory), check_races_(check_races) {
    memory.clear();
    const int64_t outputs = static_cast<int64_t>(c.contexts.size()) * c.kv_heads;
    ctas_x_ = c.strategy == Strategy::kLean         ? c.workers
              : c.strategy == Strategy::kFixedSplit ? outputs * c.splits
                                                    : outputs;
    const int64_t slots = c.strategy == Strategy::kFlashAttention2 ? 0 : 2 * ctas_x_;  // it has no partials
    const int rows = std::min(c.rows(), row_block(c.config()));
    partials_ =
        &memory.allocate(c.row_blocks() * slots * slot_floats(rows, instance.head_dim) * 4, Use::kScratch, "partials");
    counters_ = &memory.allocate(c.row_blocks() * 2 * slots * 4, Use::kCounter, "counters");
    status_ = &memory.allocate(4, Use::kCounter, "status");
    memset(counters_->begin, 0, counters_->bytes);
    memset(status_->begin, 0, status_->bytes);
    if (c.contexts.size() > kSharedBatch)
      cost_before_ = &memory.allocate((c.contexts.size() + 2) * 8, Use::kScratch, "cost_before");
  }

  // One launch; what is wrong with it, or nothing.
  std::string launch(const cases::Tensors& tensors, const cases::Reference& expected, const Dispatch& dispatch,
                     Outcome& outcome) {
    const auto input = [this](const void* data, size_t bytes, const char* name) -> Buffer& {
      Buffer& buffer = memory_.allocate(bytes, Use::kInput, name);
      if (bytes) memcpy(buffer.begin, data, bytes);
      return buffer;
    };
    Buffer& q = input(tensors.q.data(), tensors.q.size(), "q");
    Buffer& k = input(tensors.k.data(), tensors.k.size(), "k");
    Buffer& v = input(tensors.v.data(), tensors.v.size(), "v");
    Buffer& lengths = input(tensors.context_lengths.data(), tensors.context_lengths.size() * 4, "context_lengths");
    Buffer* table = tensors.page_table.empty()
                        ? nullptr
                        : &input(tensors.page_table.data(), tensors.page_table.size() * 4, "page_table");
    out_ = &memory_.allocate(tensors.out_bytes(), Use::kOutput, "out");
    lse_ = &memory_.allocate(tensors.out_rows() * 4, Use::kOutput, "lse");
    poison(partials_->begin, partials_->bytes);

    KernelParams params{};
    params.decode = tensors.params;
    params.config = case_.config();
    params.decode.q = q.begin;
    params.decode.k = k.begin;
    params.decode.v = v.begin;
    params.decode.out = out_->begin;
    params.decode.lse = lse_->as<float>();
    params.decode.context_lengths = lengths.as<int32_t>();
    params.decode.page_table = table ? table->as<int32_t>() : nullptr;
    params.strategy = case_.strategy;
    params.num_splits = case_.splits;
    params.snap_cuts = case_.snap_cuts;
    params.by_cost = case_.by_cost;
    params.heads_per_tile = case_.heads_per_tile;
    params.workers = ctas_x_ / case_.heads_per_tile;
    params.cost_before = cost_before_ ? cost_before_->as<int64_t>() : nullptr;
    params.partials = partials_->as<float>();
    params.counters = counters_->as<uint32_t>();
    params.status = status_->as<uint32_t>();

    try {
      if (cost_before_) {
        poison(cost_before_->begin, cost_before_->bytes);
        cost_before_->use = Use::kScratch;
        rehearsal::launch(
            memory_, {1, 1, tile_map_instance.threads, static_cast<size_t>(tile_map_instance.shared_bytes)}, dispatch,
            [&](std::byte* shared) { tile_map_instance.run(params, reinterpret_cast<char*>(shared)); }, check_races_);
        cost_before_->use = Use::kInput;  // a later launch reads it
      }
      const Counters counted = rehearsal::launch(
          memory_,
          {ctas_x_, case_.row_blocks(), cta_threads(case_.variant, params.config),
           static_cast<size_t>(shared_bytes(params.config))},
          dispatch, [&](std::byte* shared) { instance_.run(params, reinterpret_cast<char*>(shared)); }, check_races_);
      ++outcome.launches;
      outcome.counters.bytes_copied += counted.bytes_copied;
      outcome.counters.matrix_loads += counted.matrix_loads;
      outcome.counters.bank_conflict_replays += counted.bank_conflict_replays;
      outcome.counters.collectives += counted.collectives;
      if (counted.bank_conflict_replays)
        return std::to_string(counted.bank_conflict_replays) + " replays by bank conflicts of " +
               std::to_string(counted.matrix_loads) + " matrix loads";
    } catch (const Failure& failure) {
      return failure.what();
    }

    const int64_t bytes =
        tensors.tokens_in_cache * case_.kv_heads * case_.head_dim * dtype_size(case_.kv_type) * case_.reads();
    for (const Buffer* cache : {&k, &v})
      if (cache->bytes_copied != bytes)
        return std::to_string(cache->bytes_copied) + " bytes of '" + cache->name + "' copied, expected " +
               std::to_string(bytes);
    for (size_t i = 0; i < counters_->bytes / 4; ++i)
      if (const uint32_t left = counters_->as<uint32_t>()[i])
        return "counter " + std::to_string(i) + " is left at " + std::to_string(left);
    const uint32_t expected_status = cases::expected_status(case_);
    if (const uint32_t status = *status_->as<uint32_t>(); status != expected_status)
      return "status " + std::to_string(status) + " reported, expected " + std::to_string(expected_status);
    *status_->as<uint32_t>() = 0;
    return cases::compare(case_, tensors, expected, cases::read_result(tensors, out_->begin, lse_->as<float>()));
  }

  std::vector<bool> written_slots() const {
    const int64_t slots = case_.strategy == Strategy::kFlashAttention2 ? 0 : 2 * ctas_x_;
    const int64_t words = slot_floats(std::min(case_.rows(), row_block(case_.config())), instance_.head_dim);
    std::vector<bool> written;
    for (int64_t slot = 0; slot < slots; ++slot)
      written.push_back(partials_->as<uint32_t>()[slot * words] != (uint32_t{kPoison} << 16 | kPoison));
    return written;
  }

  const Buffer& out() const { return *out_; }
  const Buffer& lse() const { return *lse_; }

  std::vector<std::byte> result() const {
    std::vector<std::byte> bytes(out_->begin, out_->end());
    bytes.insert(bytes.end(), lse_->begin, lse_->end());
    return bytes;
  }

 private:
  const cases::Case& case_;
  const KernelInstance& instance_;
  DeviceMemory& memory_;
  bool check_races_;
  int64_t ctas_x_;
  Buffer* partials_;
  Buffer* counters_;
  Buffer* status_;
  Buffer* cost_before_ = nullptr;
  Buffer* out_ = nullptr;
  Buffer* lse_ = nullptr;
};

}  // namespace

Launched rehearse_once(const cases::Case& c, const cases::Tensors& tensors, const cases::Reference& expected,
                       DeviceMemory& memory, uint64_t seed) {
  const KernelInstance* instance = find_instance(c.kv_type, c.config().head_dim, c.variant);
  if (!instance) return {"no such instance", {}, {}};
  Rehearsal rehearsal(c, *instance, memory, false);
  Outcome outcome;
  const std::string failure = rehearsal.launch(tensors, expected, dispatch_of(0, seed), outcome);
  if (!failure.empty()) return {failure, {}, {}};
  return {
      {}, cases::read_result(tensors, rehearsal.out().begin, rehearsal.lse().as<float>()), rehearsal.written_slots()};
}

Outcome rehearse(const cases::Case& c, DeviceMemory& memory, uint64_t seed, bool check_races) {
  Outcome outcome;
  const KernelInstance* instance = find_instance(c.kv_type, c.config().head_dim, c.variant);
  if (!instance) {
    outcome.skipped = true;
    return outcome;
  }
  const cases::Tensors first = cases::make_tensors(c, c.contexts), next = cases::make_tensors(c, c.next_contexts);
  const cases::Reference expect_first = cases::reference(first), expect_next = cases::reference(next);
  Rehearsal rehearsal(c, *instance, memory, check_races);
  std::vector<std::byte> bits;
  for (int launch = 0; launch < 3; ++launch) {
    const Dispatch dispatch = dispatch_of(launch, seed);
    const bool middle = launch == 1;
    std::string wrong = rehearsal.launch(middle ? next : first, middle ? expect_next : expect_first, dispatch, outcome);
    if (wrong.empty() && launch == 0) bits = rehearsal.result();
    if (wrong.empty() && launch == 2 && bits != rehearsal.result()) wrong = "other bits than in the first launch";
    if (!wrong.empty()) {
      outcome.failure = "launch " + std::to_string(launch + 1) + " (" + dispatch.describe() + "): " + wrong;
      return outcome;
    }
  }
  return outcome;
}

}  // namespace lean::rehearsal
