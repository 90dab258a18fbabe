// Filling a KV cache on a CPU: rows converted, rotated and stored in their pages.
#pragma once

#include <cstdint>

#include "../core/append_params.h"
#include "tile.h"

namespace lean::cpu {

// Writes the rows [begin, end). Ranges of rows may be written at once, by different threads.
void append_rows(const AppendParams& params, const TileCode& tile, int32_t begin, int32_t end);

// Makes the copies within one block: K, or V, of one layer.
void copy_block(const PageCopyParams& params, int64_t block);

}  // namespace lean::cpu
