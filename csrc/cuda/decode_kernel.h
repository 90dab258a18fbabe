// The decode attention kernel: one CTA is one worker of the schedule, for every strategy alike.
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
      return lean_schedule(map, num_ctas_x(), params.snap_cuts);
  }
}

template <class T, int kHeadDim, Variant kVariant>
struct DecodeKernel {
  using K = Traits<T, kHeadDim, has_producer(kVariant)>;
  using Params = KernelParams;
  static constexpr int kThreads = K::kMaxThreads;
  static constexpr int kCtasPerSm = 1;  // of so many threads; of fewer, as many as the table says (compile-report.cjs)

  LEAN_DEVICE static void run(const Params& params, char* base) {
    const DecodeParams& decode = params.decode;
    const SharedMemory<K> shared(base, K::config(params));
    const RowBlock block = RowBlock::of_cta(decode.rows(), shared.config);
    const int64_t worker = cta_index_x();

    if constexpr (K::kBulk) prepare_bulk_ring<K>(params, shared);
    if (!params.first_tile) build_tile_map(params, shared.first_tile(), shared.warp_totals());
    if (thread_index() < kWarpLanes) find_work(params, worker, shared);
    sync_cta();
    const TileMap& map = shared.work()->map;
    const Schedule& schedule = shared.work()->schedule;
    if (worker == 0 && cta_index_y() == 0) check_context_lengths(params);
    write_empty_outputs<K>(decode, map, block);
    if (worker >= schedule.num_workers) return;
    const TokenGroup group = TokenGroup::of_warp(block, shared.config);  // of a warp that computes
    if constexpr (K::kBulk) {
      if (warp_index() == shared.config.warps) {
        produce<K>(params, shared);
      } else {
        BulkRing<K> tiles(shared);
        compute(params, worker, shared, block, group, tiles);
      }
    } else {
      AsyncRing<K> tiles(params, shared, group);
      compute(params, worker, shared, block, group, tiles);
    }
  }

 private:
  // The schedule, and the worker's place in it. One warp; a lane for each end of the worker's range, because finding
  // one is a chain of divisions.
  LEAN_DEVICE static void find_work(const Params& params, int64_t worker, const SharedMemory<K>& shared) {
    SharedWork& work = *shared.work();
    const TileMap map{params.first_tile ? params.first_tile : shared.first_tile(), params.decode.batch,
                      params.decode.num_kv_heads};
    const Schedule schedule = make_schedule(params, map);
    const int lane = lane_index();
    const bool works = worker < schedule.num_workers;
    const int64_t end = works && lane < 2 ? cut(schedule, map, worker + lane) : 0;
    const TileRange range{shuffle(end, 0), shuffle(end, 1)};
    if (lane != 0) return;
    work.map = map;
    work.schedule = schedule;
    if (works) new (work.start) WorkCursor(work.schedule, work.map, worker, range);
  }

  // The call's parameters, for code at the ends of a segment: group sizes and divisions that follow from them are
  // worked out there, instead of living in registers through the tile loop.
  LEAN_DEVICE static DecodeParams per_segment(DecodeParams decode) {
    decode.num_kv_heads = opaque(decode.num_kv_heads);
    return decode;
  }

  // The worker's next segment, the same for all computing threads; false: there is none.
  LEAN_DEVICE static bool next_segment(const SharedMemory<K>& shared) {
    sync_named(K::kComputeBarrier, compute_threads(shared.config));  // nobody reads the last one any more
    if (thread_index() == 0)
      *shared.flag() = reinterpret_cast<WorkCursor*>(shared.work()->cursor)->next(shared.work()->segment);
    sync_named(K::kComputeBarrier, compute_threads(shared.config));
    return *shared.flag() != 0;
  }

  template <class Ring>
  LEAN_DEVICE static void compute(const KernelParams& params, int64_t worker, const SharedMemory<K>& shared,
                                  const RowBlock& block, const TokenGroup& group, Ring& tiles) {
    const Segment& segment = shared.work()->segment;
    if (thread_index() == 0)
      new (shared.work()->cursor) WorkCursor(*reinterpret_cast<const WorkCursor*>(shared.work()->start));
    RowTile<K> rows(params.decode, block, group.m_tile);
    while (next_segment(shared)) {
      const DecodeParams decode = per_segment(params.decode);
      const int32_t length = context_length(params, segment.sequence);
      rows.begin(decode, segment, length, group.m_tile, shared);
      const int32_t end = static_cast<int32_t>(segment.end);
      for (int32_t tile = static_cast<int32_t>(segment.begin); tile < end; ++tile) {
        const SharedAddress k_rows = tiles.acquire();
        for (int step = group.first_step; step < group.end_step; ++step) {
          const int32_t token = tile * shared.config.tile_tokens + step * kStepTokens;
          if (token >= length) break;
          const SharedAddress k_step = k_rows + step * K::kStepBytes;
          rows.attend(k_step, k_step + kStepTokens * K::kPitch, token);
        }
        tiles.release();
      }
      const FixUp<K> fix_up(params, decode, block, shared);
      const int64_t index = worker - segment.first_worker;
      const Combine<K> combine(decode, block, shared);
      combine.run(rows, segment, fix_up.slot(segment, index));
      if (!segment.covers_output()) fix_up.arrive(segment, index);
    }
  }
};

}  // namespace lean
