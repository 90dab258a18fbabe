#include "memory.h"

#include <string>

#include "../runtime/error.h"
#include "arguments.h"
#include "environment.h"

namespace lean::binding {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

}  // namespace

Napi::Function NativeMemory::define(Napi::Env env) {
  return DefineClass(
      env, "NativeMemory",
      {InstanceMethod<&NativeMemory::pointer>("pointer"), InstanceMethod<&NativeMemory::release>("release")});
}

Napi::Object NativeMemory::create(Napi::Env env, MemoryBlock block) {
  return Environment::of(env).memory_class.New({Napi::External<MemoryBlock>::New(env, &block)});
}

NativeMemory::NativeMemory(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "Expected device memory to be made by a device");
  block_ = *info[0].As<Napi::External<MemoryBlock>>().Data();
}

Napi::Value NativeMemory::pointer(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), static_cast<uint64_t>(reinterpret_cast<uintptr_t>(block_.memory.get())));
}

void NativeMemory::release(const Napi::CallbackInfo&) { block_ = {nullptr, nullptr, 0}; }

bool is_device_view(const Napi::Value& value) {
  return value.IsObject() && !value.IsTypedArray() && !value.IsDataView() && value.As<Napi::Object>().Has("memory");
}

DeviceView device_view(const Napi::Value& value, const char* name, const Backend& device) {
  if (!is_device_view(value)) refuse("Expected `" + std::string(name) + "` to be memory of the device");
  const auto view = value.As<Napi::Object>();
  const MemoryBlock& block = NativeMemory::Unwrap(view.Get("memory").As<Napi::Object>())->block();
  if (!block.memory) refuse("Expected `" + std::string(name) + "` to hold memory, got a tensor that was disposed");
  if (block.device.get() != &device)
    refuse("Expected `" + std::string(name) + "` to be memory of the device " + device.name() +
           " as it was opened for this call, got memory of " + block.device->name());
  const int64_t offset = integer(view, "byteOffset"), bytes = integer(view, "byteLength");
  if (offset < 0 || bytes < 0 || static_cast<uint64_t>(offset) + static_cast<uint64_t>(bytes) > block.bytes)
    refuse("Expected `" + std::string(name) + "` to lie inside its memory");
  return {block.memory, static_cast<std::byte*>(block.memory.get()) + offset, static_cast<size_t>(bytes)};
}

void expect_same_size(size_t target, size_t source) {
  if (target != source)
    refuse("Expected source and target to hold as many bytes, got " + std::to_string(source) + " and " +
           std::to_string(target));
}

}  // namespace lean::binding
