// Streams of a CUDA device.
#pragma once

#include <memory>

#include "../runtime/stream.h"

namespace lean::cuda {

std::shared_ptr<Stream> create_stream(int device, int num_processors);

}  // namespace lean::cuda
