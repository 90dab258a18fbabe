#include "architectures.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <vector>

#include "config_table.h"

namespace lean::cuda {

namespace {

struct Target {
  int architecture;  // 10 x major + minor
  bool exact;        // "a": for this one GPU architecture and no other
  bool machine_code;
  bool ptx;
};

// False: a word that CMake gives a meaning of its own, such as native.
bool parse(const std::string& word, Target& target) {
  char* rest = nullptr;
  target.architecture = static_cast<int>(strtol(word.c_str(), &rest, 10));
  if (target.architecture < 10) return false;
  target.exact = *rest == 'a';
  const std::string suffix(rest + (*rest == 'a' || *rest == 'f' ? 1 : 0));
  target.machine_code = suffix != "-virtual";
  target.ptx = suffix != "-real";
  return true;
}

// What the driver takes, as NVIDIA documents it: machine code of the same major number that is not newer, the newest of
// it; else what it compiles from the newest PTX that is not newer. 0: nothing.
int taken_by_driver(const std::vector<Target>& targets, int architecture) {
  int machine_code = 0, ptx = 0;
  for (const Target& target : targets) {
    if (target.exact ? target.architecture != architecture : target.architecture > architecture) continue;
    if (target.machine_code && target.architecture / 10 == architecture / 10)
      machine_code = std::max(machine_code, target.architecture);
    if (target.ptx) ptx = std::max(ptx, target.architecture);
  }
  return machine_code ? machine_code : ptx;
}

// All of the table, not a part: which shapes run does not depend on how a build was made.
bool holds_kernels(int architecture, size_t shared_bytes_per_block) {
  for (int v = 0; v < kNumVariants; ++v) {
    const auto variant = static_cast<Variant>(v);
    if (!compiled_for(variant, architecture)) continue;
    const auto& configs = kConfigs[architecture_class(variant)];
    return std::all_of(std::begin(configs), std::end(configs), [=](const KernelConfig& config) {
      return static_cast<size_t>(shared_bytes(config)) <= shared_bytes_per_block;
    });
  }
  return false;
}

}  // namespace

std::string why_no_kernels(const api::DeviceInfo& device, std::string_view targets) {
  std::vector<Target> known;
  std::istringstream words{std::string(targets)};
  for (std::string word; words >> word;) {
    Target target;
    if (!parse(word, target)) return {};  // the kernels themselves will say
    known.push_back(target);
  }
  const int architecture = 10 * device.major + device.minor;
  if (holds_kernels(taken_by_driver(known, architecture), device.shared_bytes_per_block)) return {};
  const std::string found =
      device.name + " has compute capability " + std::to_string(device.major) + "." + std::to_string(device.minor);
  if (architecture < 80) return found + ", the kernels need 8.0 or newer; use the device 'cpu'";
  const std::string wanted = std::to_string(architecture) + (architecture == 90 ? "a" : "") + "-real";
  return found + ", this build holds kernels for " + std::string(targets) +
         "; build it with LEAN_ATTENTION_CUDA_ARCHS=" + wanted + " node scripts/build.cjs, or use the device 'cpu'";
}

std::string why_no_kernels(const api::DeviceInfo& device) {
  return why_no_kernels(device, LEAN_ATTENTION_ARCHITECTURES);
}

}  // namespace lean::cuda
