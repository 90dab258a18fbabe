// One case under rehearsal: several launches on one workspace, under several dispatches, and what must hold of them.
#pragma once

#include <string>
#include <vector>

#include "cases.h"
#include "machine/machine.h"
#include "reference.h"

namespace lean::rehearsal {

struct Outcome {
  std::string failure;   // empty: all is well
  bool skipped = false;  // this program does not hold the case's instance
  int launches = 0;
  Counters counters;  // of all launches
};

// Launches the case's first lengths, the next lengths, and the first lengths again, all on one workspace whose counters
// nobody resets, each under another dispatch drawn from `seed`. Holds, beside what the machine watches:
//   - every result within the contract's bounds, and nothing but results written
//   - the third launch's bits equal to the first's
//   - every byte of K and V that a context reaches copied exactly Case::reads() times, and no other
//   - no replay by bank conflicts, no status reported, all counters back at 0
Outcome rehearse(const cases::Case& c, DeviceMemory& memory, uint64_t seed, bool check_races);

// One launch of the case's first lengths, unwatched: its result, and which slots of the first row block's workspace
// were written. They show where the kernel has cut.
struct Launched {
  std::string failure;
  cases::Result result;
  std::vector<bool> slots;
};

Launched rehearse_once(const cases::Case& c, const cases::Tensors& tensors, const cases::Reference& expected,
                       DeviceMemory& memory, uint64_t seed);

}  // namespace lean::rehearsal
