// Conformance of the primitives: on a GPU each does what csrc/cuda/primitives.h says of it. The host twin is held to
// the same words by the rehearsal's own tests, so what holds for one implementation holds for both.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/numeric.h"
#include "cuda/primitives.h"
#include "device_buffer.h"
#include "parts.h"

namespace lean::gpu {
namespace {

int check(bool passed, const char* name) {
  printf("%s primitives: %s\n", passed ? "ok  " : "FAIL", name);
  return !passed;
}

// Runs kernel(output, input) and gives the output words back.
std::vector<uint32_t> run(void (*kernel)(uint32_t*, const uint32_t*), dim3 grid, int threads, size_t words,
                          const std::vector<uint32_t>& input = {0}) {
  DeviceBuffer output(words * 4, 0xff), source(input.data(), input.size() * 4);
  kernel<<<grid, threads>>>(output.data<uint32_t>(), source.data<uint32_t>());
  require(cudaGetLastError(), "launch");
  require(cudaDeviceSynchronize(), "primitive test");
  return output.read<uint32_t>();
}

// ---- Who am I, and exchange within a warp -----------------------------------------------------------------------

__global__ void index_kernel(uint32_t* output, const uint32_t*) {
  const int cta = cta_index_y() * num_ctas_x() + cta_index_x();
  uint32_t* row = output + (cta * num_threads() + thread_index()) * 4;
  row[0] = opaque(thread_index());
  row[1] = lane_index();
  row[2] = warp_index();
  row[3] = num_ctas_y() * 1000 + cta;
}

bool indices_hold() {
  const std::vector<uint32_t> out = run(index_kernel, dim3(3, 2), 96, 6 * 96 * 4);
  for (uint32_t i = 0; i < 6 * 96; ++i) {
    const uint32_t* row = &out[i * 4];
    if (row[0] != i % 96 || row[1] != i % 32 || row[2] != i % 96 / 32 || row[3] != 2000 + i / 96) return false;
  }
  return true;
}

__global__ void exchange_kernel(uint32_t* output, const uint32_t*) {
  const int lane = lane_index();
  const int64_t wide = (int64_t{lane} << 40) + 7 * lane;
  uint32_t* row = output + lane * 8;
  row[0] = shuffle(lane * 3, (lane + 5) % 32);
  row[1] = shuffle(wide, 31 - lane) == (int64_t{31 - lane} << 40) + 7 * (31 - lane);
  row[2] = static_cast<uint32_t>(shuffle_xor(static_cast<float>(lane), 9));
  row[3] = static_cast<uint32_t>(shuffle_up(wide, 4) >> 40);
  row[4] = ballot(lane % 3 == 0);
  row[5] = any_lane(lane == 17);
  row[6] = any_lane(lane == 32);
  row[7] = count_bits(0xf0f00001u >> lane);
}

bool exchanges_hold() {
  const std::vector<uint32_t> out = run(exchange_kernel, 1, 32, 32 * 8);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t* row = &out[lane * 8];
    const bool fine = row[0] == (lane + 5) % 32 * 3 && row[1] == 1 && row[2] == (lane ^ 9) &&
                      row[3] == (lane < 4 ? lane : lane - 4) && row[4] == 0x49249249u && row[5] == 1 && row[6] == 0 &&
                      row[7] == static_cast<uint32_t>(__builtin_popcount(0xf0f00001u >> lane));
    if (!fine) return false;
  }
  return true;
}

// ---- Barriers: two halves of a CTA meet among themselves, then all ----------------------------------------------

__global__ void barrier_kernel(uint32_t* output, const uint32_t*) {
  __shared__ uint32_t cells[128];
  const int half = thread_index() / 64;
  for (uint32_t round = 0; round < 100; ++round) {
    cells[thread_index()] = round * 1000 + thread_index();
    sync_named(1 + half, 64);
    const uint32_t near = cells[half * 64 + (thread_index() + 33) % 64];
    sync_cta();
    const uint32_t far = cells[(thread_index() + 64) % 128];
    sync_cta();
    if (near != round * 1000 + half * 64 + (thread_index() + 33) % 64) output[thread_index()] = 1;
    if (far != round * 1000 + (thread_index() + 64) % 128) output[thread_index()] = 2;
    cells[thread_index()] = ~round;
    sync_warp();
    if (cells[thread_index() ^ 31] != ~round) output[thread_index()] = 3;
    sync_cta();
  }
  if (output[thread_index()] == 0xffffffffu) output[thread_index()] = 0;
}

bool barriers_hold() {
  for (const uint32_t word : run(barrier_kernel, 4, 128, 128))
    if (word != 0) return false;
  return true;
}

// ---- Global memory: every CTA publishes, whoever completes the count sums what all have written -----------------

__global__ void publish_kernel(uint32_t* output, const uint32_t*) {
  __shared__ uint32_t last;
  uint32_t* counter = output;      // wraps
  uint32_t* status = output + 1;   // collects bits
  uint32_t* winners = output + 2;  // CTAs that completed the count
  float* sum = reinterpret_cast<float*>(output + 3);
  auto* slots = reinterpret_cast<Float4*>(output + 4);
  const auto value = static_cast<float>(cta_index_x() + 1);
  store_global(slots + cta_index_x() * num_threads() + thread_index(), Float4{value, 0, 0, value});
  sync_cta();
  if (thread_index() == 0) {
    last = atomic_increment_wrap(counter, num_ctas_x() - 1);
    atomic_or_relaxed(status, 1u << cta_index_x() % 20);
  }
  sync_cta();
  if (last != static_cast<uint32_t>(num_ctas_x() - 1)) return;
  float total = 0;
  for (int cta = 0; cta < num_ctas_x(); ++cta) {
    const Float4 read = load_global(slots + cta * num_threads() + thread_index());
    total += read.x + read.w;
  }
  if (thread_index() == 77) store_global(sum, total);
  if (thread_index() == 0) atomic_or_relaxed(winners, 1u);
}

bool publishing_holds() {
  constexpr int kCtas = 400, kThreads = 128;
  DeviceBuffer memory(16 + kCtas * kThreads * 16);
  for (int launch = 0; launch < 20; ++launch) {
    publish_kernel<<<kCtas, kThreads>>>(memory.data<uint32_t>(), nullptr);
    require(cudaDeviceSynchronize(), "publish");
    const std::vector<uint32_t> out = memory.read<uint32_t>();
    float sum;
    memcpy(&sum, &out[3], 4);
    if (out[0] != 0 || out[1] != 0xfffffu || out[2] != 1 || sum != kCtas * (kCtas + 1.0f)) return false;
  }
  return true;
}

__global__ void access_kernel(uint32_t* output, const uint32_t* input) {
  store_global(reinterpret_cast<Float4*>(output), load_global(reinterpret_cast<const Float4*>(input)));
  store_global(reinterpret_cast<Float2*>(output + 4), load_global(reinterpret_cast<const Float2*>(input + 4)));
  store_global(reinterpret_cast<Word2*>(output + 6), Word2{load_global(input + 6), load_global(input + 7)});
  store_global(reinterpret_cast<float*>(output + 8), float_from_bits(load_global(input + 8)));
}

bool accesses_hold() {
  const std::vector<uint32_t> input{1, 2, 3, 0x3f800000, 5, 0x40000000, 7, 8, 9};
  return run(access_kernel, 1, 1, 9, input) == input;
}

// ---- Matrices ---------------------------------------------------------------------------------------------------

// Element (row, column) of matrix m holds 100 m + 8 row + column.
__global__ void matrix_kernel(uint32_t* output, const uint32_t*) {
  __shared__ alignas(16) uint16_t matrices[4 * 64];
  for (int i = thread_index(); i < 256; i += 32) matrices[i] = static_cast<uint16_t>(i / 64 * 100 + i % 64);
  sync_warp();
  uint32_t plain[4], transposed[4];
  load_matrices(plain, shared_address(matrices) + thread_index() * 16);
  load_matrices_transposed(transposed, shared_address(matrices) + thread_index() * 16);
  for (int i = 0; i < 4; ++i) {
    output[thread_index() * 8 + i] = plain[i];
    output[thread_index() * 8 + 4 + i] = transposed[i];
  }
}

bool matrix_loads_hold() {
  const std::vector<uint32_t> out = run(matrix_kernel, 1, 32, 32 * 8);
  for (uint32_t t = 0; t < 32; ++t) {
    for (uint32_t m = 0; m < 4; ++m) {
      const uint32_t c = t % 4 * 2, r = t / 4;
      const auto element = [m](uint32_t row, uint32_t column) { return 100 * m + 8 * row + column; };
      if (out[t * 8 + m] != (element(r, c) | element(r, c + 1) << 16)) return false;
      if (out[t * 8 + 4 + m] != (element(c, r) | element(c + 1, r) << 16)) return false;
    }
  }
  return true;
}

template <class T>
LEAN_DEVICE uint32_t small_pair(int first, int second) {
  return pack_pair<T>(static_cast<float>(first), static_cast<float>(second));
}

// Small integers, so that every product and sum is exact: a(i, k) = i - k, b(k, j) = 2 k + 3 j - 20, d starts at i + j.
template <class T>
__global__ void multiply_kernel(uint32_t* output, const uint32_t*) {
  const int g = thread_index() / 4, c = thread_index() % 4 * 2;
  const uint32_t a[4] = {small_pair<T>(g - c, g - c - 1), small_pair<T>(g + 8 - c, g + 8 - c - 1),
                         small_pair<T>(g - c - 8, g - c - 9), small_pair<T>(g - c, g - c - 1)};
  const auto b = [g](int k) { return 2 * k + 3 * g - 20; };
  float d[4] = {static_cast<float>(g + c), static_cast<float>(g + c + 1), static_cast<float>(g + 8 + c),
                static_cast<float>(g + 8 + c + 1)};
  multiply_accumulate<T>(d, a, small_pair<T>(b(c), b(c + 1)), small_pair<T>(b(c + 8), b(c + 9)));
  for (int i = 0; i < 4; ++i) output[(g + i / 2 * 8) * 8 + c + i % 2] = static_cast<uint32_t>(static_cast<int>(d[i]));
}

template <class T>
bool products_hold() {
  const std::vector<uint32_t> out = run(multiply_kernel<T>, 1, 32, 16 * 8);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      int expected = i + j;
      for (int k = 0; k < 16; ++k) expected += (i - k) * (2 * k + 3 * j - 20);
      if (static_cast<int>(out[i * 8 + j]) != expected) return false;
    }
  }
  return true;
}

