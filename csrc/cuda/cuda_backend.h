// What the rest of the library sees of CUDA. cuda_stand_in.cpp answers when the addon was built without it, so that no
// other file knows a build flag.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../runtime/backend.h"

namespace lean::cuda {

struct CudaDevice {
  int index;
  std::string name;
  std::string compute_capability;
  size_t memory_bytes;
  size_t l2_bytes;
  std::string reason;   // why it cannot be used, and what to do; empty when it can
  std::string problem;  // the same for programs
};

struct CudaStatus {
  bool built;           // this addon holds CUDA kernels
  std::string reason;   // why no device can be used, and what to do; empty when one can
  std::string problem;  // the same for programs, as lib/errors.ts names it
  std::vector<CudaDevice> devices;
};

CudaStatus cuda_status();

// Throws Error(kCudaUnavailable) with the reason.
std::shared_ptr<Backend> open_cuda(int index);

}  // namespace lean::cuda
