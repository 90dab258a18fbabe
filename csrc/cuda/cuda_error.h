// Every CUDA call is checked: a failure becomes the project's one exception.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <string>

#include "../runtime/error.h"

namespace lean {

inline void check_cuda(cudaError_t status, const char* what,
                       std::source_location where = std::source_location::current()) {
  if (status == cudaSuccess) return;
  const ErrorCode code = status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kDeviceLost;
  throw Error(code, std::string(what) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")",
              where);
}

}  // namespace lean