// ---- Asynchronous copies ----------------------------------------------------------------------------------------

// As many groups in flight as a wait may leave, and one; every second chunk is not valid and comes out as zeros. A
// kernel for each policy. Targets pass a shuffle: where one is a constant base and the lane's offset, ptxas 13.0 puts
// the base beside the policy into an instruction that an H100 refuses as illegal. The kernels' own targets are no such
// sums.
constexpr int kGroups = kMaxPending + 1;
template <bool kEvictFirst>
__global__ void copy_kernel(uint32_t* output, const uint32_t* input) {
  __shared__ alignas(16) uint32_t ring[kGroups][32 * 4];
  const CachePolicy policy = kEvictFirst ? evict_first_policy() : evict_normal_policy();
  for (int stage = 0; stage < kGroups; ++stage)
    for (int i = 0; i < 32 * 4; i += 32) ring[stage][i + thread_index()] = 0xdeadbeefu;
  sync_cta();
  for (int stage = 0; stage < kGroups; ++stage) {
    const SharedAddress target = shuffle(shared_address(&ring[stage][thread_index() * 4]), lane_index());
    copy_async_16(target, input + (stage * 32 + thread_index()) * 4, thread_index() % 2 == 0, policy);
    commit_copies();
  }
  for (int stage = 0; stage < kGroups; ++stage) {
    wait_copies(kMaxPending - stage);
    sync_cta();
    const int other = 31 - thread_index();  // what another lane has copied
    for (int i = 0; i < 4; ++i) output[(stage * 32 + other) * 4 + i] = ring[stage][other * 4 + i];
  }
}

