// How fast decode attention runs, beside a plain read of the same bytes: the roofline of the same minute.
//
// Every sample reads another copy of the cache, several times the L2 in all, so that none is served from it. Strategies
// take turns. A launch is timed by events around a captured graph of all copies, behind another, so that host time
// stays out.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "device_buffer.h"
#include "parts.h"
#include "runtime/error.h"

namespace lean::gpu {

namespace {

constexpr size_t kRotatedBytes = size_t{4} << 30;  // at least so much is read between two reads of the same byte
constexpr int kSamples = 15;

struct Shape {
  const char* name;
  int batch, query_heads, kv_heads, head_dim, context;
};

// Names of models whose shapes these are; the first ones leave most SMs idle without a split.
constexpr Shape kShapes[] = {
    {"llama3-8b, 1 x 8k", 1, 32, 8, 128, 8192},      {"llama3-8b, 1 x 64k", 1, 32, 8, 128, 65536},
    {"one KV head, 1 x 256k", 1, 8, 1, 128, 262144}, {"llama3-8b, 16 x 4k", 16, 32, 8, 128, 4096},
    {"llama3-70b, 8 x 16k", 8, 64, 8, 128, 16384},   {"head dim 64, 4 x 32k", 4, 32, 8, 64, 32768},
    {"head dim 256, 4 x 8k", 4, 16, 4, 256, 8192},
};

float median(std::vector<float> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Microseconds a launch of `launch(copy, stream)` takes, over all copies in turn.
template <class Launch>
float time_launches(int copies, const Launch& launch) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cudaEvent_t begin, end;
  require(cudaStreamCreate(&stream), "stream");
  require(cudaEventCreate(&begin), "event");
  require(cudaEventCreate(&end), "event");
  launch(0, stream);  // loads the kernel's code outside of the capture
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int copy = 0; copy < copies; ++copy) launch(copy, stream);
  require(cudaStreamEndCapture(stream, &graph), "capture");
  require(cudaGraphInstantiate(&executable, graph, 0), "graph");
  std::vector<float> samples;
  for (int i = -3; i < kSamples; ++i) {                     // the first ones warm up
    require(cudaGraphLaunch(executable, stream), "graph");  // keeps the GPU busy until the others are enqueued
    require(cudaEventRecord(begin, stream), "event");
    require(cudaGraphLaunch(executable, stream), "graph");
    require(cudaEventRecord(end, stream), "event");
    require(cudaEventSynchronize(end), "launches");
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, begin, end), "event");
    if (i >= 0) samples.push_back(milliseconds * 1000.0f / copies);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  return median(samples);
}

// Random bf16 values in (-2, 2): never zeros, which run faster than real data.
void fill_random(DeviceBuffer& buffer) {
  std::vector<uint16_t> values(size_t{1} << 20);
  std::mt19937 random(7);
  std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
  for (uint16_t& value : values) value = from_float<BFloat16>(uniform(random)).bits;
  for (size_t at = 0; at < buffer.bytes(); at += values.size() * 2)
    require(cudaMemcpy(buffer.data<char>() + at, values.data(), std::min(values.size() * 2, buffer.bytes() - at),
                       cudaMemcpyHostToDevice),
            "cudaMemcpy");
}

