// The CPU backend against a float64 reference, under every instruction set, every strategy and many threads.
// All memory that must not be read is NaN, and heap blocks are exact, so that the address sanitizer sees what strays.
#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <future>
#include <memory>
#include <thread>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../../csrc/cpu/cpu_backend.h"
#include "../../csrc/runtime/check.h"
#include "../../csrc/runtime/error.h"
#include "harness.h"

namespace lean::test {

namespace {

struct Shape {
  std::vector<int32_t> contexts;
  int32_t query_len = 1;
  int32_t num_kv_heads = 2;
  int32_t group_size = 3;
  int32_t head_dim = 40;
  int32_t page_tokens = 0;  // 0: contiguous
  bool heads_first = false;
  DType q_type = DType::kF32;
  DType kv_type = DType::kF32;
};

// Elements of any type over an exact heap block.
class Elements {
 public:
  Elements(size_t count, DType type) : bytes_(count * static_cast<size_t>(dtype_size(type))), type_(type) {
    for (size_t i = 0; i < count; ++i) set(i, NAN);
  }
  void set(size_t index, float value) {
    if (type_ == DType::kF32) return put(index, value);
    if (type_ == DType::kF16) return put(index, from_float<Float16>(value));
    put(index, from_float<BFloat16>(value));
  }
  float get(size_t index) const {
    if (type_ == DType::kF32) return at<float>(index);
    return type_ == DType::kF16 ? to_float(at<Float16>(index)) : to_float(at<BFloat16>(index));
  }
  void* data() { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }
  const std::vector<char>& bytes() const { return bytes_; }

 private:
  template <class T>
  void put(size_t index, T value) {
    memcpy(bytes_.data() + index * sizeof(T), &value, sizeof value);
  }
  template <class T>
  T at(size_t index) const {
    T value;
    memcpy(&value, bytes_.data() + index * sizeof(T), sizeof value);
    return value;
  }

  std::vector<char> bytes_;
  DType type_;
};

// Tensors of a shape, filled, and the reference's answer.
struct Problem {
  Shape shape;
  DecodeParams params{};
  std::vector<int32_t> page_table;
  std::unique_ptr<Elements> q, k, v, out;
  std::vector<float> lse;
  std::vector<double> expected_out, expected_lse;

