#include "kv_cache.h"

#include <utility>

#include "../runtime/error.h"
#include "arguments.h"
#include "environment.h"
#include "memory.h"
#include "numbers.h"

namespace lean::binding {

namespace {

SequenceId sequence_id(const Napi::Value& value) { return value.As<Napi::Number>().Int64Value(); }

// Ids come as doubles, which hold them exactly.
std::vector<SequenceId> sequence_ids(const Napi::Value& value) {
  const std::vector<double> numbers = values_of<double>(value, "sequences");
  return {numbers.begin(), numbers.end()};
}

RowStrides row_strides(const Numbers& numbers, const char* row, const char* head) {
  return {integer(numbers, row), integer(numbers, head)};
}

// In the orders of lib/kv-step.ts and lib/kv-table.ts.
constexpr const char* kRowNumbers[] = {"kType",          "vType",         "qType",      "kRowStride",  "kHeadStride",
                                       "vRowStride",     "vHeadStride",   "qRowStride", "qHeadStride", "qOutRowStride",
                                       "qOutHeadStride", "numQueryHeads", "amplitude",  "pairing"};
constexpr const char* kTableNumbers[] = {"rows",     "numKvHeads", "headDim", "kvType",
                                         "numPages", "pageTokens", "maxPages"};

// Rows of K, V and queries as a caller gives them, and how they are rotated.
struct RowValues {
  Napi::Value numbers, inverse_frequencies, k, v, q, q_out;
};

// Returns the inverse frequencies, which the parameters point to.
template <class MemoryOf>
std::vector<double> read_rows(const RowValues& values, AppendParams& params, AppendSizes& sizes, MemoryOf memory_of) {
  const auto rows = [&](const Napi::Value& value, const char* name, DType type, size_t& size) {
    const std::span<std::byte> bytes = memory_of(value, name);
    size = bytes.size();
    return address(bytes, type, name);
  };
  const Numbers numbers(values.numbers, kRowNumbers);
  params.k_type = dtype(numbers, "kType");
  params.v_type = dtype(numbers, "vType");
  params.k = rows(values.k, "k", params.k_type, sizes.k);
  params.v = rows(values.v, "v", params.v_type, sizes.v);
  params.k_strides = row_strides(numbers, "kRowStride", "kHeadStride");
  params.v_strides = row_strides(numbers, "vRowStride", "vHeadStride");
  if (values.q.IsObject()) {
    params.q_type = dtype(numbers, "qType");
    params.q = rows(values.q, "q", params.q_type, sizes.q);
    params.q_out = rows(values.q_out, "qOut", params.q_type, sizes.q_out);
    params.q_strides = row_strides(numbers, "qRowStride", "qHeadStride");
    params.q_out_strides = row_strides(numbers, "qOutRowStride", "qOutHeadStride");
    params.num_query_heads = int32(numbers, "numQueryHeads");
  }
  std::vector<double> frequencies;
  if (values.inverse_frequencies.IsObject()) {
    frequencies = values_of<double>(values.inverse_frequencies, "inverseFrequencies");
    params.inverse_frequencies = frequencies.data();
    sizes.frequencies = frequencies.size() * sizeof(double);
    params.rotary_dims = static_cast<int32_t>(2 * frequencies.size());
    params.amplitude = number(numbers, "amplitude");
    params.pairing = int32(numbers, "pairing") == 1 ? RotaryPairing::kInterleaved : RotaryPairing::kHalfSplit;
  }
  return frequencies;
}

}  // namespace

KvCacheShape kv_cache_shape(const Napi::Object& object) {
  return {int32(object, "layers"),     int32(object, "numPages"), int32(object, "pageTokens"),
          int32(object, "numKvHeads"), int32(object, "headDim"),  dtype(object.Get("kvType"))};
}

KvBatch kv_batch(const Napi::Value& sequences, const Napi::Value& counts, const Napi::Value& stamp) {
  KvBatch batch{sequence_ids(sequences), {}, 0};
  if (!counts.IsObject()) return batch;
  batch.counts = values_of<int32_t>(counts, "counts");
  batch.stamp = stamp.As<Napi::Number>().Int64Value();
  if (batch.counts.size() != batch.ids.size()) refuse("Expected a count for each sequence");
  return batch;
}

StreamAppend stream_append(const Napi::CallbackInfo& info, const Backend& device) {
  StreamAppend call;
  AppendParams& params = call.params;
  AppendSizes sizes{};
  call.owners.reserve(8);
  const auto memory_of = [&](const Napi::Value& value, const char* name) {
    DeviceView memory = device_view(value, name, device);
    call.owners.push_back(std::move(memory.owner));
    return std::span<std::byte>(memory.data, memory.bytes);
  };
  const RowValues rows{info[0], info[1], info[2], info[3], info[4], info[5]};
  call.inverse_frequencies = read_rows(rows, params, sizes, memory_of);
  params.inverse_frequencies = call.inverse_frequencies.empty() ? nullptr : call.inverse_frequencies.data();
  const Numbers table_numbers(info[6], kTableNumbers);
  params.rows = int32(table_numbers, "rows");
  params.num_kv_heads = int32(table_numbers, "numKvHeads");
  params.head_dim = int32(table_numbers, "headDim");
  params.kv_type = dtype(table_numbers, "kvType");
  params.num_pages = int32(table_numbers, "numPages");
  params.page_tokens = int32(table_numbers, "pageTokens");
  params.max_pages = int32(table_numbers, "maxPages");
  const int64_t token = int64_t{params.num_kv_heads} * params.head_dim;
  params.cache_strides = {token * params.page_tokens, token, params.head_dim};
  const auto k_pages = memory_of(info[7], "kPages"), v_pages = memory_of(info[8], "vPages"),
             lengths = memory_of(info[9], "contextLengths"), table = memory_of(info[10], "pageTable");
  if (token < 1 || params.page_tokens < 1) refuse("Expected a table of the cache");
  check_append(params, sizes);
  const auto page_bytes = static_cast<size_t>(token * params.page_tokens * dtype_size(params.kv_type));
  if (k_pages.size() / page_bytes < static_cast<size_t>(params.num_pages) || v_pages.size() != k_pages.size() ||
      lengths.size() / sizeof(int32_t) < static_cast<size_t>(params.rows) ||
      table.size() / sizeof(int32_t) / static_cast<size_t>(params.rows) < static_cast<size_t>(params.max_pages))
    refuse("Expected a table and pages of the cache");
  params.k_pages = k_pages.data();
  params.v_pages = v_pages.data();
  params.context_lengths = static_cast<const int32_t*>(address(lengths, DType::kF32, "contextLengths"));
  params.page_table = static_cast<const int32_t*>(address(table, DType::kF32, "pageTable"));
  const auto bytes = [](const void* data, size_t size) {
    return std::span<std::byte>(static_cast<std::byte*>(const_cast<void*>(data)), size);
  };
  const NamedMemory k{"k", bytes(params.k, sizes.k)}, v{"v", bytes(params.v, sizes.v)},
      q{"q", bytes(params.q, sizes.q)}, q_out{"qOut", bytes(params.q_out, sizes.q_out)};
  const NamedMemory at{"contextLengths", lengths}, pages{"pageTable", table};
  if (params.q) expect_apart(q_out, {at, pages});
  for (const std::span<std::byte> stored : {k_pages, v_pages})
    expect_apart({"the cache", stored}, {k, v, q, q_out, at, pages});
  return call;
}

Napi::Function NativeKvCache::define(Napi::Env env) {
  return DefineClass(
      env, "NativeKvCache",
      {InstanceMethod<&NativeKvCache::create_sequence>("createSequence"), InstanceMethod<&NativeKvCache::fork>("fork"),
       InstanceMethod<&NativeKvCache::truncate>("truncate"), InstanceMethod<&NativeKvCache::free>("free"),
       InstanceMethod<&NativeKvCache::length>("length"), InstanceMethod<&NativeKvCache::append>("append"),
       InstanceMethod<&NativeKvCache::write>("write"), InstanceMethod<&NativeKvCache::block>("block"),
       InstanceMethod<&NativeKvCache::fill_table>("fillTable"), InstanceMethod<&NativeKvCache::stats>("stats"),
       InstanceMethod<&NativeKvCache::verify>("verify"), InstanceMethod<&NativeKvCache::close>("close")});
}

Napi::Object NativeKvCache::create(Napi::Env env, std::shared_ptr<Backend> backend, const KvCacheShape& shape) {
  auto cache = std::make_unique<KvCache>(*backend, shape);
  const Napi::Object object = Environment::of(env).kv_cache_class.New({Napi::External<KvCache>::New(env, cache.get())});
  NativeKvCache* self = Unwrap(object);
  self->backend_ = backend;
  self->cache_ = std::move(cache);
  Napi::MemoryManagement::AdjustExternalMemory(env, self->cache_->bytes());  // the collector should know its weight
  return object;
}

NativeKvCache::NativeKvCache(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "Expected a KV cache to be made by a device");
}

