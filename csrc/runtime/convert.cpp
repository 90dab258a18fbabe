#include "convert.h"

namespace lean {

namespace {

template <class From, class To>
void convert_elements(const void* source, void* target, size_t count) {
  const From* from = static_cast<const From*>(source);
  To* to = static_cast<To*>(target);
  for (size_t i = 0; i < count; ++i) to[i] = from_float<To>(to_float(from[i]));
}

template <class From>
void convert_from(const void* source, void* target, DType target_type, size_t count) {
  switch (target_type) {
    case DType::kF32:
      return convert_elements<From, float>(source, target, count);
    case DType::kF16:
      return convert_elements<From, Float16>(source, target, count);
    case DType::kBF16:
      return convert_elements<From, BFloat16>(source, target, count);
  }
}

}  // namespace

void convert(const void* source, DType source_type, void* target, DType target_type, size_t count) {
  switch (source_type) {
    case DType::kF32:
      return convert_from<float>(source, target, target_type, count);
    case DType::kF16:
      return convert_from<Float16>(source, target, target_type, count);
    case DType::kBF16:
      return convert_from<BFloat16>(source, target, target_type, count);
  }
}

}  // namespace lean
