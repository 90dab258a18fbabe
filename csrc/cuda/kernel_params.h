// What a launch hands to its kernels: the decode call, the schedule's choices, and where the scratch memory lies.
// No primitives here: the host fills these in.
#pragma once

#include <cstdint>

#include "../core/decode_params.h"
#include "../core/schedule.h"
#include "kernel_config.h"

namespace lean {

// One output tile's rows are attended to in blocks of at most `row_block` rows (the M dimension of the warps of a CTA);
// a grid row (y) computes one block, with partials and counters of its own.
struct KernelParams {
  DecodeParams decode;
  KernelConfig config;

  Strategy strategy;
  int64_t workers;     // of the schedule; each is `heads_per_tile` neighbouring CTAs along x
  int32_t num_splits;  // fixed-split only
  bool snap_cuts;      // lean only
  bool by_cost;        // lean only: see PlanRequest
  // KV heads that are cut at the same places (see PlanRequest), by a CTA each; a power of two. The tile map counts them
  // as one.
  int32_t heads_per_tile;

  // Scratch memory. Slots are 2 per worker (see Schedule), heads those that are cut together.
  int64_t* cost_before;  // [batch + 2], see build_tile_map; filled by an earlier kernel; null: the batch fits into
                         // shared memory
  float* partials;       // [row blocks, heads, slots, slot_floats]
  uint32_t* counters;    // [row blocks, heads, 2, slots] first-level arrivals, then last-level ones; 0 before and after
                         // a launch
  uint32_t* status;      // [1] bits of KernelStatus, set by the kernels and cleared by the host
};

// What a kernel met in device memory that the host could not check. The launch ends normally: such tokens count as
// zeros, such contexts are cut to the cache's capacity.
enum KernelStatus : uint32_t {
  kStatusBadPage = 1,     // a page index outside [0, num_pages) that a context needs
  kStatusBadContext = 2,  // a context length below 0 or above the capacity
};

// Tokens are counted in 32 bits, with room for a tile past the end.
inline constexpr int32_t kMaxContextLength = 0x7fffffff - 1024;

// A partial: acc[rows][head_dim], then (m, l) of every row; head_dim is the instance's, not the tensors'.
LEAN_HD constexpr int64_t slot_floats(int32_t rows, int32_t head_dim) {
  return (int64_t{rows} * (head_dim + 2) + 3) / 4 * 4;  // slots stay aligned to 16 bytes
}

}  // namespace lean
