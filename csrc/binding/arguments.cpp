#include "arguments.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "../runtime/check.h"
#include "../runtime/error.h"
#include "kv_cache.h"
#include "memory.h"
#include "numbers.h"
#include "plan.h"

namespace lean::binding {

namespace {

std::span<std::byte> pinned_bytes(const Napi::Value& value, const char* name, std::vector<Napi::Object>& pinned) {
  const std::span<std::byte> bytes = bytes_of(value, name);
  pinned.push_back(value.As<Napi::Object>());
  return bytes;
}

// The numbers of a call, in the order of lib/call-numbers.ts, and nearly that in which they are read below.
constexpr const char* kCallNumbers[] = {
    "strategy",     "workers",         "splits",       "copies",       "tileTokens",   "stages",
    "warps",        "ctasPerSm",       "qType",        "batch",        "queryLen",     "numQueryHeads",
    "headDim",      "qSequenceStride", "qQueryStride", "qHeadStride",  "kvType",       "numKvHeads",
    "numPages",     "pageTokens",      "kPageStride",  "kTokenStride", "kHeadStride",  "vPageStride",
    "vTokenStride", "vHeadStride",     "maxPages",     "scale",        "headsAdjacent"};

// The checks of a number, wherever it was found.
int64_t to_integer(double value, const char* name) {
  constexpr double kMaxSafeInteger = 9007199254740991.0;
  if (!(value >= -kMaxSafeInteger && value <= kMaxSafeInteger) ||
      value != static_cast<double>(static_cast<int64_t>(value)))
    refuse("Expected " + std::string(name) + " to be an integer, got " + std::to_string(value));
  return static_cast<int64_t>(value);
}

int32_t to_int32(double number, const char* name) {
  const int64_t value = to_integer(number, name);
  if (value < INT32_MIN || value > INT32_MAX)
    refuse("Expected " + std::string(name) + " to fit 32 bits, got " + std::to_string(value));
  return static_cast<int32_t>(value);
}

DType to_dtype(double type) {
  if (!(type == 0 || type == 1 || type == 2)) refuse("Expected a dtype number from 0 to 2");
  return static_cast<DType>(static_cast<int>(type));
}

}  // namespace

std::span<std::byte> bytes_of(const Napi::Value& value, const char* name) {
  const napi_env env = value.Env();
  void* data = nullptr;
  size_t size = 0;
  if (value.IsTypedArray()) {
    // The C function: node-addon-api's accessor would go through the ArrayBuffer, which shared memory does not have.
    napi_typedarray_type type;
    size_t length;
    if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok)
      refuse("Expected `" + std::string(name) + "` to be a typed array");
    size = value.As<Napi::TypedArray>().ByteLength();
  } else if (value.IsDataView()) {
    if (napi_get_dataview_info(env, value, &size, &data, nullptr, nullptr) != napi_ok)
      refuse("Expected `" + std::string(name) + "` to be a DataView");
  } else {
    refuse("Expected `" + std::string(name) + "` to be a typed array");
  }
  return {static_cast<std::byte*>(data), size};
}

void* address(std::span<std::byte> bytes, DType type, const char* name) {
  if (reinterpret_cast<uintptr_t>(bytes.data()) % static_cast<uintptr_t>(dtype_size(type)) != 0)
    refuse("Expected `" + std::string(name) + "` to be aligned to its element size");
  return bytes.data();
}

int32_t int32(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsNumber()) refuse("Expected " + std::string(name) + " to be a number");
  return to_int32(value.As<Napi::Number>().DoubleValue(), name);
}

DType dtype(const Napi::Value& value) {
  return to_dtype(value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1.0);
}

void expect_apart(const NamedMemory& target, std::initializer_list<NamedMemory> others) {
  const std::span<std::byte> mine = target.memory;
  for (const auto& [other, memory] : others)
    if (mine.data() < memory.data() + memory.size() && memory.data() < mine.data() + mine.size())
      refuse("Expected `" + std::string(target.name) + "` to have memory of its own, got memory that `" + other +
             "` uses too");
}

