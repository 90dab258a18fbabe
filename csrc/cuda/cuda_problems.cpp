// What is said when CUDA cannot be used, and what to do about it.
#include "cuda_api.h"

namespace lean::cuda::api {

namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }
std::string readable(size_t bytes) {
  return bytes < (size_t{1} << 20) ? std::to_string((bytes + 1023) >> 10) + " KiB"
                                   : std::to_string(bytes >> 20) + " MiB";
}

}  // namespace

Problem describe_problem(int driver, int runtime, bool driver_too_old) {
  if (driver == 0) return {"driver-missing", "no NVIDIA driver was found; install one, or use the device 'cpu'"};
  if (driver_too_old)
    return {"driver-too-old", "the NVIDIA driver supports CUDA " + version(driver) + ", this build needs " +
                                  version(runtime) + "; update the driver, or use the device 'cpu'"};
  return {"no-device",
          "the NVIDIA driver found no GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES, or use the device 'cpu'"};
}

std::string describe_shortage(size_t asked, size_t free, size_t total) {
  return "Not enough memory on the device: asked for " + readable(asked) + ", " + readable(free) + " of " +
         readable(total) + " are free";
}

std::string describe_pinned_shortage(size_t asked) {
  return "Not enough host memory can be pinned for copies: asked for " + readable(asked) +
         "; free some, or raise the limit of this process or container";
}

}  // namespace lean::cuda::api