  BufferSizes sizes() const { return {q->size(), k->size(), v->size(), out->size(), lse.size() * sizeof(float)}; }
};

int64_t cache_offset(const DecodeParams& params, const CacheStrides& strides, int32_t sequence, int32_t token,
                     int32_t kv_head) {
  return int64_t{page_index(params, sequence, token / params.page_tokens)} * strides.page +
         token % params.page_tokens * strides.token + kv_head * strides.head;
}

// Its own indices and its own mask: what the core says of them is under test.
void compute_reference(Problem& problem) {
  const DecodeParams& params = problem.params;
  const auto rows = static_cast<size_t>(params.batch) * static_cast<size_t>(params.query_len * params.num_query_heads);
  problem.expected_out.assign(rows * static_cast<size_t>(params.head_dim), 0.0);
  problem.expected_lse.assign(rows, -INFINITY);
  for (int32_t sequence = 0; sequence < params.batch; ++sequence)
    for (int32_t kv_head = 0; kv_head < params.num_kv_heads; ++kv_head)
      for (int32_t row = 0; row < params.rows(); ++row) {
        const int32_t group = params.num_query_heads / params.num_kv_heads;
        const int64_t query = row / group, head = kv_head * group + row % group;
        const int64_t at = (sequence * int64_t{params.query_len} + query) * params.num_query_heads + head;
        const int64_t seen = std::max<int64_t>(0, params.context_lengths[sequence] - params.query_len + query + 1);
        const int64_t q = at * params.head_dim;  // q is contiguous here
        std::vector<double> scores;
        double largest = -INFINITY, sum = 0;
        for (int32_t token = 0; token < seen; ++token) {
          const int64_t k = cache_offset(params, params.k_strides, sequence, token, kv_head);
          double dot = 0;
          for (int32_t d = 0; d < params.head_dim; ++d)
            dot += double{problem.q->get(static_cast<size_t>(q + d))} * problem.k->get(static_cast<size_t>(k + d));
          scores.push_back(dot * params.scale);
          largest = std::max(largest, scores.back());
        }
        for (double& score : scores) sum += score = std::exp(score - largest);
        if (seen == 0) continue;
        const auto out = static_cast<size_t>(at);
        problem.expected_lse[out] = largest + std::log(sum);
        for (int32_t token = 0; token < seen; ++token) {
          const int64_t v = cache_offset(params, params.v_strides, sequence, token, kv_head);
          for (int32_t d = 0; d < params.head_dim; ++d)
            problem.expected_out[out * static_cast<size_t>(params.head_dim) + static_cast<size_t>(d)] +=
                scores[static_cast<size_t>(token)] / sum * problem.v->get(static_cast<size_t>(v + d));
        }
      }
}

std::unique_ptr<Problem> make_problem(const Shape& shape, uint64_t seed) {
  Random random(seed);
  auto problem = std::make_unique<Problem>();
  problem->shape = shape;
  DecodeParams& params = problem->params;
  params.batch = static_cast<int32_t>(shape.contexts.size());
  params.query_len = shape.query_len;
  params.num_kv_heads = shape.num_kv_heads;
  params.num_query_heads = shape.num_kv_heads * shape.group_size;
  params.head_dim = shape.head_dim;
  params.q_type = shape.q_type;
  params.kv_type = shape.kv_type;
  params.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const int32_t longest = *std::max_element(shape.contexts.begin(), shape.contexts.end());
  if (shape.page_tokens == 0) {
    params.page_tokens = longest + 1;
    params.num_pages = params.batch;
    params.max_pages = 1;
  } else {
    params.page_tokens = shape.page_tokens;
    params.max_pages = longest / shape.page_tokens + 2;
    for (const int32_t context : shape.contexts)
      params.num_pages += (context + shape.page_tokens - 1) / shape.page_tokens;
    params.num_pages += 1;            // one that nobody uses
    int32_t next = params.num_pages;  // handed out backwards
    for (const int32_t context : shape.contexts)
      for (int32_t page = 0; page < params.max_pages; ++page)
        problem->page_table.push_back(page * shape.page_tokens < context ? --next : page % 2 ? INT32_MAX : -1);
    params.page_table = problem->page_table.data();
  }
  const int64_t head_dim = shape.head_dim;
  CacheStrides strides;
  strides.token = shape.heads_first ? head_dim : head_dim * shape.num_kv_heads;
  strides.head = shape.heads_first ? head_dim * params.page_tokens : head_dim;
  strides.page = head_dim * params.page_tokens * shape.num_kv_heads;
  params.k_strides = params.v_strides = strides;
  params.q_strides = {head_dim * params.num_query_heads * shape.query_len, head_dim * params.num_query_heads, head_dim};

  const auto rows = static_cast<size_t>(params.batch) * static_cast<size_t>(shape.query_len * params.num_query_heads);
  const auto cache = static_cast<size_t>(params.num_pages * strides.page);
  problem->q = std::make_unique<Elements>(rows * static_cast<size_t>(head_dim), shape.q_type);
  problem->out = std::make_unique<Elements>(rows * static_cast<size_t>(head_dim), shape.q_type);
  problem->k = std::make_unique<Elements>(cache, shape.kv_type);
  problem->v = std::make_unique<Elements>(cache, shape.kv_type);
  problem->lse.assign(rows, NAN);
  params.q = problem->q->data();
  params.k = problem->k->data();
  params.v = problem->v->data();
  params.out = problem->out->data();
  params.lse = problem->lse.data();
  params.context_lengths = problem->shape.contexts.data();
  for (size_t i = 0; i < rows * static_cast<size_t>(head_dim); ++i) problem->q->set(i, random.normal());
  for (int32_t sequence = 0; sequence < params.batch; ++sequence)
    for (int32_t token = 0; token < shape.contexts[static_cast<size_t>(sequence)]; ++token)
      for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
        const int64_t at = cache_offset(params, strides, sequence, token, head);
        for (int32_t d = 0; d < head_dim; ++d) {
          problem->k->set(static_cast<size_t>(at + d), random.normal());
          problem->v->set(static_cast<size_t>(at + d), random.normal());
        }
      }
  check_params(params, problem->sizes());
  compute_reference(*problem);
  return problem;
}

std::shared_ptr<DecodeCall> make_call(const Problem& problem, const Backend& backend, Strategy strategy,
                                      int64_t workers) {
  const DecodeParams& params = problem.params;
  auto call = std::make_shared<DecodeCall>();
  PlanRequest request;
  request.strategy = strategy;
  request.processors = workers;
  request.num_kv_heads = params.num_kv_heads;
  request.head_dim = params.head_dim;
  request.kv_type = params.kv_type;
  request.tile_tokens = backend.tile_tokens(request);
  call->plan = std::make_shared<const Plan>(request, problem.shape.contexts);
  call->page_table = problem.page_table;
  call->params = params;
  call->params.context_lengths = call->plan->context_lengths().data();
  if (params.page_table) call->params.page_table = call->page_table.data();
  return call;
}

void check_result(const Problem& problem) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < problem.expected_out.size(); ++i) {
    const double value = problem.out->get(i), wanted = problem.expected_out[i];
    CHECK(std::isfinite(value));
    difference += (value - wanted) * (value - wanted);
    norm += wanted * wanted;
  }
  const double bound = problem.shape.q_type == DType::kF32 ? 1e-5 : problem.shape.q_type == DType::kF16 ? 5e-4 : 3.5e-3;
  CHECK(difference == 0 || std::sqrt(difference / norm) <= bound);
  for (size_t i = 0; i < problem.expected_lse.size(); ++i) {
    const double value = problem.lse[i], wanted = problem.expected_lse[i];
    if (std::isinf(wanted))
      CHECK_EQUAL(value, wanted);
    else
      CHECK(std::abs(value - wanted) <= 1e-5 * (1 + std::abs(wanted)));
  }
}