double number(const Numbers& numbers, const char* name) { return numbers.at(name); }
int64_t integer(const Numbers& numbers, const char* name) { return to_integer(numbers.at(name), name); }
int32_t int32(const Numbers& numbers, const char* name) { return to_int32(numbers.at(name), name); }
DType dtype(const Numbers& numbers, const char* name) { return to_dtype(numbers.at(name)); }

namespace {

CacheStrides cache_strides(const Numbers& numbers, const char* page, const char* token, const char* head) {
  return {integer(numbers, page), integer(numbers, token), integer(numbers, head)};
}

PlanRequest read_plan_request(const Numbers& numbers, const Backend& backend,
                              std::span<const int32_t> context_lengths) {
  PlanRequest request;
  const int64_t strategy = integer(numbers, "strategy");
  if (strategy < 0 || strategy > 2) refuse("Expected a strategy number from 0 to 2, got " + std::to_string(strategy));
  request.strategy = static_cast<Strategy>(strategy);
  request.processors = integer(numbers, "workers");
  request.splits = integer(numbers, "splits");
  const int64_t copies = integer(numbers, "copies");
  if (copies < 0 || copies > 2) refuse("Expected a copy path from 0 to 2, got " + std::to_string(copies));
  request.launch = {static_cast<CopyPath>(copies), int32(numbers, "tileTokens"), int32(numbers, "stages"),
                    int32(numbers, "warps"), int32(numbers, "ctasPerSm")};
  const int32_t query_len = int32(numbers, "queryLen"), query_heads = int32(numbers, "numQueryHeads");
  if (query_heads < 1 || query_len < 1) refuse("Expected at least one query head and one query");
  request.head_dim = int32(numbers, "headDim");
  request.kv_type = dtype(numbers, "kvType");
  request.num_kv_heads = int32(numbers, "numKvHeads");
  constexpr int64_t kMaxWorkers = 1 << 20;
  if (request.processors < 0 || request.processors > kMaxWorkers || request.splits < 0 ||
      request.splits > kMaxWorkers || request.num_kv_heads < 1)
    refuse("Expected workers from 0 to 1048576, splits from 0 to 1048576 and at least one KV head");
  request.rows = int64_t{query_heads} / request.num_kv_heads * query_len;
  request.tile_tokens = backend.tile_tokens(request);
  request.heads_adjacent = number(numbers, "headsAdjacent") != 0;
  if (request.processors == 0) {  // workers that the caller forces cut the work tile by tile
    request.processors = backend.default_workers(request);
    backend.choose_cuts(request, context_lengths);
  }
  return request;
}

std::shared_ptr<const Plan> make_plan(const Numbers& numbers, const Backend& backend,
                                      std::vector<int32_t> context_lengths) {
  const PlanRequest request = read_plan_request(numbers, backend, context_lengths);
  return std::make_shared<const Plan>(request, std::move(context_lengths));
}

}  // namespace

std::shared_ptr<const Plan> plan_of(const Napi::Value& numbers, const Backend& backend,
                                    std::vector<int32_t> context_lengths) {
  return make_plan(Numbers(numbers, kCallNumbers), backend, std::move(context_lengths));
}

