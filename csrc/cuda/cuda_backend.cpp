// The CUDA backend's own calls: tensors that lie in host memory are staged on the device, through pinned memory, the
// rest is used where it is, and the outputs are copied back, with one wait for all of them. Calls run one after the
// other on a stream of the backend's own; asynchronous ones on a thread of its own, so that neither JavaScript nor
// libuv's pool ever waits for a GPU. What a server does step by step goes over streams (cuda_stream.cpp), where nothing
// is staged. A call here comes after all that streams had enqueued.
#include "cuda_backend.h"

#include <cstring>
#include <mutex>
#include <utility>

#include "../runtime/check.h"
#include "../runtime/error.h"
#include "../runtime/thread_pool.h"
#include "architectures.h"
#include "cuda_api.h"
#include "cuda_stream.h"
#include "launch.h"
#include "owned.h"
#include "staging.h"

namespace lean::cuda {

namespace {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int device)
      : device_(device),
        info_((api::use_device(device), api::device_info(device))),
        stream_(api::create_stream()),
        completion_(1) {}

  std::string name() const override { return "cuda:" + std::to_string(device_); }
  std::string instruction_set() const override {
    return "sm_" + std::to_string(info_.major) + std::to_string(info_.minor);
  }
  int64_t processors() const override { return info_.num_processors; }
  int64_t default_workers(const PlanRequest& request) const override {
    api::use_device(device_);
    return resident_workers(request.kv_type, request.head_dim, request.rows, request.launch);
  }
  void choose_cuts(PlanRequest& request, std::span<const int32_t>) const override {
    if (request.strategy != Strategy::kLean) return;
    request.by_cost = request.heads_at_once = true;
    request.heads_per_tile = heads_together(request.num_kv_heads, request.processors);
  }
  int32_t tile_tokens(const PlanRequest& request) const override {
    api::use_device(device_);
    return lean::tile_tokens(request.kv_type, request.head_dim, request.rows, request.launch);
  }
  size_t workspace_bytes(const Plan& plan, int32_t rows) const override {
    const LaunchPlan launch = launch_of(plan, rows);
    return launch.scratch_bytes + launch.counter_bytes;
  }
  std::string describe_launch(const Plan& plan, int32_t rows) const override {
    return launch_of(plan, rows).describe();
  }

  MemoryInfo memory_info() const override {
    api::use_device(device_);
    MemoryInfo info{};
    api::memory_info(info.free, info.total);
    return info;
  }
  std::shared_ptr<void> allocate(size_t bytes) override {
    std::shared_ptr<void> memory = allocate_shared(device_, bytes);
    api::clear(memory.get(), bytes, nullptr);
    api::synchronize(nullptr);
    return memory;
  }
  void upload(void* target, const void* source, size_t bytes) override {
    join_streams();
    const std::lock_guard lock(mutex_);
    api::copy_to_device(target, source, bytes, stream_);
    api::synchronize(stream_);
  }
  void download(void* target, const void* source, size_t bytes) override {
    join_streams();
    const std::lock_guard lock(mutex_);
    api::copy_to_host(target, source, bytes, stream_);
    api::synchronize(stream_);
  }
  std::shared_ptr<Stream> create_stream() override { return streams_.create(device_, info_.num_processors); }

  void decode(const DecodeCall& call) override {
    join_streams();
    run_locked(call);
  }

  void submit(std::shared_ptr<const DecodeCall> call, Done done) override {
    join_streams();
    completion_.submit(
        1,
        [this, call](int64_t, int) {
          if (call->cancelled && call->cancelled->load(std::memory_order_relaxed))
            throw Error(ErrorCode::kCancelled, "The call was cancelled");
          run_locked(*call);
        },
        std::move(done));
  }

