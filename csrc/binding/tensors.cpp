#include "tensors.h"

#include "../runtime/convert.h"
#include "../runtime/error.h"
#include "../runtime/merge_states.h"
#include "arguments.h"
#include "environment.h"

namespace lean::binding {

namespace {

size_t elements(std::span<std::byte> bytes, DType type) { return bytes.size() / static_cast<size_t>(dtype_size(type)); }

}  // namespace

void convert_elements(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const auto source = bytes_of(info[0], "source"), target = bytes_of(info[2], "target");
    const DType source_type = dtype(info[1]), target_type = dtype(info[3]);
    const size_t count = elements(source, source_type);
    if (elements(target, target_type) != count)
      throw Error(ErrorCode::kInvalidArgument, "Expected source and target to hold as many elements");
    convert(source.data(), source_type, target.data(), target_type, count);
  });
}

void merge_finished(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const auto outs = info[0].As<Napi::Array>(), lses = info[1].As<Napi::Array>();
    const DType type = dtype(info[2]);
    const auto head_dim = info[3].As<Napi::Number>().Int64Value();
    const auto out = bytes_of(info[4], "out"), lse = bytes_of(info[5], "lse");
    const size_t rows = elements(lse, DType::kF32);
    const auto fits = [&](std::span<std::byte> values, std::span<std::byte> sums) {
      return elements(sums, DType::kF32) == rows && elements(values, type) == rows * static_cast<size_t>(head_dim);
    };
    bool all_fit = head_dim > 0 && outs.Length() == lses.Length() && fits(out, lse);
    std::vector<FinishedPart> parts;
    for (uint32_t i = 0; all_fit && i < outs.Length(); ++i) {
      const auto part_out = bytes_of(outs.Get(i), "out"), part_lse = bytes_of(lses.Get(i), "lse");
      all_fit = fits(part_out, part_lse);
      parts.push_back({part_out.data(), reinterpret_cast<const float*>(part_lse.data())});
    }
    if (!all_fit) throw Error(ErrorCode::kInvalidArgument, "Expected states of the same shape");
    merge_states(parts, type, static_cast<int64_t>(rows), head_dim, out.data(), reinterpret_cast<float*>(lse.data()));
  });
}

}  // namespace lean::binding
