// The streams of a CUDA device, and how the device's own calls wait for them.
#pragma once

#include <memory>
#include <vector>

#include "../runtime/stream.h"
#include "cuda_api.h"

namespace lean::cuda {

class CudaStream;

// Belongs to the thread that its streams belong to.
class StreamSet {
 public:
  std::shared_ptr<Stream> create(int device, int num_processors);

  // Makes `stream` wait for everything that has been enqueued so far, without waiting for it here: pages that are
  // given to somebody else, or memory that is overwritten, may be in use by work that has not run yet.
  void join_into(api::Stream stream);

 private:
  std::vector<std::weak_ptr<CudaStream>> streams_;
};

}  // namespace lean::cuda
