#include "tensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/numeric.h"

namespace lean::cases {

namespace {

uint64_t mix(uint64_t z) {  // splitmix64's finaliser
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

enum Tensor : uint64_t { kQ, kK, kV };

// In [-1, 1), roughly normal around 0: the sum of three uniform numbers.
float value(Tensor tensor, int sequence, int64_t token, int head, int dim) {
  uint64_t z = mix(tensor + 3 * static_cast<uint64_t>(sequence));
  z = mix(z ^ static_cast<uint64_t>(token) << 20 ^ static_cast<uint64_t>(head) << 10 ^ static_cast<uint64_t>(dim));
  const double sum = static_cast<double>(z & 0xfffff) + static_cast<double>(z >> 20 & 0xfffff) +
                     static_cast<double>(z >> 40 & 0xfffff);
  return static_cast<float>(sum / (3.0 * 0x80000) - 1.0);
}

// Stores `value` as element `index` of a tensor of that type; returns what is then read back.
float put(std::vector<std::byte>& tensor, DType type, int64_t index, float value) {
  if (type == DType::kF32) {
    memcpy(tensor.data() + index * 4, &value, 4);
    return value;
  }
  const uint16_t bits = type == DType::kF16 ? from_float<Float16>(value).bits : from_float<BFloat16>(value).bits;
  memcpy(tensor.data() + index * 2, &bits, 2);
  return type == DType::kF16 ? to_float(Float16{bits}) : to_float(BFloat16{bits});
}

float rounded(DType type, float value) {
  if (type == DType::kF16) return to_float(from_float<Float16>(value));
  if (type == DType::kBF16) return to_float(from_float<BFloat16>(value));
  return value;
}

void fill_nan(std::vector<std::byte>& bytes) {
  const uint16_t nan = 0x7fff;
  for (size_t i = 0; i + 2 <= bytes.size(); i += 2) memcpy(bytes.data() + i, &nan, 2);
}

CacheStrides strides(Layout layout, bool is_v, int64_t page, int64_t heads, int64_t dim) {
  const bool hnd = layout == Layout::kHnd || (layout == Layout::kMixed && is_v);
  const int64_t row = dim + (layout == Layout::kMixed && is_v ? 8 : 0);  // still aligned to 16 bytes
  if (hnd) return {heads * page * row, row, page * row};
  return {page * heads * row, heads * row, row};
}

}  // namespace

size_t Tensors::out_rows() const { return size_t{1} * params.batch * params.query_len * params.num_query_heads; }

size_t Tensors::out_bytes() const { return out_rows() * params.head_dim * dtype_size(params.q_type); }

Tensors make_tensors(const Case& c, const std::vector<int32_t>& contexts) {
  Tensors t{};
  DecodeParams& p = t.params;
  const int batch = static_cast<int>(contexts.size());
  int32_t longest = 1;
  int64_t pages_needed = 0;
  for (int s = 0; s < batch; ++s) longest = std::max({longest, c.contexts[s], c.next_contexts[s]});
  const int32_t page = c.page_tokens
                           ? c.page_tokens
                           : longest + (c.corruption == Corruption::kLengths ? 0 : 3);  // room that no context reaches
  for (int s = 0; s < batch; ++s) pages_needed += (std::max(c.contexts[s], c.next_contexts[s]) + page - 1) / page;

  p.q_type = c.q_type;
  p.kv_type = c.kv_type;
  p.batch = batch;
  p.query_len = c.query_len;
  p.num_kv_heads = c.kv_heads;
  p.num_query_heads = c.kv_heads * c.group;
  p.head_dim = c.head_dim;
  p.page_tokens = page;
  p.num_pages = c.page_tokens ? static_cast<int32_t>(pages_needed + 2) : batch;  // two that nobody uses
  p.max_pages = c.page_tokens ? (longest + page - 1) / page + 1 : 1;
  p.scale = 1.0f / __builtin_sqrtf(static_cast<float>(c.head_dim)) * 1.25f;
  // Rows of q with a gap between them in one layout, heads first in another.
  const int64_t gap = c.layout == Layout::kNhd ? 0 : 8;
  const int64_t row = p.head_dim + gap;
  p.q_strides = c.layout == Layout::kHnd
                    ? QueryStrides{row * p.num_query_heads * p.query_len, row, row * p.query_len}
                    : QueryStrides{row * p.num_query_heads * p.query_len, row * p.num_query_heads, row};
  p.k_strides = strides(c.layout, false, page, p.num_kv_heads, p.head_dim);
  p.v_strides = strides(c.layout, true, page, p.num_kv_heads, p.head_dim);

  t.contexts = t.context_lengths = contexts;
  if (c.corruption == Corruption::kLengths)
    for (int32_t& length : t.context_lengths) length = length == 0 ? -5 : length == longest ? longest + 1000 : length;
  t.q.resize(static_cast<size_t>(row) * batch * p.query_len * p.num_query_heads * dtype_size(p.q_type));
  t.k.resize(static_cast<size_t>(p.k_strides.page) * p.num_pages * dtype_size(p.kv_type));
  t.v.resize(static_cast<size_t>(p.v_strides.page) * p.num_pages * dtype_size(p.kv_type));
  fill_nan(t.q);
  fill_nan(t.k);
  fill_nan(t.v);

  if (c.page_tokens) {
    // Pages lie in no order; entries past a context hold what would crash whoever followed them.
    std::vector<int32_t> order(p.num_pages);
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[mix(i + 77) % i]);
    t.page_table.assign(static_cast<size_t>(batch) * p.max_pages, 0);
    size_t next = 0;
    for (int s = 0; s < batch; ++s)
      for (int32_t i = 0; i < p.max_pages; ++i) {
        const int32_t used = (std::max(c.contexts[s], c.next_contexts[s]) + page - 1) / page;
        const int32_t needed = (contexts[s] + page - 1) / page;
        const int32_t mine = i < used ? order[next++] : -1;
        t.page_table[static_cast<size_t>(s) * p.max_pages + i] =
            i < needed && !(c.corruption == Corruption::kPages && i % 3 == 1) ? mine
            : i < needed                                                      ? (i % 2 ? p.num_pages : -1)
            : i % 2                                                           ? std::numeric_limits<int32_t>::max()
                                                                              : -1 - i;
      }
  }

