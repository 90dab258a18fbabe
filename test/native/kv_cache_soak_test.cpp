// A KV cache under random operations, contents included. Keys are zeros, so attention is the mean of the values that a
// sequence sees, and the values are numbers that a plain model keeps: a row in the wrong page, a page given to two
// owners or a copy that was not made shows as a wrong mean.
#include <cmath>

#include "../../csrc/cpu/cpu_backend.h"
#include "../../csrc/runtime/error.h"
#include "../../csrc/runtime/kv_cache.h"
#include "harness.h"

namespace lean::test {

namespace {

constexpr int32_t kLayers = 2, kHeadDim = 8, kPageTokens = 4, kPages = 48;
constexpr size_t kMostSequences = 16;

struct Live {
  SequenceId id;
  std::vector<float> tokens;
};

class Soak {
 public:
  explicit Soak(uint64_t seed)
      : random_(seed),
        backend_(cpu::open_cpu(2, "")),
        cache_(*backend_, {kLayers, kPages, kPageTokens, 1, kHeadDim, DType::kF32}) {}

  void step() {
    const int64_t what = random_.integer(0, 9);
    if (live_.empty() || (what == 0 && live_.size() < kMostSequences)) {
      live_.push_back({cache_.pages().create(), {}});
    } else if (what == 1 && live_.size() < kMostSequences) {
      const Live& parent = pick();
      live_.push_back({cache_.pages().fork(parent.id), parent.tokens});
    } else if (what == 2) {
      Live& one = pick();
      one.tokens.resize(static_cast<size_t>(random_.integer(0, static_cast<int64_t>(one.tokens.size()))));
      cache_.pages().truncate(one.id, static_cast<int64_t>(one.tokens.size()));
    } else if (what == 3) {
      Live& one = pick();
      CHECK(cache_.pages().free(one.id));
      one = live_.back();
      live_.pop_back();
    } else if (what < 8) {
      append();
    } else {
      decode();
    }
  }

  void verify() { cache_.pages().verify(); }

 private:
  Live& pick() { return live_[static_cast<size_t>(random_.integer(0, static_cast<int64_t>(live_.size()) - 1))]; }

  // A run of neighbours, so that no sequence comes twice.
  std::span<Live> some() {
    const auto first = static_cast<size_t>(random_.integer(0, static_cast<int64_t>(live_.size()) - 1));
    const auto count =
        static_cast<size_t>(random_.integer(1, static_cast<int64_t>(std::min<size_t>(4, live_.size() - first))));
    return std::span<Live>(live_).subspan(first, count);
  }

  void append() {
    const std::span<Live> chosen = some();
    KvBatch batch;
    std::vector<float> values;
    for (const Live& one : chosen) {
      batch.ids.push_back(one.id);
      batch.counts.push_back(static_cast<int32_t>(random_.integer(1, 6)));
      for (int32_t i = 0; i < batch.counts.back(); ++i) values.push_back(next_++);
    }
    try {
      batch.stamp = cache_.append(*backend_, batch.ids, batch.counts);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kOutOfPages);
      for (const Live& one : chosen)
        CHECK_EQUAL(cache_.pages().length(one.id), static_cast<int32_t>(one.tokens.size()));
      return;
    }
    size_t at = 0;
    for (size_t i = 0; i < chosen.size(); ++i)
      for (int32_t n = 0; n < batch.counts[i]; ++n) chosen[i].tokens.push_back(values[at++]);
    const std::vector<float> k(values.size() * kHeadDim, 0.0f);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      std::vector<float> v;
      for (const float value : values) v.insert(v.end(), kHeadDim, layer == 0 ? value : -value);
      AppendCall call;
      call.params = {};
      call.params.k = k.data();
      call.params.v = v.data();
      call.params.k_strides = call.params.v_strides = {kHeadDim, kHeadDim};
      cache_.write(*backend_, batch, layer, call, {k.size() * sizeof(float), v.size() * sizeof(float), 0, 0, 0});
    }
  }

  void decode() {
    const std::span<Live> chosen = some();
    KvBatch batch;
    for (const Live& one : chosen) batch.ids.push_back(one.id);
    const std::vector<float> q(chosen.size() * kHeadDim, 1.0f);
    std::vector<float> out(q.size(), NAN), lse(chosen.size(), NAN);
    const auto layer = static_cast<int32_t>(random_.integer(0, kLayers - 1));
    PlanRequest request;
    request.processors = random_.integer(1, 4);
    request.head_dim = kHeadDim;
    request.kv_type = DType::kF32;
    request.tile_tokens = backend_->tile_tokens(request);
    DecodeCall call;
    call.plan = std::make_shared<const Plan>(request, cache_.context_lengths(batch));
    cache_.read(batch, layer, call);
    DecodeParams& params = call.params;
    params.context_lengths = call.plan->context_lengths().data();
    params.q = q.data();
    params.out = out.data();
    params.lse = lse.data();
    params.q_strides = {kHeadDim, kHeadDim, kHeadDim};
    params.q_type = DType::kF32;
    params.batch = static_cast<int32_t>(chosen.size());
    params.query_len = params.num_query_heads = 1;
    params.scale = 1.0f;
    backend_->decode(call);
    for (size_t i = 0; i < chosen.size(); ++i) {
      double mean = 0;
      for (const float token : chosen[i].tokens) mean += token / static_cast<double>(chosen[i].tokens.size());
      if (layer == 1) mean = -mean;
      for (int32_t dim = 0; dim < kHeadDim; ++dim)
        CHECK(std::abs(out[i * kHeadDim + static_cast<size_t>(dim)] - mean) <= 1e-5 * std::abs(mean));
    }
  }

  Random random_;
  std::shared_ptr<Backend> backend_;
  KvCache cache_;
  std::vector<Live> live_;
  float next_ = 1;
};

}  // namespace

TEST(kv_cache_holds_what_a_model_says_over_random_operations) {
  Soak soak(7);
  for (int32_t i = 0; i < 100'000; ++i) {
    soak.step();
    if (i % 256 == 0) soak.verify();
  }
  soak.verify();
}

}  // namespace lean::test