void check_everywhere(const std::vector<Shape>& shapes) {
  for (const std::string& instruction_set : cpu::instruction_sets()) {
    const auto backend = cpu::open_cpu(3, instruction_set);
    CHECK_EQUAL(backend->instruction_set(), instruction_set);
    uint64_t seed = 1;
    for (const Shape& shape : shapes) {
      const auto problem = make_problem(shape, seed++);
      for (const Strategy strategy : {Strategy::kLean, Strategy::kFixedSplit, Strategy::kFlashAttention2})
        for (const int64_t workers : {1, 3, 16, 1000}) {
          backend->decode(*make_call(*problem, *backend, strategy, workers));
          check_result(*problem);
        }
    }
  }
}

TEST(backend_head_dims) {
  std::vector<Shape> shapes;
  for (const int32_t head_dim : {8, 16, 24, 40, 64, 72, 80, 96, 112, 128, 192, 256, 264, 504, 512})
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
      shapes.push_back({.contexts = {130, 0, 1, 65}, .head_dim = head_dim, .q_type = type, .kv_type = type});
  check_everywhere(shapes);
}

TEST(backend_groups_and_queries) {
  std::vector<Shape> shapes;
  for (const int32_t group_size : {1, 2, 3, 4, 5, 6, 7, 8, 12, 16})
    for (const int32_t query_len : {1, 2, 5, 16})
      shapes.push_back(
          {.contexts = {3, 70}, .query_len = query_len, .num_kv_heads = 1, .group_size = group_size, .head_dim = 24});
  check_everywhere(shapes);
}

TEST(backend_pages_and_layouts) {
  std::vector<Shape> shapes;
  for (const int32_t page_tokens : {0, 1, 3, 8, 16, 64, 256})
    for (const bool heads_first : {false, true})
      shapes.push_back({.contexts = {0, 1, 15, 16, 17, 63, 64, 65, 200},
                        .page_tokens = page_tokens,
                        .heads_first = heads_first,
                        .q_type = DType::kBF16,
                        .kv_type = DType::kF16});
  check_everywhere(shapes);
}

TEST(backend_mixed_types) {
  std::vector<Shape> shapes;
  for (const DType q_type : {DType::kF32, DType::kF16, DType::kBF16})
    for (const DType kv_type : {DType::kF32, DType::kF16, DType::kBF16})
      shapes.push_back({.contexts = {97, 54}, .head_dim = 72, .q_type = q_type, .kv_type = kv_type});
  check_everywhere(shapes);
}

TEST(backend_has_the_instruction_sets_it_names) {
  CHECK(!cpu::instruction_sets().empty());
  CHECK_EQUAL(cpu::instruction_sets().back(), "portable");
  CHECK_EQUAL(cpu::open_cpu(1, "")->instruction_set(), cpu::instruction_sets().front());
  CHECK_EQUAL(cpu::open_cpu(5, "portable")->processors(), 5);
  bool refused = false;
  try {
    cpu::open_cpu(1, "avx1024");
  } catch (const Error& error) {
    refused = error.code() == ErrorCode::kInvalidArgument;
  }
  CHECK(refused);
}

