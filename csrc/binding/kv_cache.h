// A KV cache as a JavaScript object. It does not keep its device open: memory outlives the device, calls do not.
#pragma once

#include <napi.h>

#include <memory>

#include "../runtime/kv_cache.h"
#include "../runtime/stream.h"

namespace lean::binding {

KvCacheShape kv_cache_shape(const Napi::Object& object);

// The sequences of a call: ids, and for those of an append its counts and stamp.
KvBatch kv_batch(const Napi::Value& sequences, const Napi::Value& counts, const Napi::Value& stamp);

// Rows to write in a stream: everything lies in the device's memory. The arguments of NativeStream.append in
// lib/native.ts.
StreamAppend stream_append(const Napi::CallbackInfo& info, const Backend& device);

class NativeKvCache : public Napi::ObjectWrap<NativeKvCache> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<Backend> backend, const KvCacheShape& shape);

  explicit NativeKvCache(const Napi::CallbackInfo& info);
  ~NativeKvCache() override;

  KvCache& cache() const;  // refuses once it is closed

 private:
  Napi::Value create_sequence(const Napi::CallbackInfo& info);  // () -> id
  Napi::Value fork(const Napi::CallbackInfo& info);             // (id) -> id
  void truncate(const Napi::CallbackInfo& info);                // (id, length)
  void free(const Napi::CallbackInfo& info);                    // (id); idempotent, on a closed cache too
  Napi::Value length(const Napi::CallbackInfo& info);           // (id) -> number
  Napi::Value append(const Napi::CallbackInfo& info);           // (ids, counts, starts) -> stamp
  void write(const Napi::CallbackInfo& info);                   // (rows), as lib/native.ts describes them
  Napi::Value block(const Napi::CallbackInfo& info);            // (layer, 0 for K or 1 for V) -> memory
  Napi::Value fill_table(const Napi::CallbackInfo& info);       // (ids, lengths, pages) -> [begin, end) of rows
  Napi::Value stats(const Napi::CallbackInfo& info);
  void verify(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);  // calls in flight go on; idempotent

  std::shared_ptr<Backend> backend() const;  // refuses once the device is gone
  void release();

  std::weak_ptr<Backend> backend_;
  std::unique_ptr<KvCache> cache_;
};

}  // namespace lean::binding
