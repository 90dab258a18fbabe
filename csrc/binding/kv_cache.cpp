#include "kv_cache.h"

#include <utility>

#include "../runtime/error.h"
#include "arguments.h"
#include "environment.h"

namespace lean::binding {

namespace {

[[noreturn]] void refuse(const char* message) { throw Error(ErrorCode::kInvalidArgument, message); }

SequenceId sequence_id(const Napi::Value& value) { return value.As<Napi::Number>().Int64Value(); }

// Ids come as doubles, which hold them exactly.
std::vector<SequenceId> sequence_ids(const Napi::Value& value) {
  const std::vector<double> numbers = values_of<double>(value, "sequences");
  return {numbers.begin(), numbers.end()};
}

RowStrides row_strides(const Napi::Object& object, const char* row, const char* head) {
  return {integer(object, row), integer(object, head)};
}

}  // namespace

KvCacheShape kv_cache_shape(const Napi::Object& object) {
  return {int32(object, "layers"),     int32(object, "numPages"), int32(object, "pageTokens"),
          int32(object, "numKvHeads"), int32(object, "headDim"),  dtype(object.Get("kvType"))};
}

KvBatch kv_batch(const Napi::Object& object) {
  KvBatch batch{sequence_ids(object.Get("sequences")), {}, 0};
  const Napi::Value counts = object.Get("counts");
  if (!counts.IsObject()) return batch;
  batch.counts = values_of<int32_t>(counts, "counts");
  batch.stamp = integer(object, "stamp");
  if (batch.counts.size() != batch.ids.size()) refuse("Expected a count for each sequence");
  return batch;
}

Napi::Function NativeKvCache::define(Napi::Env env) {
  return DefineClass(
      env, "NativeKvCache",
      {InstanceMethod<&NativeKvCache::create_sequence>("createSequence"), InstanceMethod<&NativeKvCache::fork>("fork"),
       InstanceMethod<&NativeKvCache::truncate>("truncate"), InstanceMethod<&NativeKvCache::free>("free"),
       InstanceMethod<&NativeKvCache::length>("length"), InstanceMethod<&NativeKvCache::append>("append"),
       InstanceMethod<&NativeKvCache::write>("write"), InstanceMethod<&NativeKvCache::stats>("stats"),
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
    AppendParams& params = call.params = {};
    AppendSizes sizes{};
    const auto view = [&](const char* name, DType type, size_t& size) {
      const std::span<std::byte> bytes = bytes_of(object.Get(name), name);
      size = bytes.size();
      return address(bytes, type, name);
    };
    params.k_type = dtype(object.Get("kType"));
    params.v_type = dtype(object.Get("vType"));
    params.k = view("k", params.k_type, sizes.k);
    params.v = view("v", params.v_type, sizes.v);
    params.k_strides = row_strides(object, "kRowStride", "kHeadStride");
    params.v_strides = row_strides(object, "vRowStride", "vHeadStride");
    if (object.Get("q").IsObject()) {
      params.q_type = dtype(object.Get("qType"));
      params.q = view("q", params.q_type, sizes.q);
      params.q_out = view("qOut", params.q_type, sizes.q_out);
      params.q_strides = row_strides(object, "qRowStride", "qHeadStride");
      params.q_out_strides = row_strides(object, "qOutRowStride", "qOutHeadStride");
      params.num_query_heads = int32(object, "numQueryHeads");
    }
    std::vector<double> frequencies;
    if (object.Get("inverseFrequencies").IsObject()) {
      frequencies = values_of<double>(object.Get("inverseFrequencies"), "inverseFrequencies");
      params.inverse_frequencies = frequencies.data();
      sizes.frequencies = frequencies.size() * sizeof(double);
      params.rotary_dims = static_cast<int32_t>(2 * frequencies.size());
      params.amplitude = number(object, "amplitude");
      params.pairing = int32(object, "pairing") == 1 ? RotaryPairing::kInterleaved : RotaryPairing::kHalfSplit;
    }
    cache().write(*backend(), kv_batch(object), int32(object, "layer"), call, sizes);
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
