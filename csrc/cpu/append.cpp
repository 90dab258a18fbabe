#include "append.h"

#include <cstring>
#include <type_traits>

namespace lean::cpu {

namespace {

template <class T>
void store_row(const float* values, int32_t count, void* out) {
  T* row = static_cast<T*>(out);
  for (int32_t i = 0; i < count; ++i) row[i] = from_float<T>(values[i]);
}

void store(const float* values, int32_t count, DType type, void* out) {
  switch (type) {
    case DType::kF32:
      return store_row<float>(values, count, out);
    case DType::kF16:
      return store_row<Float16>(values, count, out);
    case DType::kBF16:
      return store_row<BFloat16>(values, count, out);
  }
}

// What a row's heads share: how far each pair turns at the row's position.
class RowRotation {
 public:
  explicit RowRotation(const AppendParams& params) : params_(params) {}

  void move_to(int32_t position) {
    for (int32_t i = 0; i < pairs(); ++i)
      rotations_[i] = rotation(position, params_.inverse_frequencies[i], params_.amplitude);
  }

  void apply(float* head) const {
    for (int32_t i = 0; i < pairs(); ++i) {
      const RotaryPair pair = rotary_pair(params_.pairing, params_.rotary_dims, i);
      rotate(rotations_[i], head[pair.first], head[pair.second]);
    }
  }

 private:
  int32_t pairs() const { return params_.rotary_dims / 2; }

  const AppendParams& params_;
  Rotation rotations_[kMaxHeadDim / 2];
};

// Heads of one row, from where the caller has them to where they belong.
struct HeadCopy {
  const void* from;
  DType from_type;
  int64_t from_stride;
  void* to;
  DType to_type;
  int64_t to_stride;
  int32_t heads;
  int32_t head_dim;
};

void copy_heads(const HeadCopy& copy, const TileCode& tile, const RowRotation* rotation) {
  const auto* from = static_cast<const char*>(copy.from);
  auto* to = static_cast<char*>(copy.to);
  const int64_t from_step = copy.from_stride * dtype_size(copy.from_type);
  const int64_t to_step = copy.to_stride * dtype_size(copy.to_type);
  float values[kMaxHeadDim];
  for (int32_t head = 0; head < copy.heads; ++head, from += from_step, to += to_step) {
    if (!rotation && copy.from_type == copy.to_type) {
      memmove(to, from, static_cast<size_t>(copy.head_dim * dtype_size(copy.to_type)));
      continue;
    }
    tile.of(copy.from_type).widen(from, copy.head_dim, values);
    if (rotation) rotation->apply(values);
    store(values, copy.head_dim, copy.to_type, to);
  }
}

template <class T>
T* offset(T* data, int64_t elements, DType type) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(data) + elements * dtype_size(type);
}

}  // namespace

void append_rows(const AppendParams& params, const TileCode& tile, int32_t begin, int32_t end) {
  RowRotation rotation(params);
  const RowRotation* rotates = params.inverse_frequencies ? &rotation : nullptr;
  for (int32_t row = begin; row < end; ++row) {
    const RowPlace where = row_place(params, row);
    if (where.slot < 0) continue;
    if (rotates) rotation.move_to(where.position);
    const int64_t at = slot_offset(params, where.slot);
    const auto place = [&](const void* from, const RowStrides& strides, DType type, void* pages) {
      return HeadCopy{offset(from, row * strides.row, type),
                      type,
                      strides.head,
                      offset(pages, at, params.kv_type),
                      params.kv_type,
                      params.cache_strides.head,
                      params.num_kv_heads,
                      params.head_dim};
    };
    copy_heads(place(params.k, params.k_strides, params.k_type, params.k_pages), tile, rotates);
    copy_heads(place(params.v, params.v_strides, params.v_type, params.v_pages), tile, nullptr);
    if (params.q)
      copy_heads({offset(params.q, row * params.q_strides.row, params.q_type), params.q_type, params.q_strides.head,
                  offset(params.q_out, row * params.q_out_strides.row, params.q_type), params.q_type,
                  params.q_out_strides.head, params.num_query_heads, params.head_dim},
                 tile, rotates);
  }
}

void copy_block(const PageCopyParams& params, int64_t block) {
  auto* pages = static_cast<char*>(params.memory) + block * params.block_bytes;
  for (int64_t i = 0; i < params.num_copies; ++i) {
    const PageCopy& copy = params.copies[i];
    memcpy(pages + copy.target * params.page_bytes, pages + copy.source * params.page_bytes,
           static_cast<size_t>(copy.tokens * params.token_bytes));
  }
}

}  // namespace lean::cpu
