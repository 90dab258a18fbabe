// The tile code: one warp attends to one step of tokens for one M tile of 16 query rows, all in registers.
//
//   scores (16 x step) = Q K^T      mma; K rows come from shared memory as the B operand
//   p = 2^(scores - m)              online softmax, m the running maximum of a row
//   acc (16 x head_dim) += p V      mma; p becomes the A operand without leaving the registers
//
// Lane t holds rows g = t / 4 and g + 8 of the M tile (index half = 0, 1 below), the columns as the mma wants them.
#pragma once

#include "../core/decode_params.h"
#include "../core/softmax_state.h"
#include "output.h"
#include "traits.h"

namespace lean {

template <class K>
class RowTile {
 public:
  using Element = typename K::Element;
  static constexpr int kDimPairs = K::kHeadDim / 16;  // blocks of 16 dims
  static constexpr int kBlocks = kStepTokens / 16;    // blocks of 16 tokens

  // Takes the query rows [16 m_tile, …) of a row block. Past its rows the first one is taken again: nobody reads what
  // becomes of it.
  LEAN_DEVICE void take_rows(const DecodeParams& decode, const RowBlock& block, int m_tile) {
    scale_ = decode.scale * kLog2E;
    second_half_ = m_tile * kMmaRows + 8 < block.count;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!has(half)) continue;
      const int32_t block_row = m_tile * kMmaRows + half * 8 + lane_index() / 4;
      const QueryRow row = lean::query_row(block.query_len, block.group_size, 0,
                                           block.first + (block_row < block.count ? block_row : 0));
      query_[half] = row.query;
      offset_[half] = query_offset(decode, 0, row) + 2 * (lane_index() % 4);
    }
  }

  // Loads the query rows of a segment. Beside the states of the segment before, which stay until clear(). All computing
  // threads, none of which attends; collective.
  LEAN_DEVICE void load_query(const DecodeParams& decode, const RowBlock& block, const Segment& segment,
                              int32_t context_length, int m_tile, const SharedMemory<K>& shared) {
    all_visible_ = visible_tokens(decode, context_length, 0);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (has(half)) visible_[half] = visible_tokens(decode, context_length, query_[half]);
    const int64_t first =
        query_offset(decode, segment.sequence, {0, block.team.kv_head(segment.kv_head) * block.group_size});
    char* const shared_tile = shared.query() + m_tile * kMmaRows * K::kPitch;
    if (decode.q_type == DType::kF32)
      load_rows<float>(decode, first, shared_tile, m_tile);
    else
      load_rows<uint16_t>(decode, first, shared_tile, m_tile);
    if constexpr (K::kQueryInShared) {
      const int lane = opaque(lane_index());
      query_rows_ = shared_address(shared_tile) + lane % 16 * K::kPitch + lane / 16 * 16;
      sync_named(K::kComputeBarrier, compute_threads(shared.config));
    }
  }

  // Empties the states: nothing attended to yet.
  LEAN_DEVICE void clear() {
#pragma unroll
    for (int half = 0; half < 2; ++half) state_[half] = SoftmaxState{};
#pragma unroll
    for (int i = 0; i < 2 * kDimPairs; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) acc_[i][j] = 0.0f;
  }

  // Attends to tokens [token, token + kStepTokens), whose rows begin at `k_rows` and `v_rows`. Collective.
  LEAN_DEVICE void attend(SharedAddress k_rows, SharedAddress v_rows, int32_t token) {
    float scores[2 * kBlocks][4];
    multiply_keys(scores, k_rows);
    if (token + kStepTokens > all_visible_) hide(scores, token);
    raise_maxima(scores);
    uint32_t weights[kBlocks][4];
    exponentiate(scores, weights);
    multiply_values(weights, v_rows);
  }

  // Completes the states of the lane's rows: their l is summed over the four lanes that share a row. Collective.
  LEAN_DEVICE void end() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      state_[half].l += shuffle_xor(state_[half].l, 1);
      state_[half].l += shuffle_xor(state_[half].l, 2);
    }
  }

  LEAN_DEVICE SoftmaxState state(int half) const { return state_[half]; }

  // Whether any of the warp's query rows is of this half of the M tile.
  LEAN_DEVICE bool has(int half) const { return half == 0 || second_half_; }

  // acc of row half * 8 + lane / 4, dims 8 * block + 2 (lane % 4) and the next.
  LEAN_DEVICE Float2 acc(int block, int half) const { return {acc_[block][2 * half], acc_[block][2 * half + 1]}; }

 private:
  // Two neighbouring query elements as a register of the A operand; float32 queries are rounded to K's type.
  LEAN_DEVICE static uint32_t load_pair(const uint16_t* pair) { return *reinterpret_cast<const uint32_t*>(pair); }
  LEAN_DEVICE static uint32_t load_pair(const float* pair) {
    const Float2 both = *reinterpret_cast<const Float2*>(pair);
    return pack_pair<Element>(both.x, both.y);
  }

  // The lane's part of the query rows, whose output tile's first one begins at element `first` of q; zeros past the
  // tensors' head dim.
  template <class Stored>
  LEAN_DEVICE void load_rows(const DecodeParams& decode, int64_t first, char* shared_tile, int m_tile) {
    const bool writes = warp_index() == m_tile;  // one of the warps that share this M tile, where they share its rows
    const int lane = opaque(lane_index());
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Stored* const row = static_cast<const Stored*>(decode.q) + first + offset_[half];
      const int32_t dims = has(half) ? decode.head_dim : 0;
#pragma unroll
      for (int i = 0; i < 2 * kDimPairs; ++i) {
        const uint32_t pair = i * 8 < dims ? load_pair(row + i * 8) : 0;
        if constexpr (!K::kQueryInShared)
          q_[i / 2][i % 2 * 2 + half] = pair;
        else if (writes)
          *reinterpret_cast<uint32_t*>(shared_tile + (half * 8 + lane / 4) * K::kPitch + i * 16 + lane % 4 * 4) = pair;
      }
    }
  }

  LEAN_DEVICE void multiply_keys(float (&scores)[2 * kBlocks][4], SharedAddress k_rows) {
    // Matrices of one ldmatrix: tokens 0-7 x dims 0-7, tokens 0-7 x dims 8-15, then tokens 8-15 likewise.
    const int lane = lane_index();
    const SharedAddress lane_row = k_rows + (lane / 16 * 8 + lane % 8) * K::kPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int i = 0; i < 2 * kBlocks; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[i][j] = 0.0f;
#pragma unroll
    for (int d = 0; d < kDimPairs; ++d) {
      uint32_t(&query)[4] = q_[K::kQueryInShared ? 0 : d];
      // Matrices: rows 0-7 x dims 0-7, rows 8-15 x dims 0-7, then dims 8-15 likewise.
      if constexpr (K::kQueryInShared) load_matrices(query, query_rows_ + d * 32);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        uint32_t keys[4];
        load_matrices(keys, lane_row + b * 16 * K::kPitch + d * 32);
        multiply_accumulate<Element>(scores[2 * b], query, keys[0], keys[1]);
        multiply_accumulate<Element>(scores[2 * b + 1], query, keys[2], keys[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kBlocks; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[i][j] *= scale_;
  }

  // Takes out what a row does not see: past the context, or later than its query.
  LEAN_DEVICE void hide(float (&scores)[2 * kBlocks][4], int32_t token) const {
    const int32_t lane_token = token + 2 * (lane_index() % 4);
#pragma unroll
    for (int i = 0; i < 2 * kBlocks; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (lane_token + i * 8 + j % 2 >= visible_[j / 2]) scores[i][j] = kNegInf;
  }

  // Raises each row's maximum to what the new scores need; if none rises in the whole warp, nothing is rescaled.
  LEAN_DEVICE void raise_maxima(const float (&scores)[2 * kBlocks][4]) {
    float risen[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float m = state_[half].m;
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i) m = fmaxf(m, fmaxf(scores[i][2 * half], scores[i][2 * half + 1]));
      m = fmaxf(m, shuffle_xor(m, 1));
      risen[half] = fmaxf(m, shuffle_xor(m, 2));
    }
    if (!any_lane(risen[0] > state_[0].m || risen[1] > state_[1].m)) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = weight_of(state_[half].m, risen[half]);
      state_[half] = {risen[half], state_[half].l * factor};
#pragma unroll
      for (int i = 0; i < 2 * kDimPairs; ++i) {
        acc_[i][2 * half] *= factor;
        acc_[i][2 * half + 1] *= factor;
      }
    }
  }

  // scores -> softmax weights, rounded and laid out as the A operand: a lane's scores of two neighbouring blocks of 8
  // tokens are exactly what it must hold of 16 columns of A.
  LEAN_DEVICE void exponentiate(float (&scores)[2 * kBlocks][4], uint32_t (&weights)[kBlocks][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float m = safe_max(state_[half].m);
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i) {
        const float first = exp2_approx(scores[i][2 * half] - m);
        const float second = exp2_approx(scores[i][2 * half + 1] - m);
        state_[half].l += first + second;
        weights[i / 2][i % 2 * 2 + half] = pack_pair<Element>(first, second);
      }
    }
  }

  LEAN_DEVICE void multiply_values(const uint32_t (&weights)[kBlocks][4], SharedAddress v_rows) {
    // Matrices of one transposing ldmatrix: tokens 0-7 x dims 0-7, tokens 8-15 x dims 0-7, then dims 8-15 likewise.
    const int lane = lane_index();
    const SharedAddress lane_row = v_rows + lane % 16 * K::kPitch + lane / 16 * 16;
#pragma unroll
    for (int d = 0; d < kDimPairs; ++d) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        uint32_t values[4];
        load_matrices_transposed(values, lane_row + b * 16 * K::kPitch + d * 32);
        multiply_accumulate<Element>(acc_[2 * d], weights[b], values[0], values[1]);
        multiply_accumulate<Element>(acc_[2 * d + 1], weights[b], values[2], values[3]);
      }
    }
  }

  uint32_t q_[K::kQueryInShared ? 1 : kDimPairs][4];  // the A operand, block of dims by block
  SharedAddress query_rows_;                          // or where the lane finds it
  bool second_half_ = false;
  int64_t offset_[2] = {};  // where the lane's part of a row begins in q, from the output tile's first row on
  int32_t query_[2] = {};   // which query of its sequence a row is
  float acc_[2 * kDimPairs][4];
  SoftmaxState state_[2];
  int32_t visible_[2] = {};  // tokens that the lane's rows see
  int32_t all_visible_;      // tokens that every row sees
  float scale_;              // softmax scale, in base 2
};

}  // namespace lean
