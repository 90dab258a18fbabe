// One instance file of the kernels under rehearsal: LEAN_TYPE and LEAN_HEAD_DIM name it, all variants are in it.
#include "kernel_instances.h"

#include "cuda/decode_kernel.h"
#include "cuda/tile_map.h"

namespace lean::rehearsal {
namespace {

template <Variant kVariant>
void add() {
  using Kernel = DecodeKernel<LEAN_TYPE, LEAN_HEAD_DIM, kVariant>;
  constexpr DType kType = std::is_same_v<LEAN_TYPE, Float16> ? DType::kF16 : DType::kBF16;
  add_instance(
      {kType, LEAN_HEAD_DIM, kVariant, [](const KernelParams& params, char* shared) { Kernel::run(params, shared); }});
}

[[maybe_unused]] const bool added = [] {
  add<Variant::kCompact>();
  add<Variant::kAmpere>();
  add<Variant::kHopper>();
  add<Variant::kHopperBulk>();
  tile_map_instance = {TileMapKernel::kThreads, TileMapKernel::kSharedBytes,
                       [](const KernelParams& params, char* shared) { TileMapKernel::run(params, shared); }};
  return true;
}();

}  // namespace
}  // namespace lean::rehearsal
