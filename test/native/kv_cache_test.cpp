// A KV cache on the CPU: what is written lands in its slots bit for bit and nowhere else, and decode finds it there.
#include "../../csrc/runtime/kv_cache.h"

#include <cmath>
#include <cstring>

#include "../../csrc/cpu/cpu_backend.h"
#include "../../csrc/runtime/error.h"
#include "harness.h"

namespace lean::test {

namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// Rows over an exact heap block: random bit patterns, which hold every kind of number.
struct Rows {
  Rows(Random& random, int32_t rows, int32_t heads, int32_t head_dim, DType dtype, int64_t gap = 0)
      : type(dtype), strides{heads * (head_dim + gap), head_dim + gap} {
    bytes.resize(
        static_cast<size_t>(((rows - 1) * strides.row + (heads - 1) * strides.head + head_dim) * dtype_size(type)));
    for (char& byte : bytes) byte = static_cast<char>(random.integer(-128, 127));
  }
  float at(int32_t row, int32_t head, int32_t dim) const { return value(bytes.data(), type, offset(row, head, dim)); }
  int64_t offset(int32_t row, int32_t head, int32_t dim) const { return row * strides.row + head * strides.head + dim; }

  static float value(const void* data, DType type, int64_t index) {
    const auto read = [&](auto element) {
      memcpy(&element, static_cast<const char*>(data) + index * static_cast<int64_t>(sizeof element), sizeof element);
      return to_float(element);
    };
    return type == DType::kF32 ? read(0.0f) : type == DType::kF16 ? read(Float16{}) : read(BFloat16{});
  }

  DType type;
  RowStrides strides;
  std::vector<char> bytes;
};

float rounded(float value, DType type) {
  if (type == DType::kF16) return to_float(from_float<Float16>(value));
  return type == DType::kBF16 ? to_float(from_float<BFloat16>(value)) : value;
}

bool same(float a, float b) { return std::isnan(a) ? std::isnan(b) : float_bits(a) == float_bits(b); }

AppendCall rows_to_append(const Rows& k, const Rows& v, AppendSizes& sizes) {
  AppendCall call;
  call.params = {};
  call.params.k = k.bytes.data();
  call.params.v = v.bytes.data();
  call.params.k_type = k.type;
  call.params.v_type = v.type;
  call.params.k_strides = k.strides;
  call.params.v_strides = v.strides;
  sizes = {k.bytes.size(), v.bytes.size(), 0, 0, 0};
  return call;
}

// What a layer's block holds, read through the parameters of a decode.
struct Layer {
  Layer(const KvCache& cache, const std::vector<SequenceId>& ids, int32_t layer) {
    cache.read({ids, {}, 0}, layer, call);
  }
  float k(int32_t sequence, int32_t token, int32_t head, int32_t dim) const {
    return value(call.params.k, sequence, token, head, dim);
  }
  float v(int32_t sequence, int32_t token, int32_t head, int32_t dim) const {
    return value(call.params.v, sequence, token, head, dim);
  }
  float value(const void* data, int32_t sequence, int32_t token, int32_t head, int32_t dim) const {
    const DecodeParams& params = call.params;
    const int64_t page = page_index(params, sequence, token / params.page_tokens);
    return Rows::value(data, params.kv_type,
                       page * params.k_strides.page + token % params.page_tokens * params.k_strides.token +
                           head * params.k_strides.head + dim);
  }
  DecodeCall call;
};

}  // namespace

TEST(kv_cache_stores_every_pair_of_types_as_the_converters_round) {
  for (const std::string& set : cpu::instruction_sets()) {
    const auto backend = cpu::open_cpu(3, set);
    for (const DType from : kTypes)
      for (const DType to : kTypes) {
        Random random(7);
        const int32_t heads = 3, head_dim = 40, rows = 400;  // several tasks of the pool
        KvCache cache(*backend, {2, 105, 4, heads, head_dim, to});
        const std::vector<SequenceId> ids = {cache.pages().create(), cache.pages().create()};
        const std::vector<int32_t> counts = {7, rows - 7};
        const KvBatch batch{ids, counts, cache.append(*backend, ids, counts)};
        const Rows k(random, rows, heads, head_dim, from, 8), v(random, rows, heads, head_dim, from);
        // Layer 0 the other way round, so that a row in the wrong layer or block shows.
        for (const int32_t layer : {0, 1}) {
          AppendSizes sizes;
          AppendCall call = layer == 0 ? rows_to_append(v, k, sizes) : rows_to_append(k, v, sizes);
          cache.write(*backend, batch, layer, call, sizes);
        }
        const Layer first(cache, ids, 0), second(cache, ids, 1);
        for (int32_t row = 0; row < rows; ++row)
          for (int32_t head = 0; head < heads; ++head)
            for (int32_t dim = 0; dim < head_dim; ++dim) {
              const int32_t sequence = row < 7 ? 0 : 1, token = row < 7 ? row : row - 7;
              const float expected_k = rounded(k.at(row, head, dim), to),
                          expected_v = rounded(v.at(row, head, dim), to);
              CHECK(same(second.k(sequence, token, head, dim), expected_k));
              CHECK(same(second.v(sequence, token, head, dim), expected_v));
              CHECK(same(first.k(sequence, token, head, dim), expected_v));
              CHECK(same(first.v(sequence, token, head, dim), expected_k));
            }
      }
  }
}

