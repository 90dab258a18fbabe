// The addon's table of exports. lib/native.ts gives them their types; nothing else in JavaScript sees them.
#include "addon.h"

#include "../cpu/cpu_backend.h"
#include "../cuda/cuda_backend.h"
#include "device.h"
#include "environment.h"
#include "kv_cache.h"
#include "memory.h"
#include "plan.h"
#include "stream.h"
#include "tensors.h"

namespace lean::binding {

namespace {

void set_error_class(const Napi::CallbackInfo& info) {
  Environment::of(info.Env()).set_error_class(info[0].As<Napi::Function>());
}

Napi::Value open_cpu(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return NativeDevice::create(
        info.Env(), cpu::open_cpu(info[0].As<Napi::Number>().Int32Value(), info[1].As<Napi::String>().Utf8Value()));
  });
}

Napi::Value open_cuda(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return NativeDevice::create(info.Env(), cuda::open_cuda(info[0].As<Napi::Number>().Int32Value()));
  });
}

Napi::Value build_info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Env env = info.Env();
    Napi::Object result = Napi::Object::New(env);
#if defined(__clang__)
    const auto part = [](int number) { return "." + std::to_string(number); };
    result.Set("compiler",
               "clang " + std::to_string(__clang_major__) + part(__clang_minor__) + part(__clang_patchlevel__));
#else
    result.Set("compiler", "g++ " __VERSION__);
#endif
    result.Set("buildType", LEAN_ATTENTION_BUILD_TYPE);
    result.Set("napiVersion", NAPI_VERSION);
    return result;
  });
}

Napi::Value cpu_instruction_sets(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Array names = Napi::Array::New(info.Env());
    for (const std::string& name : cpu::instruction_sets()) names.Set(names.Length(), name);
    return names;
  });
}

Napi::Value cuda_status(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Env env = info.Env();
    const cuda::CudaStatus status = cuda::cuda_status();
    Napi::Array devices = Napi::Array::New(env);
    for (const cuda::CudaDevice& device : status.devices) {
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("index", device.index);
      entry.Set("name", device.name);
      entry.Set("computeCapability", device.compute_capability);
      entry.Set("memoryBytes", static_cast<double>(device.memory_bytes));
      entry.Set("l2Bytes", static_cast<double>(device.l2_bytes));
      entry.Set("reason", device.reason);
      devices.Set(devices.Length(), entry);
    }
    Napi::Object result = Napi::Object::New(env);
    result.Set("built", status.built);
    result.Set("reason", status.reason);
    result.Set("devices", devices);
    return result;
  });
}

}  // namespace

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  auto* environment = new Environment(env);
  env.SetInstanceData<Environment>(environment);
  environment->device_class = Napi::Persistent(NativeDevice::define(env));
  environment->kv_cache_class = Napi::Persistent(NativeKvCache::define(env));
  environment->plan_class = Napi::Persistent(NativePlan::define(env));
  environment->memory_class = Napi::Persistent(NativeMemory::define(env));
  environment->stream_class = Napi::Persistent(NativeStream::define(env));
  const auto add = [&](const char* name, auto function) {
    exports.Set(name, Napi::Function::New(env, function, name));
  };
  add("setErrorClass", set_error_class);
  add("openCpu", open_cpu);
  add("openCuda", open_cuda);
  add("buildInfo", build_info);
  add("cpuInstructionSets", cpu_instruction_sets);
  add("cudaStatus", cuda_status);
  add("convert", convert_elements);
  add("mergeStates", merge_finished);
  return exports;
}

}  // namespace lean::binding
