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

// Scores of a row; those computed along past the last token are dropped.
inline constexpr int32_t kScoreStride = kTileTokens + kPadding;

inline int32_t padded(int32_t head_dim) { return (head_dim + kPadding - 1) / kPadding * kPadding; }

// Scores are computed for whole blocks of tokens, of four at most: K has rows past its last, any that may be read.
inline constexpr int32_t kMaxTokenBlock = 4;
inline constexpr int32_t kTailRows = kMaxTokenBlock - 1;

// Where the tokens of a LeanTile lie: the address of each token's K and V, of the first KV head that is folded.
struct TileRows {
  const char* k[kTileTokens + kTailRows];
  const char* v[kTileTokens];
  int32_t count = 0;
};

// Folds the tokens of one LeanTile into the softmax states of all rows of a bundle: one output tile, or several whose
// KV heads lie side by side in memory, which are then read as one stream.
struct TileFold {
  const char* const* k_rows;   // [count + kTailRows] as in TileRows; head h of the bundle starts h x head_bytes further
  const char* const* v_rows;   // [count]
  const char* const* k_ahead;  // [count + kTailRows] rows to prefetch while K is read: the stream a fixed way ahead
  const char* const* v_ahead;  // [count] the same while V is read
  int32_t count;               // tokens, 1 to kTileTokens
  int32_t heads;
  int64_t head_bytes;  // K (or V) of one token and head
  int32_t rows;        // of one head
  int32_t head_dim;
  const int32_t* visible;  // [rows] tokens of this tile that each row sees; null: all of them
  float scale;             // softmax scale x log2(e)
  const float* q;          // [heads, rows, padded(head_dim)]
  float* scores;           // [heads, rows, kScoreStride] scratch
  SoftmaxState* states;    // [heads, rows]
  float* acc;              // [heads, rows, padded(head_dim)] weights x V of all tokens but the most recent
  float* recent;           // [heads, rows, padded(head_dim)] of the most recent, to which this tile's are added
};

// What an instruction set has for one element type.
struct TileFunctions {
  void (*fold)(const TileFold&);
  void (*widen)(const void* row, int32_t head_dim, float* out);  // to float32; out is padded(head_dim) long
};

struct TileCode {
  const char* name;
  bool (*supported)();  // whether this machine can run it
  TileFunctions f32;
  TileFunctions f16;
  TileFunctions bf16;
  int32_t prefetch_bytes;                        // how far ahead memory is prefetched
  void (*read)(const void* bytes, size_t size);  // loads every byte once: the roofline

  const TileFunctions& of(DType type) const { return type == DType::kF32 ? f32 : type == DType::kF16 ? f16 : bf16; }
};

extern const TileCode kAvx512Tile;
extern const TileCode kAvx2Tile;
extern const TileCode kPortableTile;

}  // namespace lean::cpu