TEST(kv_cache_keeps_the_bits_of_rows_that_need_no_conversion) {
  const auto backend = cpu::open_cpu(1, "");
  for (const DType type : kTypes) {
    Random random(8);
    KvCache cache(*backend, {1, 3, 16, 2, 16, type});
    const std::vector<SequenceId> ids = {cache.pages().create()};
    const std::vector<int32_t> counts = {40};
    const KvBatch batch{ids, counts, cache.append(*backend, ids, counts)};
    const Rows k(random, 40, 2, 16, type), v(random, 40, 2, 16, type);
    AppendSizes sizes;
    AppendCall call = rows_to_append(k, v, sizes);
    cache.write(*backend, batch, 0, call, sizes);
    const Layer layer(cache, ids, 0);
    CHECK(memcmp(layer.call.params.k, k.bytes.data(), k.bytes.size()) == 0);  // pages 0, 1 and 2 in order
    CHECK(memcmp(layer.call.params.v, v.bytes.data(), v.bytes.size()) == 0);
  }
}

TEST(kv_cache_rotates_keys_and_queries_by_their_positions) {
  const auto backend = cpu::open_cpu(2, "");
  const int32_t head_dim = 32, dims = 24, rows = 70, heads = 2, query_heads = 4;
  for (const RotaryPairing pairing : {RotaryPairing::kHalfSplit, RotaryPairing::kInterleaved}) {
    Random random(9);
    KvCache cache(*backend, {1, 20, 8, heads, head_dim, DType::kF32});
    const std::vector<SequenceId> ids = {cache.pages().create()};
    cache.append(*backend, ids, std::vector{5});
    const std::vector<int32_t> counts = {rows};
    const KvBatch batch{ids, counts, cache.append(*backend, ids, counts)};
    Rows k(random, rows, heads, head_dim, DType::kF32), v(random, rows, heads, head_dim, DType::kF32);
    Rows q(random, rows, query_heads, head_dim, DType::kF32);
    for (Rows* part : {&k, &q})
      for (size_t i = 0; i < part->bytes.size(); i += sizeof(float)) {
        const float value = random.normal();
        memcpy(part->bytes.data() + i, &value, sizeof value);
      }
    const Rows q_before = q;
    AppendSizes sizes;
    AppendCall call = rows_to_append(k, v, sizes);
    std::vector<double> frequencies;
    for (int32_t i = 0; i < dims / 2; ++i) frequencies.push_back(std::pow(10000.0, -2.0 * i / dims));
    call.params.q = call.params.q_out = q.bytes.data();
    call.params.q_strides = call.params.q_out_strides = q.strides;
    call.params.num_query_heads = query_heads;
    call.params.inverse_frequencies = frequencies.data();
    call.params.rotary_dims = dims;
    call.params.amplitude = 1.25;
    call.params.pairing = pairing;
    sizes.q = sizes.q_out = q.bytes.size();
    sizes.frequencies = frequencies.size() * sizeof(double);
    cache.write(*backend, batch, 0, call, sizes);
    const Layer layer(cache, ids, 0);
    const auto expected = [&](const Rows& before, int32_t row, int32_t head, int32_t dim) -> double {
      if (dim >= dims) return before.at(row, head, dim);
      const bool halves = pairing == RotaryPairing::kHalfSplit;
      const int32_t pair = halves ? dim % (dims / 2) : dim / 2;
      const double angle = (5 + row) * frequencies[static_cast<size_t>(pair)];
      const double first = before.at(row, head, halves ? pair : 2 * pair);
      const double second = before.at(row, head, halves ? pair + dims / 2 : 2 * pair + 1);
      const bool is_first = dim == (halves ? pair : 2 * pair);
      return 1.25 * (is_first ? first * std::cos(angle) - second * std::sin(angle)
                              : first * std::sin(angle) + second * std::cos(angle));
    };
    for (int32_t row = 0; row < rows; ++row)
      for (int32_t dim = 0; dim < head_dim; ++dim) {
        for (int32_t head = 0; head < heads; ++head) {
          CHECK(std::fabs(layer.k(0, 5 + row, head, dim) - expected(k, row, head, dim)) < 3e-6);
          CHECK(same(layer.v(0, 5 + row, head, dim), v.at(row, head, dim)));
        }
        for (int32_t head = 0; head < query_heads; ++head)
          CHECK(std::fabs(q.at(row, head, dim) - expected(q_before, row, head, dim)) < 3e-6);
      }
  }
}

