// The kernel instances, as the host code sees them: one file of csrc/cuda/instances/ for each element type and head
// dim, so that they build in parallel. A function's address is all that a launch needs.
#pragma once

#include <cstddef>

#include "../core/append_params.h"
#include "../core/numeric.h"
#include "kernel_config.h"

namespace lean {

template <class T, int kHeadDim>
struct DecodeInstances {
  static const void* kernel(Variant variant);  // DecodeKernel<T, kHeadDim, variant>
};

const void* tile_map_kernel();  // TileMapKernel
inline constexpr int kTileMapThreads = 512;
inline constexpr int kTileMapSharedBytes = kTileMapThreads / 32 * 16;

// A launch carries the inverse frequencies itself: nothing has to lie in device memory for it.
struct AppendLaunch {
  AppendParams append;
  uint32_t* status;  // [1] bits of KernelStatus, where lengths and page table lie in device memory
  double inverse_frequencies[kMaxHeadDim / 2];
};
const void* append_kernel();     // AppendKernel
const void* page_copy_kernel();  // PageCopyKernel
inline constexpr int kAppendThreads = 128;
inline constexpr int kAppendSharedBytes = 2048;

const void* read_kernel();  // ReadKernel
inline constexpr int kReadThreads = 512;
inline constexpr int kReadCtasPerSm = 3;
struct ReadCall {
  const void* data;  // aligned to 16 bytes
  size_t count;      // of 16 bytes each
  void* sink;        // [1] float, written only if the sum of all is one that it never is
};

}  // namespace lean
