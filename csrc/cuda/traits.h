// One kernel instance's constants: element type, head dim, and who copies K and V, which is all that the code knows of
// its variant. What a launch chooses (tile, stages, warps) is read at run time, and so is what follows from it: the
// shared memory's arrays, a CTA's rows, a warp's steps.
#pragma once

#include "../core/schedule.h"
#include "../core/softmax_state.h"
#include "kernel_config.h"
#include "kernel_params.h"
#include "primitives.h"

namespace lean {

template <class T, int kDim, bool kHasProducer>
struct Traits {
  using Element = T;  // of K and V, and of the matrix instructions
  static constexpr bool kBulk = kHasProducer;

  static constexpr int kHeadDim = kDim;
  static constexpr bool kQueryInShared = query_in_shared(kDim);
  static constexpr SharedLayout kLayout = shared_layout(kDim);
  static constexpr int kPitch = row_pitch(kDim);
  static constexpr int kStepBytes = step_bytes(kDim);
  static constexpr int kMaxWarps = max_warps(kDim);
  static constexpr int kMaxThreads = (kMaxWarps + (kBulk ? 1 : 0)) * kWarpLanes;

  // Named barriers: token groups (see kv_ring.h) take 1 to kMaxWarps, the warps that compute share the next one.
  static constexpr int kComputeBarrier = kMaxWarps + 1;

  // The launch's configuration, its head dim a constant again, so that the compiler knows what follows from that.
  LEAN_DEVICE static KernelConfig config(const KernelParams& params) {
    return {kDim, params.config.tile_tokens, params.config.stages, params.config.warps, params.config.ctas_per_sm};
  }

  static_assert(instance_head_dim(kDim) == kDim, "an instance for every head dim of the table, and for no other");
};

// What all threads of a CTA know about its work: one copy, written by one thread.
struct SharedWork {
  Schedule schedule;
  TileMap map;
  alignas(WorkCursor) char start[sizeof(WorkCursor)];   // the worker's walk over its segments, behind the first one
  alignas(WorkCursor) char cursor[sizeof(WorkCursor)];  // the same, as far as the computing warps are
  // The computing warps' segment, and the one before or after it. The worker's first one is found with its work, but
  // for who contributes; an empty one: there is none.
  Segment segments[2];
  int32_t first_length;  // the first one's context length
  bool more;             // segments follow the computing warps' segment
};
static_assert(sizeof(SharedWork) <= kSharedWorkBytes);

// TileTotals of the sequences that a warp's lanes look at.
struct WarpTotals {
  int64_t tiles;
  int32_t outputs;
  int32_t longest;
};
static_assert(sizeof(WarpTotals) == kWarpTotalsBytes);

// Where a token's rows of K and V lie; null: the token has none, it counts as zeros.
struct alignas(16) RowPair {
  const char* k = nullptr;
  const char* v = nullptr;
};
static_assert(sizeof(RowPair) == kRowPairBytes);

// The CTA's shared memory, carved in one place.
template <class K>
struct SharedMemory {
  char* base;
  KernelConfig config;

  LEAN_DEVICE SharedMemory(char* base, const KernelConfig& config) : base(base), config(config) {}

  LEAN_DEVICE int64_t* cost_before() const { return reinterpret_cast<int64_t*>(base + K::kLayout.cost_before); }
  LEAN_DEVICE WarpTotals* warp_totals() const { return reinterpret_cast<WarpTotals*>(base + K::kLayout.warp_totals); }
  LEAN_DEVICE SharedAddress barriers() const { return shared_address(base + K::kLayout.barriers); }
  LEAN_DEVICE SharedWork* work() const { return reinterpret_cast<SharedWork*>(base + K::kLayout.work); }
  LEAN_DEVICE int32_t* flag() const { return reinterpret_cast<int32_t*>(base + K::kLayout.flag); }
  LEAN_DEVICE char* query() const { return base + K::kLayout.query; }
  LEAN_DEVICE SoftmaxState* states(int warp) const {
    return reinterpret_cast<SoftmaxState*>(of_warp(warp) + kWarpStates);
  }
  LEAN_DEVICE char* walk(int warp) const { return of_warp(warp) + kWarpWalk; }
  LEAN_DEVICE RowPair* step_rows(int warp) const { return reinterpret_cast<RowPair*>(of_warp(warp) + kWarpRows); }
  LEAN_DEVICE char* ring() const { return base + ring_offset(config); }

