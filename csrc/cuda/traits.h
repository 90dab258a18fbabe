// One kernel instance's constants: element type, head dim and variant name it, the configuration table gives the rest.
#pragma once

#include "../core/schedule.h"
#include "../core/softmax_state.h"
#include "kernel_config.h"
#include "primitives.h"

namespace lean {

template <class T, int kDim, Variant kWhich>
struct Traits {
  using Element = T;  // of K and V, and of the matrix instructions
  static constexpr Variant kVariant = kWhich;
  static constexpr KernelConfig kConfig = kernel_config(kWhich, kDim);
  static constexpr SharedLayout kLayout = shared_layout(kConfig);
  static constexpr bool kQueryInShared = query_in_shared(kConfig);
  static constexpr bool kBulk = has_producer(kWhich);

  static constexpr int kHeadDim = kDim;
  static constexpr int kTileTokens = kConfig.tile_tokens;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kWarps = kConfig.warps;
  static constexpr int kStepTokens = kTileTokens / kWarps;
  static constexpr int kComputeThreads = compute_threads(kConfig);
  static constexpr int kThreads = cta_threads(kWhich, kConfig);
  static constexpr int kRowBlock = row_block(kConfig);
  static constexpr int kPitch = row_pitch(kConfig);
  static constexpr int kStageBytes = stage_bytes(kConfig);

  // Named barriers: token groups (see kv_ring.h) take 1 to kWarps, the warps that compute share the next one.
  static constexpr int kComputeBarrier = kWarps + 1;

  static_assert(kConfig.head_dim == kDim, "an instance for every head dim of the table, and for no other");
};

// What all threads of a CTA know about its work: one copy, written by one thread.
struct SharedWork {
  Schedule schedule;
  TileMap map;
  alignas(WorkCursor) char start[sizeof(WorkCursor)];   // the worker's walk over its segments, at its beginning
  alignas(WorkCursor) char cursor[sizeof(WorkCursor)];  // the same, as far as the computing warps are
  Segment segment;                                      // the one they are at
};
static_assert(sizeof(SharedWork) <= kSharedWorkBytes);

// The CTA's shared memory, carved in one place.
template <class K>
struct SharedMemory {
  SharedAddress ring;
  char* query;
  float* slices;
  SoftmaxState* states;
  int64_t* first_tile;
  int64_t* warp_totals;
  SharedAddress barriers;
  SharedWork* work;
  char* walks;
  int32_t* flag;

  LEAN_DEVICE explicit SharedMemory(char* base)
      : ring(shared_address(base + K::kLayout.ring)),
        query(base + K::kLayout.query),
        slices(reinterpret_cast<float*>(base + K::kLayout.slices)),
        states(reinterpret_cast<SoftmaxState*>(base + K::kLayout.states)),
        first_tile(reinterpret_cast<int64_t*>(base + K::kLayout.first_tile)),
        warp_totals(reinterpret_cast<int64_t*>(base + K::kLayout.warp_totals)),
        barriers(shared_address(base + K::kLayout.barriers)),
        work(reinterpret_cast<SharedWork*>(base + K::kLayout.work)),
        walks(base + K::kLayout.walks),
        flag(reinterpret_cast<int32_t*>(base + K::kLayout.flag)) {}
};

// Where a query row block lies: rows [first, first + count) of every output tile, as `m_tiles` M tiles (1, 2 or 4; the
// last ones may hold no row).
struct RowBlock {
  int32_t first;
  int32_t count;
  int32_t m_tiles;

  template <class K>
  LEAN_DEVICE static RowBlock of_cta(int32_t rows) {
    const int32_t first = cta_index_y() * K::kRowBlock;
    const int32_t count = rows - first < K::kRowBlock ? rows - first : K::kRowBlock;
    return {first, count, count <= kMmaRows ? 1 : count <= 2 * kMmaRows ? 2 : 4};
  }
};

}  // namespace lean
