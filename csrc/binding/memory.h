// Memory of a device as a JavaScript object: a block, or a part of one, as calls take it.
#pragma once

#include <napi.h>

#include <memory>

#include "../runtime/backend.h"
#include "../runtime/stream.h"

namespace lean::binding {

struct MemoryBlock {
  std::shared_ptr<Backend> device;
  std::shared_ptr<void> memory;
};

class NativeMemory : public Napi::ObjectWrap<NativeMemory> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, MemoryBlock block, size_t bytes);

  explicit NativeMemory(const Napi::CallbackInfo& info);
  const MemoryBlock& block() const { return *block_; }
  std::byte* data() const { return static_cast<std::byte*>(block_->memory.get()) + offset_; }
  size_t bytes() const { return bytes_; }

 private:
  Napi::Value pointer(const Napi::CallbackInfo& info);  // 0 once it is released
  Napi::Value part(const Napi::CallbackInfo& info);     // (offset, bytes) of the same block
  Napi::Value released(const Napi::CallbackInfo& info);
  void release(const Napi::CallbackInfo& info);  // all parts of the block; work that uses it goes on; idempotent

  std::shared_ptr<MemoryBlock> block_;  // shared with its parts
  size_t offset_ = 0;
  size_t bytes_ = 0;
};

// Whether a value is a NativeMemory; else it should be a typed array.
bool is_device_memory(const Napi::Value& value);

// Throws Error(kInvalidArgument) where the memory was released, or is another device's.
DeviceView device_view(const Napi::Value& value, const char* name, const Backend& device);

void expect_same_size(size_t target, size_t source);

}  // namespace lean::binding
