// Stands in for the CUDA backend in an addon that was built without it.
#include "../runtime/error.h"
#include "cuda_backend.h"

namespace lean::cuda {

CudaStatus cuda_status() {
  return {false, "this build of lean-attention holds no CUDA kernels: " LEAN_ATTENTION_WHY, "not-built", {}};
}

std::shared_ptr<Backend> open_cuda(int) {
  throw Error(ErrorCode::kCudaUnavailable, "No CUDA device: " + cuda_status().reason).because("not-built");
}

}  // namespace lean::cuda
