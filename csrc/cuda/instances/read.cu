#include "../read_kernel.h"

#include "../instances.h"
#include "../kernel_entry.h"

namespace lean {

static_assert(ReadKernel::kThreads == kReadThreads && ReadKernel::kCtasPerSm == kReadCtasPerSm);

const void* read_kernel() { return reinterpret_cast<const void*>(&kernel_entry<ReadKernel>); }

}  // namespace lean
