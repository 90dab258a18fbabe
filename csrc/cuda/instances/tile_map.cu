#include "../instances.h"
#include "../kernel_entry.h"

namespace lean {

static_assert(TileMapKernel::kThreads == kTileMapThreads && TileMapKernel::kSharedBytes == kTileMapSharedBytes);

const void* tile_map_kernel() { return reinterpret_cast<const void*>(&kernel_entry<TileMapKernel>); }

}  // namespace lean
