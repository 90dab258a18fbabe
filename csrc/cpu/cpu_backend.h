// The CPU backend: the schedule's workers as tasks of a thread pool.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../runtime/backend.h"

namespace lean::cpu {

// Instruction sets that this machine can run, best first: "avx512", "avx2", "portable".
std::vector<std::string> instruction_sets();

// `threads` 0: one for each processor that this process may use. `instruction_set` empty: the best.
std::shared_ptr<Backend> open_cpu(int threads, const std::string& instruction_set);

}  // namespace lean::cpu
