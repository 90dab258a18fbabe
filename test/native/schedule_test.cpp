// The schedule by brute force: its closed forms against what walking over all workers finds, on many ragged batches.
#include "../../csrc/core/schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "../../csrc/runtime/error.h"
#include "../../csrc/runtime/plan.h"
#include "harness.h"

namespace lean::test {

namespace {

struct Batch {
  std::vector<int64_t> cost_before{0};
  int32_t num_kv_heads;
  int32_t end_tiles = 0;

  TileMap map() const {
    return {cost_before.data(), static_cast<int32_t>(cost_before.size()) - 1, num_kv_heads, end_tiles};
  }

  // The same contexts, with ends that cost so much.
  Batch by_cost(int32_t end) const {
    Batch batch{{0}, num_kv_heads, end};
    for (size_t i = 1; i < cost_before.size(); ++i) {
      const int64_t tiles = cost_before[i] - cost_before[i - 1];
      batch.cost_before.push_back(batch.cost_before.back() + (tiles > 0 ? tiles + end : 0));
    }
    return batch;
  }
};

// Sequences of very unequal length, many of them empty.
Batch random_batch(Random& random) {
  Batch batch;
  batch.num_kv_heads = static_cast<int32_t>(random.integer(1, 9));
  const int64_t longest = random.integer(0, 3) == 0 ? 1000 : random.integer(1, 40);
  for (int64_t sequences = random.integer(1, 12); sequences > 0; --sequences) {
    const int64_t tiles = random.integer(0, 2) == 0 ? 0 : random.integer(0, longest);
    batch.cost_before.push_back(batch.cost_before.back() + tiles);
  }
  return batch;
}

std::vector<Segment> segments_of(const Schedule& schedule, const TileMap& map, int64_t worker) {
  std::vector<Segment> segments;
  Segment segment;
  for (WorkCursor work(schedule, map, worker); work.next(segment);) segments.push_back(segment);
  return segments;
}

// Everything that must hold for every strategy. Walks over all workers and compares with the closed forms.
void check_schedule(const Schedule& schedule, const TileMap& map) {
  struct Contribution {
    int64_t worker;
    Segment segment;
  };
  std::map<std::pair<int32_t, int32_t>, std::vector<Contribution>> outputs;
  std::set<int64_t> slots;
  std::set<int64_t> counters;
  int64_t tiles = 0;
  for (int64_t worker = 0; worker < schedule.num_workers; ++worker) {
    int64_t partials = 0;
    for (const Segment& segment : segments_of(schedule, map, worker)) {
      CHECK(segment.begin < segment.end);
      CHECK(segment.end <= segment.output_tiles);
      tiles += segment.end - segment.begin;
      outputs[{segment.sequence, segment.kv_head}].push_back({worker, segment});
      const int64_t index = worker - segment.first_worker;
      CHECK(index >= 0 && index < segment.num_contributors);
      if (segment.covers_output()) continue;
      ++partials;
      const int64_t slot = partial_slot(segment.first_worker, index);
      CHECK(slot >= 0 && slot < schedule.num_slots());
      CHECK_EQUAL(slot / 2, worker);  // a worker's slots are its own
      CHECK(slots.insert(slot).second);
      if (index == 0) CHECK(counters.insert(segment.first_worker).second);
    }
    CHECK(partials <= 2);
  }
  int64_t costs = tiles;
  for (int32_t sequence = 0; sequence < map.batch; ++sequence) {
    for (int32_t kv_head = 0; kv_head < map.num_kv_heads; ++kv_head) {
      const Output output = output_of(map, sequence, kv_head);
      if (output.begin == output.end) {
        CHECK(!outputs.contains({sequence, kv_head}));
        continue;
      }
      // Contributors follow each other without a gap, in worker order and in context order, and cover every tile once.
      const int64_t output_tiles = output.end - output.begin - map.end_tiles;
      costs += map.end_tiles;
      const std::vector<Contribution>& found = outputs[{sequence, kv_head}];
      int64_t next = 0;
      for (size_t index = 0; index < found.size(); ++index) {
        const auto& [worker, segment] = found[index];
        CHECK_EQUAL(segment.begin, next);
        next = segment.end;
        CHECK_EQUAL(segment.output_tiles, output_tiles);
        CHECK_EQUAL(segment.first_worker, found.front().worker);
        CHECK_EQUAL(segment.num_contributors, static_cast<int64_t>(found.size()));
        CHECK_EQUAL(worker, found.front().worker + static_cast<int64_t>(index));
      }
      CHECK_EQUAL(next, output_tiles);
      const TileRange workers = contributors(schedule, map, output);
      CHECK_EQUAL(workers.begin, found.front().worker);
      CHECK_EQUAL(workers.end, found.back().worker + 1);
    }
  }
  CHECK_EQUAL(costs, map.total_cost());
}

void check_shares(const Schedule& schedule, const TileMap& map, int64_t largest_difference) {
  int64_t smallest = std::numeric_limits<int64_t>::max(), largest = 0;
  for (int64_t worker = 0; worker < schedule.num_workers; ++worker) {
    const TileRange range = worker_range(schedule, map, worker);
    smallest = std::min(smallest, range.end - range.begin);
    largest = std::max(largest, range.end - range.begin);
  }
  if (schedule.num_workers > 0) CHECK(largest - smallest <= largest_difference);
}

TEST(schedule_output_at_is_the_inverse_of_output_of) {
  Random random(1);
  for (int round = 0; round < 500; ++round) {
    const Batch batch = random_batch(random);
    for (int64_t tile = 0; tile < batch.map().total_cost(); ++tile) {
      const Output output = output_at(batch.map(), tile);
      CHECK(output.begin <= tile && tile < output.end);
      const Output same = output_of(batch.map(), output.sequence, output.kv_head);
      CHECK(same.begin == output.begin && same.end == output.end);
    }
  }
}

TEST(schedule_even_owner_is_the_inverse_of_even_cut) {
  Random random(2);
  for (int round = 0; round < 3000; ++round) {
    const int64_t workers = random.integer(1, 200);
    const Schedule schedule{Strategy::kLean, workers, random.integer(workers, 3000), 1, 0, 0};
    for (int64_t worker = 0; worker < workers; ++worker) {
      const int64_t begin = even_cut(schedule, worker), end = even_cut(schedule, worker + 1);
      CHECK(begin < end);
      for (int64_t tile = begin; tile < end; ++tile) CHECK_EQUAL(even_owner(schedule, tile), worker);
    }
  }
}

TEST(schedule_unsnapped_lean_shares_are_within_one_tile) {
  Random random(3);
  for (int round = 0; round < 5000; ++round) {
    const Batch batch = random_batch(random);
    const Schedule schedule = lean_schedule(batch.map(), random.integer(1, round % 10 == 0 ? 5000 : 64), false);
    check_schedule(schedule, batch.map());
    check_shares(schedule, batch.map(), 1);
  }
}

TEST(schedule_snapped_lean_keeps_every_closed_form) {
  Random random(4);
  int64_t moved = 0;
  for (int round = 0; round < 5000; ++round) {
    const Batch batch = random_batch(random);
    const Schedule schedule = lean_schedule(batch.map(), random.integer(1, 12), true);
    check_schedule(schedule, batch.map());
    // Each of a range's two cuts moves by the snap distance at most.
    check_shares(schedule, batch.map(), 1 + 4 * schedule.snap);
    for (int64_t worker = 0; worker < schedule.num_workers; ++worker) {
      const TileRange range = worker_range(schedule, batch.map(), worker);
      CHECK(range.begin < range.end);
      const int64_t even = even_cut(schedule, worker + 1) - even_cut(schedule, worker);
      CHECK((range.end - range.begin) * 20 <= even * 21 + 20);  // 5 % and the tile that rounding costs
      moved += range.begin != even_cut(schedule, worker);
    }
  }
  CHECK(moved > 100);  // the batches above do snap
}

TEST(schedule_cuts_by_cost_keep_every_closed_form) {
  Random random(11);
  int by_cost = 0, shared = 0;
  for (int round = 0; round < 5000; ++round) {
    const Batch plain = random_batch(random);
    const int64_t workers = random.integer(1, 12);
    TileTotals totals;
    for (size_t i = 1; i < plain.cost_before.size(); ++i) {
      const int64_t tiles = plain.cost_before[i] - plain.cost_before[i - 1];
      totals = {totals.tiles + tiles, totals.outputs + (tiles > 0), std::max(totals.longest, tiles)};
    }
    const int32_t end_tiles = choose_end_tiles(totals, plain.num_kv_heads, workers);
    const Batch batch = plain.by_cost(end_tiles);
    const TileMap map = batch.map();
    const Schedule schedule = lean_schedule(map, fewest_workers(map, workers), random.integer(0, 1) == 1);
    check_schedule(schedule, map);
    by_cost += end_tiles > 0;
    if (schedule.num_workers == 0) continue;
    // Every worker has something to do, and nobody's range costs more than its share and what cuts move.
    const int64_t share = (map.total_cost() + schedule.num_workers - 1) / schedule.num_workers;
    for (int64_t worker = 0; worker < schedule.num_workers; ++worker) {
      const TileRange range = worker_range(schedule, map, worker);
      CHECK(range.begin < range.end);
      CHECK(range.end - range.begin <= share + schedule.snap + std::max<int64_t>(schedule.snap, end_tiles));
      shared += segments_of(schedule, map, worker).size() > 1;
    }
  }
  CHECK(by_cost > 1000);
  CHECK(shared > 1000);
}

TEST(schedule_end_tiles_examples) {
  CHECK_EQUAL(choose_end_tiles({512, 8, 64}, 8, 100), 0);          // equal contexts
  CHECK_EQUAL(choose_end_tiles({500, 8, 64}, 8, 100), kEndTiles);  // 40 tiles a worker
  CHECK_EQUAL(choose_end_tiles({40, 8, 16}, 8, 80), 0);            // 4 tiles a worker: two cuts might lie in an end
  CHECK_EQUAL(choose_end_tiles({41, 8, 16}, 8, 80), kEndTiles);
  CHECK_EQUAL(choose_end_tiles({0, 0, 0}, 8, 80), 0);
}

// By cost, whoever has many short contexts gets fewer tiles than whoever has a part of a long one.
TEST(schedule_by_cost_gives_ends_their_time) {
  Batch plain{{0}, 1};
  for (int i = 0; i < 32; ++i) plain.cost_before.push_back(plain.cost_before.back() + 2);
  plain.cost_before.push_back(plain.cost_before.back() + 192);
  const Batch batch = plain.by_cost(3);
  const auto tiles_of_first = [](const TileMap& map) {
    int64_t tiles = 0;
    for (const Segment& segment : segments_of(lean_schedule(map, 4, true), map, 0))
      tiles += segment.end - segment.begin;
    return tiles;
  };
  CHECK_EQUAL(tiles_of_first(plain.map()), 64);
  CHECK_EQUAL(tiles_of_first(batch.map()), 36);  // (32 x 5 + 195) / 4 = 88.75: 18 contexts of 5
}

TEST(schedule_fewest_workers_have_the_same_longest_share) {
  Random random(12);
  for (int round = 0; round < 3000; ++round) {
    const Batch batch = random_batch(random);
    const TileMap map = batch.map();
    const int64_t cost = map.total_cost(), workers = random.integer(1, 300), fewest = fewest_workers(map, workers);
    const auto longest = [&](int64_t count) { return (cost + count - 1) / count; };
    CHECK(fewest <= workers);
    CHECK_EQUAL(fewest > 0, cost > 0);
    if (cost == 0) continue;
    CHECK_EQUAL(longest(fewest), longest(workers));
    if (fewest > 1) CHECK(longest(fewest - 1) > longest(workers));
  }
  const Batch equal{{0, 64}, 8};
  CHECK_EQUAL(fewest_workers(equal.map(), 264), 256);  // the worked example
  CHECK_EQUAL(fewest_workers(equal.map(), 1000), 512);
}

TEST(schedule_large_snaps_keep_every_closed_form) {
  // Wider snaps than lean_schedule chooses, up to the most that leaves no worker empty.
  Random random(5);
  for (int round = 0; round < 5000; ++round) {
    const Batch batch = random_batch(random);
    Schedule schedule = lean_schedule(batch.map(), random.integer(1, 12), true);
    if (schedule.num_workers == 0) continue;
    schedule.snap = random.integer(0, std::max<int64_t>(0, (schedule.total_cost / schedule.num_workers - 1) / 2));
    check_schedule(schedule, batch.map());
  }
}

TEST(schedule_snap_example_of_the_comment) {
  // 4 workers, 100 tiles each; edges 2 and 3 tiles before the even cuts at 100 and 200.
  Batch batch;
  batch.num_kv_heads = 1;
  batch.cost_before = {0, 98, 197, 400};
  const Schedule schedule = lean_schedule(batch.map(), 4, true);
  CHECK_EQUAL(cut(schedule, batch.map(), 1), 98);
  CHECK_EQUAL(cut(schedule, batch.map(), 2), 200);
  // Shares under 40 tiles are cut exactly.
  batch.cost_before = {0, 38, 78};
  CHECK_EQUAL(cut(lean_schedule(batch.map(), 2, true), batch.map(), 1), 39);
  batch.cost_before = {0, 39, 80};
  CHECK_EQUAL(cut(lean_schedule(batch.map(), 2, true), batch.map(), 1), 39);
}

TEST(schedule_fixed_split_and_flash_attention_2) {
  Random random(6);
  for (int round = 0; round < 3000; ++round) {
    const Batch batch = random_batch(random);
    check_schedule(flash_attention_2_schedule(batch.map()), batch.map());
    const Schedule split = fixed_split_schedule(batch.map(), random.integer(1, 140));
    check_schedule(split, batch.map());
    for (int64_t worker = 0; worker < split.num_workers; ++worker) {
      const auto segments = segments_of(split, batch.map(), worker);
      CHECK(segments.size() <= 1);
      for (const Segment& segment : segments) {  // splits of an output tile are equal within one tile
        const int64_t splits = std::min(split.num_splits, segment.output_tiles);
        CHECK(segment.end - segment.begin >= segment.output_tiles / splits);
        CHECK(segment.end - segment.begin <= segment.output_tiles / splits + 1);
      }
    }
  }
}

TEST(schedule_of_nothing_has_no_work) {
  Batch batch;
  batch.num_kv_heads = 3;
  batch.cost_before = {0, 0, 0};
  CHECK_EQUAL(lean_schedule(batch.map(), 7, true).num_workers, 0);
  for (const Schedule& schedule : {flash_attention_2_schedule(batch.map()), fixed_split_schedule(batch.map(), 5)})
    for (int64_t worker = 0; worker < schedule.num_workers; ++worker)
      CHECK(segments_of(schedule, batch.map(), worker).empty());
}

TEST(schedule_workers_beyond_tiles_are_left_out) {
  Batch batch;
  batch.num_kv_heads = 2;
  batch.cost_before = {0, 2, 2, 5};
  const Schedule schedule = lean_schedule(batch.map(), 1000, true);
  CHECK_EQUAL(schedule.num_workers, 10);
  check_schedule(schedule, batch.map());
  check_shares(schedule, batch.map(), 0);
}

// Some 10^6 sequences of the longest context there is, 128 KV heads: 4.3e15 tiles, which times 2^11 workers nears 2^63.
TEST(schedule_a_million_long_sequences_do_not_overflow) {
  Batch batch;
  batch.num_kv_heads = 128;
  constexpr int64_t kTiles = (int64_t{1} << 31) / 64;
  for (int sequence = 0; sequence < 1'000'000; ++sequence)
    batch.cost_before.push_back(batch.cost_before.back() + (kTiles - sequence % 3));
  const TileMap map = batch.map();
  for (const bool snap : {false, true}) {
    const Schedule schedule = lean_schedule(map, 2048, snap);
    int64_t next = 0;
    for (int64_t worker = 0; worker < schedule.num_workers; ++worker) {
      const TileRange range = worker_range(schedule, map, worker);
      CHECK_EQUAL(range.begin, next);
      CHECK(range.begin < range.end);
      next = range.end;
      // The output tiles at both ends, with their contributors.
      for (const int64_t tile : {range.begin, range.end - 1}) {
        const TileRange workers = contributors(schedule, map, output_at(map, tile));
        CHECK(workers.begin <= worker && worker < workers.end);
        CHECK(workers.end - workers.begin <= 2);
      }
      if (!snap) CHECK_EQUAL(even_owner(schedule, range.end - 1), worker);
    }
    CHECK_EQUAL(next, map.total_cost());
    check_shares(schedule, map, snap ? 1 + 4 * schedule.snap : 1);
  }
}

// ---- The split rule -----------------------------------------------------------------------------------------------

// FlashAttention-2's num_splits_heuristic as its source has it, in floating point. `tie` tells whether rounding
// decides.
int64_t flash_attention_2_splits(int64_t outputs, int64_t processors, int64_t blocks, bool& tie) {
  const auto ties = [](double a, double b) { return std::abs(a - b) < 1e-9; };
  tie = ties(static_cast<double>(outputs), 0.8 * static_cast<double>(processors));
  if (static_cast<double>(outputs) >= 0.8 * static_cast<double>(processors)) return 1;
  const int64_t limit = std::min({int64_t{128}, processors, blocks});
  const auto pieces = [&](int64_t splits) { return (blocks + splits - 1) / splits; };
  const auto eligible = [&](int64_t splits) { return splits == 1 || pieces(splits) != pieces(splits - 1); };
  std::vector<double> efficiency;
  double best = 0;
  for (int64_t splits = 1; splits <= limit; ++splits) {
    const double waves = static_cast<double>(outputs * splits) / static_cast<double>(processors);
    efficiency.push_back(eligible(splits) ? waves / std::ceil(waves) : 0.0);
    best = std::max(best, efficiency.back());
  }
  for (const double value : efficiency) tie |= ties(value, 0.85 * best);
  for (int64_t splits = 1; splits <= limit; ++splits)
    if (efficiency[static_cast<size_t>(splits - 1)] >= 0.85 * best) return splits;
  return 1;
}

TEST(schedule_split_rule_is_flash_attention_2s) {
  int64_t compared = 0, ties = 0;
  for (int64_t processors = 1; processors <= 264; processors += processors < 20 ? 1 : 7)
    for (int64_t outputs = 1; outputs <= processors + 1; ++outputs)
      for (const int64_t blocks : {1, 2, 3, 5, 16, 63, 64, 100, 127, 128, 129, 500, 4096, 100000}) {
        bool tie;
        const int64_t wanted = flash_attention_2_splits(outputs, processors, blocks, tie);
        ++(tie ? ties : compared);
        // Integers decide exactly what floating point leaves to rounding.
        if (!tie) CHECK_EQUAL(choose_num_splits(outputs, blocks, processors), wanted);
      }
  CHECK(compared > 50'000);
  CHECK(ties < compared / 20);
}

TEST(schedule_split_rule_examples) {
  CHECK_EQUAL(choose_num_splits(8, 64, 132), 16);     // the worked example of schedule.h
  CHECK_EQUAL(choose_num_splits(106, 1000, 132), 1);  // 80 % of the processors are filled
  CHECK_EQUAL(choose_num_splits(1, 1000, 1), 1);
  CHECK_EQUAL(choose_num_splits(0, 64, 132), 1);
  CHECK_EQUAL(choose_num_splits(8, 0, 132), 1);
  CHECK(choose_num_splits(1, 1'000'000, 100'000) <= 128);
  CHECK(choose_num_splits(1, 3, 132) <= 3);
}

// ---- The plan -----------------------------------------------------------------------------------------------------

TEST(plan_places_every_segment_and_tells_the_makespan) {
  Random random(8);
  for (int round = 0; round < 500; ++round) {
    PlanRequest request;
    request.strategy = static_cast<Strategy>(random.integer(0, 2));
    request.processors = random.integer(1, 40);
    request.splits = random.integer(0, 1) * random.integer(1, 9);
    request.by_cost = random.integer(0, 1) == 1;
    request.num_kv_heads = static_cast<int32_t>(random.integer(1, 5));
    std::vector<int32_t> lengths(static_cast<size_t>(random.integer(1, 9)));
    for (int32_t& length : lengths) length = static_cast<int32_t>(random.integer(0, 3) * random.integer(0, 2000));
    const Plan plan(request, lengths);
    std::map<int64_t, int64_t> busy_until;  // processors work without a pause, one segment after the other
    int64_t tiles = 0;
    bool partials = false;
    for (const PlacedSegment& placed : plan.segments()) {
      CHECK(placed.processor >= 0 && placed.processor < request.processors);
      CHECK_EQUAL(placed.start, busy_until[placed.processor]);
      busy_until[placed.processor] += placed.segment.end - placed.segment.begin;
      tiles += placed.segment.end - placed.segment.begin;
      partials |= !placed.segment.covers_output();
    }
    int64_t makespan = 0;
    for (const auto& [processor, end] : busy_until) makespan = std::max(makespan, end);
    CHECK_EQUAL(tiles, plan.num_tiles());
    if (!request.by_cost) CHECK_EQUAL(tiles, plan.schedule().total_cost);
    CHECK_EQUAL(makespan, plan.makespan());
    CHECK(plan.ideal_makespan() <= makespan);
    if (partials) CHECK(plan.has_partials());
    if (request.strategy == Strategy::kLean) CHECK_EQUAL(plan.has_partials(), partials);
  }
}

TEST(schedule_heads_together_divide_heads_and_workers) {
  for (int32_t heads = 1; heads <= 70; ++heads)
    for (int64_t workers = 1; workers <= 300; ++workers) {
      const int32_t together = heads_together(heads, workers);
      CHECK(together >= 1 && together <= kMostHeadsTogether && (together & (together - 1)) == 0);
      CHECK(heads % together == 0 && workers % together == 0);
      if (together < kMostHeadsTogether) CHECK(heads % (2 * together) != 0 || workers % (2 * together) != 0);
    }
  CHECK_EQUAL(heads_together(32, 264), 8);
  CHECK_EQUAL(heads_together(8, 132), 4);
  CHECK_EQUAL(heads_together(5, 264), 1);
}

// Each head of those that are cut together has workers of its own, with the cuts of the others; every tile is theirs
// once, and whoever contributes to an output tile is a neighbour.
TEST(plan_cuts_heads_at_once_alike) {
  Random random(21);
  int shared = 0;
  for (int round = 0; round < 500; ++round) {
    PlanRequest request;
    request.heads_at_once = true;
    request.heads_per_tile = 1 << random.integer(0, 3);
    request.processors = request.heads_per_tile * random.integer(1, 12);
    request.num_kv_heads = request.heads_per_tile * static_cast<int32_t>(random.integer(1, 3));
    request.by_cost = random.integer(0, 1) == 1;
    std::vector<int32_t> lengths(static_cast<size_t>(random.integer(1, 6)));
    for (int32_t& length : lengths) length = static_cast<int32_t>(random.integer(0, 3) * random.integer(0, 2000));
    const Plan plan(request, lengths);

    std::map<std::pair<int32_t, int32_t>, std::vector<Segment>> outputs;
    std::map<int64_t, std::set<int32_t>> heads_of_worker;
    for (const PlacedSegment& placed : plan.segments()) {
      const Segment& s = placed.segment;
      const int64_t index = placed.worker - s.first_worker;
      auto& segments = outputs[{s.sequence, s.kv_head}];
      CHECK(placed.worker >= 0 && placed.worker < request.processors);
      CHECK_EQUAL(index, static_cast<int64_t>(segments.size()));
      CHECK_EQUAL(s.begin, segments.empty() ? 0 : segments.back().end);
      segments.push_back(s);
      heads_of_worker[placed.worker].insert(s.kv_head % request.heads_per_tile);
      shared += s.num_contributors > 1;
    }
    for (const auto& [worker, heads] : heads_of_worker) CHECK_EQUAL(heads.size(), size_t{1});
    int64_t tiles = 0;
    for (const auto& [place, segments] : outputs) {
      CHECK_EQUAL(segments.back().end, segments.back().output_tiles);
      CHECK_EQUAL(segments.back().num_contributors, static_cast<int64_t>(segments.size()));
      tiles += segments.back().end;
      const auto& [sequence, head] = place;
      const auto& first = outputs.at({sequence, head / request.heads_per_tile * request.heads_per_tile});
      CHECK_EQUAL(first.size(), segments.size());
      for (size_t i = 0; i < std::min(first.size(), segments.size()); ++i) CHECK_EQUAL(first[i].end, segments[i].end);
    }
    CHECK_EQUAL(tiles, plan.num_tiles());
  }
  CHECK(shared > 1000);
}

TEST(plan_refuses_more_tiles_than_64_bits_hold) {
  // 2^25 tiles a context, nearly 2^31 KV heads: 2^56 tiles a sequence.
  PlanRequest request;
  request.num_kv_heads = std::numeric_limits<int32_t>::max();
  for (const size_t sequences : {200, 256, 300, 512}) {
    bool refused = false;
    try {
      const Plan plan(request, std::vector<int32_t>(sequences, std::numeric_limits<int32_t>::max()));
    } catch (const Error& error) {
      refused = error.code() == ErrorCode::kInvalidArgument;
    }
    CHECK(refused);
  }
}

}  // namespace

}  // namespace lean::test
