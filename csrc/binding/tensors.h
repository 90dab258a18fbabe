// Functions over whole tensors that need no device.
#pragma once

#include <napi.h>

namespace lean::binding {

void convert_elements(const Napi::CallbackInfo& info);  // (source, sourceType, target, targetType)
void merge_finished(const Napi::CallbackInfo& info);    // (outs, lses, type, headDim, out, lse)

}  // namespace lean::binding
