// Reading JavaScript values: views of memory, flat numbers and the one object that describes a decode call.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "../runtime/backend.h"

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

PlanRequest plan_request(const Napi::Object& object, const Backend& backend);

// A complete, checked call. `pinned` receives the objects whose memory it uses.
std::shared_ptr<DecodeCall> decode_call(const Napi::Object& object, const Backend& backend,
                                        std::vector<Napi::Object>& pinned);

}  // namespace lean::binding
