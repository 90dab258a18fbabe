#include "../read_kernel.h"

#include "../kernel_entry.h"

namespace lean {

const void* read_kernel() { return reinterpret_cast<const void*>(&kernel_entry<ReadKernel>); }

}  // namespace lean