 private:
  LEAN_DEVICE char* of_warp(int warp) const { return base + K::kLayout.warps + warp * kWarpBytes; }
};

LEAN_DEVICE int log2_of_power(int power) { return count_bits(static_cast<uint32_t>(power) - 1); }

// Which worker of the schedule a CTA belongs to, and which of the KV heads that are cut alike is its own.
struct Team {
  int64_t worker;
  int32_t head;
  int heads_log2;

  LEAN_DEVICE static Team of_cta(const KernelParams& params) {
    const int heads_log2 = log2_of_power(params.heads_per_tile);
    return {cta_index_x() >> heads_log2, cta_index_x() & (params.heads_per_tile - 1), heads_log2};
  }
  // KV heads as the schedule counts them, and the CTA's of such a one.
  LEAN_DEVICE static int32_t map_heads(const KernelParams& params) {
    return params.decode.num_kv_heads >> log2_of_power(params.heads_per_tile);
  }
  LEAN_DEVICE int32_t kv_head(int32_t map_head) const { return (map_head << heads_log2) + head; }
};

// Where a query row block lies: rows [first, first + count) of every output tile, as `m_tiles` M tiles (1, 2, 4 or 8;
// the last ones may hold no row).
struct RowBlock {
  int32_t first;
  int32_t count;
  int32_t m_tiles;
  int32_t most;        // rows of the first, fullest block
  int32_t group_size;  // query heads of an output tile, here because the division that finds it is long
  int32_t query_len;
  Team team;

  LEAN_DEVICE static RowBlock of_cta(const KernelParams& params, const KernelConfig& config) {
    const DecodeParams& decode = params.decode;
    const int32_t group_size = decode.group_size();
    const int32_t rows = group_size * decode.query_len;
    const int32_t most = rows < row_block(config) ? rows : row_block(config);
    const int32_t first = cta_index_y() * row_block(config);
    const int32_t count = rows - first < most ? rows - first : most;
    int32_t m_tiles = min_m_tiles(config);
    while (m_tiles * kMmaRows < count) m_tiles *= 2;
    return {first, count, m_tiles, most, group_size, decode.query_len, Team::of_cta(params)};
  }

  // Row `row` of the block, as the tensors name it; the KV head as the schedule does.
  LEAN_DEVICE QueryRow query_row(int32_t map_head, int32_t row) const {
    return lean::query_row(query_len, group_size, team.kv_head(map_head), first + row);
  }
};

// What a computing warp has to do with every tile, with the other warps of its token group (see kv_ring.h).
struct TokenGroup {
  int index;
  int m_tiles;     // its warps
  int m_tile;      // this warp's
  int first_step;  // this warp attends to the tile's steps [first_step, end_step): the group's, or none of them where
  int end_step;    // its M tile holds no row
  int copy_step;   // the step that it copies; negative: none

  LEAN_DEVICE static TokenGroup of_warp(const RowBlock& block, const KernelConfig& config) {
    // All counts are powers of two: their quotients are shifts.
    const int index = warp_index() >> log2_of_power(block.m_tiles);
    const int m_tile = warp_index() & (block.m_tiles - 1);
    const int steps = block.m_tiles * (config.tile_tokens / kStepTokens) >> log2_of_power(config.warps);
    const int first = index * steps;
    const int from_last = block.m_tiles - 1 - m_tile;  // the last warps copy: theirs are the empty M tiles
    return {index,
            block.m_tiles,
            m_tile,
            first,
            m_tile * kMmaRows < block.count ? first + steps : first,
            from_last < steps ? first + from_last : -1};
  }
};

}  // namespace lean