NativeKvCache::~NativeKvCache() { release(); }

void NativeKvCache::release() {
  if (cache_) Napi::MemoryManagement::AdjustExternalMemory(Env(), -cache_->bytes());
  cache_.reset();
}

KvCache& NativeKvCache::cache() const {
  if (!cache_) refuse("This KV cache has been disposed");
  return *cache_;
}

std::shared_ptr<Backend> NativeKvCache::backend() const {
  auto backend = backend_.lock();
  if (!backend) refuse("This device has been disposed");
  return backend;
}

Napi::Value NativeKvCache::create_sequence(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(), static_cast<double>(cache().pages().create()));
  });
}

Napi::Value NativeKvCache::fork(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(), static_cast<double>(cache().pages().fork(sequence_id(info[0]))));
  });
}

void NativeKvCache::truncate(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { cache().pages().truncate(sequence_id(info[0]), info[1].As<Napi::Number>().Int64Value()); });
}

void NativeKvCache::free(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    if (cache_) cache_->pages().free(sequence_id(info[0]));
  });
}

Napi::Value NativeKvCache::length(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(), cache().pages().length(sequence_id(info[0])));
  });
}

Napi::Value NativeKvCache::append(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::vector<SequenceId> ids = sequence_ids(info[0]);
    const auto counts = values_of<int32_t>(info[1], "counts");
    const std::span<std::byte> starts = bytes_of(info[2], "starts");
    if (starts.size() < ids.size() * sizeof(int32_t)) refuse("Expected a start for each sequence");
    const int64_t stamp = cache().append(*backend(), ids, counts);
    auto* start = reinterpret_cast<int32_t*>(starts.data());
    for (size_t i = 0; i < ids.size(); ++i) start[i] = cache().pages().length(ids[i]) - counts[i];
    return Napi::Number::New(info.Env(), static_cast<double>(stamp));
  });
}