template <bool kEvictFirst>
bool copies_hold() {
  std::vector<uint32_t> input(kGroups * 32 * 4);
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<uint32_t>(i * 2654435761u);
  const std::vector<uint32_t> out = run(copy_kernel<kEvictFirst>, 1, 32, input.size(), input);
  for (size_t i = 0; i < input.size(); ++i)
    if (out[i] != (i / 4 % 2 == 0 ? input[i] : 0)) return false;
  return true;
}

// A producer warp and a consumer warp over a ring of two stages, twelve rounds: full and empty barriers, their phases,
// zeros by ordinary stores between the copies, and the fence that lets later copies overwrite them.
__global__ void bulk_kernel(uint32_t* output, const uint32_t* input) {
#if __CUDA_ARCH__ >= 900
  constexpr int kRounds = 12;
  __shared__ alignas(16) uint32_t ring[2][32 * 4];
  __shared__ alignas(8) uint64_t barriers[4];  // full 0, 1, empty 0, 1
  const auto full = [&](int stage) { return shared_address(&barriers[stage]); };
  const auto empty = [&](int stage) { return shared_address(&barriers[2 + stage]); };
  if (thread_index() == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), 1);
    }
    fence_async_proxy();
  }
  sync_cta();
  for (int round = 0; round < kRounds; ++round) {
    const int stage = round % 2;
    const uint32_t parity = round / 2 % 2;
    uint32_t* chunk = &ring[stage][lane_index() * 4];
    if (warp_index() == 0) {
      const bool zero = lane_index() % 4 == round % 4;
      barrier_wait(empty(stage), parity ^ 1);
      if (zero) {
        for (int i = 0; i < 4; ++i) chunk[i] = 0;
        fence_async_proxy();
      }
      sync_warp();
      if (lane_index() == 0) barrier_arrive_expect(full(stage), 24 * 16);
      sync_warp();
      if (!zero)
        copy_bulk(shared_address(chunk), input + (round * 32 + lane_index()) * 4, 16, full(stage),
                  evict_first_policy());
    } else {
      barrier_wait(full(stage), parity);
      for (int i = 0; i < 4; ++i) output[(round * 32 + lane_index()) * 4 + i] = chunk[i];
      sync_warp();
      if (lane_index() == 0) barrier_arrive(empty(stage));
    }
  }
