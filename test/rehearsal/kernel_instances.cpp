#include "kernel_instances.h"

#include <deque>

namespace lean::rehearsal {

namespace {

// Filled by the instance files before main(); addresses stay, because launches name instances by them.
std::deque<KernelInstance>& instances() {
  static std::deque<KernelInstance> all;
  return all;
}

}  // namespace

TileMapInstance tile_map_instance{};

void add_instance(const KernelInstance& instance) { instances().push_back(instance); }

const KernelInstance* find_instance(DType type, int head_dim, Variant variant) {
  for (const KernelInstance& i : instances())
    if (i.type == type && i.head_dim == head_dim && i.variant == variant) return &i;
  return nullptr;
}

}  // namespace lean::rehearsal
