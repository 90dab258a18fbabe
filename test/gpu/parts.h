// The parts of the GPU runner; each returns how many of its checks failed.
#pragma once

namespace lean::gpu {

int test_primitives();                // every primitive does what csrc/cuda/primitives.h says
int test_cases(int every, int only);  // the registry of decode cases, against float64
void time_decode(bool quick);         // prints a table; there is nothing to fail

}  // namespace lean::gpu
