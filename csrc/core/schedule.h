// The schedule: which worker computes which LeanTiles, and how partial results find each other.
//
// One value type for the host, the device and the tests; integers only. The LeanTiles of all output tiles lie end to
// end: sequence by sequence, within a sequence KV head by KV head, within an output tile in context order. Every worker
// owns one contiguous range of them; a range crosses output tiles, and each crossing is a segment:
//
//   output tiles   |---- 0 ----|-- 1 --|-------- 2 --------|
//   workers        |  0  |  1  |  2  |  3  |  4  |  5  |  6 ...      worker 2: all of its range lies in output tile 1
//
// A segment that covers its output tile writes the output; any other is a partial, stored in the slot of its worker.
// The last contributor to arrive merges the partials of an output tile in worker order (the fix-up).
//
// Strategies differ only in where the ranges are cut:
//   lean               equal shares of all tiles, or of their cost, wherever the cuts fall (LeanAttention, arXiv
//                      2405.10480; stream-K)
//   fixed-split        every output tile in the same number of splits, one worker each (FlashDecoding)
//   flash-attention-2  one worker per output tile
#pragma once

#include <cstdint>

#include "numeric.h"

namespace lean {

enum class Strategy : int32_t { kLean = 0, kFixedSplit = 1, kFlashAttention2 = 2 };

// Where the output tiles of a batch lie in the global order, by their cost: an output tile costs its LeanTiles, and
// `end_tiles` more for its end, where results are combined and stored and no tile is computed. Equal shares of the cost
// take equal times, where equal shares of tiles would leave whoever has many short contexts behind.
struct TileMap {
  const int64_t* cost_before;  // [batch + 1] of one KV head's output tiles in the sequences before; at the end, of all
  int32_t batch;
  int32_t num_kv_heads;
  int32_t end_tiles = 0;  // 0: the cost is the number of tiles