// Many partials, few tokens each: the fix-up under contention. The bits must not depend on who arrives last.
TEST(fix_up_gives_the_same_bits_under_many_threads) {
  const auto problem =
      make_problem({.contexts = {4000, 100, 0, 1500}, .num_kv_heads = 1, .group_size = 2, .head_dim = 8}, 3);
  std::vector<char> bits;
  for (const int threads : {1, 2, 8}) {
    const auto backend = cpu::open_cpu(threads, "");
    for (const Strategy strategy : {Strategy::kLean}) {
      const auto call = make_call(*problem, *backend, strategy, 64);
      for (int round = 0; round < 100; ++round) {
        backend->decode(*call);
        if (bits.empty()) {
          check_result(*problem);
          bits = problem->out->bytes();
        }
        CHECK(problem->out->bytes() == bits);
      }
    }
  }
}

TEST(backend_serves_many_callers_at_once) {
  const auto backend = cpu::open_cpu(3, "");
  constexpr int kCallers = 4;
  std::vector<std::unique_ptr<Problem>> problems;
  for (int caller = 0; caller < kCallers; ++caller)
    problems.push_back(make_problem({.contexts = {700, 30 * caller}, .head_dim = 16}, static_cast<uint64_t>(caller)));
  std::atomic<int> failures{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller)
    callers.emplace_back([&, caller] {
      const Problem& problem = *problems[static_cast<size_t>(caller)];
      for (int round = 0; round < 20; ++round) {
        const auto call = make_call(problem, *backend, Strategy::kLean, 7);
        try {
          if (round % 2 == 0) {
            backend->decode(*call);
          } else {
            std::promise<std::exception_ptr> ended;
            backend->submit(call, [&](std::exception_ptr error) { ended.set_value(error); });
            if (ended.get_future().get()) ++failures;
          }
          check_result(problem);
        } catch (const std::exception&) {
          ++failures;
        }
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK_EQUAL(failures.load(), 0);
}

TEST(backend_a_cancelled_call_ends_with_an_error_and_leaves_the_next_one_sound) {
  const auto backend = cpu::open_cpu(2, "");
  const auto problem = make_problem({.contexts = {3000}, .num_kv_heads = 1, .head_dim = 16}, 9);
  for (int round = 0; round < 50; ++round) {
    const auto call = make_call(*problem, *backend, Strategy::kLean, 32);
    call->cancelled = std::make_shared<std::atomic<bool>>(round % 5 == 0);
    std::promise<std::exception_ptr> ended;
    backend->submit(call, [&](std::exception_ptr error) { ended.set_value(error); });
    if (round % 2 == 0) call->cancelled->store(true);  // somewhere on the way
    const std::exception_ptr error = ended.get_future().get();
    if (error) {
      try {
        std::rethrow_exception(error);
      } catch (const Error& thrown) {
        CHECK(thrown.code() == ErrorCode::kCancelled);
      }
    }
    backend->decode(*make_call(*problem, *backend, Strategy::kLean, 32));
    check_result(*problem);
  }
}

TEST(backend_ends_with_calls_in_line) {
  std::vector<std::unique_ptr<Problem>> problems;  // one for each call: they write to memory of their own
  for (uint64_t job = 0; job < 6; ++job) problems.push_back(make_problem({.contexts = {1000}, .head_dim = 16}, job));
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> ended{0};
    {
      const auto backend = cpu::open_cpu(2, "");
      for (size_t job = 0; job < 5; ++job)
        backend->submit(make_call(*problems[job], *backend, Strategy::kLean, 2), [&](std::exception_ptr) { ++ended; });
      backend->decode(*make_call(*problems[5], *backend, Strategy::kLean, 2));
    }
    CHECK_EQUAL(ended.load(), 5);
  }
  for (const auto& problem : problems) check_result(*problem);
}

TEST(backend_scratch_is_small_whatever_the_context) {
  const auto backend = cpu::open_cpu(16, "");
  PlanRequest request;
  request.processors = 16;
  request.num_kv_heads = 8;
  request.tile_tokens = backend->tile_tokens(request);
  for (const int32_t length : {4096, 1 << 20, 1 << 30}) {
    const Plan plan(request, {length, length / 3});
    CHECK(backend->workspace_bytes(plan, 8) <= 2 << 20);
  }
}

#if defined(MADV_HUGEPAGE)
// The flags that the kernel keeps of the memory at an address ("hg": huge pages are wanted); empty: it does not say.
std::string memory_flags(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2)
      inside = begin <= reinterpret_cast<uintptr_t>(address) && reinterpret_cast<uintptr_t>(address) < end;
    else if (inside && line.starts_with("VmFlags:"))
      return line + ' ';
  }
  return "";
}

