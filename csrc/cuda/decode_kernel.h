// The decode attention kernel: one CTA is one worker of the schedule, for every strategy alike; of a schedule that cuts
// several KV heads at the same places, it is a worker of one of these (Team).
//
// Each CTA derives the whole batch's tile map from the context lengths, its own range from that, and then works through
// its segments: load the query rows, attend to the segment's tiles as the ring delivers them, combine the warps'
// states, and store the output tile or publish a partial.
#pragma once

#include <new>

#include "attend.h"
#include "combine.h"
#include "fix_up.h"
#include "kv_bulk_ring.h"
#include "kv_ring.h"
#include "output.h"
#include "tile_map.h"
#include "traits.h"

namespace lean {

LEAN_DEVICE Schedule make_schedule(const KernelParams& params, const TileMap& map) {
  switch (params.strategy) {
    case Strategy::kFixedSplit:
      return fixed_split_schedule(map, params.num_splits);
    case Strategy::kFlashAttention2:
      return flash_attention_2_schedule(map);
    default:
      return lean_schedule(map, params.by_cost ? fewest_workers(map, params.workers) : params.workers,
                           params.snap_cuts);
  }
}

template <class T, int kHeadDim, Variant kVariant>
struct DecodeKernel {
  using K = Traits<T, kHeadDim, has_producer(kVariant)>;
  using Params = KernelParams;
  static constexpr int kThreads = K::kMaxThreads;
  static constexpr int kCtasPerSm = 1;  // of so many threads; of fewer, as many as the table says (compile-report.cjs)

  LEAN_DEVICE static void run(const Params& params, char* base) {
    const SharedMemory<K> shared(base, K::config(params));
    const RowBlock block = RowBlock::of_cta(params, shared.config);

    if constexpr (K::kBulk) prepare_bulk_ring<K>(params, shared);
    if (!params.cost_before) build_tile_map(params, shared.cost_before(), shared.warp_totals());
    if (thread_index() < kWarpLanes) find_work(params, block.team.worker, shared);
    sync_cta();
    if constexpr (K::kBulk) {
      if (warp_index() == shared.config.warps) {
        produce<K>(params, shared);
      } else {
        BulkRing<K> tiles(shared);
        compute(params, shared, block, tiles);
      }
    } else {
      AsyncRing<K> tiles(params, shared, TokenGroup::of_warp(block, shared.config));
      compute(params, shared, block, tiles);
    }
  }

 private:
  // The schedule, and a worker's place in it: an empty range for a CTA beyond the schedule's workers. One warp; a
  // lane for each end of the range, because finding one is a chain of divisions.
  LEAN_DEVICE static void find_work(const Params& params, int64_t worker, const SharedMemory<K>& shared) {
    SharedWork& work = *shared.work();
    const int64_t* const cost_before = params.cost_before ? params.cost_before : shared.cost_before();
    const int32_t batch = params.decode.batch;
    const TileMap map{cost_before, batch, Team::map_heads(params), static_cast<int32_t>(cost_before[batch + 1])};
    const Schedule schedule = make_schedule(params, map);
    const int lane = lane_index();
    const bool works = worker < schedule.num_workers;
    const int64_t end = works && lane < 2 ? cut(schedule, map, worker + lane) : 0;
    const TileRange range{shuffle(end, 0), shuffle(end, 1)};
    if (lane != 0) return;
    work.map = map;
    work.schedule = schedule;
    WorkCursor& start = *new (work.start) WorkCursor(work.schedule, work.map, worker, range);
    work.segments[0] = {};
    work.first_length = 0;
    if (!start.more()) return;
    start.next_place(work.segments[0]);
    work.first_length = context_length(params, work.segments[0].sequence);
  }

