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
    if constexpr (K::kBulk) {
      if (warp_index() == shared.config.warps) {
        produce<K>(params, shared);
      } else {
        BulkRing<K> tiles(shared);
        compute(params, worker, shared, block, tiles);
      }
    } else {
      AsyncRing<K> tiles(params, shared, TokenGroup::of_warp(block, shared.config));
      compute(params, worker, shared, block, tiles);
    }
  }

 private:
  // The schedule, and the worker's place in it: an empty range for a CTA beyond the schedule's workers. One warp; a
  // lane for each end of the range, because finding one is a chain of divisions.
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
    new (work.start) WorkCursor(work.schedule, work.map, worker, range);
  }

  // The call's parameters, for code at the ends of a segment: group sizes and divisions that follow from them are
  // worked out there, instead of living in registers through the tile loop.
  LEAN_DEVICE static DecodeParams per_segment(DecodeParams decode) {
    decode.num_kv_heads = opaque(decode.num_kv_heads);
    return decode;
  }

  // The worker's next segment, the same for all computing threads; false: there is none.
  LEAN_DEVICE static bool next_segment(const SharedMemory<K>& shared, Segment& segment) {
    sync_named(K::kComputeBarrier, compute_threads(shared.config));  // nobody reads the one before the last any more
    if (thread_index() == 0) *shared.flag() = reinterpret_cast<WorkCursor*>(shared.work()->cursor)->next(segment);
    sync_named(K::kComputeBarrier, compute_threads(shared.config));
    return *shared.flag() != 0;
  }

  // Beside the end of a segment live the next one's query rows. Where a producer warp or large heads take the registers
  // that this needs, the end comes first.
  static constexpr bool kEarlyQuery = !K::kBulk && !K::kQueryInShared;

  // Each turn looks up a segment and asks for its query rows, ends the segment before it, while these come, and attends
  // to its tiles.
  template <class Ring>
  LEAN_DEVICE static void compute(const KernelParams& params, int64_t worker, const SharedMemory<K>& shared,
                                  const RowBlock& block, Ring& tiles) {
    // Copies are on their way: time for what nobody waits for.
    if (worker == 0 && cta_index_y() == 0) check_context_lengths(params, compute_threads(shared.config));
    write_empty_outputs<K>(params.decode, shared.work()->map, block, compute_threads(shared.config));
    if (thread_index() == 0)
      new (shared.work()->cursor) WorkCursor(*reinterpret_cast<const WorkCursor*>(shared.work()->start));
    const TokenGroup group = TokenGroup::of_warp(block, shared.config);
    RowTile<K> rows(params.decode, block, group.m_tile);
    bool attended = false;
    for (int turn = 0;; turn ^= 1) {
      const DecodeParams decode = per_segment(params.decode);
      const auto end_last = [&] {
        if (attended) end_segment(params, decode, worker, shared, block, rows, shared.work()->segments[turn ^ 1]);
      };
      if constexpr (!kEarlyQuery) end_last();
      Segment& segment = shared.work()->segments[turn];
      const bool more = next_segment(shared, segment);
      int32_t length = 0;
      if (more) {
        length = context_length(params, segment.sequence);
        rows.load_query(decode, segment, length, group.m_tile, shared);
      }
      if constexpr (kEarlyQuery) end_last();
      if (!more) return;
      rows.clear();
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
      attended = true;
    }
  }

  LEAN_DEVICE static void end_segment(const KernelParams& params, const DecodeParams& decode, int64_t worker,
                                      const SharedMemory<K>& shared, const RowBlock& block, RowTile<K>& rows,
                                      const Segment& segment) {
    const FixUp<K> fix_up(params, decode, block, shared);
    const int64_t index = worker - segment.first_worker;
    const Combine<K> combine(decode, block, shared);
    combine.run(rows, segment, fix_up.slot(segment, index));
    if (!segment.covers_output()) fix_up.arrive(segment, index);
  }
};

}  // namespace lean
