// What the machine can find wrong with a kernel, and how it says so.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace lean::rehearsal {

enum class Fault {
  kDivergence,      // a warp's lanes met a collective at different lines, or after one of them had ended
  kBarrier,         // a named barrier with changing counts, arrived at twice, or over-arrived
  kMbarrier,        // an mbarrier that is not initialised, not fenced, over-arrived, or told the wrong bytes
  kDeadlock,        // nothing can run, nothing has ended
  kLivelock,        // far more steps than any kernel needs: somebody polls in vain
  kInFlight,        // bytes of an asynchronous copy touched before the wait that delivers them
  kUnfinishedCopy,  // a CTA ended with copies under way
  kOutOfBounds,     // an access outside every buffer, or into the red zone of one
  kReadOnly,        // a write into an input
  kAlignment,       // a vector access or copy that is not aligned
  kArgument,        // an instruction's operand that the hardware does not take
  kRace,            // two accesses, one of them a write, that nothing orders
  kUninitialised,   // a read of bytes that nobody wrote
  kProxyFence,      // generic and asynchronous proxies met without fence.proxy.async
  kNonCoherent,     // a non-coherent load of bytes written in the same launch
};

const char* fault_name(Fault fault);

// Thrown out of launch(): the first fault of the launch, with who, where and what.
class Failure : public std::runtime_error {
 public:
  Failure(Fault fault, const std::string& text) : std::runtime_error(text), fault_(fault) {}
  Fault fault() const { return fault_; }

 private:
  Fault fault_;
};

// A line of the kernel, as the primitives' default arguments catch it.
using Site = std::source_location;

std::string describe(const Site& site);  // "tile.h:123"

}  // namespace lean::rehearsal
