// The end of a segment inside a CTA: the warps' softmax states become one, and that goes to the output or to a slot.
//
// Each warp holds the state of its own tokens. The warps agree on every row's maximum through shared memory, scale
// their acc to it, and sum in the order of the warps: a slice of 4 rows (of each M tile) and 64 dims at a time, so that
// the space is small and the copies in flight for the next segment keep theirs. Slices without rows are left out, and
// what a row needs besides is worked out once, not by every thread: a worker may end a segment every few tiles.
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
        lane_(thread_ & (kWarpLanes - 1)),
        warp_(static_cast<int>(static_cast<uint32_t>(thread_) / kWarpLanes)) {}

  // Stores the output tile that the segment covers, or else its partial in `slot`. All computing threads; collective.
  // On return reads of the last slice may go on, which no one writes before the next barrier.
  LEAN_DEVICE void run(RowTile<K>& rows, const Segment& segment, const PartialSlot<K>& slot) const {
    share_states(rows);
    sync();
    if (thread_ < block_.count)
      end_row(thread_, segment, slot);  // read behind the barrier that the first slice waits for
    const bool whole = segment.covers_output();
    combine(rows, [&](int32_t row, int32_t dim, Float4 acc) {
      const RowEnd& end = shared_.row_end(row);
      if (whole)
        store_output(decode_, end.target, dim, end.normalise * acc);
      else
        store_global(slot.acc(row, dim), acc);
    });
  }

 private:
  static constexpr int kDimSlices = (K::kHeadDim + kSliceDims - 1) / kSliceDims;
  static constexpr int kRowSlices = kMmaRows / kSliceRows;
  static constexpr int kSliceQuads = kSliceDims / 4;
  static constexpr int kWarpsAhead = K::kQueryInShared ? 1 : 4;  // warps whose part is read at once: registers set it

  LEAN_DEVICE void sync() const { sync_named(K::kComputeBarrier, compute_threads(shared_.config)); }

  // Does `visit(warp)` for the warps that hold an M tile, in their order. Several are visited at once, as many as there
  // mostly are; a loop whose length the compiler must work out takes a division.
  template <class Visit>
  LEAN_DEVICE void for_warps(int m_tile, const Visit& visit) const {
#pragma unroll 1
    for (int first = m_tile; first < shared_.config.warps; first += kWarpsAhead * block_.m_tiles) {
#pragma unroll
      for (int i = 0; i < kWarpsAhead; ++i) {
        const int warp = first + i * block_.m_tiles;
        if (warp < shared_.config.warps) visit(warp);
      }
    }
  }

  // All warps' states of all rows, in shared memory.
  LEAN_DEVICE void share_states(RowTile<K>& rows) const {
    rows.end();
    if (lane_ % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (rows.has(half)) shared_.states(warp_)[half * 8 + lane_ / 4] = rows.state(half);
  }

  LEAN_DEVICE const SoftmaxState& shared_state(int warp, int32_t row) const {
    return shared_.states(warp)[row % kMmaRows];
  }

  // A row's maximum over the warps that hold its M tile.
  LEAN_DEVICE float row_maximum(int32_t row) const {
    float m = kNegInf;
    for_warps(row / kMmaRows, [&](int warp) { m = fmaxf(m, shared_state(warp, row).m); });
    return m;
  }

  // Merges the states of a row, in the order of the warps. By one thread a row.
  LEAN_DEVICE void end_row(int32_t row, const Segment& segment, const PartialSlot<K>& slot) const {
    SoftmaxState state{row_maximum(row), 0.0f};
    for_warps(row / kMmaRows, [&](int warp) {
      const SoftmaxState part = shared_state(warp, row);
      state.l += weight_of(part.m, state.m) * part.l;
    });
    const Finish result = finish(state);
    const int64_t target = output_row(decode_, segment.sequence, block_.query_row(segment.kv_head, row));
    shared_.row_end(row) = {result.normalise, target};
    if (segment.covers_output())
      store_global(decode_.lse + target, result.lse);
    else
      store_global(slot.state(row), Float2{state.m, state.l});
  }

  // Sums the warps' acc; `store(row, dim, acc)` takes four dims of a row of the block.
  template <class Store>
  LEAN_DEVICE void combine(const RowTile<K>& rows, const Store& store) const {
    const int32_t first_row =
        (warp_ & (block_.m_tiles - 1)) * kMmaRows + lane_ / 4;  // the lane's rows: this, and 8 further on
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row = first_row + half * 8;
      scale[half] = row < block_.count ? weight_of(rows.state(half).m, row_maximum(row)) : 0.0f;
    }
#pragma unroll 1
    for (int slice = 0; slice < kRowSlices * kDimSlices; ++slice) {
      const int row_slice = slice / kDimSlices, dim_slice = slice % kDimSlices;
      if (row_slice * kSliceRows >= block_.count) break;  // the first M tile has the most rows
      if (slice > 0) sync();                              // the slice before has been read
      if (lane_ / 4 / kSliceRows == row_slice % 2) write_slice(rows, scale, row_slice / 2, dim_slice);
      sync();
      sum_slice(row_slice, dim_slice, store);
    }
  }

  // The lane's part of a slice. Registers are named at compile time, so there is code for each half and slice of dims.
  LEAN_DEVICE void write_slice(const RowTile<K>& rows, const float (&scale)[2], int row_half, int dim_slice) const {
    float* const target = shared_.slice(warp_) + lane_ / 4 % kSliceRows * kSlicePitch + lane_ % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int dims = 0; dims < kDimSlices; ++dims) {
        if (half != row_half || dims != dim_slice) continue;
#pragma unroll
        for (int block = 0; block < kSliceDims / 8; ++block) {
          if (dims * kSliceDims + block * 8 >= K::kHeadDim) continue;
          const Float2 acc = rows.acc(dims * (kSliceDims / 8) + block, half);
          *reinterpret_cast<Float2*>(target + block * 8) = Float2{scale[half] * acc.x, scale[half] * acc.y};
        }
      }
    }
  }

  template <class Store>
  LEAN_DEVICE void sum_slice(int row_slice, int dim_slice, const Store& store) const {
    for (int i = thread_; i < block_.m_tiles * kSliceRows * kSliceQuads; i += compute_threads(shared_.config)) {
      const int m_tile = i / (kSliceRows * kSliceQuads), slice_row = i / kSliceQuads % kSliceRows;
      const int32_t row = m_tile * kMmaRows + row_slice * kSliceRows + slice_row;
      const int32_t dim = dim_slice * kSliceDims + i % kSliceQuads * 4;
      if (row >= block_.count || dim >= K::kHeadDim) continue;
      Float4 sum{0, 0, 0, 0};
      const int place = slice_row * kSlicePitch + i % kSliceQuads * 4;
      for_warps(m_tile, [&](int warp) { sum = sum + *reinterpret_cast<const Float4*>(shared_.slice(warp) + place); });
      store(row, dim, sum);
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
