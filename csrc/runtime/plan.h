// A plan: one batch's context lengths cut into work by a strategy, ready for a backend and open to inspection.
#pragma once

#include <compare>
#include <cstdint>
#include <vector>

#include "../core/decode_params.h"
#include "../core/schedule.h"

namespace lean {

// How K and V come into a GPU's shared memory.
enum class CopyPath : int32_t {
  kAutomatic,  // what was chosen for the architecture
  kAsync,      // 16-byte asynchronous copies
  kBulk,       // bulk copies with a producer warp: sm_90 and later
};

// What a GPU's launch may be told; 0: the device chooses, by a table and what fits (csrc/cuda/config_table.h).
struct LaunchOptions {
  CopyPath copies = CopyPath::kAutomatic;
  int32_t tile_tokens = 0;  // tokens of a LeanTile
  int32_t stages = 0;       // tiles in a CTA's ring
  int32_t warps = 0;        // of a CTA, that compute
  int32_t ctas_per_sm = 0;

  auto operator<=>(const LaunchOptions&) const = default;
};

// What a plan is made from. `processors` is what runs at once: a GPU's resident CTAs, a CPU's threads, or any number
// that the caller forces.
struct PlanRequest {
  Strategy strategy = Strategy::kLean;
  int64_t processors = 1;
  // Lean: cuts by what output tiles cost (TileMap), and leaves out workers without whom the longest share is as long
  // (fewest_workers). Else all workers have equal shares of the tiles.
  bool by_cost = false;
  int64_t splits = 0;  // fixed-split: 0 leaves the choice to FlashAttention-2's rule
  int32_t num_kv_heads = 1;
  int32_t tile_tokens = 64;  // context tokens of a LeanTile
  int32_t head_dim = 128;    // of K and V, as is their type: they choose the kernel
  DType kv_type = DType::kF16;
  LaunchOptions launch;
  int64_t rows = 1;             // query rows that share a KV head: group size x query length; they choose it too
  bool heads_adjacent = false;  // a token's heads lie side by side in memory
  // Neighbouring KV heads that are scheduled as one output tile: a device that reads several at once cuts the context
  // for all of them at the same places, so that each worker reads whole runs of memory. Divides num_kv_heads.
  int32_t heads_per_tile = 1;
  bool heads_at_once = false;  // by a processor each, as on a GPU; divides `processors` then. Else one after the other

  // Of the schedule, whose tiles are those of so many heads.
  int32_t processors_per_worker() const { return heads_at_once ? heads_per_tile : 1; }
};

// A segment and its place in time, for people and tests. Time is counted in tiles. Of heads at once each has workers of
// its own, numbered one head after the other, so that contributors to an output tile are neighbours.
struct PlacedSegment {
  Segment segment;
  int64_t worker;
  int64_t processor;
  int64_t start;
};

class Plan {
 public:
  Plan(const PlanRequest& request, std::vector<int32_t> context_lengths);

  const PlanRequest& request() const { return request_; }
  const Schedule& schedule() const { return schedule_; }
  TileMap map() const {
    return {cost_before_.data(), static_cast<int32_t>(context_lengths_.size()),
            request_.num_kv_heads / request_.heads_per_tile, end_tiles_};
  }
  const std::vector<int32_t>& context_lengths() const { return context_lengths_; }

  // Whether any output tile is shared between workers; if not, no workspace is needed.
  bool has_partials() const { return has_partials_; }

  // Every segment, each on the processor that comes free first: workers start in order, as a GPU dispatches CTAs.
  std::vector<PlacedSegment> segments() const;

  int64_t num_tiles() const { return num_tiles_; }  // LeanTiles in all

  // The longest a processor works, in tiles, and the least that any schedule could reach.
  int64_t makespan() const;
  int64_t ideal_makespan() const;

 private:
  template <class Visit>
  int64_t place(Visit visit) const;

  PlanRequest request_;
  std::vector<int32_t> context_lengths_;  // [batch]
  std::vector<int64_t> cost_before_;      // [batch + 1]
  int32_t end_tiles_ = 0;
  int64_t num_tiles_ = 0;
  Schedule schedule_;
  bool has_partials_;
};

}  // namespace lean
