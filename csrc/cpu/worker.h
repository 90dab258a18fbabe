// What one worker of a schedule does on a CPU: folds the LeanTiles of its segments, and writes outputs or partials.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "../runtime/backend.h"
#include "tile.h"

namespace lean::cpu {

// Partials and arrival counters of one call. A partial slot holds, for each row, m and l, then its accumulator.
class Workspace {
 public:
  // Throws std::bad_alloc. Counters are 0 between calls: the last arriver resets its own.
  void reserve(const Plan& plan, int32_t rows, int32_t head_dim);
  static size_t bytes(const Plan& plan, int32_t rows, int32_t head_dim);
  void reset_counters();  // after a call that failed half-way

  SoftmaxState* states(int64_t slot) { return states_.data() + slot * rows_; }
  float* acc(int64_t slot) { return acc_.data() + slot * rows_ * stride_; }
  std::atomic<int64_t>& arrivals(int64_t worker) { return arrivals_[static_cast<size_t>(worker)]; }

 private:
  int64_t rows_ = 0;
  int64_t stride_ = 0;
  std::vector<SoftmaxState> states_;
  std::vector<float> acc_;
  std::vector<std::atomic<int64_t>> arrivals_;
};

// One thread's scratch, kept between calls. Sized for a bundle of output tiles.
struct Arena {
  std::vector<float> q;
  std::vector<float> acc;
  std::vector<float> scores;
  std::vector<SoftmaxState> states;
  std::vector<int32_t> visible;
};

// Runs worker `worker` of the call's plan. Any number of workers may run at once, each with its own arena.
void run_worker(const DecodeCall& call, const TileCode& tile, int64_t worker, int64_t num_workers, Workspace& workspace,
                Arena& arena);

}  // namespace lean::cpu