  LEAN_HD int64_t total_cost() const { return cost_before[batch] * num_kv_heads; }
  LEAN_HD int64_t num_outputs() const { return int64_t{batch} * num_kv_heads; }
};

// What decides about end_tiles: of one KV head, over all sequences.
struct TileTotals {
  int64_t tiles = 0;
  int64_t outputs = 0;  // that have tiles
  int64_t longest = 0;  // tiles of the longest one
};

// On an H200, head dim 128, the end of an output tile takes 4,500 cycles and a tile of 64 tokens 2,900 while all
// workers read at once. A worker at an end asks for no more K and V once its ring is full, so the end costs more than
// its own time: of 1, 2 and 3 tiles, 3 was fastest for three of four unequal batches, and within 1 % for the fourth.
inline constexpr int32_t kEndTiles = 3;

// end_tiles for a lean schedule by cost. 0 for equal contexts, whose shares of tiles and of costs are the same but for
// where they can be cut at edges; and for shares so small that two cuts might lie in one end.
LEAN_HD constexpr int32_t choose_end_tiles(const TileTotals& totals, int32_t num_kv_heads, int64_t workers) {
  if (totals.longest * totals.outputs == totals.tiles) return 0;
  return totals.tiles * num_kv_heads > kEndTiles * workers + workers ? kEndTiles : 0;
}

// KV heads whose output tiles a GPU with so many workers cuts at the same places: at each moment they read the same
// tokens, whose rows lie side by side in memory (of 160 bytes with head dim 80, which share the memory's lines). A
// power of two, so that nobody divides by it, and all workers have work. On an H100, 16 x 4k tokens of 32 KV heads:
// head dim 80 305 -> 267 us, 112 403 -> 390 us, 64 and 128 as before.
inline constexpr int32_t kMostHeadsTogether = 8;
LEAN_HD constexpr int32_t heads_together(int32_t num_kv_heads, int64_t workers) {
  int32_t heads = kMostHeadsTogether;
  while (num_kv_heads % heads || workers % heads) heads /= 2;
  return heads;
}

// One output tile (sequence, kv_head) and its place [begin, end) in the global order; the end_tiles come last.
struct Output {
  int32_t sequence;
  int32_t kv_head;
  int64_t begin;
  int64_t end;
};

LEAN_HD inline Output output_of(const TileMap& map, int32_t sequence, int32_t kv_head) {
  const int64_t before = map.cost_before[sequence];
  const int64_t tiles = map.cost_before[sequence + 1] - before;
  const int64_t begin = before * map.num_kv_heads + kv_head * tiles;
  return {sequence, kv_head, begin, begin + tiles};
}

// The sequence that holds place `tile` of the global order (a tile, where ends cost nothing): binary search, which
// passes over empty ones.
LEAN_HD inline int32_t sequence_at(const TileMap& map, int64_t tile) {
  int32_t low = 0, high = map.batch;  // the tile lies in sequences [low, high)
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (map.cost_before[middle] * map.num_kv_heads <= tile)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// The output tile that holds place `tile` of the global order.
LEAN_HD inline Output output_at(const TileMap& map, int64_t tile) {
  const int32_t sequence = sequence_at(map, tile);
  const int64_t before = map.cost_before[sequence];
  const int64_t tiles = map.cost_before[sequence + 1] - before;
  if (map.num_kv_heads == 1) return output_of(map, sequence, 0);  // spares a division
  return output_of(map, sequence, static_cast<int32_t>(divide(tile - before * map.num_kv_heads, tiles)));
}

// The output tile after `output`; there is one. Mostly a few additions: this is what a walk over many output tiles
// pays.
LEAN_HD inline Output next_output(const TileMap& map, const Output& output) {
  if (output.kv_head + 1 < map.num_kv_heads)
    return {output.sequence, output.kv_head + 1, output.end, output.end + (output.end - output.begin)};
  int32_t sequence = output.sequence + 1;
  if (map.cost_before[sequence + 1] == map.cost_before[sequence])
    sequence = sequence_at(map, output.end);  // it is empty
  return output_of(map, sequence, 0);
}

struct TileRange {
  int64_t begin;
  int64_t end;
};

// A piece of work: the tiles [begin, end) of one output tile, counted from that output tile's start.
struct Segment {
  int32_t sequence;
  int32_t kv_head;
  int64_t begin;
  int64_t end;
  int64_t output_tiles;      // tiles of the whole output tile
  int64_t first_worker;      // the first of the workers that contribute to it
  int64_t num_contributors;  // 1: this segment covers its output tile

  LEAN_HD bool covers_output() const { return num_contributors == 1; }
};

// Moving a cut to an output tile's edge saves a partial and costs balance. It is done where the cut is within 1/40 of a
// worker's share, so both cuts of a worker together lengthen its range by 5 % at most: with 100 tiles a worker, a cut
// 2 tiles behind an edge moves, one 3 tiles behind it stays. Shares under 40 tiles are cut exactly.
inline constexpr int64_t kSnapDivisor = 40;

struct Schedule {
  Strategy strategy;
  int64_t num_workers;  // workers that own tiles; for lean none of their ranges is empty
  int64_t total_cost;   // of all output tiles
  int64_t num_splits;   // fixed-split: workers per output tile, else 1
  int64_t snap;         // lean: largest distance that a cut moves to an output tile's edge
  int32_t end_tiles;    // the map's

  // Scratch: a worker has at most two partials (the output tile it finishes and the one it leaves unfinished), and is
  // the first contributor of at most one output tile, whose arrivals it counts.
  LEAN_HD int64_t num_slots() const { return 2 * num_workers; }
  LEAN_HD int64_t num_counters() const { return num_workers; }
};

// The slot of contributor `index` (0, 1, …) to the output tile whose first contributor is `first_worker`: only the
// first starts at the output tile's start, so it leaves that output tile unfinished; every other finds it begun.
LEAN_HD inline int64_t partial_slot(int64_t first_worker, int64_t index) {
  return index == 0 ? 2 * first_worker + 1 : 2 * (first_worker + index);
}

// The fewest workers whose longest share is no longer than that of `workers`. Fewer make fewer partials, and cut equal
// contexts at their edges more often. Worked example: 8 output tiles of 64 tiles. 264 workers have two tiles at most
// and so have 256, of which none crosses an edge, and 32 instead of 33 or 34 contribute to an output tile.
LEAN_HD inline int64_t fewest_workers(const TileMap& map, int64_t workers) {
  const int64_t cost = map.total_cost();
  if (cost <= workers) return cost;
  const int64_t share = divide(cost + workers - 1, workers);
  return divide(cost + share - 1, share);
}

// Lean: `workers` shares that differ by one tile at most. Workers that would own nothing are left out, so contributors
// to an output tile are neighbours. With `snap_cuts` shares may differ by 5 % (see kSnapDivisor).
LEAN_HD inline Schedule lean_schedule(const TileMap& map, int64_t workers, bool snap_cuts) {
  const int64_t cost = map.total_cost();
  const int64_t active = cost < workers ? cost : workers;
  const bool long_shares = active > 0 && cost >= active * kSnapDivisor;  // else there is nothing to divide
  const int64_t snap = snap_cuts && long_shares ? divide(cost, active * kSnapDivisor) : 0;
  return {Strategy::kLean, active, cost, 1, snap, map.end_tiles};
}

LEAN_HD inline Schedule fixed_split_schedule(const TileMap& map, int64_t splits) {
  return {Strategy::kFixedSplit, map.num_outputs() * splits, map.total_cost(), splits, 0, 0};
}

LEAN_HD inline Schedule flash_attention_2_schedule(const TileMap& map) {
  return {Strategy::kFlashAttention2, map.num_outputs(), map.total_cost(), 1, 0, 0};
}

// FlashAttention-2's choice of splits for fixed-split: one if the output tiles already fill 80 % of the processors,
// else the smallest count whose wave efficiency (waves / ceil(waves)) reaches 85 % of the best one. A count that cuts
// the longest context into no shorter pieces than the count before it is passed over. Worked example: 8 output tiles of
// 64 tiles, 132 processors. 16, 32 and 64 splits fill 97 % of their waves, the most there is, so 82.4 % is enough: 14
// splits would do (85 %) but leave pieces of 5 tiles as 13 do; 16 is the answer.
LEAN_HD inline int64_t choose_num_splits(int64_t outputs, int64_t longest_tiles, int64_t processors) {
  constexpr int64_t kMaxSplits = 128;
  // 80 %, rounded up: outputs x 5 might overflow.
  if (outputs <= 0 || longest_tiles <= 0 || outputs >= (processors * 4 + 4) / 5) return 1;
  int64_t limit = kMaxSplits;
  if (processors < limit) limit = processors;
  if (longest_tiles < limit) limit = longest_tiles;
  const auto pieces = [=](int64_t splits) { return (longest_tiles + splits - 1) / splits; };
  const auto eligible = [=](int64_t splits) { return splits == 1 || pieces(splits) != pieces(splits - 1); };
  // efficiency(s) = workers / capacity, compared as fractions: waves = outputs * s / processors.
  const auto workers = [=](int64_t splits) { return outputs * splits; };
  const auto capacity = [=](int64_t splits) { return (workers(splits) + processors - 1) / processors * processors; };
  int64_t best = 1;
  for (int64_t s = 2; s <= limit; ++s)
    if (eligible(s) && workers(s) * capacity(best) > workers(best) * capacity(s)) best = s;
  for (int64_t s = 1; s < best; ++s)
    if (eligible(s) && workers(s) * capacity(best) * 100 >= workers(best) * capacity(s) * 85) return s;
  return best;
}

// ---- Lean: where the cuts fall ------------------------------------------------------------------------------------

// Where worker `worker` would begin if cuts never moved.
LEAN_HD inline int64_t even_cut(const Schedule& schedule, int64_t worker) {
  return divide(worker * schedule.total_cost, schedule.num_workers);
}

// The worker whose even share holds `tile`: the inverse of even_cut.
LEAN_HD inline int64_t even_owner(const Schedule& schedule, int64_t tile) {
  return divide((tile + 1) * schedule.num_workers - 1, schedule.total_cost);
}

// A cut strictly inside an output tile moves to its edge when that is near enough; the start is tried first. A cut
// behind its tiles moves to the end.
LEAN_HD inline int64_t snap_cut(const Schedule& schedule, const Output& output, int64_t cut) {
  if (cut - output.begin <= schedule.snap) return output.begin;
  const int64_t end_snap = schedule.snap > schedule.end_tiles ? schedule.snap : schedule.end_tiles;
  return output.end - cut <= end_snap ? output.end : cut;
}

LEAN_HD inline int64_t lean_cut(const Schedule& schedule, const TileMap& map, int64_t worker) {
  const int64_t even = even_cut(schedule, worker);
  if ((schedule.snap == 0 && schedule.end_tiles == 0) || even == schedule.total_cost) return even;
  return snap_cut(schedule, output_at(map, even), even);
}

// The workers that contribute to an output tile, in closed form: from the even owner of its first tile to that of its
// last one, corrected where a cut inside it moved to its edge.
LEAN_HD inline TileRange lean_contributors(const Schedule& schedule, const Output& output) {
  int64_t first = even_owner(schedule, output.begin);
  int64_t last = even_owner(schedule, output.end - 1);
  if (schedule.snap == 0 && schedule.end_tiles == 0) return {first, last + 1};  // no cut has moved
  if (first < last && snap_cut(schedule, output, even_cut(schedule, first + 1)) == output.begin) ++first;
  if (first < last && snap_cut(schedule, output, even_cut(schedule, last)) == output.end) --last;
  return {first, last + 1};
}

// ---- All strategies -----------------------------------------------------------------------------------------------

// Where a worker's range begins. It ends where the next worker's begins; that of `num_workers` is the end of all tiles.
LEAN_HD inline int64_t cut(const Schedule& schedule, const TileMap& map, int64_t worker) {
  if (worker == schedule.num_workers) return schedule.total_cost;
  if (schedule.strategy == Strategy::kLean) return lean_cut(schedule, map, worker);
  const int64_t index = worker / schedule.num_splits;
  const Output output =
      output_of(map, static_cast<int32_t>(index / map.num_kv_heads), static_cast<int32_t>(index % map.num_kv_heads));
  // A context of fewer tiles than splits uses as many splits as it has tiles: the first ones.
  const int64_t tiles = output.end - output.begin;
  const int64_t splits = tiles < schedule.num_splits ? tiles : schedule.num_splits;
  const int64_t split = worker % schedule.num_splits;
  return split < splits ? output.begin + split * tiles / splits : output.end;
}

// The tiles of a worker, in the global order.
LEAN_HD inline TileRange worker_range(const Schedule& schedule, const TileMap& map, int64_t worker) {
  return {cut(schedule, map, worker), cut(schedule, map, worker + 1)};
}

// The workers that contribute to an output tile.
LEAN_HD inline TileRange contributors(const Schedule& schedule, const TileMap& map, const Output& output) {
  if (schedule.strategy == Strategy::kLean) return lean_contributors(schedule, output);
  const int64_t tiles = output.end - output.begin;
  const int64_t first = (int64_t{output.sequence} * map.num_kv_heads + output.kv_head) * schedule.num_splits;
  return {first, first + (tiles < schedule.num_splits ? tiles : schedule.num_splits)};
}

// The work of one worker, segment by segment:  for (WorkCursor work(…); work.next(segment);) …
class WorkCursor {
 public:
  LEAN_HD WorkCursor(const Schedule& schedule, const TileMap& map, int64_t worker)
      : WorkCursor(schedule, map, worker, worker_range(schedule, map, worker)) {}

  // The same, where the worker's range is known.
  LEAN_HD WorkCursor(const Schedule& schedule, const TileMap& map, int64_t worker, TileRange range)
      : schedule_(schedule),
        map_(map),
        worker_(worker),
        range_(range),
        output_(range_.begin < range_.end ? output_at(map, range_.begin) : Output{}) {}

  LEAN_HD bool next(Segment& segment) {
    if (!more()) return false;
    next_place(segment);
    count_contributors(segment);
    return true;
  }

  LEAN_HD bool more() const { return range_.begin < range_.end; }

  // The next segment, of which there is one, in two steps, for whoever needs to know soon where it lies: all but who
  // contributes to its output tile, which takes divisions; and that.
  LEAN_HD void next_place(Segment& segment) {
    const int64_t begin = range_.begin;
    const int64_t end = range_.end < output_.end ? range_.end : output_.end;
    const int64_t tiles = output_.end - output_.begin - map_.end_tiles, end_tile = end - output_.begin;
    segment = {output_.sequence,
               output_.kv_head,
               begin - output_.begin,
               end_tile < tiles ? end_tile : tiles,
               tiles,
               worker_,
               1};
    range_.begin = end;
    if (end < range_.end) output_ = next_output(map_, output_);
  }
  LEAN_HD void count_contributors(Segment& segment) const {
    // Only a range's first and last segment can be partials, so only these need to know who else contributes.
    if (segment.begin == 0 && segment.end == segment.output_tiles) return;
    const TileRange workers = contributors(schedule_, map_, output_of(map_, segment.sequence, segment.kv_head));
    segment.first_worker = workers.begin;
    segment.num_contributors = workers.end - workers.begin;
  }

 private:
  const Schedule& schedule_;
  const TileMap& map_;
  int64_t worker_;
  TileRange range_;  // what is left
  Output output_;    // in which it begins
};

}  // namespace lean
