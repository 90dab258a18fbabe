// Element type conversion, rounding to nearest even.
#pragma once

#include <cstddef>

#include "../core/numeric.h"

namespace lean {

// Both hold `count` contiguous elements and do not overlap.
void convert(const void* source, DType source_type, void* target, DType target_type, size_t count);

}  // namespace lean
