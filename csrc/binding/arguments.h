// Reading JavaScript values: views of memory, flat numbers and the one object that describes a decode call.
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

int64_t integer(const Napi::Object& object, const char* name);
double number(const Napi::Object& object, const char* name);
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

// `context_lengths`: of a plan that is made on the host; empty: it is made on the device.
PlanRequest plan_request(const Napi::Object& object, const Backend& backend, std::span<const int32_t> context_lengths);
std::shared_ptr<const Plan> make_plan(const Napi::Object& object, const Backend& backend,
                                      std::vector<int32_t> context_lengths);

// A complete, checked call. K, V and Q lie in host memory or in the device's. `pinned` receives the objects whose
// memory it uses.
std::shared_ptr<DecodeCall> decode_call(const Napi::Object& object, const Backend& backend,
                                        std::vector<Napi::Object>& pinned);

// The same for a stream: everything lies in the device's memory. The arguments of NativeStream.decode in lib/native.ts.
StreamDecode stream_decode(const Napi::CallbackInfo& info, const Backend& backend);

}  // namespace lean::binding
