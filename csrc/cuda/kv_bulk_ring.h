// The ring of K/V tiles in shared memory, filled by bulk copies that a producer warp starts (sm_90 and later).
//
// Two mbarriers a stage: `full` completes when the producer has arrived and all announced bytes are there, `empty` when
// every computing warp has released the stage. A bulk copy moves one row, because rows are followed by padding (see
// kernel_config.h); the rows of tokens past the context are zeroed by ordinary stores.
#pragma once

#include "kv_rows.h"
#include "traits.h"

namespace lean {

template <class K>
struct BulkBarriers {
  LEAN_DEVICE static SharedAddress full(const SharedMemory<K>& shared, int stage) {
    return shared.barriers() + stage * 8;
  }
  LEAN_DEVICE static SharedAddress empty(const SharedMemory<K>& shared, int stage) {
    return shared.barriers() + (kMaxStages + stage) * 8;
  }
};

// The stage and the phase that a side of the ring has come to.
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  LEAN_DEVICE void advance(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Zeroes the columns between the tensors' head dim and the instance's, which no copy touches, in so many rows of the
// ring.
template <class K>
LEAN_DEVICE void zero_padding(const DecodeParams& decode, char* rows, int count, int threads) {
  const int first_pad = decode.head_dim / 8;
  const int pads = K::kHeadDim / 8 - first_pad;
  for (int i = thread_index(); i < pads * count; i += threads)
    *reinterpret_cast<Float4*>(rows + i / pads * K::kPitch + (first_pad + i % pads) * 16) = Float4{0, 0, 0, 0};
}

// Makes a stage that the computing threads have written to ready for the copies that refill it. By these, between the
// barrier that ends their use of it and its release.
template <class K>
LEAN_DEVICE void return_to_bulk_copies(const KernelParams& params, const SharedMemory<K>& shared, char* stage) {
  zero_padding<K>(params.decode, stage, 2 * shared.config.tile_tokens, compute_threads(shared.config));
  fence_async_proxy();
}

// Makes the ring's padding and barriers ready. By all threads, before a sync_cta().
template <class K>
LEAN_DEVICE void prepare_bulk_ring(const KernelParams& params, const SharedMemory<K>& shared) {
  const KernelConfig& config = shared.config;
  zero_padding<K>(params.decode, shared.ring(), config.stages * 2 * config.tile_tokens, num_threads());
  if (thread_index() == 0) {
    for (int stage = 0; stage < config.stages; ++stage) {
      barrier_init(BulkBarriers<K>::full(shared, stage), 1);
      barrier_init(BulkBarriers<K>::empty(shared, stage), config.warps);
    }
  }
  fence_async_proxy();
}

// The producer warp's whole work. Collective.
template <class K>
LEAN_DEVICE void produce(const KernelParams& params, const SharedMemory<K>& shared) {
  using Element = typename K::Element;
  constexpr int kRowsPerLane = K::kMaxWarps * kStepTokens / kWarpLanes;
  const int tile_tokens = shared.config.tile_tokens;
  const DecodeParams& decode = params.decode;
  const CachePolicy policy = num_ctas_y() == 1 ? evict_first_policy() : evict_normal_policy();
  const uint32_t row_bytes = decode.head_dim * sizeof(Element);
  TileWalk walk(params, *shared.work(), shared.walk(0));
  // The rows of the tile that a lane copies, and where in a stage their K lies.
  const auto row_of = [](int i) { return i * kWarpLanes + lane_index(); };
  const auto offset_of = [](int row) { return row / kStepTokens * K::kStepBytes + row % kStepTokens * K::kPitch; };
  TilePlace place{};
  TokenRows rows[kRowsPerLane];
  const auto look_up_next = [&]() {
    if (!walk.next(place)) return false;
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i)
      if (row_of(i) < tile_tokens) rows[i].look_up(decode, place, place.first_token + row_of(i));
    return true;
  };

  RingPosition position;
  for (bool more = look_up_next(); more; position.advance(shared.config.stages)) {
    RowPair pairs[kRowsPerLane];
    int num_valid = 0;
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      pairs[i] = rows[i].rows(params);
      num_valid += count_bits(ballot(pairs[i].k != nullptr));
    }
    more = look_up_next();

    const SharedAddress full = BulkBarriers<K>::full(shared, position.stage);
    barrier_wait(BulkBarriers<K>::empty(shared, position.stage), position.parity ^ 1);
    char* const stage = shared.ring() + position.stage * stage_bytes(shared.config);
    if (num_valid < tile_tokens) {
#pragma unroll
      for (int i = 0; i < kRowsPerLane; ++i) {
        if (pairs[i].k != nullptr || row_of(i) >= tile_tokens) continue;
        char* const k_row = stage + offset_of(row_of(i));
        for (int chunk = 0; chunk < K::kHeadDim / 8; ++chunk) {
          *reinterpret_cast<Float4*>(k_row + chunk * 16) = Float4{0, 0, 0, 0};
          *reinterpret_cast<Float4*>(k_row + kStepTokens * K::kPitch + chunk * 16) = Float4{0, 0, 0, 0};
        }
      }
      fence_async_proxy();  // before the bulk copies that will refill these rows
    }
    sync_warp();  // all lanes' zeros come before lane 0's arrival
    if (lane_index() == 0) barrier_arrive_expect(full, num_valid * 2 * row_bytes);
    sync_warp();  // the bytes are announced before any copy starts
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      if (pairs[i].k == nullptr) continue;
      const SharedAddress k_row = shared_address(stage) + offset_of(row_of(i));
      copy_bulk(k_row, pairs[i].k, row_bytes, full, policy);
      copy_bulk(k_row + kStepTokens * K::kPitch, pairs[i].v, row_bytes, full, policy);
    }
  }
}

// The computing warps' side, with AsyncRing's interface.
template <class K>
class BulkRing {
 public:
  LEAN_DEVICE explicit BulkRing(const SharedMemory<K>& shared) : shared_(shared) {}

  LEAN_DEVICE SharedAddress acquire() {
    barrier_wait(BulkBarriers<K>::full(shared_, position_.stage), position_.parity);
    sync_warp();  // lanes may return from the wait apart; what follows is collective
    return shared_address(shared_.ring()) + position_.stage * stage_bytes(shared_.config);
  }

  LEAN_DEVICE void release() {
    sync_warp();  // all lanes have read
    if (lane_index() == 0) barrier_arrive(BulkBarriers<K>::empty(shared_, position_.stage));
    position_.advance(shared_.config.stages);
  }

 private:
  const SharedMemory<K>& shared_;
  RingPosition position_;
};

}  // namespace lean
