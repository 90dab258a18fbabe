// The launch configurations: one table for all classes of architectures and head dims, what a call may choose instead,
// and what the table promises. Kernels do not see it: they read what a launch took from their parameters.
//
// How to read a row: tile_tokens x (2 x head_dim + 16) x 2 bytes a stage; stages - 1 of them are in flight while one is
// computed; times ctas_per_sm is what an SM has in flight. 50 to 100 KB hide the latency of HBM on an H200 (4.8 TB/s
// x 0.7 us / 132 SMs = 26 KB at the very least). Changing a row changes speed and where tiles are cut, never what is
// computed.
#pragma once

#include <cstdint>

#include "kernel_config.h"

namespace lean {

// Variants that share rows of the table and limits of shared memory: both of Hopper's.
inline constexpr int kNumClasses = 3;
constexpr int architecture_class(Variant variant) {
  return static_cast<int>(variant == Variant::kHopperBulk ? Variant::kHopper : variant);
}

// Up to head dim 128 there are two rows: four warps for up to 64 query rows, and eight, so that up to 128 share one
// read of K and V. The first row that holds all query rows is taken, or the last one, several times over.
inline constexpr int kNumConfigs = 12;
inline constexpr KernelConfig kConfigs[kNumClasses][kNumConfigs] = {
    // Compact. At least 30 KB in flight; an RTX 3090 needs 936 GB/s x 0.7 us / 82 SMs = 8 KB. A CTA keeps 6 KB for
    // itself, so 99 KB hold two stages of head dim 128 (34 KB each) or four of head dim 64 (18 KB), one of which is
    // always being computed. Tiles of 32 tokens would have 68 KB in flight, for twice as many waits a token: a launch
    // can ask for them, and which is faster has not been measured.
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
    // Hopper. As measured on an H200, over short, long and unequal contexts: two stages of head dims 112 and 128 are
    // up to 6 % faster than three, and three of 64 than five. Two stages of 192 and 256 are up to 11 % faster than four
    // and three, and 2 % slower for one of eight shapes.
    {{64, 64, 3, 4, 2},
     {64, 64, 6, 8, 1},
     {80, 64, 3, 4, 2},
     {80, 64, 6, 8, 1},
     {96, 64, 3, 4, 2},
     {96, 64, 5, 8, 1},
     {112, 64, 2, 4, 2},
     {112, 64, 5, 8, 1},
     {128, 64, 2, 4, 2},
     {128, 64, 4, 8, 1},
     {192, 64, 2, 4, 1},
     {256, 64, 2, 4, 1}}};

// ---- What fits --------------------------------------------------------------------------------------------------

struct SharedLimits {
  int per_block;
  int per_sm;
};
inline constexpr int kSharedReserve = 1024;  // what the system takes of an SM's shared memory for every CTA
inline constexpr SharedLimits kSharedLimits[kNumClasses] = {
    {99 * 1024, 100 * 1024}, {163 * 1024, 164 * 1024}, {227 * 1024, 228 * 1024}};
constexpr SharedLimits shared_limits(Variant variant) { return kSharedLimits[architecture_class(variant)]; }

// Stages that one CTA has room for, and CTAs of the configuration's stages that an SM has room for.
constexpr int max_stages(Variant variant, const KernelConfig& config) {
  const int fit = (shared_limits(variant).per_block - ring_offset(config)) / stage_bytes(config);
  return fit < kMaxStages ? fit : kMaxStages;
}
constexpr int max_ctas(Variant variant, const KernelConfig& config) {
  return shared_limits(variant).per_sm / (shared_bytes(config) + kSharedReserve);
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

inline constexpr int kInFlightFloor[kNumClasses] = {30 * 1024, 64 * 1024, 48 * 1024};

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