  void append(const AppendCall& call) override {
    join_streams();
    const std::lock_guard lock(mutex_);
    const AppendParams& host = call.params;
    const AppendSizes bytes = needed_bytes(host);
    AppendParams params = host;
    params.k = stage(k_, host.k, bytes.k);
    params.v = stage(v_, host.v, bytes.v);
    params.slots = static_cast<const int64_t*>(stage(pages_, host.slots, call.slots.size() * sizeof(int64_t)));
    params.positions =
        static_cast<const int32_t*>(stage(lengths_, host.positions, call.positions.size() * sizeof(int32_t)));
    if (host.q) {
      params.q = stage(q_, host.q, bytes.q);
      params.q_out = stage(out_, host.q_out, bytes.q_out);  // gaps between its rows come back as they were
    }
    launch_append(params, nullptr, stream_);
    if (host.q) {
      results_.reserve(bytes.q_out);
      api::copy_to_host(results_.data(), params.q_out, bytes.q_out, stream_);
    }
    api::synchronize(stream_);
    if (host.q) memcpy(host.q_out, results_.data(), bytes.q_out);
  }

  void copy_pages(const PageCopyParams& params) override {
    join_streams();
    const std::lock_guard lock(mutex_);
    launch_page_copies(params, stream_);
    api::synchronize(stream_);
  }

  double time_read(std::span<const std::span<const std::byte>> buffers) override {
    const std::lock_guard lock(mutex_);
    api::use_device(device_);
    size_t total = 0;
    for (const auto& buffer : buffers) total += buffer.size();
    k_.reserve(total);
    size_t at = 0;
    for (const auto& buffer : buffers) {
      api::copy_to_device(static_cast<std::byte*>(k_.data()) + at, buffer.data(), buffer.size(), stream_);
      at += buffer.size();
    }
    out_.reserve(sizeof(float));
    const OwnEvent start(api::create_timed_event()), end(api::create_timed_event());
    api::record(start, stream_);
    launch_read(k_.data(), total, out_.data(), info_.num_processors, stream_);
    api::record(end, stream_);
    api::synchronize(stream_);
    return api::milliseconds_between(start, end) / 1e3;
  }

 private:
  // On the calling thread, which is the streams' too: not on the one that runs asynchronous calls.
  void join_streams() {
    api::use_device(device_);
    streams_.join_into(stream_);
  }

  void run_locked(const DecodeCall& call) {
    const std::lock_guard lock(mutex_);
    api::use_device(device_);
    try {
      run(call);
    } catch (...) {
      counters_are_clean_ = false;  // a launch may have been cut off half-way
      throw;
    }
  }

  static LaunchRequest launch_request(const Plan& plan, const DecodeParams& params) {
    LaunchRequest request;
    request.decode = params;
    request.strategy = plan.request().strategy;
    request.workers = plan.request().processors;
    request.by_cost = plan.request().by_cost;
    request.heads_per_tile = plan.request().heads_per_tile;
    request.num_splits = static_cast<int32_t>(plan.schedule().num_splits);
    request.options = plan.request().launch;
    return request;
  }

  // The launch of a plan whose tensors are not at hand yet.
  LaunchPlan launch_of(const Plan& plan, int32_t rows) const {
    api::use_device(device_);
    DecodeParams params{};  // only its shape counts, and of that only what is set here
    params.q_type = params.kv_type = plan.request().kv_type;
    params.batch = static_cast<int32_t>(plan.context_lengths().size());
    params.query_len = 1;
    params.num_kv_heads = plan.request().num_kv_heads;
    params.num_query_heads = rows * params.num_kv_heads;
    params.head_dim = plan.request().head_dim;
    return plan_launch(launch_request(plan, params));
  }

  void* stage(DeviceBuffer& buffer, const void* source, size_t bytes) {
    buffer.reserve(bytes);
    staging_.upload(buffer.data(), source, bytes);
    return buffer.data();
  }