  t.q_values.resize(t.out_rows() * p.head_dim);
  size_t at = 0;
  for (int s = 0; s < batch; ++s)
    for (int32_t query = 0; query < p.query_len; ++query)
      for (int32_t head = 0; head < p.num_query_heads; ++head) {
        const float size = c.upper_half_peaks && head % c.group < 8 ? 0.0f : 4.0f * c.peak;
        for (int d = 0; d < p.head_dim; ++d)
          t.q_values[at++] = rounded(p.kv_type, put(t.q, p.q_type, query_offset(p, s, {query, head}) + d,
                                                    size * value(kQ, s, query, head, d)));
      }

  int64_t tokens = 0;
  for (int s = 0; s < batch; ++s) {
    t.first_token.push_back(tokens);
    tokens += contexts[s];
  }
  t.k_values.resize(static_cast<size_t>(tokens) * p.num_kv_heads * p.head_dim);
  t.v_values.resize(t.k_values.size());
  at = 0;
  DecodeParams lookup = p;
  lookup.page_table = t.page_table.empty() ? nullptr : t.page_table.data();
  for (int s = 0; s < batch; ++s)
    for (int32_t token = 0; token < contexts[s]; ++token) {
      const int64_t page_at = page_index(lookup, s, token / page);
      if (page_at < 0 || page_at >= p.num_pages) {  // corrupt: zeros
        at += static_cast<size_t>(p.num_kv_heads) * p.head_dim;
        continue;
      }
      ++t.tokens_in_cache;
      for (int32_t head = 0; head < p.num_kv_heads; ++head)
        for (int d = 0; d < p.head_dim; ++d, ++at) {
          const auto offset = [&](const CacheStrides& x) {
            return page_at * x.page + token % page * x.token + head * x.head + d;
          };
          t.k_values[at] = put(t.k, p.kv_type, offset(p.k_strides), value(kK, s, token, head, d));
          t.v_values[at] = put(t.v, p.kv_type, offset(p.v_strides), value(kV, s, token, head, d));
        }
    }
  return t;
}

}  // namespace lean::cases
