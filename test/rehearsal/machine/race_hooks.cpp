// What -fsanitize=thread makes the compiler call at every access, defined for the race checker (see race.h).
// Not linked with ThreadSanitizer's runtime, whose names these are.
#include <cstddef>
#include <cstring>

#include "machine.h"

namespace {

inline void plain(const void* address, size_t bytes, bool write, const void* program_counter) {
  using lean::rehearsal::machine;
  if (machine && machine->races()) machine->races()->plain_access(address, bytes, write, program_counter);
}

}  // namespace

#define LEAN_HOOK(name, bytes, write) \
  void name(void* address) { plain(address, bytes, write, __builtin_return_address(0)); }

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

LEAN_HOOK(__tsan_read1, 1, false)
LEAN_HOOK(__tsan_read2, 2, false)
LEAN_HOOK(__tsan_read4, 4, false)
LEAN_HOOK(__tsan_read8, 8, false)
LEAN_HOOK(__tsan_read16, 16, false)
LEAN_HOOK(__tsan_write1, 1, true)
LEAN_HOOK(__tsan_write2, 2, true)
LEAN_HOOK(__tsan_write4, 4, true)
LEAN_HOOK(__tsan_write8, 8, true)
LEAN_HOOK(__tsan_write16, 16, true)
LEAN_HOOK(__tsan_unaligned_read2, 2, false)
LEAN_HOOK(__tsan_unaligned_read4, 4, false)
LEAN_HOOK(__tsan_unaligned_read8, 8, false)
LEAN_HOOK(__tsan_unaligned_read16, 16, false)
LEAN_HOOK(__tsan_unaligned_write2, 2, true)
LEAN_HOOK(__tsan_unaligned_write4, 4, true)
LEAN_HOOK(__tsan_unaligned_write8, 8, true)
LEAN_HOOK(__tsan_unaligned_write16, 16, true)
LEAN_HOOK(__tsan_volatile_read4, 4, false)
LEAN_HOOK(__tsan_volatile_read8, 8, false)
LEAN_HOOK(__tsan_volatile_write4, 4, true)
LEAN_HOOK(__tsan_volatile_write8, 8, true)

void __tsan_read_range(void* address, size_t bytes) { plain(address, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* address, size_t bytes) { plain(address, bytes, true, __builtin_return_address(0)); }

// Newer compilers call these for memory functions; older ones call the functions themselves.
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  plain(from, bytes, false, __builtin_return_address(0));
  plain(to, bytes, true, __builtin_return_address(0));
  return memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  plain(to, bytes, true, __builtin_return_address(0));
  return memset(to, value, bytes);
}

}  // extern "C"
