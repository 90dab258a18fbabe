// The launch configuration: one table for all architectures and head dims, and what follows from it.
//
// A stage holds one LeanTile: its rows of K, then its rows of V. Each row is followed by 16 unused bytes, so that the
// pitch is an odd number of 16-byte chunks: the 8 rows that one ldmatrix phase reads then lie in different banks for
// every head dim, and both copy paths (16-byte copies and bulk copies of a row) write the same layout.
//
// How to read a row: tile_tokens x (2 x head_dim + 16) x 2 bytes a stage; stages - 1 of them are in flight while one is
// computed; times ctas_per_sm is what an SM has in flight. 64 to 128 KB hide the latency of HBM on an H200 (4.8 TB/s
// x 0.7 us / 132 SMs = 26 KB at the very least). Changing a row changes speed and where tiles are cut, never what is
// computed.
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
  int warps;        // that compute; each takes tile_tokens / warps tokens of a tile in one step
  int ctas_per_sm;
};

inline constexpr int kNumHeadDims = 7;
inline constexpr KernelConfig kConfigs[kNumVariants][kNumHeadDims] = {
    // Compact: GDDR memory asks for little in flight. Two warps where four would make a stage too large.
    {{64, 64, 2, 4, 2},
     {80, 64, 4, 4, 1},
     {96, 64, 3, 4, 1},
     {112, 64, 2, 4, 1},
     {128, 64, 2, 4, 1},
     {192, 32, 3, 2, 1},
     {256, 32, 2, 2, 1}},
    // Ampere
    {{64, 64, 3, 4, 2},
     {80, 64, 3, 4, 2},
     {96, 64, 2, 4, 2},
     {112, 64, 2, 4, 2},
     {128, 64, 2, 4, 2},
     {192, 64, 2, 4, 1},
     {256, 64, 2, 4, 1}},
    // Hopper
    {{64, 64, 5, 4, 2},
     {80, 64, 4, 4, 2},
     {96, 64, 3, 4, 2},
     {112, 64, 3, 4, 2},
     {128, 64, 3, 4, 2},
     {192, 64, 4, 4, 1},
     {256, 64, 3, 4, 1}},
    // Hopper, bulk copies
    {{64, 64, 5, 4, 2},
     {80, 64, 4, 4, 2},
     {96, 64, 3, 4, 2},
     {112, 64, 3, 4, 2},
     {128, 64, 3, 4, 2},
     {192, 64, 4, 4, 1},
     {256, 64, 3, 4, 1}},
};

// The smallest instance that holds a head dim, as an index into a variant's row; -1: none.
constexpr int head_dim_index(int head_dim) {
  for (int i = 0; i < kNumHeadDims; ++i)
    if (head_dim <= kConfigs[0][i].head_dim) return i;
  return -1;
}