#endif
}

bool bulk_copies_hold() {
  std::vector<uint32_t> input(12 * 32 * 4);
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<uint32_t>(i * 2246822519u + 1);
  const std::vector<uint32_t> out = run(bulk_kernel, 1, 64, input.size(), input);
  for (size_t i = 0; i < input.size(); ++i) {
    const size_t lane = i / 4 % 32, round = i / 128;
    if (out[i] != (lane % 4 == round % 4 ? 0 : input[i])) return false;
  }
  return true;
}

// ---- Arithmetic -------------------------------------------------------------------------------------------------

__global__ void exp2_kernel(uint32_t* output, const uint32_t* input) {
  const int i = cta_index_x() * num_threads() + thread_index();
  output[i] = float_bits(exp2_approx(float_from_bits(input[i])));
}

bool exponentials_hold() {
  std::vector<uint32_t> input(1 << 16);
  for (size_t i = 0; i < input.size(); ++i) input[i] = float_bits(-125.0f + 250.0f * i / input.size());
  input[0] = float_bits(-std::numeric_limits<float>::infinity());
  const std::vector<uint32_t> out = run(exp2_kernel, static_cast<int>(input.size() / 256), 256, input.size(), input);
  if (float_from_bits(out[0]) != 0.0f) return false;
  for (size_t i = 1; i < input.size(); ++i) {
    const double exact = std::exp2(static_cast<double>(float_from_bits(input[i])));
    if (std::abs(float_from_bits(out[i]) - exact) > std::ldexp(exact, -21)) return false;
  }
  return true;
}

