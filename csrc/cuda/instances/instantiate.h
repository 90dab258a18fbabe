// What an instance file needs: with `template struct DecodeInstances<T, head_dim>;` it holds all variants of that
// kernel.
#pragma once

#include "../instances.h"
#include "../kernel_entry.h"

namespace lean {

template <class T, int kHeadDim>
const void* DecodeInstances<T, kHeadDim>::kernel(Variant variant) {
  switch (variant) {
    case Variant::kCompact:
      return reinterpret_cast<const void*>(&kernel_entry<DecodeKernel<T, kHeadDim, Variant::kCompact>>);
    case Variant::kAmpere:
      return reinterpret_cast<const void*>(&kernel_entry<DecodeKernel<T, kHeadDim, Variant::kAmpere>>);
    case Variant::kHopper:
      return reinterpret_cast<const void*>(&kernel_entry<DecodeKernel<T, kHeadDim, Variant::kHopper>>);
    case Variant::kHopperBulk:
      return reinterpret_cast<const void*>(&kernel_entry<DecodeKernel<T, kHeadDim, Variant::kHopperBulk>>);
  }
  return nullptr;
}

}  // namespace lean
