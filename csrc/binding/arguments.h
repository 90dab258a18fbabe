// Reading JavaScript values: views of memory, flat numbers and the one object that describes a decode call.
#pragma once

#include <napi.h>

#include <cstddef>
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
DType dtype(const Napi::Value& value);

PlanRequest plan_request(const Napi::Object& object, const Backend& backend);
std::vector<int32_t> int32_values(const Napi::Value& value, const char* name);

// A complete, checked call. K, V and Q lie in host memory or in the device's. `pinned` receives the objects whose
// memory it uses.
std::shared_ptr<DecodeCall> decode_call(const Napi::Object& object, const Backend& backend,
                                        std::vector<Napi::Object>& pinned);

// The same for a stream: everything lies in the device's memory.
StreamDecode stream_decode(const Napi::Object& object, const Backend& backend);

}  // namespace lean::binding