__global__ void sine_cosine_kernel(uint32_t* output, const uint32_t* input) {
  const int i = cta_index_x() * num_threads() + thread_index();
  const SineCosine at = sine_cosine_of_turn(float_from_bits(input[i]));
  output[2 * i] = float_bits(at.sine);
  output[2 * i + 1] = float_bits(at.cosine);
}

bool sines_and_cosines_hold() {
  constexpr double kTurn = 6.283185307179586;
  std::vector<uint32_t> input(1 << 16);
  for (size_t i = 0; i < input.size(); ++i) input[i] = float_bits(-0.5f + static_cast<float>(i) / (1 << 16));
  const std::vector<uint32_t> out =
      run(sine_cosine_kernel, static_cast<int>(input.size() / 256), 256, 2 * input.size(), input);
  for (size_t i = 0; i < input.size(); ++i) {
    const double angle = static_cast<double>(float_from_bits(input[i])) * kTurn;
    if (std::abs(float_from_bits(out[2 * i]) - std::sin(angle)) > 3e-7) return false;
    if (std::abs(float_from_bits(out[2 * i + 1]) - std::cos(angle)) > 3e-7) return false;
  }
  return true;
}

template <class T>
__global__ void pack_kernel(uint32_t* output, const uint32_t* input) {
  const int i = cta_index_x() * num_threads() + thread_index();
  output[i] = pack_pair<T>(float_from_bits(input[i]), float_from_bits(input[i] ^ 0x80000001u));
}

// All exponents with many mantissas, ties and subnormals among them, against the conversion that the CPU uses.
template <class T>
bool packing_holds() {
  std::vector<uint32_t> input(1 << 20);
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<uint32_t>(i << 12);
  const std::vector<uint32_t> out = run(pack_kernel<T>, 1 << 12, 256, input.size(), input);
  const auto bits = [](uint32_t word) { return from_float<T>(float_from_bits(word)).bits; };
  for (size_t i = 0; i < input.size(); ++i) {
    if ((input[i] & 0x7fffffffu) >= 0x7f800000u) continue;  // NaN stays NaN, but which one is the hardware's choice
    if (out[i] != (bits(input[i]) | uint32_t{bits(input[i] ^ 0x80000001u)} << 16)) return false;
  }
  return true;
}

}  // namespace

int test_primitives() {
  int failed = 0;
  failed += check(indices_hold(), "indices");
  failed += check(exchanges_hold(), "shuffles and votes");
  failed += check(barriers_hold(), "barriers");
  failed += check(accesses_hold(), "global loads and stores");
  failed += check(publishing_holds(), "publish, count, read");
  failed += check(matrix_loads_hold(), "matrix loads");
  failed += check(products_hold<Float16>(), "matrix products, f16");
  failed += check(products_hold<BFloat16>(), "matrix products, bf16");
  failed += check(copies_hold<false>(), "asynchronous copies");
  failed += check(copies_hold<true>(), "asynchronous copies, evicted first");
  failed += check(exponentials_hold(), "exponentials");
  failed += check(sines_and_cosines_hold(), "sines and cosines");
  failed += check(packing_holds<Float16>(), "rounding to f16");
  failed += check(packing_holds<BFloat16>(), "rounding to bf16");
  int major = 0;
  require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "compute capability");
  if (major >= 9) failed += check(bulk_copies_hold(), "bulk copies and barriers");
  return failed;
}

}  // namespace lean::gpu
