// Launching the decode kernels: plain values in, work on a stream out. No allocation, no synchronisation, no host copy
// of the context lengths, so a launch can be captured in a CUDA graph and replayed while lengths and page tables
// change.
//
// Scratch memory comes from the caller, in two buffers:
//   counters  zeroed once (reset_counters) and 0 again after every launch, so calls of any shapes may follow each
//             other; its first word collects the KernelStatus bits. After an aborted launch it must be reset.
//   scratch   of any content.
// Launches that share a buffer must not run at the same time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../core/append_params.h"
#include "../core/decode_params.h"
#include "../core/schedule.h"
#include "../runtime/plan.h"
#include "cuda_api.h"
#include "kernel_config.h"
#include "kernel_params.h"

namespace lean {

struct LaunchRequest {
  DecodeParams decode{};  // its pointers are device memory
  Strategy strategy = Strategy::kLean;
  int64_t workers = 0;         // lean: CTAs; 0: as many as the GPU holds at once
  bool by_cost = false;        // lean: see PlanRequest
  int32_t heads_per_tile = 1;  // lean: see PlanRequest; a power of two that divides the CTAs
  int32_t num_splits = 1;      // fixed-split
  bool snap_cuts = true;       // lean
  LaunchOptions options;

  void* counters = nullptr;
  void* scratch = nullptr;
  uint32_t* status = nullptr;  // [1] where the KernelStatus bits go; null: to the counters' first word
};

// Everything that a launch chooses. It depends on the current device and on the request's shapes, never on contents.
struct LaunchPlan {
  Variant variant;
  KernelConfig config;  // its CTAs an SM are those that are resident
  const void* kernel;
  int64_t workers;     // CTAs along x: the workers of the schedule, of all heads that it cuts together
  int32_t row_blocks;  // CTAs along y: blocks of query rows
  int threads;
  int shared_bytes;
  bool tile_map_kernel;  // the batch is too large for shared memory
  size_t counter_bytes;  // of the two buffers, exactly
  size_t scratch_bytes;

  std::string describe() const;
};

// Throws Error: the request is not one that the kernels can run (with the reason), or the device has none of them. The
// first call for a kernel loads its code, which the driver may refuse while a graph is captured: see
// load_decode_kernels.
LaunchPlan plan_launch(const LaunchRequest& request);

// Loads the code of all decode kernels that the current device can run.
void load_decode_kernels();

void launch_decode(const LaunchRequest& request, const LaunchPlan& plan, cuda::api::Stream stream);

// The roofline: reads `bytes` (whole units of 16) once. sink: 4 bytes that are left as they are.
void launch_read(const void* data, size_t bytes, void* sink, int num_processors, cuda::api::Stream stream);

// Writes rows into a KV cache, and copies pages there. All pointers are device memory, but for inverse_frequencies.
// status: [1] where the KernelStatus bits go; null for rows that have slots.
void launch_append(const AppendParams& params, uint32_t* status, cuda::api::Stream stream);
void launch_page_copies(const PageCopyParams& params, cuda::api::Stream stream);

void reset_counters(void* counters, size_t bytes, cuda::api::Stream stream);

// What KernelStatus bits say, for people; empty: nothing.
std::string describe_status(uint32_t status);

// CTAs that the current device holds at once, and the tokens of a LeanTile, for an element type, a head dim and so many
// query rows of an output tile.
int64_t resident_workers(DType kv_type, int32_t head_dim, int64_t rows, const LaunchOptions& options = {});
int32_t tile_tokens(DType kv_type, int32_t head_dim, int64_t rows, const LaunchOptions& options = {});

}  // namespace lean
