// Fibers: cooperative threads of control, so that thousands of CUDA threads run on one thread of the host.
//
// A switch on x86-64 is a dozen instructions: save what the calling convention makes the callee keep, swap stacks,
// restore. Elsewhere ucontext does the same, slower. AddressSanitizer is told of every switch, else it takes the new
// stack for an overflow of the old one.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

// LEAN_REHEARSAL_UCONTEXT asks for the portable way on x86-64 too.
#if !defined(__x86_64__) || defined(LEAN_REHEARSAL_UCONTEXT)
#define LEAN_REHEARSAL_PORTABLE_SWITCH
#include <ucontext.h>
#endif

namespace lean::rehearsal {

struct Fiber {
#if !defined(LEAN_REHEARSAL_PORTABLE_SWITCH)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  std::byte* stack = nullptr;  // null: the fiber is the host thread's own stack
  size_t stack_bytes = 0;
};

// Prepares `fiber` to call `entry` on its stack at the first switch to it. `entry` must never return. A fiber that was
// left in the middle of its work may be prepared anew: what its frames held is dropped without destructors.
void prepare(Fiber& fiber, void (*entry)());

// Leaves `from`, whose place is kept, and goes on where `to` was left.
void switch_fiber(Fiber& from, Fiber& to);

// The first thing that `entry` calls.
void fiber_entered();

// Stacks for many fibers: one mapping, a guard page under each. The stacks' tops are coloured: were all of them equal
// modulo a power of two, the hot frames of all fibers would share a handful of cache sets.
class StackPool {
 public:
  StackPool() = default;
  ~StackPool();
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  // Gives `fiber` stack number `index`; the pool grows as asked and never moves a stack.
  void assign(Fiber& fiber, size_t index);

 private:
  void grow();
  std::vector<std::byte*> slabs_;
};

}  // namespace lean::rehearsal
