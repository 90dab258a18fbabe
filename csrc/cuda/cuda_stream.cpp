// A CUDA stream with a workspace of its own. Enqueuing does not wait for the device; the stream's own thread does, and
// calls `done` when an event has happened, so neither JavaScript nor libuv's pool waits for a GPU. Two things may wait
// all the same: an upload, where the device is far behind (staging.h), and the driver, where memory is freed.
//
// Who keeps what alive: `held_` collects the memory that enqueued work uses and goes with the next completion; a graph
// holds what was captured, the workspace of that time included, and is itself held while its launches run.
#include "cuda_stream.h"

#include <cstring>
#include <mutex>
#include <set>
#include <utility>

#include "../runtime/error.h"
#include "../runtime/thread_pool.h"
#include "instances.h"
#include "launch.h"
#include "owned.h"
#include "staging.h"

namespace lean::cuda {

namespace {

using Shared = std::shared_ptr<const void>;

// By owner, not by address: memory may have several names.
using Held = std::set<Shared, std::owner_less<Shared>>;

class CudaEvent final : public StreamEvent {
 public:
  CudaEvent() : event_(api::create_timed_event()) {}

  float milliseconds_since(const StreamEvent& earlier) const override {
    return api::milliseconds_between(static_cast<const CudaEvent&>(earlier).event_, event_);
  }
  api::Event handle() const { return event_; }

 private:
  OwnEvent event_;
};

class CudaGraph final : public StreamGraph {
 public:
  CudaGraph(Shared stream, api::Graph graph, Held held)
      : stream_(std::move(stream)), held_(std::move(held)), graph_(graph) {}

  const Shared& stream() const { return stream_; }
  api::Graph handle() const { return graph_; }

 private:
  Shared stream_;  // the identity of the stream whose workspace it uses
  Held held_;
  OwnGraph graph_;  // goes before what it uses
};

// What one completion needs: an event, and pinned memory for the status word and the bytes to download.
struct Arrival {
  explicit Arrival(size_t capacity)
      : bytes(capacity), pinned(api::allocate_pinned(kHeader + capacity)), event(api::create_event()) {}

  static constexpr size_t kHeader = 16;
  std::byte* status() const { return static_cast<std::byte*>(static_cast<void*>(pinned)); }
  std::byte* data() const { return status() + kHeader; }

  size_t bytes;
  OwnPinned pinned;
  OwnEvent event;
};

}  // namespace

class CudaStream final : public Stream {
 public:
  CudaStream(int device, int num_processors)
      : device_((api::use_device(device), device)),
        num_processors_(num_processors),
        setup_(api::create_stream()),
        joined_(api::create_event()),
        stream_(api::create_stream()),
        thread_(1) {
    status_.reserve(2 * sizeof(uint32_t));  // and a word that reads are said to write to
    api::clear(status_.data(), status_.size(), stream_);
  }

  ~CudaStream() override {
    try {  // the memory that enqueued work uses must outlive it
      api::use_device(device_);
      if (capturing_) api::destroy_graph(api::end_capture(stream_));
      api::synchronize(stream_);
    } catch (const Error&) {
    }
  }

  void decode(const StreamDecode& call) override {
    api::use_device(device_);
    LaunchRequest request;
    request.decode = call.params;
    request.strategy = call.request.strategy;
    request.workers = call.request.processors;
    request.by_cost = call.request.by_cost;
    request.heads_per_tile = call.request.heads_per_tile;
    request.num_splits = num_splits(call);
    request.options = call.request.launch;
    const LaunchPlan plan = plan_launch(request);
    if (counters_.reserve(plan.counter_bytes)) counters_are_clean_ = false;
    if (!counters_are_clean_) clear_counters();
    scratch_.reserve(plan.scratch_bytes);
    request.counters = counters_.data();
    request.scratch = scratch_.data();
    request.status = static_cast<uint32_t*>(status_.data());
    // Before the launch: it may be two kernels, of which the second can be refused when the first is enqueued.
    hold(counters_.shared());
    hold(scratch_.shared());
    for (const auto& owner : call.owners) hold(owner);
    launch_decode(request, plan, stream_);
  }

