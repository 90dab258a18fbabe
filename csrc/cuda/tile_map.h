// Where every sequence's tiles begin, derived on the device from the context lengths in device memory: no plan is made
// on the host, so a captured graph stays right when the lengths change.
#pragma once

#include "../core/schedule.h"
#include "kernel_params.h"
#include "primitives.h"
#include "traits.h"

namespace lean {

// The context length that the kernels work with: a length outside the cache is recorded, and cut to it.
LEAN_DEVICE int32_t context_length(const KernelParams& params, int32_t sequence) {
  const DecodeParams& decode = params.decode;
  const int64_t capacity = int64_t{decode.max_pages} * decode.page_tokens;
  const int32_t longest = capacity < kMaxContextLength ? static_cast<int32_t>(capacity) : kMaxContextLength;
  const int32_t length = decode.context_lengths[sequence];
  return length < 0 ? 0 : length > longest ? longest : length;
}

// Of one KV head. Tiles have a power of two of tokens.
LEAN_DEVICE int32_t sequence_tiles(const KernelParams& params, int32_t sequence) {
  const int32_t tile_tokens = params.config.tile_tokens;
  return (context_length(params, sequence) + tile_tokens - 1) >> log2_of_power(tile_tokens);
}

// Fills cost_before[batch + 2]: the map's array, and after it its end_tiles. All threads of the CTA call it;
// each sums a run of sequences, warps scan the runs, and `warp_totals` (one a warp, in shared memory) joins the warps.
// Everybody sees the result on return.
LEAN_DEVICE void build_tile_map(const KernelParams& params, int64_t* cost_before, WarpTotals* warp_totals) {
  const int32_t batch = params.decode.batch;
  if (batch == 1) {  // there is nothing to sum
    if (thread_index() == 0) {
      cost_before[0] = 0;
      cost_before[1] = sequence_tiles(params, 0);
      cost_before[2] = 0;
    }
    sync_cta();
    return;
  }
  const uint32_t threads = num_threads();
  const int32_t run = static_cast<int32_t>((static_cast<uint32_t>(batch) + threads - 1) / threads);
  const int64_t first = int64_t{thread_index()} * run;
  const int32_t begin = static_cast<int32_t>(first < batch ? first : batch);
  const int32_t end = batch - begin < run ? batch : begin + run;

  const int32_t first_tiles = begin < end ? sequence_tiles(params, begin) : 0;  // mostly all that there is
  WarpTotals own{first_tiles, first_tiles > 0, first_tiles};
#pragma unroll 1
  for (int32_t i = begin + 1; i < end; ++i) {
    const int32_t tiles = sequence_tiles(params, i);
    own = {own.tiles + tiles, own.outputs + (tiles > 0), own.longest < tiles ? tiles : own.longest};
  }
  WarpTotals inclusive = own;
  const int lanes = batch < kWarpLanes ? batch : kWarpLanes;  // with sequences, of the first warp
#pragma unroll 1
  for (int delta = 1; delta < lanes; delta *= 2) {
    const WarpTotals before{shuffle_up(inclusive.tiles, delta), shuffle_up(inclusive.outputs, delta),
                            shuffle_up(inclusive.longest, delta)};
    if (lane_index() < delta) continue;
    inclusive = {inclusive.tiles + before.tiles, inclusive.outputs + before.outputs,
                 inclusive.longest < before.longest ? before.longest : inclusive.longest};
  }
  const int warp = warp_index();
  if (lane_index() == lanes - 1) warp_totals[warp] = inclusive;
  sync_cta();

  TileTotals before{inclusive.tiles - own.tiles, inclusive.outputs - own.outputs, 0}, all;
#pragma unroll 1
  for (int w = 0; w * kWarpLanes * run < batch; ++w) {  // the warps with sequences
    const WarpTotals totals = warp_totals[w];
    all = {all.tiles + totals.tiles, all.outputs + totals.outputs,
           all.longest < totals.longest ? totals.longest : all.longest};
    if (w >= warp) continue;
    before.tiles += totals.tiles;
    before.outputs += totals.outputs;
  }
  const int32_t end_tiles = params.by_cost && params.strategy == Strategy::kLean
                                ? choose_end_tiles(all, Team::map_heads(params), params.workers)
                                : 0;
  int64_t cost = before.tiles + end_tiles * before.outputs;
  if (begin < end) cost_before[begin] = cost;
#pragma unroll 1
  for (int32_t i = begin + 1; i < end; ++i) {
    const int32_t tiles = sequence_tiles(params, i - 1);
    cost += tiles > 0 ? tiles + end_tiles : 0;
    cost_before[i] = cost;
  }
  if (thread_index() == 0) {
    cost_before[batch] = all.tiles + end_tiles * all.outputs;
    cost_before[batch + 1] = end_tiles;
  }
  sync_cta();
}

// Records the lengths that were cut. The first `threads` threads of one CTA do it for the launch.
LEAN_DEVICE void check_context_lengths(const KernelParams& params, int threads) {
#pragma unroll 1
  for (int32_t i = thread_index(); i < params.decode.batch; i += threads)
    if (context_length(params, i) != params.decode.context_lengths[i])
      atomic_or_relaxed(params.status, kStatusBadContext);
}

// For a batch too large for shared memory: a kernel of one CTA, launched before the decode kernel.
struct TileMapKernel {
  using Params = KernelParams;
  static constexpr int kThreads = 512;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSharedBytes = kThreads / kWarpLanes * kWarpTotalsBytes;

  LEAN_DEVICE static void run(const Params& params, char* shared) {
    build_tile_map(params, params.cost_before, reinterpret_cast<WarpTotals*>(shared));
  }
};

}  // namespace lean
