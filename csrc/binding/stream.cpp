#include "stream.h"

#include "../runtime/error.h"
#include "arguments.h"
#include "environment.h"
#include "kv_cache.h"
#include "memory.h"

namespace lean::binding {

namespace {

struct Opened {
  std::shared_ptr<Backend> device;
  std::shared_ptr<Stream> stream;
};

// A shared handle for JavaScript to hold.
template <class T>
Napi::Value handle(Napi::Env env, std::shared_ptr<T> what) {
  return Napi::External<std::shared_ptr<T>>::New(env, new std::shared_ptr<T>(std::move(what)),
                                                 [](Napi::Env, std::shared_ptr<T>* held) { delete held; });
}

template <class T>
const std::shared_ptr<T>& held(const Napi::Value& value) {
  return *value.As<Napi::External<std::shared_ptr<T>>>().Data();
}

}  // namespace

Napi::Function NativeStream::define(Napi::Env env) {
  return DefineClass(env, "NativeStream",
                     {InstanceMethod<&NativeStream::decode>("decode"), InstanceMethod<&NativeStream::append>("append"),
                      InstanceMethod<&NativeStream::upload>("upload"), InstanceMethod<&NativeStream::copy>("copy"),
                      InstanceMethod<&NativeStream::read>("read"), InstanceMethod<&NativeStream::download>("download"),
                      InstanceMethod<&NativeStream::finish>("finish"), InstanceMethod<&NativeStream::record>("record"),
                      InstanceMethod<&NativeStream::wait>("wait"), InstanceMethod<&NativeStream::elapsed>("elapsed"),
                      InstanceMethod<&NativeStream::begin_capture>("beginCapture"),
                      InstanceMethod<&NativeStream::end_capture>("endCapture"),
                      InstanceMethod<&NativeStream::launch>("launch"), InstanceMethod<&NativeStream::close>("close")});
}

Napi::Object NativeStream::create(Napi::Env env, std::shared_ptr<Backend> device, std::shared_ptr<Stream> stream) {
  Opened opened{std::move(device), std::move(stream)};
  return Environment::of(env).stream_class.New({Napi::External<Opened>::New(env, &opened)});
}

NativeStream::NativeStream(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "Expected a stream to be made by a device");
  const Opened& opened = *info[0].As<Napi::External<Opened>>().Data();
  device_ = opened.device;
  stream_ = opened.stream;
}

Stream& NativeStream::stream() const {
  if (!stream_) throw Error(ErrorCode::kInvalidArgument, "This stream has been disposed");
  return *stream_;
}

void NativeStream::decode(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { stream().decode(stream_decode(info, *device_)); });
}

void NativeStream::append(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { stream().append(stream_append(info, *device_)); });
}

void NativeStream::upload(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const DeviceView target = device_view(info[0], "target", *device_);
    const std::span<std::byte> source = bytes_of(info[1], "source");
    expect_same_size(target.bytes, source.size());
    stream().upload(target, source.data());
  });
}

void NativeStream::copy(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const DeviceView target = device_view(info[0], "target", *device_);
    const DeviceView source = device_view(info[1], "source", *device_);
    expect_same_size(target.bytes, source.bytes);
    if (target.data != source.data)
      expect_apart({"target", {target.data, target.bytes}}, {{"source", {source.data, source.bytes}}});
    stream().copy(target, source);
  });
}

void NativeStream::read(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { stream().read(device_view(info[0], "source", *device_)); });
}

Napi::Value NativeStream::download(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const DeviceView source = device_view(info[0], "source", *device_);
    const std::span<std::byte> target = bytes_of(info[1], "target");
    expect_same_size(target.size(), source.bytes);
    Stream& work = stream();
    return Environment::of(info.Env()).start(stream_, {info[1].As<Napi::Object>()}, [&](Done done) {
      work.download(source, target.data(), std::move(done));
    });
  });
}

Napi::Value NativeStream::finish(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Stream& work = stream();
    return Environment::of(info.Env()).start(stream_, {}, [&](Done done) { work.finish(std::move(done)); });
  });
}

Napi::Value NativeStream::record(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return handle<StreamEvent>(info.Env(), stream().record()); });
}

void NativeStream::wait(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { stream().wait(held<StreamEvent>(info[0])); });
}

Napi::Value NativeStream::elapsed(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const float milliseconds = held<StreamEvent>(info[1])->milliseconds_since(*held<StreamEvent>(info[0]));
    return Napi::Number::New(info.Env(), static_cast<double>(milliseconds));
  });
}

void NativeStream::begin_capture(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { stream().begin_capture(); });
}

Napi::Value NativeStream::end_capture(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return handle<StreamGraph>(info.Env(), stream().end_capture()); });
}

void NativeStream::launch(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { stream().launch(held<StreamGraph>(info[0])); });
}

void NativeStream::close(const Napi::CallbackInfo&) { stream_.reset(); }

}  // namespace lean::binding
