// The parts of the GPU runner; each returns how many of its checks failed.
#pragma once

#include "runtime/plan.h"

namespace lean::gpu {

int test_primitives();                // every primitive does what csrc/cuda/primitives.h says
int test_cases(int every, int only);  // the registry of decode cases, against float64
// Prints a table; there is nothing to fail. `choice` is what the launches choose, but for the copy path.
void time_decode(bool quick, const LaunchOptions& choice);

}  // namespace lean::gpu
