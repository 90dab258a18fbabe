#include "launch.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "../runtime/error.h"
#include "config_table.h"
#include "instances.h"

namespace lean {

namespace api = cuda::api;

namespace {

constexpr size_t kCounterHeader = 16;  // the status word, padded

// A kernel that this device can run, made ready for its shared memory.
struct ReadyKernel {
  const void* function;
  Variant variant;
  KernelConfig config;
  int shared_bytes;
  int64_t resident_ctas;  // on the whole device
};

template <class T>
const void* find_kernel(int head_dim, Variant variant) {
  switch (head_dim) {
    case 64:
      return DecodeInstances<T, 64>::kernel(variant);
    case 80:
      return DecodeInstances<T, 80>::kernel(variant);
    case 96:
      return DecodeInstances<T, 96>::kernel(variant);
    case 112:
      return DecodeInstances<T, 112>::kernel(variant);
    case 128:
      return DecodeInstances<T, 128>::kernel(variant);
    case 192:
      return DecodeInstances<T, 192>::kernel(variant);
    case 256:
      return DecodeInstances<T, 256>::kernel(variant);
  }
  return nullptr;
}

// Variants in order of preference. 16-byte copies lead until bulk copies have been measured to be faster.
constexpr Variant kAsyncVariants[] = {Variant::kHopper, Variant::kAmpere, Variant::kCompact};
constexpr Variant kBulkVariants[] = {Variant::kHopperBulk};

// Shared memory that config.ctas_per_sm CTAs of an SM may have each, and one more may not.
int padded_shared_bytes(Variant variant, const KernelConfig& config) {
  const int needed = shared_bytes(config);
  if (config.ctas_per_sm >= max_ctas(variant, config)) return needed;
  const SharedLimits limits = shared_limits(variant);
  return std::min(limits.per_block, std::max(needed, limits.per_sm / (config.ctas_per_sm + 1)));
}

std::string one_of(const std::vector<int>& values) {
  std::string text;
  for (size_t i = 0; i < values.size(); ++i)
    text += (i == 0 ? "" : i + 1 == values.size() ? " or " : ", ") + std::to_string(values[i]);
  return text;
}

// Refuses a configuration that a launch chose and cannot have, and says what it can.
void check_choice(Variant variant, const KernelConfig& config) {
  const auto number = [](int value) { return std::to_string(value); };
  const auto refuse_choice = [](const char* name, const std::string& allowed, const std::string& where, int got) {
    refuse("Expected `launch." + std::string(name) + "` to be " + allowed + " for " + where + ", got " +
           std::to_string(got));
  };
  std::string where = "head dim " + number(config.head_dim);
  std::vector<int> allowed;
  for (int warps = 1; warps <= max_warps(config.head_dim); warps *= 2) allowed.push_back(warps);
  if (std::find(allowed.begin(), allowed.end(), config.warps) == allowed.end())
    refuse_choice("warps", one_of(allowed), where, config.warps);
  where += " with " + number(config.warps) + " warps";
  if (!can_be_split(config)) {
    allowed.clear();
    for (int m_tiles = max_m_tiles(config); m_tiles >= 1; m_tiles /= 2)
      allowed.push_back(config.warps * kStepTokens / m_tiles);
    refuse_choice("tileTokens", one_of(allowed), where, config.tile_tokens);
  }
  where += " and tiles of " + number(config.tile_tokens) + " tokens";
  const int most_stages = max_stages(variant, config);
  if (most_stages < kMinStages)
    refuse("Expected a launch to fit two stages at least into a block's " + number(shared_limits(variant).per_block) +
           " bytes of shared memory, got " + where + ", of " + number(stage_bytes(config)) + " bytes a stage");
  if (config.stages < kMinStages || config.stages > most_stages)
    refuse_choice("stages", "from " + number(kMinStages) + " to " + number(most_stages), where + " on this GPU",
                  config.stages);
}

ReadyKernel make_ready(int device, DType kv_type, int head_dim, int64_t rows, const LaunchOptions& options) {
  const CopyPath copy_path = options.copies;
  const auto [first, last] = copy_path == CopyPath::kBulk
                                 ? std::pair(std::begin(kBulkVariants), std::end(kBulkVariants))
                                 : std::pair(std::begin(kAsyncVariants), std::end(kAsyncVariants));
  for (const Variant* variant = first; variant != last; ++variant) {
    const void* function =
        kv_type == DType::kF16 ? find_kernel<Float16>(head_dim, *variant) : find_kernel<BFloat16>(head_dim, *variant);
    // The machine code that the driver picked says which variants it holds: it may come from another architecture's
    // PTX.
    const api::KernelCode code = api::kernel_code(function);
    if (!code.present || !compiled_for(*variant, code.ptx_architecture)) continue;
    KernelConfig config = launch_config(*variant, head_dim, rows,
                                        {options.tile_tokens, options.stages, options.warps, options.ctas_per_sm});
    check_choice(*variant, config);
    const api::DeviceInfo info = api::device_info(device);
    if (static_cast<size_t>(shared_bytes(config)) > info.shared_bytes_per_block) continue;
    const int most = std::min(max_ctas(*variant, config),
                              api::resident_ctas(function, cta_threads(*variant, config), shared_bytes(config)));
    if (most == 0) continue;
    if (options.ctas_per_sm < 0 || options.ctas_per_sm > most)
      refuse("Expected `launch.ctasPerSm` to be from 1 to " + std::to_string(most) + " for head dim " +
             std::to_string(head_dim) + " with " + std::to_string(config.warps) + " warps and " +
             std::to_string(config.stages) + " stages of " + std::to_string(config.tile_tokens) +
             " tokens on this GPU, got " + std::to_string(options.ctas_per_sm));
    config.ctas_per_sm = std::min(config.ctas_per_sm, most);
    return {function, *variant, config, padded_shared_bytes(*variant, config),
            int64_t{info.num_processors} * config.ctas_per_sm};
  }
  throw Error(ErrorCode::kCudaUnavailable,
              copy_path == CopyPath::kBulk
                  ? "Bulk copies need a GPU of compute capability 9.0 or 10.x, and kernels that were built for it"
                  : "This build of lean-attention holds no kernels for the GPU's compute capability")
      .because("no-kernels");
}

const ReadyKernel& ready_kernel(DType kv_type, int32_t head_dim, int64_t rows, const LaunchOptions& options) {
  static std::mutex mutex;
  static std::map<std::tuple<int, DType, int, int64_t, LaunchOptions>, ReadyKernel> kernels;
  const int device = api::current_device();
  const int instance = instance_head_dim(head_dim);
  // The table asks for no more than how many M tiles the rows are.
  const int64_t m_tiles = (std::min<int64_t>(rows, shared_rows(instance)) + kMmaRows - 1) / kMmaRows;
  const std::tuple key(device, kv_type, instance, m_tiles, options);
  const std::lock_guard lock(mutex);
  auto found = kernels.find(key);
  if (found == kernels.end())
    found = kernels.emplace(key, make_ready(device, kv_type, instance, m_tiles * kMmaRows, options)).first;
  return found->second;
}

bool aligned(const void* pointer, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

std::string name_of(DType type) { return type == DType::kF32 ? "'f32'" : type == DType::kF16 ? "'f16'" : "'bf16'"; }

void check_kernel(DType kv_type, int32_t head_dim) {
  if (kv_type != DType::kF16 && kv_type != DType::kBF16)
    refuse("Expected the dtype of K and V to be 'f16' or 'bf16' on a CUDA device, got " + name_of(kv_type));
  if (head_dim < 8 || head_dim % 8 != 0 || instance_head_dim(head_dim) == 0)
    refuse("Expected headDim to be a multiple of 8 up to 256 on a CUDA device, got " + std::to_string(head_dim));
}

// What the kernels take for granted and the problem's own check does not know.
void check_request(const LaunchRequest& request) {
  const DecodeParams& decode = request.decode;
  check_kernel(decode.kv_type, decode.head_dim);
  if (decode.q_type != decode.kv_type && decode.q_type != DType::kF32)
    refuse("Expected `q` dtype to be 'f32' or that of K and V, " + name_of(decode.kv_type) +
           ", on a CUDA device, got " + name_of(decode.q_type));
  for (const CacheStrides& strides : {decode.k_strides, decode.v_strides})
    for (const int64_t stride : {strides.page, strides.token, strides.head})
      if (stride < 0 || stride % 8)
        refuse("Expected strides of `k` and `v` that are multiples of 8 elements (16 bytes) on a CUDA device, got " +
               std::to_string(stride));
  if (!aligned(decode.k, 16) || !aligned(decode.v, 16))
    refuse("Expected `k` and `v` to begin at a multiple of 16 bytes on a CUDA device");
  const QueryStrides& q = decode.q_strides;
  if (!aligned(decode.q, decode.q_type == DType::kF32 ? 8 : 4) || q.sequence % 2 || q.query % 2 || q.head % 2)
    refuse("Expected the rows of `q` to begin at an even element on a CUDA device");
  if (!aligned(decode.out, 16)) refuse("Expected `out` to begin at a multiple of 16 bytes on a CUDA device");
  if (decode.query_len < 1 || decode.query_len > kMaxQueryLen || decode.num_kv_heads < 1 || decode.batch < 0 ||
      decode.num_query_heads < 1 || decode.num_query_heads % decode.num_kv_heads)
    refuse("Expected 1 to 16 queries a sequence, and query heads that are a multiple of the KV heads");
  if (request.strategy == Strategy::kFixedSplit && request.num_splits < 1)
    refuse("Fixed-split needs one split at least");
  if (request.strategy == Strategy::kLean && request.workers < 0) refuse("The number of workers cannot be negative");
  const int32_t together = request.heads_per_tile;
  if (together < 1 || together != heads_together(together, together) || decode.num_kv_heads % together ||
      (together > 1 && request.strategy != Strategy::kLean))
    refuse("Heads that are cut together are a power of two that divides the KV heads, of a lean schedule");
}

int64_t num_workers(const LaunchRequest& request, const ReadyKernel& kernel) {
  const int64_t outputs = int64_t{request.decode.batch} * request.decode.num_kv_heads;
  switch (request.strategy) {
    case Strategy::kFixedSplit:
      return outputs * request.num_splits;
    case Strategy::kFlashAttention2:
      return outputs;
    default:
      return request.workers ? request.workers : kernel.resident_ctas;
  }
}

// Where the scratch memory's parts lie: the tile map, if any, then the partials.
size_t tile_map_bytes(const LaunchPlan& plan, int32_t batch) {
  return plan.tile_map_kernel ? ((size_t(batch) + 2) * sizeof(int64_t) + 15) / 16 * 16 : 0;
}

}  // namespace

void load_decode_kernels() {
  for (int v = 0; v < kNumVariants; ++v)
    for (const int head_dim : kHeadDims) {
      api::kernel_code(find_kernel<Float16>(head_dim, static_cast<Variant>(v)));
      api::kernel_code(find_kernel<BFloat16>(head_dim, static_cast<Variant>(v)));
    }
}

LaunchPlan plan_launch(const LaunchRequest& request) {
  check_request(request);
  const DecodeParams& decode = request.decode;
  const int32_t rows = decode.rows();
  const ReadyKernel& kernel = ready_kernel(decode.kv_type, decode.head_dim, rows, request.options);
  LaunchPlan plan{};
  plan.variant = kernel.variant;
  plan.config = kernel.config;
  plan.kernel = kernel.function;
  plan.workers = num_workers(request, kernel);
  if (plan.workers % request.heads_per_tile) refuse("Heads that are cut together have as many workers each");
  plan.row_blocks = (rows + row_block(kernel.config) - 1) / row_block(kernel.config);
  plan.threads = cta_threads(kernel.variant, kernel.config);
  plan.shared_bytes = kernel.shared_bytes;
  plan.tile_map_kernel = decode.batch > kSharedBatch;
  if (plan.workers > 0x7fffffff || plan.row_blocks > 0xffff) refuse("The call is too large for one launch");

  // Flash-attention-2 covers every output tile, so it has no partials.
  const bool partials = request.strategy != Strategy::kFlashAttention2;
  const size_t slots = partials ? size_t(plan.row_blocks) * 2 * plan.workers : 0;
  const int32_t slot_rows = std::min(rows, row_block(kernel.config));
  plan.counter_bytes = kCounterHeader + 2 * slots * sizeof(uint32_t);
  plan.scratch_bytes =
      tile_map_bytes(plan, decode.batch) + slots * slot_floats(slot_rows, kernel.config.head_dim) * sizeof(float);
  return plan;
}

void launch_decode(const LaunchRequest& request, const LaunchPlan& plan, api::Stream stream) {
  if (request.decode.batch == 0) return;
  if (!request.counters || (plan.scratch_bytes && !request.scratch)) refuse("A launch needs its scratch memory");
  if (!aligned(request.counters, 16) || !aligned(request.scratch, 16)) refuse("Scratch memory is aligned to 16 bytes");
  char* scratch = static_cast<char*>(request.scratch);
  char* counters = static_cast<char*>(request.counters);
  KernelParams params{};
  params.decode = request.decode;
  params.config = plan.config;
  params.strategy = request.strategy;
  params.num_splits = request.num_splits;
  params.snap_cuts = request.snap_cuts;
  params.by_cost = request.by_cost;
  params.heads_per_tile = request.heads_per_tile;
  params.workers = plan.workers / request.heads_per_tile;
  params.cost_before = plan.tile_map_kernel ? reinterpret_cast<int64_t*>(scratch) : nullptr;
  params.partials = reinterpret_cast<float*>(scratch + tile_map_bytes(plan, request.decode.batch));
  params.counters = reinterpret_cast<uint32_t*>(counters + kCounterHeader);
  params.status = request.status ? request.status : reinterpret_cast<uint32_t*>(counters);
  if (plan.tile_map_kernel) {
    api::launch(tile_map_kernel(), {1, 1}, kTileMapThreads, kTileMapSharedBytes, &params, stream);
  }
  const api::Grid grid{static_cast<unsigned>(plan.workers), static_cast<unsigned>(plan.row_blocks)};
  api::launch(plan.kernel, grid, plan.threads, plan.shared_bytes, &params, stream);
}

void launch_read(const void* data, size_t bytes, void* sink, int num_processors, api::Stream stream) {
  ReadCall call{data, bytes / 16, sink};
  api::launch(read_kernel(), {static_cast<unsigned>(num_processors * kReadCtasPerSm), 1}, kReadThreads, 0, &call,
              stream);
}

void launch_append(const AppendParams& params, uint32_t* status, api::Stream stream) {
  if (params.rows == 0) return;
  AppendLaunch launch{params, status, {}};
  if (params.inverse_frequencies)
    std::copy_n(params.inverse_frequencies, params.rotary_dims / 2, launch.inverse_frequencies);
  api::launch(append_kernel(), {static_cast<unsigned>(params.rows), 1}, kAppendThreads, kAppendSharedBytes, &launch,
              stream);
}

void launch_page_copies(const PageCopyParams& params, api::Stream stream) {
  if (params.num_copies == 0) return;
  if (params.num_blocks > 0xffff) refuse("The cache has too many layers for one launch");
  PageCopyParams copy = params;
  api::launch(page_copy_kernel(), {static_cast<unsigned>(params.num_copies), static_cast<unsigned>(params.num_blocks)},
              kAppendThreads, 0, &copy, stream);
}

void reset_counters(void* counters, size_t bytes, api::Stream stream) { api::clear(counters, bytes, stream); }

std::string describe_status(uint32_t status) {
  std::string text;
  if (status & kStatusBadPage) text += "The page table holds a page index outside the cache. ";
  if (status & kStatusBadContext) text += "A context length is negative or longer than the cache. ";
  if (!text.empty()) text.pop_back();
  return text;
}

std::string LaunchPlan::describe() const {
  constexpr const char* kNames[] = {"compact", "ampere", "hopper", "hopper, bulk copies"};
  return std::string(kNames[static_cast<int>(variant)]) + ": head dim " + std::to_string(config.head_dim) +
         ", tiles of " + std::to_string(config.tile_tokens) + " tokens, " + std::to_string(config.stages) +
         " stages, " + std::to_string(config.warps) + " warps, " + std::to_string(config.ctas_per_sm) +
         " CTAs an SM, " + std::to_string(workers) + " workers, " + std::to_string(row_blocks) + " row blocks, " +
         std::to_string(shared_bytes) + " bytes of shared memory, " + std::to_string(bytes_in_flight(config)) +
         " in flight an SM";
}

int64_t resident_workers(DType kv_type, int32_t head_dim, int64_t rows, const LaunchOptions& options) {
  check_kernel(kv_type, head_dim);
  return ready_kernel(kv_type, head_dim, rows, options).resident_ctas;
}

int32_t tile_tokens(DType kv_type, int32_t head_dim, int64_t rows, const LaunchOptions& options) {
  check_kernel(kv_type, head_dim);
  return ready_kernel(kv_type, head_dim, rows, options).config.tile_tokens;
}

}  // namespace lean
