#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace lean::rehearsal {

namespace {

// AddressSanitizer widens frames by red zones.
#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr size_t kPageBytes = 4096;
constexpr size_t kColours = 61;
constexpr size_t kColourBytes = 192;
constexpr size_t kStride = kStackBytes + kColours * kColourBytes / kPageBytes * kPageBytes + 2 * kPageBytes;
constexpr size_t kStacksPerSlab = 256;

}  // namespace

StackPool::~StackPool() {
  for (std::byte* slab : slabs_) munmap(slab, kStride * kStacksPerSlab);
}

void StackPool::grow() {
  void* slab = mmap(nullptr, kStride * kStacksPerSlab, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (slab == MAP_FAILED) throw std::bad_alloc();
  slabs_.push_back(static_cast<std::byte*>(slab));
  for (size_t i = 0; i < kStacksPerSlab; ++i) mprotect(slabs_.back() + i * kStride, kPageBytes, PROT_NONE);
}

void StackPool::assign(Fiber& fiber, size_t index) {
  while (index >= slabs_.size() * kStacksPerSlab) grow();
  fiber.stack = slabs_[index / kStacksPerSlab] + index % kStacksPerSlab * kStride + kPageBytes;
  fiber.stack_bytes = kStride - kPageBytes - index % kColours * kColourBytes;
}

#if !defined(LEAN_REHEARSAL_PORTABLE_SWITCH)

// void lean_rehearsal_switch(void** save_stack_pointer, void* load_stack_pointer)
extern "C" void lean_rehearsal_switch(void** save, void* load);
asm(R"(
.text
.globl lean_rehearsal_switch
.type lean_rehearsal_switch,@function
lean_rehearsal_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lean_rehearsal_switch,.-lean_rehearsal_switch
)");

void prepare(Fiber& fiber, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, fiber.stack_bytes);  // frames that were abandoned left red zones behind
#endif
  // As if `entry` had been called: at its first instruction the stack is 8 off a multiple of 16.
  auto top = reinterpret_cast<uintptr_t>(fiber.stack + fiber.stack_bytes) & ~uintptr_t{15};
  auto* words = reinterpret_cast<void**>(top) - 8;
  memset(words, 0, 8 * sizeof(void*));
  words[6] = reinterpret_cast<void*>(entry);  // popped by `ret` after six registers
  fiber.stack_pointer = words;
}

static void swap_context(Fiber& from, Fiber& to) { lean_rehearsal_switch(&from.stack_pointer, to.stack_pointer); }

#else

void prepare(Fiber& fiber, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, fiber.stack_bytes);
#endif
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

static void swap_context(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

#if defined(__SANITIZE_ADDRESS__)

namespace {
// The host thread's own stack, learnt at the first switch away from it.
const void* host_stack = nullptr;
size_t host_stack_bytes = 0;
}  // namespace

void switch_fiber(Fiber& from, Fiber& to) {
  void* fake_stack = nullptr;
  const void* bottom = to.stack ? to.stack : host_stack;
  const size_t bytes = to.stack ? to.stack_bytes : host_stack_bytes;
  __sanitizer_start_switch_fiber(&fake_stack, bottom, bytes);
  swap_context(from, to);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void fiber_entered() {
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!host_stack) host_stack = bottom, host_stack_bytes = bytes;  // the first switch comes from the host's stack
}

#else

void switch_fiber(Fiber& from, Fiber& to) { swap_context(from, to); }
void fiber_entered() {}

#endif

}  // namespace lean::rehearsal
