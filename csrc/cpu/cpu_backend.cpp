#include "cpu_backend.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#endif

#include "../runtime/error.h"
#include "../runtime/thread_pool.h"
#include "append.h"
#include "worker.h"

namespace lean::cpu {

namespace {

const std::array kTileCodes = {&kAvx512Tile, &kAvx2Tile, &kPortableTile};

const TileCode& choose_tile(const std::string& name) {
  for (const TileCode* tile : kTileCodes)
    if (tile->supported() && (name.empty() || name == tile->name)) return *tile;
  throw Error(ErrorCode::kInvalidArgument, "Expected an instruction set that this processor has, got '" + name + "'");
}

// Where the system leaves it to programs, this asks for pages of 2 MB: decode over a cache then takes a sixth less.
// (Its rows are written a few here and a few there, so that small pages lie scattered in physical memory.) Advice:
// nothing depends on its being taken.
void prefer_huge_pages([[maybe_unused]] void* block, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(block) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(block) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

int usable_processors() {
#if defined(__linux__)
  cpu_set_t set;  // a container or taskset may leave fewer than the machine has
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

constexpr size_t kAlignment = 64;

// Elements that a thread converts before a second one is worth waking.
constexpr int64_t kTaskElements = 1 << 15;

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, const TileCode& tile) : tile_(tile), arenas_(static_cast<size_t>(threads)), pool_(threads) {}

  std::string name() const override { return "cpu"; }
  std::string instruction_set() const override { return tile_.name; }
  int64_t processors() const override { return pool_.num_threads(); }
  int64_t default_workers(const PlanRequest&) const override { return pool_.num_threads(); }
  int32_t tile_tokens(const PlanRequest& request) const override {
    if (request.launch != LaunchOptions{})
      throw Error(ErrorCode::kInvalidArgument, "Expected `launch` only for a CUDA device, got it for the CPU");
    return kTileTokens;
  }
  // Not by cost: the ends of output tiles take no time beside the tiles.
  void choose_cuts(PlanRequest& request, std::span<const int32_t> context_lengths) const override {
    request.heads_per_tile = cpu::heads_per_tile(request, context_lengths);
  }
  size_t workspace_bytes(const Plan& plan, int32_t rows) const override {
    return Workspace::bytes(plan, rows, plan.request().head_dim);
  }
  std::string describe_launch(const Plan&, int32_t rows) const override {
    return std::string(tile_.name) + " tile code on " + std::to_string(pool_.num_threads()) + " threads, " +
           std::to_string(rows) + " rows share a read of K and V";
  }

  void upload(void* target, const void* source, size_t bytes) override { memcpy(target, source, bytes); }
  void download(void* target, const void* source, size_t bytes) override { memcpy(target, source, bytes); }
  std::shared_ptr<Stream> create_stream() override {
    throw Error(ErrorCode::kUnsupported, "Streams need a CUDA device; on the CPU, await device.decode()");
  }

  void decode(const DecodeCall& call) override {
    const auto scratch = take_scratch();
    scratch->workspace.reserve(*call.plan, call.params.rows(), call.params.head_dim);
    const int64_t workers = num_tasks(call);
    try {
      pool_.run(workers, [&](int64_t worker, int thread) {
        run_worker(call, tile_, worker, workers, scratch->workspace, arena(*scratch, thread));
      });
    } catch (...) {
      scratch->workspace.reset_counters();
      give_back(scratch);
      throw;
    }
    give_back(scratch);
  }

  void submit(std::shared_ptr<const DecodeCall> call, Done done) override {
    const auto scratch = take_scratch();
    scratch->workspace.reserve(*call->plan, call->params.rows(), call->params.head_dim);
    const int64_t workers = num_tasks(*call);
    pool_.submit(
        workers,
        [this, call, scratch, workers](int64_t worker, int thread) {
          if (call->cancelled && call->cancelled->load(std::memory_order_relaxed))
            throw Error(ErrorCode::kCancelled, "The call was cancelled");
          run_worker(*call, tile_, worker, workers, scratch->workspace, arena(*scratch, thread));
        },
        [this, scratch, done = std::move(done)](std::exception_ptr error) {
          if (error) scratch->workspace.reset_counters();
          give_back(scratch);
          done(error);
        });
  }

  // The operating system backs it with memory where it is first written.
  std::shared_ptr<void> allocate(size_t bytes) override {
    void* block = bytes <= SIZE_MAX - kAlignment ? std::calloc(bytes + kAlignment, 1) : nullptr;
    if (!block)
      throw Error(ErrorCode::kOutOfMemory, "Not enough memory: asked for " + std::to_string(bytes) + " bytes");
    prefer_huge_pages(block, bytes + kAlignment);
    const auto address = reinterpret_cast<uintptr_t>(block);
    void* aligned = static_cast<char*>(block) + (kAlignment - address % kAlignment) % kAlignment;
    return {aligned, [block](void*) { std::free(block); }};
  }

  void append(const AppendCall& call) override {
    const AppendParams& params = call.params;
    const int64_t row_elements = int64_t{2 * params.num_kv_heads + params.num_query_heads} * params.head_dim;
    const int64_t task_rows = std::max<int64_t>(1, kTaskElements / row_elements);
    const int64_t tasks = (params.rows + task_rows - 1) / task_rows;
    if (tasks == 1) return append_rows(params, tile_, 0, params.rows);
    pool_.run(tasks, [&](int64_t task, int) {
      append_rows(params, tile_, static_cast<int32_t>(task * task_rows),
                  static_cast<int32_t>(std::min<int64_t>(params.rows, (task + 1) * task_rows)));
    });
  }

  void copy_pages(const PageCopyParams& params) override {
    for (int64_t block = 0; block < params.num_blocks; ++block) copy_block(params, block);
  }

  double time_read(std::span<const std::span<const std::byte>> buffers) override {
    // Each thread reads one run of the buffers' bytes, as workers own one run of tiles.
    size_t total = 0;
    for (const auto& buffer : buffers) total += buffer.size();
    const auto threads = static_cast<size_t>(pool_.num_threads());
    const auto start = std::chrono::steady_clock::now();
    pool_.run(pool_.num_threads(), [&](int64_t task, int) {
      const auto index = static_cast<size_t>(task);
      const size_t begin = total / threads * index;
      const size_t end = index + 1 == threads ? total : total / threads * (index + 1);
      size_t at = 0;
      for (const auto& buffer : buffers) {
        const size_t from = std::clamp(begin, at, at + buffer.size());
        const size_t to = std::clamp(end, at, at + buffer.size());
        if (from < to) tile_.read(buffer.data() + (from - at), to - from);
        at += buffer.size();
      }
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  // What one call needs besides the pool's own arenas; kept for the next call.
  struct Scratch {
    Workspace workspace;
    Arena caller;  // for a calling thread that takes part
  };

  // At least one task: empty contexts are written too.
  static int64_t num_tasks(const DecodeCall& call) { return std::max<int64_t>(1, call.plan->schedule().num_workers); }

  Arena& arena(Scratch& scratch, int thread) {
    return thread == pool_.num_threads() ? scratch.caller : arenas_[static_cast<size_t>(thread)];
  }

  std::shared_ptr<Scratch> take_scratch() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return std::make_shared<Scratch>();
    auto scratch = std::move(free_.back());
    free_.pop_back();
    return scratch;
  }

  void give_back(const std::shared_ptr<Scratch>& scratch) {
    const std::lock_guard lock(mutex_);
    free_.push_back(scratch);
  }

  const TileCode& tile_;
  std::mutex mutex_;  // guards free_
  std::vector<std::shared_ptr<Scratch>> free_;
  std::vector<Arena> arenas_;  // one for each of the pool's threads
  ThreadPool pool_;            // last, so that it ends before what its threads use
};

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const TileCode* tile : kTileCodes)
    if (tile->supported()) names.emplace_back(tile->name);
  return names;
}

std::shared_ptr<Backend> open_cpu(int threads, const std::string& instruction_set) {
  return std::make_shared<CpuBackend>(threads > 0 ? threads : usable_processors(), choose_tile(instruction_set));
}

}  // namespace lean::cpu
