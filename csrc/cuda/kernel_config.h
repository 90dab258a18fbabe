// The launch configuration: one table for all architectures and head dims, and what follows from it.
//
// A stage holds one LeanTile in steps of 16 tokens, the step's rows of K and then its rows of V. Each row is followed
// by 16 unused bytes, so that the pitch is an odd number of 16-byte chunks: the 8 rows that one ldmatrix phase reads
// then lie in different banks for every head dim, and both copy paths (16-byte copies and bulk copies of a row) write
// the same layout.
//
// How to read a row: tile_tokens x (2 x head_dim + 16) x 2 bytes a stage; stages - 1 of them are in flight while one is
// computed; times ctas_per_sm is what an SM has in flight. 64 to 128 KB hide the latency of HBM on an H200 (4.8 TB/s
// x 0.7 us / 132 SMs = 26 KB at the very least). Changing a row changes speed and where tiles are cut, never what is
// computed. Kernels read tile, stages and warps at run time, so a launch may choose others (launch_config).
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

// Of the table's rows and of what bounds them: a variant each, but both of Hopper's share theirs.
inline constexpr int kNumClasses = 3;
constexpr int architecture_class(Variant variant) {
  return static_cast<int>(variant == Variant::kHopperBulk ? Variant::kHopper : variant);
}

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

// The most that an instance can run with: beyond head dim 128 more would find no M tile of their own (max_m_tiles).
LEAN_HD constexpr int max_warps(int head_dim) { return head_dim > 128 ? 4 : 8; }

// Up to head dim 128 there are two rows: four warps for up to 64 query rows, and eight, so that up to 128 share one
// read of K and V. The first row that holds all query rows is taken, or the last one, several times over.
inline constexpr int kNumConfigs = 12;
inline constexpr KernelConfig kConfigs[kNumClasses][kNumConfigs] = {
    // Compact. At least 30 KB in flight; an RTX 3090 needs 936 GB/s x 0.7 us / 82 SMs = 8 KB. 64 KB would not fit: a
    // CTA keeps 10.5 KB for itself, so two stages of head dim 128 (34 KB each) or four of head dim 64 (18 KB) are all
    // that 99 KB hold, and one of them is always being computed. Head dim 80 alone has 66 KB, by chance.
    {{64, 64, 2, 4, 2},
     {64, 64, 4, 8, 1},
     {80, 64, 4, 4, 1},
     {80, 64, 3, 8, 1},
     {96, 64, 3, 4, 1},
     {96, 64, 3, 8, 1},
     {112, 64, 2, 4, 1},
     {112, 64, 2, 8, 1},
     {128, 64, 2, 4, 1},
     {128, 64, 2, 8, 1},
     {192, 32, 3, 4, 1},
     {256, 32, 2, 4, 1}},
    // Ampere. Two CTAs where they have 64 KB in flight together; else one with a deeper ring, because two stages a CTA
    // are half computed and half in flight. Head dim 192: three stages of 64 tokens and the query rows do not fit, so
    // pairs of warps share tiles of 32.
    {{64, 64, 3, 4, 2},
     {64, 64, 6, 8, 1},
     {80, 64, 3, 4, 2},
     {80, 64, 6, 8, 1},
     {96, 64, 5, 4, 1},
     {96, 64, 5, 8, 1},
     {112, 64, 5, 4, 1},
     {112, 64, 4, 8, 1},
     {128, 64, 2, 4, 2},
     {128, 64, 4, 8, 1},
     {192, 32, 5, 4, 1},
     {256, 64, 2, 4, 1}},
    // Hopper
    {{64, 64, 5, 4, 2},
     {64, 64, 6, 8, 1},
     {80, 64, 4, 4, 2},
     {80, 64, 6, 8, 1},
     {96, 64, 3, 4, 2},
     {96, 64, 5, 8, 1},
     {112, 64, 3, 4, 2},
     {112, 64, 5, 8, 1},
     {128, 64, 3, 4, 2},
     {128, 64, 4, 8, 1},
     {192, 64, 4, 4, 1},
     {256, 64, 3, 4, 1}}};

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

inline constexpr int kSliceDims = 16;         // the warps of a CTA combine their states in slices of so many dims
inline constexpr int kSlicePitch = 24;        // floats from row to row of a slice: free of bank conflicts
inline constexpr int kSharedBatch = 384;      // sequences whose tile prefix fits into shared memory
inline constexpr int kSharedWorkBytes = 240;  // of SharedWork
inline constexpr int kSegmentWalkBytes = 80;  // of SegmentWalk

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
  int first_tile;   // [kSharedBatch + 1] int64
  int warp_totals;  // [kMaxWarps + 1] int64
  int barriers;     // [2][kMaxStages] mbarriers: a stage is full, a stage is empty
  int work;         // SharedWork: the worker's place in the schedule, kept here because registers are dearer
  int flag;         // int32: what one thread tells the others
  int query;        // [kMaxSharedMTiles][kMmaRows][row_pitch] bytes, or nothing
  int warps;  // [warps][kWarpBytes]; then the ring, [stages][tile_tokens / kStepTokens][K, V][kStepTokens][row_pitch]
};

// Each warp's own part, byte offsets in it.
inline constexpr int kWarpSlice = 0;                                         // [kMmaRows][kSlicePitch] float
inline constexpr int kWarpStates = kWarpSlice + kMmaRows * kSlicePitch * 4;  // [kMmaRows] SoftmaxState
inline constexpr int kWarpWalk = kWarpStates + kMmaRows * 8;                 // SegmentWalk, of a warp that copies
inline constexpr int kWarpBytes = (kWarpWalk + kSegmentWalkBytes + 15) / 16 * 16;

