#include "plan.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <string>
#include <utility>

#include "error.h"

namespace lean {

namespace {

// What inspecting a plan goes through one by one.
constexpr int64_t kMaxWorkers = int64_t{1} << 24;

void expect_workers(int64_t outputs, int64_t splits) {
  if (outputs > kMaxWorkers / splits)
    refuse("Expected sequences x KV heads x splits to make at most " + std::to_string(kMaxWorkers) + " workers, got " +
           std::to_string(outputs) + " x " + std::to_string(splits));
}

Schedule make_schedule(const PlanRequest& request, const TileMap& map, int64_t longest_tiles) {
  switch (request.strategy) {
    case Strategy::kFlashAttention2:
      expect_workers(map.num_outputs(), 1);
      return flash_attention_2_schedule(map);
    case Strategy::kFixedSplit: {
      // More splits than the longest context has tiles would be workers, and scratch, for nothing.
      const int64_t splits = request.splits > 0
                                 ? std::min(request.splits, std::max<int64_t>(longest_tiles, 1))
                                 : choose_num_splits(map.num_outputs(), longest_tiles, request.processors);
      expect_workers(map.num_outputs(), splits);
      return fixed_split_schedule(map, splits);
    }
    case Strategy::kLean:
      break;
  }
  const int64_t workers = request.processors / request.processors_per_worker();
  return lean_schedule(map, request.by_cost ? fewest_workers(map, workers) : workers, /*snap_cuts=*/true);
}

bool any_partials(const Schedule& schedule, const TileMap& map) {
  if (schedule.strategy != Strategy::kLean) return schedule.num_splits > 1;
  for (int64_t worker = 1; worker < schedule.num_workers; ++worker) {
    const int64_t begin = cut(schedule, map, worker);
    if (begin != output_at(map, begin).begin) return true;
  }
  return false;
}

}  // namespace

Plan::Plan(const PlanRequest& request, std::vector<int32_t> context_lengths)
    : request_(request), context_lengths_(std::move(context_lengths)) {
  // The cuts are products of a worker and a cost in 64 bits, and by cost one tile counts as kEndTiles + 1 at most.
  const int64_t highest_cost = request.by_cost ? kEndTiles + 1 : 1;
  const int64_t most = std::numeric_limits<int64_t>::max() / highest_cost / (request.processors + 1);
  const int32_t heads = map().num_kv_heads;
  const auto tiles_of = [&](int32_t length) {
    return (int64_t{length} + request.tile_tokens - 1) / request.tile_tokens;
  };
  TileTotals totals;
  for (const int32_t length : context_lengths_) {
    const int64_t tiles = tiles_of(length);
    totals.tiles += tiles;
    totals.outputs += tiles > 0;
    totals.longest = std::max(totals.longest, tiles);
    // Below 2^26 tiles times 2^31 heads on top of a sum that has been checked: nothing overflows before it is refused.
    if (totals.tiles * heads > most)
      refuse("Expected tiles x workers to fit 64 bits, got " + std::to_string(totals.tiles * heads) +
             " tiles or more and " + std::to_string(request.processors) + " workers");
  }
  num_tiles_ = totals.tiles * heads * request.heads_per_tile;
  if (request.by_cost && request.strategy == Strategy::kLean)
    end_tiles_ = choose_end_tiles(totals, heads, request.processors / request.processors_per_worker());
  cost_before_.reserve(context_lengths_.size() + 1);
  cost_before_.push_back(0);
  for (const int32_t length : context_lengths_)
    cost_before_.push_back(cost_before_.back() + (length > 0 ? tiles_of(length) + end_tiles_ : 0));
  schedule_ = make_schedule(request_, map(), totals.longest);
  has_partials_ = any_partials(schedule_, map());
}

template <class Visit>
int64_t Plan::place(Visit visit) const {
  using Free = std::pair<int64_t, int64_t>;  // (time at which it comes free, processor)
  std::priority_queue<Free, std::vector<Free>, std::greater<>> free;
  const int32_t at_once = request_.processors_per_worker(), in_turn = request_.heads_per_tile / at_once;
  const int64_t workers = schedule_.num_workers;
  const int64_t processors = std::min(request_.processors, std::max<int64_t>(at_once * workers, 1));
  for (int64_t processor = 0; processor < processors; ++processor) free.push({0, processor});
  const TileMap tiles = map();
  int64_t makespan = 0;
  for (int64_t worker = 0; worker < at_once * workers; ++worker) {
    auto [time, processor] = free.top();
    free.pop();
    const auto own = static_cast<int32_t>(worker / workers);  // of the heads at once
    Segment segment;
    for (WorkCursor work(schedule_, tiles, worker % workers); work.next(segment);) {
      segment.first_worker += own * workers;
      segment.kv_head = segment.kv_head * request_.heads_per_tile + own;
      for (int32_t head = 0; head < in_turn; ++head, ++segment.kv_head) {
        visit(PlacedSegment{segment, worker, processor, time});
        time += segment.end - segment.begin;
      }
    }
    makespan = std::max(makespan, time);
    free.push({time, processor});
  }
  return makespan;
}

std::vector<PlacedSegment> Plan::segments() const {
  std::vector<PlacedSegment> placed;
  place([&](const PlacedSegment& segment) { placed.push_back(segment); });
  return placed;
}

int64_t Plan::makespan() const {
  return place([](const PlacedSegment&) {});
}

int64_t Plan::ideal_makespan() const { return (num_tiles() + request_.processors - 1) / request_.processors; }

}  // namespace lean
