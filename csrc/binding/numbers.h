// Numbers of a call in one array. A server makes such calls for every layer of every step, and reading a property of an
// object costs more than all of them. The order is that of a list of names, which the TypeScript side has too.
#pragma once

#include <napi.h>

#include <array>
#include <cstring>
#include <span>
#include <string>

#include "../runtime/error.h"
#include "arguments.h"

namespace lean::binding {

class Numbers {
 public:
  Numbers(const Napi::Value& value, std::span<const char* const> names) : names_(names) {
    const std::span<std::byte> bytes = bytes_of(value, "numbers");
    if (names.size() > values_.size() || bytes.size() != names.size() * sizeof(double))
      throw Error(ErrorCode::kInvalidArgument,
                  "Expected `numbers` to hold " + std::to_string(names.size()) + " numbers");
    memcpy(values_.data(), bytes.data(), bytes.size());
  }

  // They are asked for nearly in their order, so the search ends where it begins: after the last one.
  double at(const char* name) const {
    for (size_t tried = 0; tried < names_.size(); ++tried) {
      const size_t index = next_;
      next_ = index + 1 == names_.size() ? 0 : index + 1;
      if (strcmp(names_[index], name) == 0) return values_[index];
    }
    throw Error(ErrorCode::kInvalidArgument, "Expected a number named " + std::string(name));
  }

 private:
  std::span<const char* const> names_;
  std::array<double, 32> values_;
  mutable size_t next_ = 0;
};

double number(const Numbers& numbers, const char* name);
int64_t integer(const Numbers& numbers, const char* name);
int32_t int32(const Numbers& numbers, const char* name);
DType dtype(const Numbers& numbers, const char* name);

}  // namespace lean::binding