bool wants_huge_pages(const void* address) { return memory_flags(address).find(" hg ") != std::string::npos; }

TEST(backend_asks_for_huge_pages_for_large_memory) {
  // An emulator, or a kernel without huge pages, does not keep such advice: the test asks for itself first.
  constexpr size_t kBytes = size_t{64} << 20;
  void* probe = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(probe != MAP_FAILED);
  madvise(probe, kBytes, MADV_HUGEPAGE);
  const bool kept = wants_huge_pages(probe);
  munmap(probe, kBytes);
  if (!kept) return;
  const auto backend = cpu::open_cpu(1, "");
  const std::shared_ptr<void> memory = backend->allocate(kBytes);
  CHECK(wants_huge_pages(static_cast<char*>(memory.get()) + kBytes / 2));
  const std::shared_ptr<void> small = backend->allocate(1000);
  CHECK(!wants_huge_pages(small.get()));
}
#endif

TEST(backend_reads_whole_buffers_for_the_roofline) {
  for (const std::string& instruction_set : cpu::instruction_sets()) {
    const auto backend = cpu::open_cpu(3, instruction_set);
    std::vector<std::vector<std::byte>> blocks;  // exact heap blocks of odd sizes
    for (const size_t size : {0, 1, 3, 63, 64, 65, 4097, 100'001}) blocks.emplace_back(size);
    std::vector<std::span<const std::byte>> views(blocks.begin(), blocks.end());
    CHECK(backend->time_read(views) >= 0.0);
    CHECK(backend->time_read({}) >= 0.0);
  }
}

// ---- The last line of defence -------------------------------------------------------------------------------------

TEST(check_refuses_whatever_would_leave_the_buffers) {
  const auto problem = make_problem({.contexts = {20, 5}, .page_tokens = 4}, 11);
  const auto refused = [&](auto change) {
    DecodeParams params = problem->params;
    BufferSizes sizes = problem->sizes();
    change(params, sizes);
    try {
      check_params(params, sizes);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  CHECK(!refused([](DecodeParams&, BufferSizes&) {}));
  CHECK(refused([](DecodeParams&, BufferSizes& s) { s.q -= 1; }));
  CHECK(refused([](DecodeParams&, BufferSizes& s) { s.k -= 1; }));
  CHECK(refused([](DecodeParams&, BufferSizes& s) { s.v -= 1; }));
  CHECK(refused([](DecodeParams&, BufferSizes& s) { s.out -= 1; }));
  CHECK(refused([](DecodeParams&, BufferSizes& s) { s.lse -= 1; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.head_dim = 12; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.head_dim = 520; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.query_len = 17; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.query_len = 0; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.num_query_heads = 7; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.num_kv_heads = 0; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.num_pages -= 2; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.k_strides.page = INT64_MAX; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.k_strides.token = INT64_MAX / 2; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.v_strides.head = -1; }));
  CHECK(refused([](DecodeParams& p, BufferSizes&) { p.q_strides.sequence = INT64_MAX; }));
  const std::vector<int32_t> negative = {20, -1}, long_one = {20, 4 * problem->params.max_pages + 1};
  CHECK(refused([&](DecodeParams& p, BufferSizes&) { p.context_lengths = negative.data(); }));
  CHECK(refused([&](DecodeParams& p, BufferSizes&) { p.context_lengths = long_one.data(); }));
  for (const int32_t page : {-1, INT32_MIN, INT32_MAX, problem->params.num_pages}) {
    std::vector<int32_t> table = problem->page_table;
    table[4] = page;  // the last page that the first context reaches
    CHECK(refused([&](DecodeParams& p, BufferSizes&) { p.page_table = table.data(); }));
    table = problem->page_table;
    table[5] = page;  // the first one that it does not
    CHECK(!refused([&](DecodeParams& p, BufferSizes&) { p.page_table = table.data(); }));
  }
}

}  // namespace

}  // namespace lean::test