namespace {

// A tensor's memory, the host's or the device's; either way it is kept while the call runs.
std::span<std::byte> operand(const Napi::Value& value, const char* name, const Backend& backend, DecodeCall& call,
                             bool& on_device, std::vector<Napi::Object>& pinned) {
  on_device = is_device_memory(value);
  if (!on_device) return pinned_bytes(value, name, pinned);
  DeviceView memory = device_view(value, name, backend);
  call.owners.push_back(std::move(memory.owner));
  return {memory.data, memory.bytes};
}

void read_query_shape(const Numbers& numbers, DecodeParams& params) {
  params.q_type = dtype(numbers, "qType");
  params.batch = int32(numbers, "batch");
  params.query_len = int32(numbers, "queryLen");
  params.num_query_heads = int32(numbers, "numQueryHeads");
  params.head_dim = int32(numbers, "headDim");
  params.q_strides = {integer(numbers, "qSequenceStride"), integer(numbers, "qQueryStride"),
                      integer(numbers, "qHeadStride")};
  params.scale = static_cast<float>(number(numbers, "scale"));
}

void read_kv_shape(const Numbers& numbers, DecodeParams& params) {
  params.kv_type = dtype(numbers, "kvType");
  params.num_kv_heads = int32(numbers, "numKvHeads");
  params.num_pages = int32(numbers, "numPages");
  params.page_tokens = int32(numbers, "pageTokens");
  params.k_strides = cache_strides(numbers, "kPageStride", "kTokenStride", "kHeadStride");
  params.v_strides = cache_strides(numbers, "vPageStride", "vTokenStride", "vHeadStride");
  params.max_pages = int32(numbers, "maxPages");
}

void expect_entries(const char* name, size_t expected, size_t found) {
  if (found != expected)
    refuse("Expected `" + std::string(name) + "` to hold " + std::to_string(expected) + " entries, got " +
           std::to_string(found));
}

size_t table_entries(const DecodeParams& params) {
  return static_cast<size_t>(params.batch) * static_cast<size_t>(params.max_pages);
}

// By address: two JavaScript buffers may be the same memory, as clones of a SharedArrayBuffer are.
void expect_results_apart(const DecodeParams& params, const BufferSizes& sizes) {
  const BufferSizes needed = needed_bytes(params);
  const auto memory = [](const void* data, size_t bytes, size_t held) {
    return std::span<std::byte>(static_cast<std::byte*>(const_cast<void*>(data)), std::min(bytes, held));
  };
  const NamedMemory q{"q", memory(params.q, needed.q, sizes.q)}, k{"k", memory(params.k, needed.k, sizes.k)},
      v{"v", memory(params.v, needed.v, sizes.v)}, out{"out", memory(params.out, needed.out, sizes.out)},
      lse{"lse", memory(params.lse, needed.lse, sizes.lse)};
  expect_apart(out, {q, k, v, lse});
  expect_apart(lse, {q, k, v});
}

// What a decode over the caller's tensors and one over a cache have in common, once their K and V are known.
void finish_call(const Napi::CallbackInfo& info, const Backend& backend, DecodeCall& call, BufferSizes sizes,
                 std::vector<Napi::Object>& pinned) {
  DecodeParams& params = call.params;
  expect_entries("contextLengths", static_cast<size_t>(params.batch), call.plan->context_lengths().size());
  params.context_lengths = call.plan->context_lengths().data();
  const auto q = operand(info[2], "q", backend, call, call.q_on_device, pinned);
  const auto out = pinned_bytes(info[3], "out", pinned), lse = pinned_bytes(info[4], "lse", pinned);
  sizes.q = q.size();
  sizes.out = out.size();
  sizes.lse = lse.size();
  check_params(params, sizes);
  const PlanRequest& request = call.plan->request();
  if (request.num_kv_heads != params.num_kv_heads || request.head_dim != params.head_dim ||
      request.kv_type != params.kv_type || request.rows != params.rows())
    refuse("Expected tensors of the shape that the plan was made for");
  params.q = address(q, params.q_type, "q");
  params.out = address(out, params.q_type, "out");
  params.lse = static_cast<float*>(address(lse, DType::kF32, "lse"));
  expect_results_apart(params, sizes);
}

}  // namespace