void time_shape(const Shape& shape, const LaunchOptions& choice) {
  const size_t cache_bytes = size_t(shape.batch) * shape.context * shape.kv_heads * shape.head_dim * 2;
  const int copies = static_cast<int>(std::max<size_t>(1, kRotatedBytes / (2 * cache_bytes)));
  DeviceBuffer cache(2 * cache_bytes * copies);  // K and V of a copy lie side by side
  fill_random(cache);
  const size_t query_bytes = size_t(shape.batch) * shape.query_heads * shape.head_dim * 2;
  DeviceBuffer q(query_bytes), out(query_bytes), lse(size_t(shape.batch) * shape.query_heads * 4);
  fill_random(q);
  const std::vector<int32_t> contexts(shape.batch, shape.context);
  DeviceBuffer lengths(contexts.data(), contexts.size() * 4), sink(16);

  int num_sms = 0;
  require(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, 0), "number of processors");
  const float read = time_launches(copies, [&](int copy, cudaStream_t stream) {
    launch_read(cache.data<char>() + 2 * cache_bytes * copy, 2 * cache_bytes, sink.data(), num_sms, stream);
  });
  printf("%-24s %10.1f us  %6.0f GB/s  plain read\n", shape.name, read, 2e-3 * cache_bytes / read);

  const int64_t row = shape.head_dim, token = row * shape.kv_heads;
  LaunchRequest request;
  DecodeParams& decode = request.decode;
  decode.q = q.data();
  decode.out = out.data();
  decode.lse = lse.data<float>();
  decode.context_lengths = lengths.data<int32_t>();
  decode.q_strides = {row * shape.query_heads, row * shape.query_heads, row};
  decode.k_strides = decode.v_strides = {token * shape.context, token, row};
  decode.q_type = decode.kv_type = DType::kBF16;
  decode.batch = decode.num_pages = shape.batch;
  decode.query_len = decode.max_pages = 1;
  decode.num_query_heads = shape.query_heads;
  decode.num_kv_heads = shape.kv_heads;
  decode.head_dim = shape.head_dim;
  decode.page_tokens = shape.context;
  decode.scale = 1.0f / 16.0f;

  struct Trial {
    const char* name;
    Strategy strategy;
    CopyPath copy_path;
  };
  constexpr Trial kTrials[] = {{"lean", Strategy::kLean, CopyPath::kAsync},
                               {"lean, bulk copies", Strategy::kLean, CopyPath::kBulk},
                               {"fixed-split", Strategy::kFixedSplit, CopyPath::kAsync},
                               {"flash-attention-2", Strategy::kFlashAttention2, CopyPath::kAsync}};
  for (const Trial& trial : kTrials) {
    try {
      request.strategy = trial.strategy;
      request.by_cost = true;
      request.options = choice;
      request.options.copies = trial.copy_path;
      const int64_t workers = resident_workers(decode.kv_type, shape.head_dim, decode.rows(), request.options);
      request.heads_per_tile = trial.strategy == Strategy::kLean ? heads_together(decode.num_kv_heads, workers) : 1;
      const int64_t tile = tile_tokens(decode.kv_type, shape.head_dim, decode.rows(), request.options);
      const int64_t tiles = (shape.context + tile - 1) / tile;
      request.num_splits =
          static_cast<int32_t>(choose_num_splits(int64_t{shape.batch} * shape.kv_heads, tiles, num_sms));
      decode.k = cache.data();
      decode.v = cache.data();
      const LaunchPlan plan = plan_launch(request);
      DeviceBuffer counters(plan.counter_bytes), scratch(plan.scratch_bytes);
      request.counters = counters.data();
      request.scratch = scratch.data();
      const float time = time_launches(copies, [&](int copy, cudaStream_t stream) {
        decode.k = cache.data<char>() + 2 * cache_bytes * copy;
        decode.v = cache.data<char>() + 2 * cache_bytes * copy + cache_bytes;
        launch_decode(request, plan, stream);
      });
      printf("%-24s %10.1f us  %6.0f GB/s  %3.0f %% of the read  %s\n", shape.name, time, 2e-3 * cache_bytes / time,
             100.0f * read / time, trial.name);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kCudaUnavailable && error.code() != ErrorCode::kInvalidArgument) throw;
      printf("%-24s %s: %s\n", shape.name, trial.name, error.what());
    }
  }
}

}  // namespace

void time_decode(bool quick, const LaunchOptions& choice) {
  for (const Shape& shape : kShapes) {
    time_shape(shape, choice);
    if (quick) break;
  }
}

}  // namespace lean::gpu
