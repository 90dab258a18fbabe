// Which GPUs a build has kernels for.
#include "../../csrc/cuda/architectures.h"

#include <string>

#include "harness.h"

namespace {

using lean::cuda::why_no_kernels;

lean::cuda::api::DeviceInfo gpu(int capability, int shared_kib) {
  return {"A GPU", capability / 10, capability % 10, 100, 0, 0, static_cast<size_t>(shared_kib) * 1024};
}

std::string why(int capability, int shared_kib, const char* targets) {
  return why_no_kernels(gpu(capability, shared_kib), targets);
}

}  // namespace

TEST(the_default_build_has_kernels_for_every_gpu_from_8_0_on) {
  const char* targets = "80-real 86 90a-real";
  for (const auto& [capability, shared_kib] :
       {std::pair(80, 163), {86, 99}, {87, 163}, {89, 99}, {90, 227}, {100, 227}, {103, 227}, {110, 227}, {120, 99}})
    CHECK_EQUAL(why(capability, shared_kib, targets), "");
  CHECK_EQUAL(why(75, 64, targets),
              "A GPU has compute capability 7.5, the kernels need 8.0 or newer; use the device 'cpu'");
}

TEST(machine_code_is_for_its_major_number_and_ptx_for_all_later_ones) {
  const std::string none =
      "A GPU has compute capability 9.0, this build holds kernels for 80-real; build it with "
      "LEAN_ATTENTION_CUDA_ARCHS=90a-real node scripts/build.cjs, or use the device 'cpu'";
  CHECK_EQUAL(why(90, 227, "80-real"), none);
  CHECK_EQUAL(why(90, 227, "86-virtual"), "");
  CHECK_EQUAL(why(80, 163, "86-virtual") == "", false);  // newer PTX
  CHECK_EQUAL(why(89, 99, "86-real"), "");               // the same major number
  CHECK_EQUAL(why(100, 227, "90a-real") == "", false);   // one architecture alone
  CHECK_EQUAL(why(103, 227, "100f-real"), "");           // a family
  CHECK_EQUAL(why(90, 227, "80-virtual"), "");           // a variant with less shared memory than there is
  CHECK_EQUAL(why(86, 99, "80-real") == "", false);      // a variant with more, for some head dims or for all
  CHECK_EQUAL(why(80, 163, "75-real 75-virtual") == "", false);
}

TEST(words_with_a_meaning_of_their_own_are_left_to_the_kernels) {
  CHECK_EQUAL(why(90, 227, "native"), "");
  CHECK_EQUAL(why(90, 227, "80-real all-major"), "");
}
