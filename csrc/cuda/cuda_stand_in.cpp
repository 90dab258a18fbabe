// Stands in for the CUDA backend in an addon that was built without it.
#include "../runtime/error.h"
#include "cuda_backend.h"

namespace lean::cuda {

CudaStatus cuda_status() {
  return {false,
          "this build of lean-attention holds no CUDA kernels yet (the CUDA toolkit was " LEAN_ATTENTION_NVCC
          " when it was built); use the device 'cpu'",
          {}};
}

std::shared_ptr<Backend> open_cuda(int) {
  throw Error(ErrorCode::kCudaUnavailable, "No CUDA device: " + cuda_status().reason);
}

}  // namespace lean::cuda
