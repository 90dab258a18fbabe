// The registry of decode cases: what a kernel is tried on, here or on a GPU. Data only; nothing of the rehearsal in it.
//
// A case names everything that a decode call can vary in. The grid does not multiply all of it out: it walks every
// value of every axis with every head dim and both copy paths, and lets the other axes turn at lengths that share no
// factor, so that any two of them meet in many combinations.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/decode_params.h"
#include "core/schedule.h"
#include "cuda/config_table.h"

namespace lean::cases {

enum class Layout { kNhd, kHnd, kMixed };  // mixed: K is NHD and V is HND, with unused space between the rows of V

// What the host could not check and the kernels must survive: page indices outside of the cache, which count as zeros,
// and context lengths below 0 or above the capacity, which are cut.
enum class Corruption { kNone, kPages, kLengths };

struct Case {
  int index = 0;
  const char* set = "";  // the part of the grid that it belongs to
  Strategy strategy = Strategy::kLean;
  Variant variant = Variant::kAmpere;
  DType kv_type = DType::kBF16;
  DType q_type = DType::kBF16;
  int head_dim = 64;
  int group = 1;
  int kv_heads = 1;
  int query_len = 1;
  int page_tokens = 0;  // 0: contiguous
  Layout layout = Layout::kNhd;
  int workers = 1;  // lean
  int splits = 1;   // fixed-split
  bool snap_cuts = true;
  bool by_cost = false;
  int heads_per_tile = 1;  // lean: KV heads that are cut alike, by as many CTAs a worker
  Corruption corruption = Corruption::kNone;
  float peak = 1.0f;                   // the queries' size: large ones make a few tokens outweigh all others
  bool upper_half_peaks = false;       // only query heads 8 and up of a group peak, the first 8 are zeros
  ConfigChoice choice;                 // what its launch chooses of the configuration
  std::vector<int32_t> contexts;       // one a sequence
  std::vector<int32_t> next_contexts;  // of a second launch on the same workspace

  KernelConfig config() const { return launch_config(variant, head_dim, rows(), choice); }
  int rows() const { return group * query_len; }
  bool chooses() const { return choice.tile_tokens || choice.stages || choice.warps || choice.ctas_per_sm; }
  int row_blocks() const { return (rows() + row_block(config()) - 1) / row_block(config()); }
  // How often each byte of K and V is read, by what is promised of rows: 128 share a read up to head dim 128, 32 above,
  // and 16 for each warp that was chosen.
  int reads() const;
  std::string describe() const;
};

// The KernelStatus bits that a launch of the case must report.
uint32_t expected_status(const Case& c);

// The decode grid, the same on every machine. Every head dim, type and copy path is in it many times.
std::vector<Case> decode_grid();

}  // namespace lean::cases