constexpr KernelConfig kernel_config(Variant variant, int head_dim) {
  return kConfigs[static_cast<int>(variant)][head_dim_index(head_dim)];
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

inline constexpr int kMmaRows = 16;           // M of the matrix instruction: query rows of one M tile
inline constexpr int kSliceDims = 16;         // the warps of a CTA combine their states in slices of so many dims
inline constexpr int kSlicePitch = 24;        // floats from row to row of a slice: free of bank conflicts
inline constexpr int kSharedBatch = 384;      // sequences whose tile prefix fits into shared memory
inline constexpr int kSharedWorkBytes = 240;  // of SharedWork
inline constexpr int kSegmentWalkBytes = 80;  // of SegmentWalk

constexpr int compute_threads(const KernelConfig& config) { return config.warps * 32; }
constexpr int cta_threads(Variant variant, const KernelConfig& config) {
  return compute_threads(config) + (has_producer(variant) ? 32 : 0);
}

// Large heads keep their query rows in shared memory: beside acc the registers do not hold them.
constexpr bool query_in_shared(const KernelConfig& config) { return config.head_dim > 128; }

// Query rows that one CTA attends to: an M tile a warp at most, and two where they take shared memory.
constexpr int max_m_tiles(const KernelConfig& config) {
  return query_in_shared(config) && config.warps > 2 ? 2 : config.warps;
}
constexpr int row_block(const KernelConfig& config) { return max_m_tiles(config) * kMmaRows; }

constexpr int row_pitch(const KernelConfig& config) { return config.head_dim * 2 + 16; }
constexpr int stage_bytes(const KernelConfig& config) { return 2 * config.tile_tokens * row_pitch(config); }

// The dynamic shared memory of a CTA: byte offsets, in the order in which the arrays lie.
struct SharedLayout {
  int ring;         // [stages][K, V][tile_tokens][row_pitch] bytes
  int query;        // [max_m_tiles][kMmaRows][row_pitch] bytes, or nothing
  int slices;       // [warps][kMmaRows][kSlicePitch] float: one slice of every warp's acc
  int states;       // [warps][kMmaRows] SoftmaxState
  int first_tile;   // [kSharedBatch + 1] int64
  int warp_totals;  // [warps + 1] int64
  int barriers;     // [2][stages] mbarriers: a stage is full, a stage is empty
  int work;         // SharedWork: the worker's place in the schedule, kept here because registers are dearer
  int walks;        // [warps] SegmentWalk: of each warp that copies
  int flag;         // int32: what one thread tells the others
  int bytes;
};

constexpr SharedLayout shared_layout(const KernelConfig& config) {
  SharedLayout layout{};
  int end = 0;
  const auto place = [&end](int bytes) {
    const int offset = end;
    end = (end + bytes + 15) / 16 * 16;
    return offset;
  };
  layout.ring = place(config.stages * stage_bytes(config));
  layout.query = place(query_in_shared(config) ? row_block(config) * row_pitch(config) : 0);
  layout.slices = place(config.warps * kMmaRows * kSlicePitch * 4);
  layout.states = place(config.warps * kMmaRows * 8);
  layout.first_tile = place((kSharedBatch + 1) * 8);
  layout.warp_totals = place((config.warps + 1) * 8);
  layout.barriers = place(2 * config.stages * 8);
  layout.work = place(kSharedWorkBytes);
  layout.walks = place(config.warps * kSegmentWalkBytes);
  layout.flag = place(4);
  layout.bytes = end;
  return layout;
}

// ---- The table's promises ---------------------------------------------------------------------------------------

struct SharedLimits {
  int per_block;
  int per_sm;
};
inline constexpr int kSharedReserve = 1024;  // what the system takes of an SM's shared memory for every CTA
inline constexpr SharedLimits kSharedLimits[kNumVariants] = {
    {99 * 1024, 100 * 1024}, {163 * 1024, 164 * 1024}, {227 * 1024, 228 * 1024}, {227 * 1024, 228 * 1024}};

constexpr bool config_is_sound(Variant variant, const KernelConfig& config) {
  const SharedLimits limits = kSharedLimits[static_cast<int>(variant)];
  const int bytes = shared_layout(config).bytes;
  const bool fits = bytes <= limits.per_block && (bytes + kSharedReserve) * config.ctas_per_sm <= limits.per_sm;
  const bool warps = config.warps == 1 || config.warps == 2 || config.warps == 4;  // M tiles divide them evenly
  const int step = config.tile_tokens / config.warps;
  return fits && warps && config.stages >= 2 && (step == 16 || step == 32) && config.tile_tokens % 32 == 0 &&
         row_pitch(config) / 16 % 2 == 1;
}

constexpr bool table_is_sound() {
  for (int v = 0; v < kNumVariants; ++v)
    for (int d = 0; d < kNumHeadDims; ++d)
      if (!config_is_sound(static_cast<Variant>(v), kConfigs[v][d])) return false;
  return true;
}
static_assert(table_is_sound(), "a launch configuration exceeds its architecture's shared memory, or cannot be split");

}  // namespace lean
