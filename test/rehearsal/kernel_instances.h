// The kernels under rehearsal, by element type, head dim and variant. Each instance is compiled in a file of its own
// (kernel_instance.cpp), so that they build in parallel and a thin program links a few of them only.
#pragma once

#include "core/numeric.h"
#include "cuda/kernel_config.h"
#include "cuda/kernel_params.h"

namespace lean::rehearsal {

struct KernelInstance {
  DType type;
  int head_dim;  // of the instance
  Variant variant;
  void (*run)(const KernelParams& params, char* shared);
};

// Null: this program does not hold that instance.
const KernelInstance* find_instance(DType type, int head_dim, Variant variant);
void add_instance(const KernelInstance& instance);

// The tile map of a batch that does not fit into shared memory.
struct TileMapInstance {
  int threads;
  int shared_bytes;
  void (*run)(const KernelParams& params, char* shared);
};
extern TileMapInstance tile_map_instance;

}  // namespace lean::rehearsal
