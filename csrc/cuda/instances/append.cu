#include "../append_kernel.h"

#include "../instances.h"
#include "../kernel_entry.h"

namespace lean {

static_assert(AppendKernel::kThreads == kAppendThreads && AppendKernel::kSharedBytes == kAppendSharedBytes &&
              PageCopyKernel::kThreads == kAppendThreads);

const void* append_kernel() { return reinterpret_cast<const void*>(&kernel_entry<AppendKernel>); }
const void* page_copy_kernel() { return reinterpret_cast<const void*>(&kernel_entry<PageCopyKernel>); }

}  // namespace lean