LEAN_HD constexpr SharedLayout shared_layout(int head_dim) {
  SharedLayout layout{};
  int end = 0;
  const auto place = [&end](int bytes) {
    const int offset = end;
    end = (end + bytes + 15) / 16 * 16;
    return offset;
  };
  layout.first_tile = place((kSharedBatch + 1) * 8);
  layout.warp_totals = place((max_warps(head_dim) + 1) * 8);
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

// ---- What fits --------------------------------------------------------------------------------------------------

struct SharedLimits {
  int per_block;
  int per_sm;
};
inline constexpr int kSharedReserve = 1024;  // what the system takes of an SM's shared memory for every CTA
inline constexpr SharedLimits kSharedLimits[kNumClasses] = {
    {99 * 1024, 100 * 1024}, {163 * 1024, 164 * 1024}, {227 * 1024, 228 * 1024}};
constexpr SharedLimits shared_limits(Variant variant) { return kSharedLimits[architecture_class(variant)]; }

// Stages that one CTA has room for, and CTAs that an SM has room for; the configuration's own numbers of them do not
// matter.
constexpr int max_stages(Variant variant, const KernelConfig& config) {
  const int fit = (shared_limits(variant).per_block - ring_offset(config)) / stage_bytes(config);
  return fit < kMaxStages ? fit : kMaxStages;
}
constexpr int max_ctas(Variant variant, const KernelConfig& config) {
  return shared_limits(variant).per_sm / (shared_bytes(config) + kSharedReserve);
}

// Tile and warps make whole groups of warps, each with an M tile for every warp (see kv_ring.h).
constexpr bool can_be_split(const KernelConfig& config) {
  const int warps = config.warps, tile = config.tile_tokens;
  const bool power_of_two = warps >= 1 && (warps & (warps - 1)) == 0;
  return power_of_two && warps <= max_warps(config.head_dim) && tile >= kStepTokens &&
         warps * kStepTokens % tile == 0 && tile % kStepTokens == 0 && min_m_tiles(config) <= max_m_tiles(config);
}

// ---- What a launch takes ----------------------------------------------------------------------------------------

// The table's row for so many query rows of an output tile.
constexpr KernelConfig kernel_config(Variant variant, int head_dim, int64_t rows) {
  KernelConfig found{};
  for (const KernelConfig& config : kConfigs[architecture_class(variant)]) {
    if (config.head_dim != instance_head_dim(head_dim)) continue;
    found = config;
    if (rows <= row_block(config)) break;
  }
  return found;
}

// What may be chosen instead; 0: the table's, or what fits the rest best.
struct ConfigChoice {
  int32_t tile_tokens = 0;
  int32_t stages = 0;
  int32_t warps = 0;
  int32_t ctas_per_sm = 0;
};

// The table's row with what was chosen. Other warps come with a tile of a step each; another tile with as many stages
// as keep the bytes in flight, and as many CTAs as the table has, where they fit.
constexpr KernelConfig launch_config(Variant variant, int head_dim, int64_t rows, const ConfigChoice& choice) {
  const KernelConfig table = kernel_config(variant, head_dim, rows);
  KernelConfig config = table;
  if (choice.warps && choice.warps != table.warps) {
    config.warps = choice.warps;
    config.tile_tokens = choice.warps * kStepTokens;
  }
  if (choice.tile_tokens) config.tile_tokens = choice.tile_tokens;
  if (!can_be_split(config)) return config;
  const int in_flight = (table.stages - 1) * table.tile_tokens;
  const int stages = 1 + (in_flight + config.tile_tokens - 1) / config.tile_tokens;
  const int most = max_stages(variant, config);
  config.stages = choice.stages ? choice.stages : stages < most ? stages : most;
  const int ctas = max_ctas(variant, config);
  config.ctas_per_sm = choice.ctas_per_sm ? choice.ctas_per_sm : table.ctas_per_sm < ctas ? table.ctas_per_sm : ctas;
  return config;
}

// ---- The table's promises ---------------------------------------------------------------------------------------

inline constexpr int kInFlightFloor[kNumClasses] = {30 * 1024, 64 * 1024, 64 * 1024};

constexpr bool config_is_sound(Variant variant, const KernelConfig& config) {
  return can_be_split(config) && config.stages >= kMinStages && config.stages <= max_stages(variant, config) &&
         config.ctas_per_sm >= 1 && config.ctas_per_sm <= max_ctas(variant, config);
}

constexpr bool table_is_sound() {
  for (int c = 0; c < kNumClasses; ++c)
    for (const KernelConfig& config : kConfigs[c])
      if (!config_is_sound(static_cast<Variant>(c), config) || bytes_in_flight(config) < kInFlightFloor[c] ||
          row_pitch(config.head_dim) / 16 % 2 != 1)
        return false;
  return true;
}
static_assert(table_is_sound(),
              "a launch configuration exceeds its architecture's shared memory, has too little in flight, or cannot be "
              "split");

// So many rows share one read of K and V, on every architecture.
constexpr int shared_rows(int head_dim) { return head_dim <= 128 ? 128 : kMaxSharedMTiles * kMmaRows; }
constexpr bool rows_are_shared() {
  for (int v = 0; v < kNumVariants; ++v)
    for (const int head_dim : kHeadDims)
      if (row_block(kernel_config(static_cast<Variant>(v), head_dim, shared_rows(head_dim))) < shared_rows(head_dim))
        return false;
  return true;
}
static_assert(rows_are_shared(), "a head dim has no configuration for as many rows as it should");

}  // namespace lean
