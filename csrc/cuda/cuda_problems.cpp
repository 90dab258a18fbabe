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

// The numbers are cudaError_t's, which keep their meaning from release to release.
Error error_of(int number, const std::string& text) {
  const auto unavailable = [&](const char* reason, const char* advice) {
    return Error(ErrorCode::kCudaUnavailable, text + advice).because(reason);
  };
  switch (number) {
    case 2:  // memory allocation: of a context, stream, event or graph
      return Error(ErrorCode::kOutOfMemory, text + "; the device or the host has too little memory left");
    case 35:
      return unavailable("driver-too-old", "; update the driver");
    case 46:
      return unavailable("runtime", "; another process may have the GPU for itself (see nvidia-smi -q -d COMPUTE)");
    case 100:
    case 101:
      return unavailable("no-device", "; see nvidia-smi and CUDA_VISIBLE_DEVICES");
    case 209:  // no kernel image for the device
    case 222:  // PTX that the driver is too old for
      return unavailable("no-kernels", "; build it for this GPU: node scripts/build.cjs");
    case 3:  // initialisation
      return unavailable("runtime", "; a forked process cannot use CUDA if its parent did");
    case 802:
      return unavailable("runtime", "; on a machine with NVSwitch, nvidia-fabricmanager must run");
    case 805:
    case 806:
    case 807:
    case 808:
    case 809:
    case 810:
      return unavailable("runtime", "; the Multi-Process Service (MPS) is in the way: see its log, or stop it");
    case 803:
    case 804:
      return unavailable("runtime", "; the driver's libraries and its kernel module do not fit: restart, or reinstall");
    case 214:  // an error of the memory that could not be corrected
    case 220:  // the same of NVLink
    case 226:  // a fault that was contained
    case 700:  // illegal address
    case 702:  // timeout
    case 710:  // assert
    case 714:  // hardware stack
    case 715:  // illegal instruction
    case 716:  // misaligned address
    case 717:  // address space
    case 718:  // program counter
    case 719:  // launch failure
    case 721:  // tensor memory leaked
    case 999:  // unknown: as when the GPU has gone
      return Error(ErrorCode::kDeviceLost, text + "; the device can be used again only by a new process");
    default:
      return Error(ErrorCode::kLaunchFailed, text);
  }
}

}  // namespace lean::cuda::api
