// For which GPUs this build holds kernels: known from how it was built, so that choosing a device and reporting on all
// of them loads nothing on any.
#pragma once

#include <string>
#include <string_view>

#include "cuda_api.h"

namespace lean::cuda {

// Why a GPU cannot run the kernels of a build for `targets`, and what to do; empty: it can. Targets are written as for
// CMake, such as "80-real 86 90a-real": machine code, PTX ("-virtual"), or both.
std::string why_no_kernels(const api::DeviceInfo& device, std::string_view targets);

std::string why_no_kernels(const api::DeviceInfo& device);  // of this build

}  // namespace lean::cuda