  void run(const DecodeCall& call) {
    const DecodeParams& host = call.params;
    const BufferSizes bytes = needed_bytes(host);
    LaunchRequest request = launch_request(*call.plan, host);
    DecodeParams& params = request.decode;
    const bool reads_cache = call.plan->schedule().total_cost > 0;
    if (!call.q_on_device) params.q = stage(q_, host.q, bytes.q);
    if (!call.k_on_device) params.k = stage(k_, host.k, reads_cache ? bytes.k : 0);
    if (!call.v_on_device) params.v = stage(v_, host.v, reads_cache ? bytes.v : 0);
    params.context_lengths = static_cast<const int32_t*>(
        stage(lengths_, host.context_lengths, static_cast<size_t>(host.batch) * sizeof(int32_t)));
    params.page_table =
        host.page_table
            ? static_cast<const int32_t*>(stage(pages_, host.page_table, call.page_table.size() * sizeof(int32_t)))
            : nullptr;
    out_.reserve(bytes.out);
    lse_.reserve(bytes.lse);
    constexpr size_t kHeader = 16;  // for the status word
    results_.reserve(kHeader + bytes.out + bytes.lse);
    params.out = out_.data();
    params.lse = static_cast<float*>(lse_.data());

    const LaunchPlan launch = plan_launch(request);
    scratch_.reserve(launch.scratch_bytes);
    if (counters_.reserve(launch.counter_bytes) || !counters_are_clean_)
      reset_counters(counters_.data(), counters_.size(), stream_);
    counters_are_clean_ = true;
    request.scratch = scratch_.data();
    request.counters = counters_.data();
    launch_decode(request, launch, stream_);
    std::byte* const arrived = results_.data();
    std::byte* const arrived_out = arrived + kHeader;
    std::byte* const arrived_lse = arrived_out + bytes.out;
    api::copy_to_host(arrived, counters_.data(), sizeof(uint32_t), stream_);
    api::copy_to_host(arrived_out, out_.data(), bytes.out, stream_);
    api::copy_to_host(arrived_lse, lse_.data(), bytes.lse, stream_);
    api::synchronize(stream_);
    uint32_t status;
    memcpy(&status, arrived, sizeof status);
    memcpy(host.out, arrived_out, bytes.out);
    memcpy(host.lse, arrived_lse, bytes.lse);
    if (status != 0) throw Error(ErrorCode::kBadDeviceData, describe_status(status));
  }

  const int device_;
  const api::DeviceInfo info_;
  StreamSet streams_;
  std::mutex mutex_;  // guards everything below but completion_
  DeviceBuffer q_{device_}, k_{device_}, v_{device_}, out_{device_}, lse_{device_}, lengths_{device_}, pages_{device_},
      scratch_{device_}, counters_{device_};
  PinnedBuffer results_;
  bool counters_are_clean_ = false;
  const OwnStream stream_;
  StagingRing staging_{stream_};
  ThreadPool completion_;  // last, so that it ends before what its calls use
};

// A device that does not answer is one of those that cannot be used, and no reason to say nothing of the others.
CudaDevice describe(int index) {
  try {
    const api::DeviceInfo info = api::device_info(index);
    return {index,
            info.name,
            std::to_string(info.major) + "." + std::to_string(info.minor),
            info.memory_bytes,
            info.l2_bytes,
            why_no_kernels(info),
            "no-kernels"};
  } catch (const Error& error) {
    return {index, "", "", 0, 0, error.what(), "runtime"};
  }
}

}  // namespace

CudaStatus cuda_status() {
  CudaStatus status{true, {}, {}, {}};
  api::Problem problem;
  const int count = api::count_devices(problem);
  status.reason = problem.sentence;
  status.problem = problem.reason;
  bool usable = false;
  for (int index = 0; index < count; ++index) {
    status.devices.push_back(describe(index));
    usable = usable || status.devices.back().reason.empty();
  }
  if (count > 0 && !usable) {
    status.reason = status.devices[0].reason;
    status.problem = status.devices[0].problem;
  }
  return status;
}

std::shared_ptr<Backend> open_cuda(int index) {
  const CudaStatus status = cuda_status();
  if (status.devices.empty())
    throw Error(ErrorCode::kCudaUnavailable, "No CUDA device: " + status.reason).because(status.problem);
  if (index >= static_cast<int>(status.devices.size()))
    throw Error(ErrorCode::kCudaUnavailable, "No CUDA device " + std::to_string(index) + ": this machine has " +
                                                 std::to_string(status.devices.size()))
        .because("no-such-device");
  const CudaDevice& device = status.devices[static_cast<size_t>(index)];
  if (!device.reason.empty())
    throw Error(ErrorCode::kCudaUnavailable,
                "CUDA device " + std::to_string(index) + " cannot be used: " + device.reason)
        .because(device.problem);
  return std::make_shared<CudaBackend>(index);
}

}  // namespace lean::cuda
