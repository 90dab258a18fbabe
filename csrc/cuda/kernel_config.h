// What a kernel is launched with, and what follows from it: sizes, and where things lie in shared memory. Host and
// kernels work it out by the same functions; config_table.h says what launches take.
//
// A stage holds one LeanTile in steps of 16 tokens, the step's rows of K and then its rows of V. Each row is followed
// by 16 unused bytes, so that the pitch is an odd number of 16-byte chunks: the 8 rows that one ldmatrix phase reads
// then lie in different banks for every head dim, and both copy paths (16-byte copies and bulk copies of a row) write
// the same layout.
#pragma once

#include <cstdint>

#include "../core/numeric.h"

namespace lean {

// Who copies K and V, for which class of architectures.
enum class Variant : int32_t {
  kCompact = 0,     // 99 KB of shared memory a block (sm_86, sm_89, sm_120): runs everywhere
  kAmpere = 1,      // 163 KB (sm_80, sm_87)
  kHopper = 2,      // 227 KB (sm_90, sm_100, sm_103)
  kHopperBulk = 3,  // the same; a producer warp starts bulk copies, mbarriers order them
};
inline constexpr int kNumVariants = 4;

struct KernelConfig {
  int head_dim;     // of the instance; tensors of a smaller one are padded with zeros on the way in
  int tile_tokens;  // tokens of a LeanTile
  int stages;       // tiles in the ring
  int warps;        // that compute; with a step of the tile each, or fewer steps than warps, which then share them
  int ctas_per_sm;
};

inline constexpr int kHeadDims[] = {64, 80, 96, 112, 128, 192, 256};  // one instance each
inline constexpr int kMmaRows = 16;                                   // query rows of an M tile: M of the instruction
inline constexpr int kStepTokens = 16;                                // tokens that a warp attends to at once
inline constexpr int kMinStages = 2;
inline constexpr int kMaxStages = 6;

// The most that an instance can run with. Beyond head dim 128 a thread takes up to 255 registers: an SM has not
// enough of them for eight such warps and a producer.
LEAN_HD constexpr int max_warps(int head_dim) { return head_dim > 128 ? 4 : 8; }

// The head dim of the smallest instance that holds a tensor's; 0: none does.
constexpr int instance_head_dim(int head_dim) {
  for (const int instance : kHeadDims)
    if (head_dim <= instance) return instance;
  return 0;
}

constexpr bool has_producer(Variant variant) { return variant == Variant::kHopperBulk; }

// Which variants an architecture's machine code contains; `architecture` is 10 x major + minor (80, 90, 120, …). PTX
// for GPUs that are not built for is best taken from 86: it holds the compact variant, which every later GPU can run.
constexpr bool compiled_for(Variant variant, int architecture) {
  const bool hopper = architecture == 90 || (architecture >= 100 && architecture < 120);
  const bool ampere = architecture == 80 || architecture == 87;
  switch (variant) {
    case Variant::kCompact:
      return architecture >= 80 && !hopper && !ampere;
    case Variant::kAmpere:
      return ampere;
    case Variant::kHopper:
    case Variant::kHopperBulk:
      return hopper;
  }
  return false;
}

// ---- What follows from a configuration --------------------------------------------------------------------------

inline constexpr int kSharedBatch = 384;      // sequences whose tile prefix fits into shared memory
inline constexpr int kWarpTotalsBytes = 16;   // of WarpTotals
inline constexpr int kSharedWorkBytes = 320;  // of SharedWork
inline constexpr int kSegmentWalkBytes = 96;  // of SegmentWalk
inline constexpr int kRowPairBytes = 16;      // of RowPair

LEAN_HD constexpr int compute_threads(const KernelConfig& config) { return config.warps * 32; }
constexpr int cta_threads(Variant variant, const KernelConfig& config) {
  return compute_threads(config) + (has_producer(variant) ? 32 : 0);
}

// Large heads keep their query rows in shared memory: beside acc the registers do not hold them.
LEAN_HD constexpr bool query_in_shared(int head_dim) { return head_dim > 128; }

// Query rows that one CTA attends to: an M tile a warp at most, and two where they take shared memory.
inline constexpr int kMaxSharedMTiles = 2;
LEAN_HD constexpr int max_m_tiles(const KernelConfig& config) {
  return query_in_shared(config.head_dim) && config.warps > kMaxSharedMTiles ? kMaxSharedMTiles : config.warps;
}
LEAN_HD constexpr int row_block(const KernelConfig& config) { return max_m_tiles(config) * kMmaRows; }

// Warps that attend to the same tokens, at least: a tile has no step for each.
LEAN_HD constexpr int min_m_tiles(const KernelConfig& config) {
  return config.warps * kStepTokens / config.tile_tokens;
}

LEAN_HD constexpr int row_pitch(int head_dim) { return head_dim * 2 + 16; }
LEAN_HD constexpr int step_bytes(int head_dim) { return 2 * kStepTokens * row_pitch(head_dim); }
LEAN_HD constexpr int stage_bytes(const KernelConfig& config) {
  return config.tile_tokens / kStepTokens * step_bytes(config.head_dim);
}
constexpr int bytes_in_flight(const KernelConfig& config) {
  return (config.stages - 1) * stage_bytes(config) * config.ctas_per_sm;
}

// A CTA's dynamic shared memory: byte offsets, in the order in which the arrays lie. What depends on the number of
// warps comes last but for the ring, which depends on that of the stages too; so kernels know all offsets but its own.
struct SharedLayout {
  int cost_before;  // [kSharedBatch + 2] int64
  int warp_totals;  // [max_warps(head_dim) + 1] WarpTotals
  int barriers;     // [2][kMaxStages] mbarriers: a stage is full, a stage is empty
  int work;         // SharedWork: the worker's place in the schedule, kept here because registers are dearer
  int flag;         // int32: what one thread tells the others
  int query;        // [kMaxSharedMTiles][kMmaRows][row_pitch] bytes, or nothing
  int warps;  // [warps][kWarpBytes]; then the ring, [stages][tile_tokens / kStepTokens][K, V][kStepTokens][row_pitch]
};

// Each warp's own part, byte offsets in it.
inline constexpr int kWarpStates = 0;                            // [kMmaRows] SoftmaxState
inline constexpr int kWarpWalk = kWarpStates + kMmaRows * 8;     // SegmentWalk, of a warp that copies
inline constexpr int kWarpRows = kWarpWalk + kSegmentWalkBytes;  // [kStepTokens] RowPair, likewise
inline constexpr int kWarpBytes = kWarpRows + kStepTokens * kRowPairBytes;

LEAN_HD constexpr SharedLayout shared_layout(int head_dim) {
  SharedLayout layout{};
  int end = 0;
  const auto place = [&end](int bytes) {
    const int offset = end;
    end = (end + bytes + 15) / 16 * 16;
    return offset;
  };
  layout.cost_before = place((kSharedBatch + 2) * 8);
  layout.warp_totals = place((max_warps(head_dim) + 1) * kWarpTotalsBytes);
  layout.barriers = place(2 * kMaxStages * 8);
  layout.work = place(kSharedWorkBytes);
  layout.flag = place(4);
  layout.query = place(query_in_shared(head_dim) ? kMaxSharedMTiles * kMmaRows * row_pitch(head_dim) : 0);
  layout.warps = end;
  return layout;
}

LEAN_HD constexpr int ring_offset(const KernelConfig& config) {
  return shared_layout(config.head_dim).warps + config.warps * kWarpBytes;
}
constexpr int shared_bytes(const KernelConfig& config) {
  return ring_offset(config) + config.stages * stage_bytes(config);
}

// Tile and warps make whole groups of warps, each with an M tile for every warp (see kv_ring.h).
constexpr bool can_be_split(const KernelConfig& config) {
  const int warps = config.warps, tile = config.tile_tokens;
  const bool power_of_two = warps >= 1 && (warps & (warps - 1)) == 0;
  return power_of_two && warps <= max_warps(config.head_dim) && tile >= kStepTokens &&
         warps * kStepTokens % tile == 0 && tile % kStepTokens == 0 && min_m_tiles(config) <= max_m_tiles(config);
}

}  // namespace lean
