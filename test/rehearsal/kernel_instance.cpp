// One instance file of the kernels under rehearsal: LEAN_TYPE and LEAN_HEAD_DIM name it, all variants are in it.
#include <type_traits>

#include "kernel_instances.h"

#include "cuda/decode_kernel.h"
#include "cuda/tile_map.h"

namespace lean::rehearsal {
namespace {

template <Variant kVariant>
using Kernel = DecodeKernel<LEAN_TYPE, LEAN_HEAD_DIM, kVariant>;

// `kSame` is compiled in the place of `kVariant`: variants are the same code for other architectures, unless they
// differ in who copies. Most of the rehearsal's time is the compiler's.
template <Variant kVariant, Variant kSame = kVariant>
void add() {
  static_assert(std::is_same_v<typename Kernel<kVariant>::K, typename Kernel<kSame>::K>);
  constexpr DType kType = std::is_same_v<LEAN_TYPE, Float16> ? DType::kF16 : DType::kBF16;
  add_instance({kType, LEAN_HEAD_DIM, kVariant,
                [](const KernelParams& params, char* shared) { Kernel<kSame>::run(params, shared); }});
}

[[maybe_unused]] const bool added = [] {
  add<Variant::kCompact, Variant::kAmpere>();
  add<Variant::kAmpere>();
  add<Variant::kHopper, Variant::kAmpere>();
  add<Variant::kHopperBulk>();
  tile_map_instance = {TileMapKernel::kThreads, TileMapKernel::kSharedBytes,
                       [](const KernelParams& params, char* shared) { TileMapKernel::run(params, shared); }};
  return true;
}();

}  // namespace
}  // namespace lean::rehearsal
