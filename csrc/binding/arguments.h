// Reading JavaScript values: views of memory, numbers, and the arguments of decode calls.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "../runtime/backend.h"
#include "../runtime/stream.h"

namespace lean::binding {

// The bytes of a typed array or DataView, its byteOffset honoured; over shared memory too.
std::span<std::byte> bytes_of(const Napi::Value& value, const char* name);

int32_t int32(const Napi::Object& object, const char* name);
DType dtype(const Napi::Value& value);

// The address of elements of a type; refuses one that is not aligned to it.
void* address(std::span<std::byte> bytes, DType type, const char* name);

// A typed array's elements, copied.
template <class T>
std::vector<T> values_of(const Napi::Value& value, const char* name) {
  const std::span<std::byte> bytes = bytes_of(value, name);
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

// Outputs must not lie over inputs or each other: workers write while others still read.
struct NamedMemory {
  const char* name;
  std::span<std::byte> memory;
};
void expect_apart(const NamedMemory& target, std::initializer_list<NamedMemory> others);

// Of the numbers of a call.
std::shared_ptr<const Plan> plan_of(const Napi::Value& numbers, const Backend& backend,
                                    std::vector<int32_t> context_lengths);

// A complete, checked call over tensors: the arguments of NativeDevice.decode in lib/native.ts. K, V and Q lie in host
// memory or in the device's. `pinned` receives the objects whose memory it uses.
std::shared_ptr<DecodeCall> decode_call(const Napi::CallbackInfo& info, const Backend& backend,
                                        std::vector<Napi::Object>& pinned);

// The same over a cache's pages: NativeDevice.decodeCache.
std::shared_ptr<DecodeCall> cache_decode_call(const Napi::CallbackInfo& info, const Backend& backend,
                                              std::vector<Napi::Object>& pinned);

// The same in a stream, where everything lies in the device's memory: NativeStream.decode.
StreamDecode stream_decode(const Napi::CallbackInfo& info, const Backend& backend);

}  // namespace lean::binding