  void append(const StreamAppend& call) override {
    api::use_device(device_);
    launch_append(call.params, static_cast<uint32_t*>(status_.data()), stream_);
    for (const auto& owner : call.owners) hold(owner);
  }

  void upload(const DeviceView& target, const void* source) override {
    refuse_in_capture("upload");
    api::use_device(device_);
    hold(target.owner);  // first: of several copies, one may fail when others are enqueued
    staging_.upload(target.data, source, target.bytes);
  }

  void copy(const DeviceView& target, const DeviceView& source) override {
    api::use_device(device_);
    api::copy_on_device(target.data, source.data, source.bytes, stream_);
    hold(target.owner);
    hold(source.owner);
  }

  void read(const DeviceView& source) override {
    if (reinterpret_cast<uintptr_t>(source.data) % 16)
      throw Error(ErrorCode::kInvalidArgument, "Expected `source` to begin at a multiple of 16 bytes");
    api::use_device(device_);
    launch_read(source.data, source.bytes, static_cast<uint32_t*>(status_.data()) + 1, num_processors_, stream_);
    hold(source.owner);
  }

  void download(const DeviceView& source, void* target, Done done) override {
    refuse_in_capture("download");
    hold(source.owner);
    complete(source.data, target, source.bytes, std::move(done));
  }

  void finish(Done done) override {
    refuse_in_capture("finish");
    complete(nullptr, nullptr, 0, std::move(done));
  }

  std::shared_ptr<StreamEvent> record() override {
    refuse_in_capture("record");
    api::use_device(device_);
    auto event = std::make_shared<CudaEvent>();
    api::record(event->handle(), stream_);
    return event;
  }

  void wait(const std::shared_ptr<StreamEvent>& event) override {
    refuse_in_capture("wait");
    api::use_device(device_);
    api::wait(stream_, static_cast<const CudaEvent&>(*event).handle());
    hold(event);
  }

  void begin_capture() override {
    refuse_in_capture("capture");
    api::use_device(device_);
    // A kernel's first use loads its code, and the driver may wait to do so: not in a capture.
    for (const void* kernel : {tile_map_kernel(), append_kernel(), read_kernel()}) api::kernel_code(kernel);
    load_decode_kernels();
    api::begin_capture(stream_);
    capturing_ = true;
    captured_.clear();
  }

  std::shared_ptr<StreamGraph> end_capture() override {
    api::use_device(device_);
    capturing_ = false;
    Held held = std::exchange(captured_, {});
    held.insert(status_.shared());
    const api::Graph graph = api::end_capture(stream_);
    if (!graph) throw Error(ErrorCode::kLaunchFailed, "What was captured cannot be made a graph");
    return std::make_shared<CudaGraph>(identity_, graph, std::move(held));
  }

  void launch(const std::shared_ptr<StreamGraph>& graph) override {
    refuse_in_capture("launch");
    const auto& captured = static_cast<const CudaGraph&>(*graph);
    if (captured.stream() != identity_)
      throw Error(ErrorCode::kInvalidArgument, "Expected a graph that was captured from this stream");
    api::use_device(device_);
    api::launch_graph(captured.handle(), stream_);
    hold(graph);
  }

  void join_into(api::Stream other) {
    if (capturing_) return;  // what is being captured does not run
    api::record(joined_, stream_);
    api::wait(other, joined_);
  }

 private:
  // The host does not know the lengths: fixed-split's rule sees the capacity.
  static int32_t num_splits(const StreamDecode& call) {
    if (call.request.strategy != Strategy::kFixedSplit) return 1;
    const int64_t capacity = int64_t{call.params.max_pages} * call.params.page_tokens;
    const int64_t tiles = (capacity + call.request.tile_tokens - 1) / call.request.tile_tokens;
    const int64_t outputs = int64_t{call.params.batch} * call.params.num_kv_heads;
    const int64_t splits =
        call.request.splits ? call.request.splits : choose_num_splits(outputs, tiles, call.request.processors);
    return static_cast<int32_t>(std::min(splits, std::max<int64_t>(tiles, 1)));
  }

