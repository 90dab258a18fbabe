// Tile code: what the CPU computes for one LeanTile of one output tile, and which instruction set it is built for.
// No standard library header here: the files that include this are compiled for instruction sets that the machine may
// lack, and must not leave inline functions behind that other files could be linked to.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../core/decode_params.h"
#include "../core/softmax_state.h"

namespace lean::cpu {

// Context tokens of a LeanTile: K and V of one head then fit the L1 or L2 cache, and scores the L1.
inline constexpr int32_t kTileTokens = 64;

// Rows are padded so that every vector load of a query or an accumulator is whole.
inline constexpr int32_t kPadding = 16;

inline int32_t padded(int32_t head_dim) { return (head_dim + kPadding - 1) / kPadding * kPadding; }

// Where the tokens of a LeanTile lie: the address of each token's row for the first KV head of a bundle (see worker.h).
struct TileRows {
  const char* k[kTileTokens];
  const char* v[kTileTokens];
  int32_t count = 0;
};

// Walks memory that will be needed next, a few cache lines a step, in the order of its addresses: hardware prefetchers
// then help, which they do not when a head's rows are visited with gaps between them.
struct Prefetch {
  const char* const* rows;  // [num_rows] start of each row
  int32_t num_rows = 0;
  int32_t num_heads = 0;    // each row again at this many heads, head_stride bytes apart
  int64_t head_stride = 0;
  int32_t lines = 0;        // cache lines of a row
  int32_t lines_per_step = 0;
  int32_t row = 0, head = 0, line = 0;  // the cursor

  inline __attribute__((always_inline)) void step() {
    for (int32_t i = 0; i < lines_per_step; ++i) {
      if (head >= num_heads) return;
      __builtin_prefetch(rows[row] + head * head_stride + int64_t{line} * 64, 0, 2);
      if (++line < lines) continue;
      line = 0;
      if (++row < num_rows) continue;
      row = 0;
      ++head;
    }
  }
};

// Folds the tokens of one LeanTile into the softmax states of all rows of one output tile.
struct TileFold {
  const char* const* k_rows;  // [count] as in TileRows
  const char* const* v_rows;  // [count]
  int64_t k_offset;           // bytes from those addresses to this output tile's KV head
  int64_t v_offset;
  int32_t count;              // tokens, 1 to kTileTokens
  int32_t rows;
  int32_t head_dim;
  const int32_t* visible;     // [rows] tokens of this tile that each row sees; null: all of them
  float scale;                // softmax scale x log2(e)
  const float* q;             // [rows, padded(head_dim)]
  float* scores;              // [rows, kTileTokens] scratch
  SoftmaxState* states;       // [rows]
  float* acc;                 // [rows, padded(head_dim)]
  Prefetch* prefetch_k;       // stepped through the first and the second half of the fold
  Prefetch* prefetch_v;
};

// How often a fold of `count` tokens steps each of its prefetches.
inline constexpr int32_t kTokenBlock = 4;
inline int32_t prefetch_steps(int32_t count) { return (count + kTokenBlock - 1) / kTokenBlock; }

struct TileCode {
  const char* name;
  bool (*supported)();  // whether this machine can run it
  void (*fold_f32)(const TileFold&);
  void (*fold_f16)(const TileFold&);
  void (*fold_bf16)(const TileFold&);
  void (*read)(const void* bytes, size_t size);  // loads every byte once: the roofline

  void (*fold(DType type) const)(const TileFold&) {
    return type == DType::kF32 ? fold_f32 : type == DType::kF16 ? fold_f16 : fold_bf16;
  }
};

extern const TileCode kAvx512Tile;
extern const TileCode kAvx2Tile;
extern const TileCode kPortableTile;

}  // namespace lean::cpu
