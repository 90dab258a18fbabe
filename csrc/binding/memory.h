// A block of a device's memory as a JavaScript object, and views of such blocks as calls take them.
#pragma once

#include <napi.h>

#include <memory>

#include "../runtime/backend.h"
#include "../runtime/stream.h"

namespace lean::binding {

struct MemoryBlock {
  std::shared_ptr<Backend> device;
  std::shared_ptr<void> memory;
  size_t bytes;
};

class NativeMemory : public Napi::ObjectWrap<NativeMemory> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, MemoryBlock block);

  explicit NativeMemory(const Napi::CallbackInfo& info);
  const MemoryBlock& block() const { return block_; }

 private:
  Napi::Value pointer(const Napi::CallbackInfo& info);
  void release(const Napi::CallbackInfo& info);  // work that uses it goes on; idempotent

  MemoryBlock block_;
};

// Whether a value is a view of device memory, { memory, byteOffset, byteLength }; else it should be a typed array.
bool is_device_view(const Napi::Value& value);

// Throws Error(kInvalidArgument) where the memory was released, or is another device's.
DeviceView device_view(const Napi::Value& value, const char* name, const Backend& device);

void expect_same_size(size_t target, size_t source);

}  // namespace lean::binding