  // The worker's next segment, the same for all computing threads; false: there is none.
  LEAN_DEVICE static bool next_segment(const SharedMemory<K>& shared, Segment& segment) {
    SharedWork& work = *shared.work();
    if (!work.more) return false;
    sync_named(K::kComputeBarrier, compute_threads(shared.config));  // nobody reads the one before the last any more
    if (thread_index() == 0) {
      WorkCursor& cursor = *reinterpret_cast<WorkCursor*>(work.cursor);
      cursor.next(segment);
      work.more = cursor.more();
    }
    sync_named(K::kComputeBarrier, compute_threads(shared.config));
    return true;
  }

  // What copies do not need to know, done while the first ones come. By the computing threads; collective.
  LEAN_DEVICE static void begin_work(const KernelParams& params, const SharedMemory<K>& shared, const RowBlock& block) {
    SharedWork& work = *shared.work();
    const int threads = compute_threads(shared.config);
    if (thread_index() == 0) {
      const WorkCursor& cursor = *new (work.cursor) WorkCursor(*reinterpret_cast<const WorkCursor*>(work.start));
      cursor.count_contributors(work.segments[0]);
      work.more = cursor.more();
    }
    if (cta_index_x() == 0 && cta_index_y() == 0) check_context_lengths(params, threads);
    write_empty_outputs<K>(params.decode, work.map, block, threads);
    sync_named(K::kComputeBarrier, threads);
  }

  // The next segment's query rows come while a segment that covers its output tile ends. A fix-up takes the registers
  // that hold them, and so do a producer warp and large heads: there they are asked for behind the end.
  static constexpr bool kEarlyQuery = !K::kBulk && !K::kQueryInShared;

  // Attends to the tiles of a segment, looks up the next one, and ends the segment, which leaves the space of its last
  // tile to be refilled.
  template <class Ring>
  LEAN_DEVICE static void compute(const KernelParams& params, const SharedMemory<K>& shared, const RowBlock& block,
                                  Ring& tiles) {
    SharedWork& work = *shared.work();
    int32_t tile = static_cast<int32_t>(work.segments[0].begin), end = static_cast<int32_t>(work.segments[0].end);
    if (tile == end) return begin_work(params, shared, block);
    int32_t length = work.first_length;
    const TokenGroup group = TokenGroup::of_warp(block, shared.config);
    RowTile<K> rows;
    // The first copies are on their way.
    rows.take_rows(params.decode, block, group.m_tile);
    rows.load_query(params.decode, block, work.segments[0], length, group.m_tile, shared);
    rows.clear();
    begin_work(params, shared, block);
    for (int turn = 0;; turn ^= 1) {
      SharedAddress k_rows = 0;
      for (; tile < end; ++tile) {
        k_rows = tiles.acquire();
        for (int step = group.first_step; step < group.end_step; ++step) {
          const int32_t token = tile * shared.config.tile_tokens + step * kStepTokens;
          if (token >= length) break;
          const SharedAddress k_step = k_rows + step * K::kStepBytes;
          rows.attend(k_step, k_step + kStepTokens * K::kPitch, token);
        }
        if (tile + 1 < end) tiles.release();
      }
      const Segment& segment = work.segments[turn];
      Segment& next = work.segments[turn ^ 1];
      const bool more = next_segment(shared, next);
      const auto load_next = [&] {
        if (!more) return;
        length = context_length(params, next.sequence);
        rows.load_query(params.decode, block, next, length, group.m_tile, shared);
      };
      const bool partial = !segment.covers_output();
      if (kEarlyQuery && !partial) load_next();
      const FixUp<K> fix_up(params, params.decode, block, shared);
      const int64_t index = block.team.worker - segment.first_worker;
      char* const space = shared.ring() + (k_rows - shared_address(shared.ring()));
      Combine<K>(params.decode, block, shared, space).run(rows, segment, fix_up.slot(segment, index));
      if constexpr (K::kBulk) return_to_bulk_copies<K>(params, shared, space);
      tiles.release();
      if (partial) fix_up.arrive(segment, index);
      if (!kEarlyQuery || partial) load_next();
      if (!more) return;
      rows.clear();
      tile = static_cast<int32_t>(next.begin);
      end = static_cast<int32_t>(next.end);
    }
  }
};

}  // namespace lean
