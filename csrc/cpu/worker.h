// What one worker of a schedule does on a CPU: folds the LeanTiles of its segments, and writes outputs or partials.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <span>
#include <vector>

#include "../runtime/backend.h"
#include "tile.h"

namespace lean::cpu {

// Vectors of 64-byte alignment: SIMD loads and stores of them never straddle two cache lines.
template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* data, size_t) { ::operator delete(data, kLine); }
  bool operator==(const CacheLineAllocator&) const = default;
};
using AlignedFloats = std::vector<float, CacheLineAllocator<float>>;

// Partials and arrival counters of one call. A partial slot holds, for each row, m and l, then its accumulator.
class Workspace {
 public:
  // Throws std::bad_alloc. Counters are 0 between calls: the last arriver resets its own.
  void reserve(const Plan& plan, int32_t head_rows, int32_t head_dim);  // head_rows: query rows of one KV head
  static size_t bytes(const Plan& plan, int32_t head_rows, int32_t head_dim);
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
  AlignedFloats q;
  AlignedFloats acc;
  AlignedFloats recent;
  AlignedFloats scores;
  std::vector<SoftmaxState> states;
  std::vector<int32_t> visible;
};

// How many neighbouring heads a schedule should cut at the same places (see PlanRequest): as many as a bundle holds,
// while shares stay balanced.
int32_t heads_per_tile(const PlanRequest& request, std::span<const int32_t> context_lengths);

// Runs worker `worker` of the call's plan. Any number of workers may run at once, each with its own arena.
void run_worker(const DecodeCall& call, const TileCode& tile, int64_t worker, int64_t num_workers, Workspace& workspace,
                Arena& arena);

}  // namespace lean::cpu