  void refuse_in_capture(const char* what) const {
    if (capturing_)
      throw Error(
          ErrorCode::kInvalidArgument,
          std::string("Expected decodes, writes and copies on the device inside capture(), got ") + what + "()");
  }

  void hold(const Shared& what) { (capturing_ ? captured_ : held_).insert(what); }

  // Before anything that is enqueued or captured now, and once only: not in every replay. On a stream that never
  // captures.
  void clear_counters() {
    reset_counters(counters_.data(), counters_.size(), setup_);
    api::synchronize(setup_);
    counters_are_clean_ = true;
  }

  void complete(const void* source, void* target, size_t bytes, Done done) {
    api::use_device(device_);
    const std::shared_ptr<Arrival> arrival = take_arrival(bytes);
    if (bytes > 0) api::copy_to_host(arrival->data(), source, bytes, stream_);
    api::copy_to_host(arrival->status(), status_.data(), sizeof(uint32_t), stream_);
    api::clear(status_.data(), status_.size(), stream_);
    api::record(arrival->event, stream_);
    thread_.submit(
        1,
        [this, arrival, target, bytes](int64_t, int) {
          api::use_device(device_);
          api::wait(arrival->event);
          uint32_t status;
          memcpy(&status, arrival->status(), sizeof status);
          if (bytes > 0) memcpy(target, arrival->data(), bytes);
          give_back(arrival);
          if (status != 0) throw Error(ErrorCode::kBadDeviceData, describe_status(status));
        },
        // What the work used goes after the caller has been told, because freeing it may wait for other streams; and
        // here, because the pool would let it go under the lock that the next call has to take.
        [held = std::exchange(held_, {}), done = std::move(done)](std::exception_ptr error) mutable {
          done(error);
          held.clear();
        });
  }

  std::shared_ptr<Arrival> take_arrival(size_t bytes) {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < arrivals_.size(); ++i) {
      if (arrivals_[i]->bytes < bytes) continue;
      std::shared_ptr<Arrival> found = std::move(arrivals_[i]);
      arrivals_.erase(arrivals_.begin() + static_cast<std::ptrdiff_t>(i));
      return found;
    }
    return std::make_shared<Arrival>(bytes);
  }

  // A few of them serve a server's every step; what a burst needed more goes.
  void give_back(const std::shared_ptr<Arrival>& arrival) {
    constexpr size_t kKept = 4;
    const std::lock_guard lock(mutex_);
    if (arrivals_.size() == kKept) arrivals_.erase(arrivals_.begin());
    arrivals_.push_back(arrival);
  }

  const int device_;
  const int num_processors_;
  std::mutex mutex_;                                // guards arrivals_
  std::vector<std::shared_ptr<Arrival>> arrivals_;  // ready to be used again
  DeviceBuffer counters_{device_}, scratch_{device_}, status_{device_};
  Held held_;
  Held captured_;
  bool capturing_ = false;
  bool counters_are_clean_ = false;
  const Shared identity_ = std::make_shared<char>();
  const OwnStream setup_;
  const OwnEvent joined_;
  const OwnStream stream_;
  StagingRing staging_{stream_};
  ThreadPool thread_;  // last, so that it ends before what its tasks use
};

std::shared_ptr<Stream> StreamSet::create(int device, int num_processors) {
  auto stream = std::make_shared<CudaStream>(device, num_processors);
  std::erase_if(streams_, [](const auto& other) { return other.expired(); });
  streams_.push_back(stream);
  return stream;
}

void StreamSet::join_into(api::Stream stream) {
  for (const auto& weak : streams_)
    if (const auto other = weak.lock()) other->join_into(stream);
}

}  // namespace lean::cuda
