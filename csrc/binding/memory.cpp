#include "memory.h"

#include <string>

#include "../runtime/error.h"
#include "arguments.h"
#include "environment.h"

namespace lean::binding {

Napi::Function NativeMemory::define(Napi::Env env) {
  return DefineClass(
      env, "NativeMemory",
      {InstanceMethod<&NativeMemory::pointer>("pointer"), InstanceMethod<&NativeMemory::part>("part"),
       InstanceMethod<&NativeMemory::released>("released"), InstanceMethod<&NativeMemory::release>("release")});
}

Napi::Object NativeMemory::create(Napi::Env env, MemoryBlock block, size_t bytes) {
  const Napi::Object object = Environment::of(env).memory_class.New({});
  NativeMemory* self = Unwrap(object);
  self->block_ = std::make_shared<MemoryBlock>(std::move(block));
  self->bytes_ = bytes;
  return object;
}

NativeMemory::NativeMemory(const Napi::CallbackInfo& info)
    : ObjectWrap(info), block_(std::make_shared<MemoryBlock>()) {}

Napi::Value NativeMemory::pointer(const Napi::CallbackInfo& info) {
  const std::byte* address = block_->memory ? data() : nullptr;
  return Napi::BigInt::New(info.Env(), static_cast<uint64_t>(reinterpret_cast<uintptr_t>(address)));
}

Napi::Value NativeMemory::part(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const int64_t offset = info[0].As<Napi::Number>().Int64Value(), bytes = info[1].As<Napi::Number>().Int64Value();
    if (offset < 0 || bytes < 0 || static_cast<uint64_t>(offset) + static_cast<uint64_t>(bytes) > bytes_)
      refuse("Expected a part of memory to lie inside it");
    const Napi::Object object = Environment::of(info.Env()).memory_class.New({});
    NativeMemory* made = Unwrap(object);
    made->block_ = block_;
    made->offset_ = offset_ + static_cast<size_t>(offset);
    made->bytes_ = static_cast<size_t>(bytes);
    return object;
  });
}

Napi::Value NativeMemory::released(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !block_->memory);
}

void NativeMemory::release(const Napi::CallbackInfo&) { *block_ = {}; }

bool is_device_memory(const Napi::Value& value) {
  return value.IsObject() && !value.IsTypedArray() && !value.IsDataView();
}

DeviceView device_view(const Napi::Value& value, const char* name, const Backend& device) {
  if (!is_device_memory(value)) refuse("Expected `" + std::string(name) + "` to be memory of the device");
  const NativeMemory& memory = *NativeMemory::Unwrap(value.As<Napi::Object>());
  const MemoryBlock& block = memory.block();
  if (!block.memory) refuse("Expected `" + std::string(name) + "` to hold memory, got a tensor that was disposed");
  if (block.device.get() != &device)
    refuse("Expected `" + std::string(name) + "` to be memory of the device " + device.name() +
           " as it was opened for this call, got memory of " + block.device->name());
  return {block.memory, memory.data(), memory.bytes()};
}

void expect_same_size(size_t target, size_t source) {
  if (target != source)
    refuse("Expected source and target to hold as many bytes, got " + std::to_string(source) + " and " +
           std::to_string(target));
}

}  // namespace lean::binding
