// The one generic __global__ function: any kernel functor (Params, kThreads at most, kCtasPerSm of these, run) behind
// it. Only for nvcc: elsewhere the functors are run as they are.
//
// From sm_90 on a kernel's CTAs may come to the GPU while the kernel before it in its stream still runs, and wait until
// that is over (programmatic dependent launch): a launch and its CTAs' start then take no time of their own. Every
// kernel waits before anything else, so that the end of one means the end of all before it; the host launches in
// this way what was compiled so (cuda_api.cpp).
#pragma once

#include "decode_kernel.h"

namespace lean {

#if defined(__CUDA_ARCH__)
inline constexpr int kTargetArchitecture = __CUDA_ARCH__ / 10;
#else
inline constexpr int kTargetArchitecture = 0;  // the host's pass over this file: no machine code comes of it
#endif

// Variants for other architectures are compiled as empty bodies; the host never launches those (see compiled_for).
template <class Kernel>
inline constexpr bool kIsCompiled = true;
template <class T, int kHeadDim, Variant kVariant>
inline constexpr bool kIsCompiled<DecodeKernel<T, kHeadDim, kVariant>> = compiled_for(kVariant, kTargetArchitecture);

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kCtasPerSm)
    kernel_entry(const __grid_constant__ typename Kernel::Params params) {
  extern __shared__ __align__(128) char shared[];
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  if constexpr (kIsCompiled<Kernel>) Kernel::run(params, shared);
}

}  // namespace lean
