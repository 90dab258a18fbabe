// The ring of K/V tiles in shared memory, filled by 16-byte asynchronous copies (sm_80 and later).
//
// Warps work in token groups: the m_tiles warps of a group attend to the same tokens, each for its own M tile of query
// rows, so that K and V are read from memory once for all rows. With up to 16 rows every warp is a group of its own,
// unless the tile has fewer steps than there are warps. Each warp copies what it copies for its own group, a step of
// the tile at most, so only the warps of a group wait for each other, and groups drift apart freely.
//
//   steps of a stage   | step 0 | step 1 | step 2 | step 3 |     four warps:
//   m_tiles = 1        | warp 0 | warp 1 | warp 2 | warp 3 |     these are the warps that attend to it
//   m_tiles = 2        |  warps 0, 1     |  warps 2, 3     |
//   m_tiles = 8        |            warps 0 to 7           |     eight warps, of which the last four copy
#pragma once

#include "kv_rows.h"
#include "traits.h"

namespace lean {

constexpr int greatest_common_divisor(int a, int b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

template <class K>
class AsyncRing {
 public:
  // Starts the first stages' copies. Collective.
  LEAN_DEVICE AsyncRing(const KernelParams& params, const SharedMemory<K>& shared, const TokenGroup& group)
      : params_(params),
        shared_(shared),
        group_(group),
        walk_(params, *shared.work(), shared.walk(warp_index())),
        policy_(num_ctas_y() == 1 ? evict_first_policy() : evict_normal_policy()),
        even_rows_(steps_are_even(params.decode)) {
    if (group.copy_step >= 0) look_up_next();
#pragma unroll 1
    for (int stage = 0; stage < shared.config.stages - 1; ++stage) copy_next();
  }

  // The next tile, complete in shared memory for all warps of the group; refills the stage before it. Collective.
  LEAN_DEVICE SharedAddress acquire() {
    wait_copies(shared_.config.stages - 2);
    // Two purposes: the group's other warps' copies are seen, and their reads of the stage to refill are over.
    if (group_.m_tiles == 1)
      sync_warp();
    else
      sync_named(1 + group_.index, group_.m_tiles * kWarpLanes);
    copy_next();
    const SharedAddress stage = stage_address(full_);
    full_ = next_stage(full_);
    return stage;
  }

  LEAN_DEVICE void release() {}  // the next acquire() says it

 private:
  static constexpr int kRowChunks = K::kHeadDim / 8;                     // of 16 bytes
  static constexpr int kCopies = kStepTokens * kRowChunks / kWarpLanes;  // a lane, of K and of V each
  static constexpr int kReadAhead = kCopies % 4 == 0 ? 4 : kCopies % 3 == 0 ? 3 : kCopies % 2 == 0 ? 2 : 1;
  static_assert(kStepTokens * kRowChunks % kWarpLanes == 0);
  static_assert(kMaxStages - 2 <= kMaxPending);

  // A warp's 32 copies fill whole rows after kPeriod rounds, kPeriodRows rows; then the same lanes copy the same chunks
  // again. (Written this way, because the compiler keeps what depends on the lane alone in registers: once a period.)
  static constexpr int kPeriod = kRowChunks / greatest_common_divisor(kRowChunks, kWarpLanes);
  static constexpr int kPeriodRows = kPeriod * kWarpLanes / kRowChunks;
  LEAN_DEVICE static int copied_place(int i, int lane) { return i % kPeriod * kWarpLanes + lane; }  // within a period
  LEAN_DEVICE static int copied_row(int i, int lane) {
    return i / kPeriod * kPeriodRows + copied_place(i, lane) / kRowChunks;
  }

  LEAN_DEVICE SharedAddress stage_address(int stage) const {
    return shared_address(shared_.ring()) + stage * stage_bytes(shared_.config);
  }
  LEAN_DEVICE int next_stage(int stage) const { return stage + 1 == shared_.config.stages ? 0 : stage + 1; }

  // Whether all rows of a step that a context covers lie at equal distances, in one page, with offsets of 32 bits.
  LEAN_DEVICE static bool steps_are_even(const DecodeParams& decode) {
    constexpr int64_t kFarthest = (int64_t{1} << 31) / kStepTokens / TokenRows::kElementBytes - 1;
    return decode.head_dim == K::kHeadDim && (!decode.page_table || decode.page_tokens % kStepTokens == 0) &&
           decode.k_strides.token <= kFarthest && decode.v_strides.token <= kFarthest;
  }

  LEAN_DEVICE void look_up_next() {
    TilePlace place;
    more_ = walk_.next(place);
    if (!more_) return;
    const int32_t first = place.first_token + group_.copy_step * kStepTokens;
    even_ = even_rows_ && first + kStepTokens <= place.context_length;
    const int lane = lane_index();
    rows_.look_up(params_.decode, place, first + (even_ ? copied_row(0, lane) : lane % kStepTokens));
  }

  // Starts to copy this warp's share of the tile that was looked up, as one group, and looks up the tile after it.
  LEAN_DEVICE void copy_next() {
    if (more_) {
      const SharedAddress k_rows = stage_address(refill_) + group_.copy_step * K::kStepBytes;
      if (even_ && rows_.page_exists(params_.decode))
        copy_even_step(k_rows);
      else
        copy_step(k_rows);
      refill_ = next_stage(refill_);
      look_up_next();
    }
    commit_copies();  // an empty group past the end, so that wait_copies can count
  }

  // A step of equal distances: every lane works out where its chunks lie.
  LEAN_DEVICE void copy_even_step(SharedAddress k_rows) const {
    const DecodeParams& decode = params_.decode;
    const int lane = lane_index();
    const RowPair row = rows_.rows(params_);  // of the lane's first copy
    const int k_stride = static_cast<int>(decode.k_strides.token * TokenRows::kElementBytes);
    const int v_stride = static_cast<int>(decode.v_strides.token * TokenRows::kElementBytes);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int chunk = copied_place(i, lane) % kRowChunks, further = copied_row(i, lane) - copied_row(0, lane);
      const SharedAddress target = k_rows + copied_row(i, lane) * K::kPitch + chunk * 16;
      copy_async_16(target, row.k + further * k_stride + chunk * 16, true, policy_);
      copy_async_16(target + kStepTokens * K::kPitch, row.v + further * v_stride + chunk * 16, true, policy_);
    }
  }

  // Any step: a lane for each row finds it, and tells the others.
  LEAN_DEVICE void copy_step(SharedAddress k_rows) const {
    const int lane = lane_index();
    RowPair* const step_rows = shared_.step_rows(warp_index());
    sync_warp();  // the rows of the step before are no longer read
    if (lane < kStepTokens) step_rows[lane] = rows_.rows(params_);
    sync_warp();
#pragma unroll
    for (int first = 0; first < kCopies; first += kReadAhead) {
      RowPair sources[kReadAhead];  // read together, so that no copy waits for a read behind the copy before it
#pragma unroll
      for (int i = 0; i < kReadAhead; ++i) sources[i] = step_rows[copied_row(first + i, lane)];
#pragma unroll
      for (int i = 0; i < kReadAhead; ++i) copy_chunks(sources[i], first + i, lane, k_rows);
    }
  }

  // The lane's i-th chunk of a step, from one row of K and from the same of V.
  LEAN_DEVICE void copy_chunks(const RowPair& source, int i, int lane, SharedAddress k_rows) const {
    const int chunk = copied_place(i, lane) % kRowChunks;
    const bool valid = source.k != nullptr && chunk * 8 < params_.decode.head_dim;
    const SharedAddress target = k_rows + copied_row(i, lane) * K::kPitch + chunk * 16;
    copy_async_16(target, valid ? source.k + chunk * 16 : params_.decode.k, valid, policy_);
    copy_async_16(target + kStepTokens * K::kPitch, valid ? source.v + chunk * 16 : params_.decode.v, valid, policy_);
  }

  const KernelParams& params_;
  const SharedMemory<K>& shared_;
  TokenGroup group_;
  TileWalk walk_;
  TokenRows rows_;
  CachePolicy policy_;
  bool even_rows_;  // steps that a context covers are even
  bool more_ = false;
  bool even_ = false;  // the step that was looked up is
  int refill_ = 0;     // stage that the next copies fill
  int full_ = 0;       // stage that the next acquire() returns
};

}  // namespace lean
