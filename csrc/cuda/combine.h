// The end of a segment inside a CTA: the warps' softmax states become one, and that goes to the output or to a slot.
//
// Each warp holds the state of its own tokens. It writes its acc, as it is, over the step of K and V that it has just
// read: 16 rows of head_dim + 8 floats take exactly a step's bytes. Behind a barrier the threads share out the rows'
// dims, and each weighs and sums the warps' parts in the order of the warps.
//
//   stage of the ring   | step 0 | step 1 | step 2 | step 3 |      four warps, a step each
//                       | acc of | acc of | acc of | acc of |
//                       | warp 0 | warp 1 | warp 2 | warp 3 |
//
// Where a stage has fewer steps than there are warps, a part of the warps do so at a time.
#pragma once

#include "attend.h"
#include "output.h"
#include "traits.h"

namespace lean {

template <class K>
class Combine {
 public:
  // `stage`: of the ring, with the tile that the warps have attended to last; nobody refills it before run() returns.
  LEAN_DEVICE Combine(const DecodeParams& decode, const RowBlock& block, const SharedMemory<K>& shared, char* stage)
      : decode_(decode),
        block_(block),
        shared_(shared),
        stage_(stage),
        rounds_(min_m_tiles(shared.config)),
        thread_(opaque(thread_index())),
        lane_(thread_ & (kWarpLanes - 1)),
        warp_(static_cast<int>(static_cast<uint32_t>(thread_) / kWarpLanes)) {}

  // Stores the output tile that the segment covers, or else its partial in `slot`. All computing threads; collective.
  // On return everybody has read and stored.
  LEAN_DEVICE void run(RowTile<K>& rows, const Segment& segment, const PartialSlot<K>& slot) const {
    share_states(rows);
#pragma unroll 1
    for (int round = 0; round < rounds_; ++round) {
      // A warp writes where its lanes have read K and V, and other warps of its group, or the sums of the round before.
      if (block_.m_tiles > 1)
        sync();
      else
        sync_warp();
      if ((warp_ & (rounds_ - 1)) == round) write_acc(rows);
      sync();
      sum_parts(round, segment, slot);
    }
    sync();
  }

 private:
  static constexpr int kPartPitch = K::kHeadDim + 8;  // floats from row to row: free of bank conflicts
  static constexpr int kQuads = K::kHeadDim / 4;      // of a row
  static constexpr int kWarpsAhead =
      K::kBulk || K::kQueryInShared ? 2 : 4;  // warps whose part is read at once: registers set it
  static_assert(kMmaRows * kPartPitch * sizeof(float) == K::kStepBytes);

  LEAN_DEVICE void sync() const { sync_named(K::kComputeBarrier, compute_threads(shared_.config)); }

  LEAN_DEVICE float* part(int warp) const {
    return reinterpret_cast<float*>(stage_ + (warp >> log2_of_power(rounds_)) * K::kStepBytes);
  }

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

  LEAN_DEVICE void share_states(RowTile<K>& rows) const {
    rows.end();
    if (lane_ % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (rows.has(half)) shared_.states(warp_)[half * 8 + lane_ / 4] = rows.state(half);
  }

  // The lane's part of its warp's acc.
  LEAN_DEVICE void write_acc(const RowTile<K>& rows) const {
    float* const target = part(warp_) + lane_ / 4 * kPartPitch + lane_ % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!rows.has(half)) continue;
#pragma unroll
      for (int block = 0; block < K::kHeadDim / 8; ++block)
        *reinterpret_cast<Float2*>(target + half * 8 * kPartPitch + block * 8) = rows.acc(block, half);
    }
  }

  // Four dims of a row at a time, and what the row needs besides by whoever has its first ones.
  LEAN_DEVICE void sum_parts(int round, const Segment& segment, const PartialSlot<K>& slot) const {
    const bool whole = segment.covers_output();
#pragma unroll 1
    for (int i = thread_; i < block_.count * kQuads; i += compute_threads(shared_.config)) {
      const int32_t row = i / kQuads, dim = i % kQuads * 4;
      const int m_tile = row / kMmaRows, tile_row = row % kMmaRows;
      if ((m_tile & (rounds_ - 1)) != round) continue;
      SoftmaxState state;
      for_warps(m_tile, [&](int warp) { state.m = fmaxf(state.m, shared_.states(warp)[tile_row].m); });
      Float4 acc{0, 0, 0, 0};
      for_warps(m_tile, [&](int warp) {
        const SoftmaxState own = shared_.states(warp)[tile_row];
        const float weight = weight_of(own.m, state.m);
        state.l += weight * own.l;
        acc = acc + weight * *reinterpret_cast<const Float4*>(part(warp) + tile_row * kPartPitch + dim);
      });
      if (whole) {
        const Finish result = finish(state);
        const int64_t target = output_row(decode_, segment.sequence, block_.query_row(segment.kv_head, row));
        store_output(decode_, target, dim, result.normalise * acc);
        if (dim == 0) store_global(decode_.lse + target, result.lse);
      } else {
        store_global(slot.acc(row, dim), acc);
        if (dim == 0) store_global(slot.state(row), Float2{state.m, state.l});
      }
    }
  }

  const DecodeParams& decode_;
  const RowBlock& block_;
  const SharedMemory<K>& shared_;
  char* stage_;
  int rounds_;
  int thread_;
  int lane_;
  int warp_;
};

}  // namespace lean