TEST(kv_cache_refuses_rows_that_do_not_fill_the_step) {
  const auto backend = cpu::open_cpu(1, "");
  Random random(10);
  KvCache cache(*backend, {2, 8, 4, 2, 16, DType::kF16});
  const std::vector<SequenceId> ids = {cache.pages().create()};
  const std::vector<int32_t> counts = {6};
  const KvBatch batch{ids, counts, cache.append(*backend, ids, counts)};
  const Rows k(random, 6, 2, 16, DType::kF32), v(random, 6, 2, 16, DType::kF32);
  const auto refuses = [&](const KvBatch& given, int32_t layer, auto spoil) {
    AppendSizes sizes;
    AppendCall call = rows_to_append(k, v, sizes);
    spoil(call.params, sizes);
    try {
      cache.write(*backend, given, layer, call, sizes);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidArgument);
      return;
    }
    fail(__FILE__, __LINE__, "Expected a refusal");
  };
  const auto nothing = [](AppendParams&, AppendSizes&) {};
  refuses(batch, 2, nothing);
  refuses(batch, -1, nothing);
  refuses({ids, {7}, batch.stamp}, 0, nothing);
  refuses({ids, {0}, batch.stamp}, 0, nothing);
  refuses({ids, counts, batch.stamp - 1}, 0, nothing);
  refuses(batch, 0, [](AppendParams&, AppendSizes& sizes) { --sizes.k; });
  refuses(batch, 0, [](AppendParams&, AppendSizes& sizes) { --sizes.v; });
  refuses(batch, 0, [](AppendParams& params, AppendSizes&) { ++params.k_strides.row; });
  refuses(batch, 0, [](AppendParams& params, AppendSizes&) { params.v_strides.head = -1; });
  refuses(batch, 0, [](AppendParams& params, AppendSizes&) { params.k_strides.row = INT64_MAX / 2; });
  refuses(batch, 0, [](AppendParams& params, AppendSizes& sizes) {
    params.q = params.q_out = const_cast<void*>(params.k);
    params.num_query_heads = 2;
    params.q_strides = params.q_out_strides = params.k_strides;
    sizes.q = sizes.k;  // q_out has nothing behind it
  });
  const double frequency = 1;
  refuses(batch, 0, [&](AppendParams& params, AppendSizes& sizes) {
    params.inverse_frequencies = &frequency;
    params.rotary_dims = 4;
    sizes.frequencies = sizeof frequency;
  });
  refuses(batch, 0, [&](AppendParams& params, AppendSizes& sizes) {
    params.inverse_frequencies = &frequency;
    params.rotary_dims = 18;
    sizes.frequencies = 9 * sizeof frequency;
  });
  cache.pages().fork(ids[0]);
  refuses(batch, 0, nothing);
}

TEST(kv_cache_refuses_shapes_that_cannot_be) {
  const auto code_of = [](auto body) {
    try {
      body();
    } catch (const Error& error) {
      return error.code();
    }
    fail(__FILE__, __LINE__, "Expected an error");
  };
  const auto backend = cpu::open_cpu(1, "");
  for (const KvCacheShape& wrong : {KvCacheShape{0, 1, 1, 1, 8, DType::kF16}, KvCacheShape{1, 0, 1, 1, 8, DType::kF16},
                                    KvCacheShape{1, 1, 0, 1, 8, DType::kF16}, KvCacheShape{1, 1, 1, 0, 8, DType::kF16},
                                    KvCacheShape{1, 1, 1, 1, 12, DType::kF16}})
    CHECK(code_of([&] { KvCache(*backend, wrong); }) == ErrorCode::kInvalidArgument);
  constexpr int32_t kMany = INT32_MAX;
  CHECK(code_of([&] { KvCache(*backend, {32767, kMany, kMany, kMany, 512, DType::kF32}); }) == ErrorCode::kOutOfMemory);
}

}  // namespace lean::test