std::shared_ptr<DecodeCall> decode_call(const Napi::CallbackInfo& info, const Backend& backend,
                                        std::vector<Napi::Object>& pinned) {
  auto call = std::make_shared<DecodeCall>();
  DecodeParams& params = call->params;
  const Numbers numbers(info[1], kCallNumbers);
  const Napi::Value lengths = info[7], table = info[8], plan = info[9];
  call->plan = plan.IsObject() ? NativePlan::Unwrap(plan.As<Napi::Object>())->plan()
                               : make_plan(numbers, backend, values_of<int32_t>(lengths, "contextLengths"));
  read_query_shape(numbers, params);
  read_kv_shape(numbers, params);
  if (table.IsObject()) {
    call->page_table = values_of<int32_t>(table, "pageTable");
    expect_entries("pageTable", table_entries(params), call->page_table.size());
    params.page_table = call->page_table.data();
  }
  const auto k = operand(info[5], "k", backend, *call, call->k_on_device, pinned);
  const auto v = operand(info[6], "v", backend, *call, call->v_on_device, pinned);
  params.k = address(k, params.kv_type, "k");
  params.v = address(v, params.kv_type, "v");
  BufferSizes sizes{};
  sizes.k = k.size();
  sizes.v = v.size();
  finish_call(info, backend, *call, sizes, pinned);
  return call;
}

std::shared_ptr<DecodeCall> cache_decode_call(const Napi::CallbackInfo& info, const Backend& backend,
                                              std::vector<Napi::Object>& pinned) {
  auto call = std::make_shared<DecodeCall>();
  const Numbers numbers(info[1], kCallNumbers);
  KvCache& cache = NativeKvCache::Unwrap(info[5].As<Napi::Object>())->cache();
  const KvBatch batch = kv_batch(info[7], info[8], info[9]);
  call->plan = make_plan(numbers, backend, cache.context_lengths(batch));
  read_query_shape(numbers, call->params);
  cache.read(batch, info[6].As<Napi::Number>().Int32Value(), *call);
  pinned.push_back(info[10].As<Napi::Object>());  // keeps the pages its sequences'
  BufferSizes sizes{};
  sizes.k = sizes.v = static_cast<size_t>(cache.block_bytes());
  finish_call(info, backend, *call, sizes, pinned);
  return call;
}

StreamDecode stream_decode(const Napi::CallbackInfo& info, const Backend& backend) {
  StreamDecode call;
  const Numbers numbers(info[0], kCallNumbers);
  call.owners.reserve(7);
  const auto memory_of = [&](size_t index, const char* name) {
    DeviceView memory = device_view(info[index], name, backend);
    call.owners.push_back(std::move(memory.owner));
    return std::span<std::byte>(memory.data, memory.bytes);
  };
  call.request = read_plan_request(numbers, backend, {});
  DecodeParams& params = call.params;
  read_query_shape(numbers, params);
  read_kv_shape(numbers, params);
  const auto q = memory_of(1, "q"), k = memory_of(2, "k"), v = memory_of(3, "v"), out = memory_of(4, "out"),
             lse = memory_of(5, "lse"), lengths = memory_of(6, "contextLengths");
  const bool is_paged = info[7].IsObject();
  const auto table = is_paged ? memory_of(7, "pageTable") : std::span<std::byte>();
  const std::initializer_list<NamedMemory> inputs = {
      {"q", q}, {"k", k}, {"v", v}, {"contextLengths", lengths}, {"pageTable", table}};
  expect_apart({"out", out}, inputs);
  expect_apart({"lse", lse}, inputs);
  expect_apart({"out", out}, {{"lse", lse}});
  check_params_on_device(params, {q.size(), k.size(), v.size(), out.size(), lse.size()});
  expect_entries("contextLengths", static_cast<size_t>(params.batch), lengths.size() / sizeof(int32_t));
  params.context_lengths = static_cast<const int32_t*>(address(lengths, DType::kF32, "contextLengths"));
  if (is_paged) {
    expect_entries("pageTable", table_entries(params), table.size() / sizeof(int32_t));
    params.page_table = static_cast<const int32_t*>(address(table, DType::kF32, "pageTable"));
  }
  params.q = address(q, params.q_type, "q");
  params.k = address(k, params.kv_type, "k");
  params.v = address(v, params.kv_type, "v");
  params.out = address(out, params.q_type, "out");
  params.lse = static_cast<float*>(address(lse, DType::kF32, "lse"));
  return call;
}

}  // namespace lean::binding