void NativeKvCache::write(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const auto object = info[0].As<Napi::Object>();
    AppendCall call;
    call.params = {};
    AppendSizes sizes{};
    const RowValues rows{object.Get("numbers"), object.Get("inverseFrequencies"),
                         object.Get("k"),       object.Get("v"),
                         object.Get("q"),       object.Get("qOut")};
    const std::vector<double> frequencies = read_rows(rows, call.params, sizes, bytes_of);
    const KvBatch batch = kv_batch(object.Get("sequences"), object.Get("counts"), object.Get("stamp"));
    cache().write(*backend(), batch, int32(object, "layer"), call, sizes);
  });
}

Napi::Value NativeKvCache::block(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const KvCache::Block block =
        cache().layer_block(info[0].As<Napi::Number>().Int32Value(), info[1].As<Napi::Number>().Int32Value());
    return NativeMemory::create(info.Env(), {backend(), block.owner}, block.bytes);
  });
}

Napi::Value NativeKvCache::fill_table(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto numbers = [&](size_t index, const char* name) {
      const std::span<std::byte> bytes = bytes_of(info[index], name);
      return std::span<int32_t>(reinterpret_cast<int32_t*>(bytes.data()), bytes.size() / sizeof(int32_t));
    };
    const KvCache::Rows changed = cache().fill_table(sequence_ids(info[0]), numbers(1, "lengths"), numbers(2, "pages"));
    Napi::Array result = Napi::Array::New(info.Env(), 2);
    result.Set(0u, changed.begin);
    result.Set(1u, changed.end);
    return result;
  });
}

Napi::Value NativeKvCache::stats(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const KvPages::Stats stats = cache().pages().stats();
    Napi::Object result = Napi::Object::New(info.Env());
    const auto set = [&](const char* name, int64_t value) { result.Set(name, static_cast<double>(value)); };
    set("numPages", stats.num_pages);
    set("freePages", stats.free_pages);
    set("usedPages", stats.num_pages - stats.free_pages);
    set("sharedPages", stats.shared_pages);
    set("sequences", stats.sequences);
    set("tokens", stats.tokens);
    set("bytes", cache().bytes() / stats.num_pages * (stats.num_pages - stats.free_pages));
    return result;
  });
}

void NativeKvCache::verify(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { cache().pages().verify(); });
}

void NativeKvCache::close(const Napi::CallbackInfo&) { release(); }

}  // namespace lean::binding
