// The end of a segment inside a CTA: the warps' softmax states become one, and that goes to the output or to a slot.
//
// Each warp holds the state of its own tokens. The warps agree on every row's maximum through shared memory, scale
// their acc to it, and sum in the order of the warps: 16 dims at a time, so that the space is small and the copies in
// flight for the next segment keep theirs.
#pragma once

#include "attend.h"
#include "output.h"
#include "traits.h"

namespace lean {

template <class K>
class Combine {
 public:
  LEAN_DEVICE Combine(const DecodeParams& decode, const RowBlock& block, const SharedMemory<K>& shared)
      : decode_(decode),
        block_(block),
        shared_(shared),
        thread_(opaque(thread_index())),
        lane_(thread_ % kWarpLanes),
        warp_(thread_ / kWarpLanes) {}

  // Stores the output tile that the segment covers, or else its partial in `slot`. All computing threads; collective.
  LEAN_DEVICE void run(RowTile<K>& rows, const Segment& segment, const PartialSlot<K>& slot) const {
    const bool whole = segment.covers_output();
    share_states(rows);
    int64_t targets[kItems] = {};
    float normalise[kItems] = {};
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const int32_t row = item_row(item);
      if (row >= block_.count) continue;
      const SoftmaxState state = row_state(row);
      const Finish result = finish(state);
      targets[item] = output_row(decode_, segment.sequence, query_row(decode_, segment.kv_head, block_.first + row));
      normalise[item] = result.normalise;
      if (thread_ % 4 != 0) continue;
      if (whole)
        store_global(decode_.lse + targets[item], result.lse);
      else
        store_global(slot.state(row), Float2{state.m, state.l});
    }
    combine(rows, [&](int item, int32_t dim, Float4 acc) {
      if (whole)
        store_output(decode_, targets[item], dim, normalise[item] * acc);
      else
        store_global(slot.acc(item_row(item), dim), acc);
    });
  }

 private:
  // A thread finishes four dims of a slice, of `kItems` rows at most: the same rows in every slice. There is an M tile
  // a warp at most.
  static constexpr int kItems = kMmaRows * (kSliceDims / 4) / kWarpLanes;

  LEAN_DEVICE int32_t item_row(int item) const { return thread_ / 4 + item * (compute_threads(shared_.config) / 4); }

  // All warps' states of all rows, in shared memory.
  LEAN_DEVICE void share_states(RowTile<K>& rows) const {
    rows.end();
    if (lane_ % 4 == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) shared_.states(warp_)[half * 8 + lane_ / 4] = rows.state(half);
    }
    sync_named(K::kComputeBarrier, compute_threads(shared_.config));
  }

  // The merged state of a row of the block, over the warps that hold its M tile, in their order.
  LEAN_DEVICE SoftmaxState row_state(int32_t row) const {
    SoftmaxState state;
    for (int warp = row / kMmaRows; warp < shared_.config.warps; warp += block_.m_tiles)
      state = merge(state, shared_.states(warp)[row % kMmaRows]).state;
    return state;
  }

  // Sums the warps' acc slice by slice; `store(item, dim, acc)` takes four dims of the thread's item. On return all
  // reads of the shared memory are over but those of the last slice, which no one writes before the next barrier.
  template <class Store>
  LEAN_DEVICE void combine(const RowTile<K>& rows, const Store& store) const {
    const int m_tile = warp_ % block_.m_tiles;
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row = m_tile * kMmaRows + half * 8 + lane_ / 4;
      scale[half] = rescale_factor(rows.state(half).m, row_state(row).m);
    }
#pragma unroll
    for (int slice = 0; slice < K::kHeadDim / kSliceDims; ++slice) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i / 2, block = i % 2;
        const Float2 acc = rows.acc(slice * 2 + block, half);
        float* target = shared_.slice(warp_) + (half * 8 + lane_ / 4) * kSlicePitch + block * 8 + lane_ % 4 * 2;
        *reinterpret_cast<Float2*>(target) = Float2{scale[half] * acc.x, scale[half] * acc.y};
      }
      sync_named(K::kComputeBarrier, compute_threads(shared_.config));
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const int32_t row = item_row(item);
        if (row >= block_.count) continue;
        Float4 sum{0, 0, 0, 0};
        for (int warp = row / kMmaRows; warp < shared_.config.warps; warp += block_.m_tiles)
          sum = sum +
                *reinterpret_cast<const Float4*>(shared_.slice(warp) + row % kMmaRows * kSlicePitch + thread_ % 4 * 4);
        store(item, slice * kSliceDims + thread_ % 4 * 4, sum);
      }
      sync_named(K::kComputeBarrier, compute_threads(shared_.config));
    }
  }

  const DecodeParams& decode_;
  const RowBlock& block_;
  const SharedMemory<K>& shared_;
  int thread_;
  int lane_;
  int warp_;
};

}  // namespace lean
