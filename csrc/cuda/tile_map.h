// Where every sequence's tiles begin, derived on the device from the context lengths in device memory: no plan is made
// on the host, so a captured graph stays right when the lengths change.
#pragma once

#include "../core/schedule.h"
#include "kernel_params.h"
#include "primitives.h"

namespace lean {

// The context length that the kernels work with: a length outside the cache is recorded, and cut to it.
LEAN_DEVICE int32_t context_length(const KernelParams& params, int32_t sequence) {
  const DecodeParams& decode = params.decode;
  const int64_t capacity = int64_t{decode.max_pages} * decode.page_tokens;
  const int32_t longest = capacity < kMaxContextLength ? static_cast<int32_t>(capacity) : kMaxContextLength;
  const int32_t length = decode.context_lengths[sequence];
  return length < 0 ? 0 : length > longest ? longest : length;
}

LEAN_DEVICE int64_t sequence_tiles(const KernelParams& params, int32_t sequence) {
  const int32_t tile_tokens = params.config.tile_tokens;
  const int32_t tiles = (context_length(params, sequence) + tile_tokens - 1) / tile_tokens;
  return int64_t{tiles} * params.decode.num_kv_heads;
}

// Fills first_tile[batch + 1] with the exclusive prefix sums of the sequences' tiles. All threads of the CTA call it;
// each sums a run of sequences, warps scan the runs, and `warp_totals` (one a warp, in shared memory) joins the warps.
// Everybody sees the result on return.
LEAN_DEVICE void build_tile_map(const KernelParams& params, int64_t* first_tile, int64_t* warp_totals) {
  const int32_t batch = params.decode.batch;
  const uint32_t threads = num_threads();
  const int32_t run = static_cast<int32_t>((static_cast<uint32_t>(batch) + threads - 1) / threads);
  const int64_t first = int64_t{thread_index()} * run;
  const int32_t begin = static_cast<int32_t>(first < batch ? first : batch);
  const int32_t end = batch - begin < run ? batch : begin + run;

  int64_t sum = 0;
#pragma unroll 1
  for (int32_t i = begin; i < end; ++i) sum += sequence_tiles(params, i);
  int64_t inclusive = sum;
#pragma unroll 1
  for (int delta = 1; delta < kWarpLanes; delta *= 2) {
    const int64_t before = shuffle_up(inclusive, delta);
    if (lane_index() >= delta) inclusive += before;
  }
  const int warp = warp_index();
  if (lane_index() == kWarpLanes - 1) warp_totals[warp] = inclusive;
  sync_cta();

  int64_t tile = inclusive - sum;
#pragma unroll 1
  for (int w = 0; w < warp; ++w) tile += warp_totals[w];
#pragma unroll 1
  for (int32_t i = begin; i < end; ++i) {
    first_tile[i] = tile;
    tile += sequence_tiles(params, i);
  }
  if (thread_index() == num_threads() - 1) first_tile[batch] = tile;
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
  static constexpr int kSharedBytes = kThreads / kWarpLanes * 8;

  LEAN_DEVICE static void run(const Params& params, char* shared) {
    build_tile_map(params, params.first_tile, reinterpret_cast<int64_t*>(shared));
  }
};

}  // namespace lean
