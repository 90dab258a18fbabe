// The roofline on a GPU: a kernel that reads memory and does nothing else. No kernel that reads these bytes can beat
// it.
#pragma once

#include <cstddef>

#include "instances.h"
#include "primitives.h"

namespace lean {

struct ReadKernel {
  using Params = ReadCall;
  static constexpr int kThreads = kReadThreads;
  static constexpr int kCtasPerSm = kReadCtasPerSm;
  static_assert(kThreads * kCtasPerSm <= 1536,
                "The grid is as many CTAs as run at once: some architectures' SMs hold 1536 threads");
  static constexpr int kSharedBytes = 0;
  static constexpr int kInFlight = 8;  // loads of 16 bytes a thread

  LEAN_DEVICE static void run(const Params& params, char*) {
    const size_t stride = static_cast<size_t>(num_ctas_x()) * num_threads();
    const Float4* const data = static_cast<const Float4*>(params.data);
    float sum = 0;  // keeps the compiler from dropping the loads
    for (size_t i = static_cast<size_t>(cta_index_x()) * num_threads() + thread_index(); i < params.count;
         i += kInFlight * stride) {
      Float4 values[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        values[j] = i + j * stride < params.count ? load_global(data + i + j * stride) : Float4{0, 0, 0, 0};
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) sum += values[j].x + values[j].y + values[j].z + values[j].w;
    }
    if (sum == 1.2345678e33f) store_global(static_cast<float*>(params.sink), sum);
  }
};

}  // namespace lean
