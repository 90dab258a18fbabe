// A device as a JavaScript object: one backend, and the calls it takes.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "../runtime/backend.h"

namespace lean::binding {

class NativeDevice : public Napi::ObjectWrap<NativeDevice> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<Backend> backend);

  explicit NativeDevice(const Napi::CallbackInfo& info);

 private:
  Napi::Value describe(const Napi::CallbackInfo& info);
  Napi::Value plan(const Napi::CallbackInfo& info);
  Napi::Value workspace_bytes(const Napi::CallbackInfo& info);
  Napi::Value describe_launch(const Napi::CallbackInfo& info);
  Napi::Value decode(const Napi::CallbackInfo& info);        // blocks, or returns a promise: as its first argument says
  Napi::Value decode_cache(const Napi::CallbackInfo& info);  // the same over a cache's pages
  Napi::Value memory_info(const Napi::CallbackInfo& info);   // free, total
  Napi::Value allocate(const Napi::CallbackInfo& info);      // (bytes)
  Napi::Value wrap(const Napi::CallbackInfo& info);          // (pointer, bytes)
  void upload(const Napi::CallbackInfo& info);               // (target, source), blocks
  void download(const Napi::CallbackInfo& info);             // (source, target), blocks
  Napi::Value create_stream(const Napi::CallbackInfo& info);
  Napi::Value create_kv_cache(const Napi::CallbackInfo& info);
  Napi::Value time_read(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);  // calls in flight go on; idempotent

  using ReadCall = std::shared_ptr<DecodeCall> (*)(const Napi::CallbackInfo&, const Backend&,
                                                   std::vector<Napi::Object>& pinned);
  Napi::Value run(const Napi::CallbackInfo& info, ReadCall read);
  Backend& backend() const;

  std::shared_ptr<Backend> backend_;
};

}  // namespace lean::binding
