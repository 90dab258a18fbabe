#include "device.h"

#include <algorithm>

#include "../runtime/error.h"
#include "arguments.h"
#include "environment.h"
#include "kv_cache.h"
#include "memory.h"
#include "plan.h"
#include "stream.h"

namespace lean::binding {

Napi::Function NativeDevice::define(Napi::Env env) {
  return DefineClass(
      env, "NativeDevice",
      {InstanceMethod<&NativeDevice::describe>("describe"), InstanceMethod<&NativeDevice::plan>("plan"),
       InstanceMethod<&NativeDevice::workspace_bytes>("workspaceBytes"),
       InstanceMethod<&NativeDevice::describe_launch>("describeLaunch"),
       InstanceMethod<&NativeDevice::decode>("decode"), InstanceMethod<&NativeDevice::decode_cache>("decodeCache"),
       InstanceMethod<&NativeDevice::memory_info>("memoryInfo"), InstanceMethod<&NativeDevice::allocate>("allocate"),
       InstanceMethod<&NativeDevice::wrap>("wrap"), InstanceMethod<&NativeDevice::upload>("upload"),
       InstanceMethod<&NativeDevice::download>("download"),
       InstanceMethod<&NativeDevice::create_stream>("createStream"),
       InstanceMethod<&NativeDevice::create_kv_cache>("createKvCache"),
       InstanceMethod<&NativeDevice::time_read>("timeRead"), InstanceMethod<&NativeDevice::close>("close")});
}

Napi::Object NativeDevice::create(Napi::Env env, std::shared_ptr<Backend> backend) {
  return Environment::of(env).device_class.New({Napi::External<std::shared_ptr<Backend>>::New(env, &backend)});
}

NativeDevice::NativeDevice(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "Expected a device to be made by openDevice");
  backend_ = *info[0].As<Napi::External<std::shared_ptr<Backend>>>().Data();
}

Backend& NativeDevice::backend() const {
  if (!backend_) throw Error(ErrorCode::kInvalidArgument, "This device has been disposed");
  return *backend_;
}

Napi::Value NativeDevice::describe(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("name", backend().name());
    result.Set("instructionSet", backend().instruction_set());
    result.Set("processors", static_cast<double>(backend().processors()));
    return result;
  });
}

Napi::Value NativeDevice::plan(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    std::vector<int32_t> lengths = values_of<int32_t>(info[1], "contextLengths");
    for (size_t i = 0; i < lengths.size(); ++i)
      if (lengths[i] < 0)
        throw Error(ErrorCode::kInvalidArgument, "Expected `contextLengths`[" + std::to_string(i) +
                                                     "] to be 0 or more, got " + std::to_string(lengths[i]));
    return NativePlan::create(info.Env(), plan_of(info[0], backend(), std::move(lengths)));
  });
}

Napi::Value NativeDevice::workspace_bytes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Plan& plan = *NativePlan::Unwrap(info[0].As<Napi::Object>())->plan();
    const size_t bytes = backend().workspace_bytes(plan, info[1].As<Napi::Number>().Int32Value());
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  });
}

Napi::Value NativeDevice::describe_launch(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Plan& plan = *NativePlan::Unwrap(info[0].As<Napi::Object>())->plan();
    return Napi::String::New(info.Env(), backend().describe_launch(plan, info[1].As<Napi::Number>().Int32Value()));
  });
}

Napi::Value NativeDevice::decode(const Napi::CallbackInfo& info) { return run(info, decode_call); }

Napi::Value NativeDevice::decode_cache(const Napi::CallbackInfo& info) { return run(info, cache_decode_call); }

Napi::Value NativeDevice::run(const Napi::CallbackInfo& info, ReadCall read) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    std::vector<Napi::Object> pinned;
    const std::shared_ptr<DecodeCall> call = read(info, backend(), pinned);
    if (!info[0].ToBoolean()) {
      backend().decode(*call);
      return info.Env().Undefined();
    }
    Environment& environment = Environment::of(info.Env());
    call->cancelled = environment.closing();
    return environment.start(backend_, std::move(pinned), [&](Done done) { backend().submit(call, std::move(done)); });
  });
}

Napi::Value NativeDevice::memory_info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const MemoryInfo memory = backend().memory_info();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("freeBytes", static_cast<double>(memory.free));
    result.Set("totalBytes", static_cast<double>(memory.total));
    return result;
  });
}

Napi::Value NativeDevice::allocate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto bytes = static_cast<size_t>(info[0].As<Napi::Number>().Int64Value());
    // A tensor of no elements has memory all the same: that it was released can then be seen.
    return NativeMemory::create(info.Env(), {backend_, backend().allocate(std::max<size_t>(bytes, 1))}, bytes);
  });
}

Napi::Value NativeDevice::wrap(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    bool lossless = false;
    const uint64_t address = info[0].As<Napi::BigInt>().Uint64Value(&lossless);
    if (!lossless || address == 0)
      throw Error(ErrorCode::kInvalidArgument, "Expected `pointer` to be an address of 64 bits that is not 0");
    const auto bytes = static_cast<size_t>(info[1].As<Napi::Number>().Int64Value());
    // The caller's own: kept alive by nobody here.
    const std::shared_ptr<void> memory(reinterpret_cast<void*>(address), [](void*) {});
    return NativeMemory::create(info.Env(), {backend_, memory}, bytes);
  });
}

void NativeDevice::upload(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const DeviceView target = device_view(info[0], "target", backend());
    const std::span<std::byte> source = bytes_of(info[1], "source");
    expect_same_size(target.bytes, source.size());
    backend().upload(target.data, source.data(), source.size());
  });
}

void NativeDevice::download(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const DeviceView source = device_view(info[0], "source", backend());
    const std::span<std::byte> target = bytes_of(info[1], "target");
    expect_same_size(target.size(), source.bytes);
    backend().download(target.data(), source.data, source.bytes);
  });
}

Napi::Value NativeDevice::create_stream(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return NativeStream::create(info.Env(), backend_, backend().create_stream());
  });
}

Napi::Value NativeDevice::create_kv_cache(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    backend();  // refuses once it is closed
    return NativeKvCache::create(info.Env(), backend_, kv_cache_shape(info[0].As<Napi::Object>()));
  });
}

Napi::Value NativeDevice::time_read(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto arrays = info[0].As<Napi::Array>();
    std::vector<std::span<const std::byte>> buffers;
    for (uint32_t i = 0; i < arrays.Length(); ++i) buffers.emplace_back(bytes_of(arrays.Get(i), "buffers"));
    return Napi::Number::New(info.Env(), backend().time_read(buffers));
  });
}

void NativeDevice::close(const Napi::CallbackInfo&) { backend_.reset(); }

}  // namespace lean::binding
