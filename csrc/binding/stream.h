// A device's stream as a JavaScript object. Events and graphs are handles that only this class opens.
#pragma once

#include <napi.h>

#include <memory>

#include "../runtime/backend.h"
#include "../runtime/stream.h"

namespace lean::binding {

class NativeStream : public Napi::ObjectWrap<NativeStream> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<Backend> device, std::shared_ptr<Stream> stream);

  explicit NativeStream(const Napi::CallbackInfo& info);

 private:
  void decode(const Napi::CallbackInfo& info);
  void append(const Napi::CallbackInfo& info);           // (rows)
  void upload(const Napi::CallbackInfo& info);           // (target, source)
  void copy(const Napi::CallbackInfo& info);             // (target, source)
  void read(const Napi::CallbackInfo& info);             // (source)
  Napi::Value download(const Napi::CallbackInfo& info);  // (source, target): a promise of undefined
  Napi::Value finish(const Napi::CallbackInfo& info);    // a promise of undefined
  Napi::Value record(const Napi::CallbackInfo& info);    // an event
  void wait(const Napi::CallbackInfo& info);             // (event)
  Napi::Value elapsed(const Napi::CallbackInfo& info);   // (start, end): milliseconds
  void begin_capture(const Napi::CallbackInfo& info);
  Napi::Value end_capture(const Napi::CallbackInfo& info);  // a graph
  void launch(const Napi::CallbackInfo& info);              // (graph)
  void close(const Napi::CallbackInfo& info);               // what is enqueued goes on; idempotent

  Stream& stream() const;

  std::shared_ptr<Backend> device_;
  std::shared_ptr<Stream> stream_;
};

}  // namespace lean::binding
