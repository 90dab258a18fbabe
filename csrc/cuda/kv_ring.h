// The ring of K/V tiles in shared memory, filled by 16-byte asynchronous copies (sm_80 and later).
//
// Warps work in token groups: the m_tiles warps of a group attend to the same tokens, each for its own M tile of query
// rows, so that K and V are read from memory once for all rows. With up to 16 rows every warp is a group of its own.
// Each warp copies what it copies for its own group, so only the warps of a group wait for each other; groups drift
// apart freely, and no barrier of the whole CTA stands in the main loop.
//
//   rows of a stage    | step 0 | step 1 | step 2 | step 3 |     warp w copies step w
//   m_tiles = 1        | warp 0 | warp 1 | warp 2 | warp 3 |     and these are the warps that attend to it
//   m_tiles = 2        |  warps 0, 1     |  warps 2, 3     |
#pragma once

#include "kv_rows.h"
#include "traits.h"

namespace lean {

constexpr int greatest_common_divisor(int a, int b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

template <class K>
class AsyncRing {
 public:
  // Starts the first stages' copies. Collective.
  LEAN_DEVICE AsyncRing(const KernelParams& params, const SharedMemory<K>& shared, int m_tiles)
      : params_(params),
        walk_(params, *shared.work, shared.walks + warp_index() * kSegmentWalkBytes, K::kTileTokens),
        ring_(shared.ring),
        warp_(warp_index()),
        m_tiles_(m_tiles),
        policy_(num_ctas_y() == 1 ? evict_first_policy() : evict_normal_policy()) {
    look_up_next();
#pragma unroll 1
    for (int stage = 0; stage < K::kStages - 1; ++stage) copy_next();
  }

  // The next tile, complete in shared memory for all warps of the group; refills the stage before it. Collective.
  LEAN_DEVICE SharedAddress acquire() {
    wait_copies<K::kStages - 2>();
    // Two purposes: the group's other warps' copies are seen, and their reads of the stage to refill are over.
    if (m_tiles_ == 1)
      sync_warp();
    else
      sync_named(1 + warp_ / m_tiles_, m_tiles_ * kWarpLanes);
    copy_next();
    const SharedAddress stage = ring_ + full_ * K::kStageBytes;
    full_ = full_ + 1 == K::kStages ? 0 : full_ + 1;
    return stage;
  }

  LEAN_DEVICE void release() {}  // the next acquire() says it

 private:
  static constexpr int kRowChunks = K::kHeadDim / 8;                        // of 16 bytes
  static constexpr int kCopies = K::kStepTokens * kRowChunks / kWarpLanes;  // a lane, of K and of V each
  static_assert(K::kStepTokens * kRowChunks % kWarpLanes == 0);

  // A warp's 32 copies fill whole rows after kPeriod rounds, kPeriodRows rows; then the same lanes copy the same chunks
  // again. (Written this way, because the compiler keeps what depends on the lane alone in registers: once a period.)
  static constexpr int kPeriod = kRowChunks / greatest_common_divisor(kRowChunks, kWarpLanes);
  static constexpr int kPeriodRows = kPeriod * kWarpLanes / kRowChunks;

  LEAN_DEVICE void look_up_next() {
    TilePlace place;
    more_ = walk_.next(place);
    if (!more_) return;
    rows_.look_up(params_.decode, place, place.first_token + warp_ * K::kStepTokens + lane_index() % K::kStepTokens);
  }

  // Starts to copy this warp's share of the tile that was looked up, as one group, and looks up the tile after it.
  LEAN_DEVICE void copy_next() {
    if (more_) {
      using Element = typename K::Element;
      const DecodeParams& decode = params_.decode;
      const RowOffsets own = rows_.offsets(params_);
      const SharedAddress k_rows = ring_ + refill_ * K::kStageBytes + warp_ * K::kStepTokens * K::kPitch;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int place = i % kPeriod * kWarpLanes + lane_index();
        const int row = i / kPeriod * kPeriodRows + place / kRowChunks;
        const int chunk = place % kRowChunks;
        const int64_t k = shuffle(own.k, row);
        const int64_t v = shuffle(own.v, row);
        const bool valid = k >= 0 && chunk * 8 < decode.head_dim;
        const SharedAddress target = k_rows + row * K::kPitch + chunk * 16;
        copy_async_16(target, static_cast<const Element*>(decode.k) + (valid ? k + chunk * 8 : 0), valid, policy_);
        copy_async_16(target + K::kTileTokens * K::kPitch,
                      static_cast<const Element*>(decode.v) + (valid ? v + chunk * 8 : 0), valid, policy_);
      }
      refill_ = refill_ + 1 == K::kStages ? 0 : refill_ + 1;
      look_up_next();
    }
    commit_copies();  // an empty group past the end, so that wait_copies can count
  }

  const KernelParams& params_;
  TileWalk walk_;
  TokenRows rows_;
  SharedAddress ring_;
  int warp_;
  int m_tiles_;
  CachePolicy policy_;
  bool more_ = false;
  int refill_ = 0;  // stage that the next copies fill
  int full_ = 0;    // stage that the next acquire() returns
};

}  // namespace lean
