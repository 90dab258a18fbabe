#include "cases.h"

#include <algorithm>

#include "cuda/kernel_params.h"

namespace lean::cases {

namespace {

// The head dims: every instance of the table, and some that are padded into the next one.
constexpr int kTensorHeadDims[] = {64, 80, 96, 112, 128, 192, 256, 8, 40, 72, 104, 136, 200, 248};
constexpr Variant kVariants[] = {Variant::kAmpere, Variant::kHopperBulk, Variant::kHopper, Variant::kHopperBulk,
                                 Variant::kCompact};
constexpr Strategy kStrategies[] = {Strategy::kLean, Strategy::kLean, Strategy::kFixedSplit, Strategy::kLean,
                                    Strategy::kFlashAttention2};
constexpr int kGroups[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16};
constexpr int kKvHeads[] = {1, 2, 3};
constexpr int kQueryLens[] = {1, 1, 2, 1, 3, 1, 5, 1, 16};
constexpr int kPages[] = {0, 1, 16, 48, 0, 64, 7, 128, 33, 256, 32, 96};
constexpr int kWorkers[] = {1, 2, 3, 5, 8, 13, 24, 37, 7, 4};
constexpr int kSplits[] = {1, 2, 3, 5, 16};
constexpr Layout kLayouts[] = {Layout::kNhd, Layout::kHnd, Layout::kMixed};
constexpr float kPeaks[] = {1.0f, 4.0f, 1.0f, 16.0f};

template <class T, size_t n>
T turn(const T (&values)[n], int step) {
  return values[static_cast<size_t>(step) % n];
}

// Context lengths around the places where something changes: the tile, the step of a warp, the page.
std::vector<std::vector<int32_t>> context_lists(const KernelConfig& config, int page) {
  const int tile = config.tile_tokens, step = kStepTokens;
  const int pages = page ? page : tile;
  // A multiple of the page that is none of the tile, where there is one.
  int odd_pages = 3 * pages;
  while (odd_pages % tile == 0 && pages % tile) odd_pages += pages;
  return {
      {0},
      {1},
      {tile - 1, tile, tile + 1},
      {odd_pages, 0, 2 * tile},
      {0, 0, 3 * tile + step, 1},
      {pages, pages + 1, std::max(pages - 1, 1)},
      {5 * tile, 5 * tile, 5 * tile, 5 * tile},
      {17, step, step + 1, 9 * tile - 1, 0},
      {11 * tile + 5},
      {2 * tile + step - 1, 16, 15, 4 * tile, 33},
  };
}

}  // namespace

std::string Case::describe() const {
  constexpr const char* kStrategyNames[] = {"lean", "fixed-split", "flash-attention-2"};
  constexpr const char* kVariantNames[] = {"compact", "ampere", "hopper", "hopper-bulk"};
  constexpr const char* kTypeNames[] = {"f32", "f16", "bf16"};
  constexpr const char* kLayoutNames[] = {"NHD", "HND", "mixed"};
  std::string text = "#" + std::to_string(index) + " " + kStrategyNames[static_cast<int>(strategy)] + " " +
                     kVariantNames[static_cast<int>(variant)] + " " + kTypeNames[static_cast<int>(kv_type)] +
                     (q_type == kv_type ? "" : std::string(" q ") + kTypeNames[static_cast<int>(q_type)]) + " d" +
                     std::to_string(head_dim) + " heads " + std::to_string(group * kv_heads) + "/" +
                     std::to_string(kv_heads) + " queries " + std::to_string(query_len) +
                     (page_tokens ? " page " + std::to_string(page_tokens) : std::string(" contiguous")) + " " +
                     kLayoutNames[static_cast<int>(layout)];
  if (strategy == Strategy::kLean)
    text += " workers " + std::to_string(workers) + (snap_cuts ? " snap" : "") + (by_cost ? " by cost" : "") +
            (heads_per_tile > 1 ? " heads together " + std::to_string(heads_per_tile) : "");
  if (strategy == Strategy::kFixedSplit) text += " splits " + std::to_string(splits);
  if (corruption != Corruption::kNone) text += corruption == Corruption::kPages ? " bad pages" : " bad lengths";
  if (choice.warps) text += " warps " + std::to_string(choice.warps);
  if (choice.tile_tokens) text += " tile " + std::to_string(choice.tile_tokens);
  if (choice.stages) text += " stages " + std::to_string(choice.stages);
  text += " peak " + std::to_string(static_cast<int>(peak)) + " contexts";
  for (size_t i = 0; i < contexts.size() && i < 8; ++i) text += " " + std::to_string(contexts[i]);
  if (contexts.size() > 8) text += " … (" + std::to_string(contexts.size()) + ")";
  return text;
}

int Case::reads() const {
  const int most = head_dim > 128 ? 32 : choice.warps ? 16 * choice.warps : 128;
  return (rows() + most - 1) / most;
}

uint32_t expected_status(const Case& c) {
  switch (c.corruption) {
    case Corruption::kPages:
      return kStatusBadPage;
    case Corruption::kLengths:
      return kStatusBadContext;
    case Corruption::kNone:
      break;
  }
  return 0;
}

std::vector<Case> decode_grid() {
  std::vector<Case> grid;
  const auto add = [&grid](const char* set, Case c) {
    c.set = set;
    c.index = static_cast<int>(grid.size());
    if (c.next_contexts.empty()) {  // other lengths in another order
      c.next_contexts.assign(c.contexts.rbegin(), c.contexts.rend());
      for (int32_t& length : c.next_contexts) length = length / 2 + (length % 3);
    }
    grid.push_back(std::move(c));
  };

  // The walk. `i` counts all of it; the axes' lengths (5, 5, 10, 3, 9, 12, 10, …) keep them from turning together.
  int i = 0;
  for (const int head_dim : kTensorHeadDims)
    for (const DType type : {DType::kBF16, DType::kF16})
      for (int round = 0; round < 20; ++round, ++i) {
        Case c;
        c.head_dim = head_dim;
        c.kv_type = c.q_type = type;
        if (i % 11 == 4) c.q_type = DType::kF32;
        c.variant = turn(kVariants, i);
        c.strategy = turn(kStrategies, i + i / 5);
        c.group = turn(kGroups, i * 3 + i / 10);
        c.kv_heads = turn(kKvHeads, i + i / 7);
        c.query_len = turn(kQueryLens, i + i / 13);
        c.page_tokens = turn(kPages, i + i / 17);
        c.layout = turn(kLayouts, i / 2 + i / 11);
        c.workers = turn(kWorkers, i + i / 9);
        c.splits = turn(kSplits, i + i / 3);
        c.snap_cuts = i % 4 != 3;
        c.by_cost = i % 3 == 1;
        c.peak = turn(kPeaks, i + i / 5);
        const auto lists = context_lists(c.config(), c.page_tokens);
        c.contexts = lists[static_cast<size_t>(i / 2 + i / 19) % lists.size()];
        add("every axis", c);
      }

  // Every group and every query length on both copy paths, on a context that is cut in the middle.
  for (const Variant variant : {Variant::kAmpere, Variant::kHopperBulk}) {
    for (const int group : kGroups)
      for (const int page : {0, 16}) {
        Case c;
        c.variant = variant, c.group = group, c.page_tokens = page, c.workers = 5, c.kv_heads = 2,
        c.contexts = {150, 64, 0, 333};
        c.layout = page ? Layout::kHnd : Layout::kNhd;
        add("group sizes", c);
      }
    for (int query_len = 1; query_len <= kMaxQueryLen; ++query_len) {
      Case c;
      c.variant = variant, c.query_len = query_len, c.group = 1 + query_len % 5, c.workers = 4, c.head_dim = 64;
      c.page_tokens = query_len % 2 ? 24 : 0;
      c.contexts = {query_len, query_len / 2, 130, 64 + query_len};  // shorter than its queries, too
      add("query lengths", c);
    }
    // Rows that share a read of K and V: up to 128 of them, whole M tiles and not, and one more than share it.
    for (const auto& [query_len, group] :
         {std::pair(1, 128), {1, 65}, {16, 8}, {8, 16}, {5, 20}, {3, 32}, {1, 127}, {1, 64}, {1, 129}})
      for (const int page : {0, 24}) {
        Case c;
        c.variant = variant, c.query_len = query_len, c.group = group, c.kv_heads = 1 + group % 2, c.workers = 4;
        c.page_tokens = page;
        c.head_dim = page ? 64 : kTensorHeadDims[group % 5], c.contexts = {200, 0, 64, 17};
        if (page && group % 2) c.variant = variant == Variant::kAmpere ? Variant::kCompact : Variant::kHopper;
        c.kv_type = c.q_type = group % 3 ? DType::kBF16 : DType::kF16;
        add("rows that share a read", c);
      }
    // Tiles, stages and warps that the launch chooses, with rows for one M tile and for several.
    constexpr int kManyGroups[] = {3, 40, 16, 128, 1, 20, 70, 33, 8, 64};
    int step = 0;
    for (const int warps : {1, 2, 4, 8})
      for (int shared = 1; shared <= warps; shared *= 2)
        for (int stages = kMinStages; stages <= kMaxStages; ++stages, ++step) {
          Case c;
          c.variant = step % 3 ? variant : variant == Variant::kAmpere ? Variant::kHopper : variant;
          c.choice.warps = warps;
          c.choice.stages = stages;
          if (shared > 1 || step % 2) c.choice.tile_tokens = 16 * warps / shared;
          c.head_dim = step % 4 == 3 ? turn(kTensorHeadDims, step) : 64;
          c.group = turn(kManyGroups, step + step / 5), c.kv_heads = 1 + step % 2, c.workers = 5 + step % 3;
          c.page_tokens = turn(kPages, step);
          c.strategy = turn(kStrategies, step), c.splits = 3;
          const int tile = 16 * warps / shared;
          c.contexts = {tile * (stages + 3) + 5, tile - 1, 0, 3 * tile + 16};
          c.kv_type = c.q_type = step % 3 == 1 ? DType::kF16 : DType::kBF16;
          if (config_is_sound(c.variant, c.config())) add("launch choices", c);
        }
    // Rows of several blocks.
    for (const int head_dim : {64, 192}) {
      Case c;
      c.variant = variant, c.query_len = 16, c.group = 16, c.head_dim = head_dim, c.workers = 3, c.contexts = {140, 33};
      c.q_type = c.kv_type = DType::kF16;
      add("several row blocks", c);
    }
    // Pages of every kind: smaller than the tile, equal, larger, multiples and not; contexts that end with a page.
    for (const int page : {1, 2, 5, 8, 16, 31, 32, 48, 63, 64, 65, 80, 96, 128, 192, 250, 256})
      for (const int extra : {0, 1}) {
        Case c;
        c.variant = variant, c.page_tokens = page, c.workers = 6, c.kv_heads = 2, c.group = 4;
        c.contexts = {page * 3 + extra, page + extra, (200 / page + 1) * page};
        c.layout = page % 2 ? Layout::kHnd : Layout::kMixed;
        c.kv_type = c.q_type = page % 3 ? DType::kBF16 : DType::kF16;
        add("page sizes", c);
      }
    // Workers: one for every GPU size up to 132, more than there are tiles, as many as tiles, one less and one more.
    for (const int workers : {1, 2, 4, 9, 10, 11, 12, 16, 31, 64, 100, 108, 132, 264}) {
      Case c;
      c.variant = variant, c.workers = workers, c.group = 8, c.contexts = {64 * 6, 64 * 4 + 1};  // 11 tiles
      c.snap_cuts = workers % 2 == 0;
      c.by_cost = workers % 4 == 0;
      add("numbers of workers", c);
    }
    // Long contexts: 4097 tokens by few and by many workers, with the two-level fix-up and with cuts that move.
    for (const int workers : {1, 7, 65, 132}) {
      Case c;
      c.variant = variant, c.workers = workers, c.group = workers == 132 ? 16 : 4,
      c.head_dim = workers == 132 ? 128 : 64;
      c.contexts = {4097};
      c.next_contexts = {4096};
      c.page_tokens = workers == 7 ? 16 : 0;
      c.peak = workers == 65 ? 16.0f : 1.0f;
      add("long contexts", c);
    }
    for (const Strategy strategy : {Strategy::kFixedSplit, Strategy::kFlashAttention2}) {
      Case c;
      c.variant = variant, c.strategy = strategy, c.splits = 20, c.group = 5, c.contexts = {4097, 1},
      c.page_tokens = 48;
      c.kv_type = c.q_type = DType::kF16;
      add("long contexts", c);
    }
    // Many tiles a worker: cuts that come near an output tile's edge move to it.
    {
      Case c;
      c.variant = variant, c.workers = 2, c.contexts = {64 * 41, 64 * 43}, c.next_contexts = {64 * 43, 64 * 41};
      add("cuts that move", c);
      // The same behind an output tile of two workers, and before one.
      c.workers = 3, c.contexts = {64 * 81, 64 * 39}, c.next_contexts = {64 * 39, 64 * 81};
      add("cuts that move", c);
    }
    // Unequal contexts, cut by what their ends cost; then equal ones, which are cut at their edges, and a single one.
    for (const int workers : {3, 5, 9}) {
      Case c;
      c.variant = variant, c.workers = workers, c.by_cost = true, c.kv_heads = workers == 5 ? 3 : 1;
      c.contexts = {64 * 20, 64, 100, 0, 64 * 7 + 3, 1, 64 * 33};
      c.next_contexts =
          workers == 9 ? std::vector<int32_t>{0, 64 * 41, 0, 0, 0, 0, 0} : std::vector<int32_t>(7, 64 * 6);
      c.page_tokens = workers == 5 ? 16 : 0;
      add("cuts by cost", c);
      c.contexts = {64 * 40 + 1}, c.next_contexts = {64 * 9};
      add("cuts by cost", c);
    }
    // KV heads that are cut at the same places: several at a time, all at once, with idle workers, and with row blocks.
    for (const int heads : {2, 4, 8}) {
      Case c;
      c.variant = variant, c.heads_per_tile = heads, c.kv_heads = 8, c.workers = heads * 5, c.by_cost = heads != 4;
      c.group = heads == 2 ? 1 : 6;
      c.contexts = {64 * 7, 1, 0, 64 * 12 + 5}, c.next_contexts = {64 * 2, 0, 0, 0};
      c.page_tokens = heads == 8 ? 16 : 0;
      add("heads together", c);
    }
    {
      Case c;
      c.variant = variant, c.heads_per_tile = 2, c.kv_heads = 4, c.workers = 8, c.group = 48, c.query_len = 4;
      c.contexts = {64 * 5, 70}, c.next_contexts = {64, 64 * 3 + 1};
      add("heads together", c);
    }
    {
      Case c;
      c.variant = variant, c.heads_per_tile = 2, c.kv_heads = 2, c.workers = 70, c.group = 16, c.head_dim = 128;
      c.contexts = {64 * 40}, c.next_contexts = {64 * 33 + 1};
      c.snap_cuts = false;
      add("heads together", c);
    }
    // Two levels with a last group of one partial, and of several.
    for (const int workers : {65, 100}) {
      Case c;
      c.variant = variant, c.workers = workers, c.group = 16, c.query_len = 3, c.head_dim = 64, c.contexts = {64 * 130};
      c.next_contexts = {64 * 97 + 3};
      c.snap_cuts = false;
      add("two-level fix-up", c);
    }
    // Two output tiles that are merged in two levels at once, the second from the middle worker on: every counter is a
    // word of its own.
    {
      Case c;
      c.variant = variant, c.workers = 33, c.group = 128, c.kv_heads = 2, c.contexts = {64 * 34};
      c.snap_cuts = false;
      add("two-level fix-up", c);
    }
    // Scores that rise by far more than a 16-bit weight could hold: maxima must follow them, in either half of an M
    // tile, and in the upper one alone.
    for (const int group : {4, 12, 16}) {
      Case c;
      c.upper_half_peaks = group == 16;
      c.variant = variant, c.group = group, c.workers = 1, c.peak = 64.0f, c.contexts = {700};
      c.kv_type = c.q_type = DType::kF16;
      add("rising scores", c);
    }
    // What the host cannot check.
    for (const Corruption corruption : {Corruption::kPages, Corruption::kLengths}) {
      Case c;
      c.variant = variant, c.corruption = corruption, c.workers = 5, c.kv_heads = 2, c.group = 3;
      c.page_tokens = corruption == Corruption::kPages ? 24 : 0;
      c.contexts = {0, 200, 150, 200}, c.next_contexts = {200, 0, 200, 64};
      add("corrupt tables and lengths", c);
    }
    // A batch whose tile map does not fit into shared memory, and one that just does.
    for (const int batch : {kSharedBatch, kSharedBatch + 1, kSharedBatch + 300}) {
      Case c;
      c.variant = variant, c.workers = 9, c.group = 2, c.by_cost = true;
      for (int s = 0; s < batch; ++s) c.contexts.push_back(s % 17 == 3 ? 70 : s % 5 == 1 ? 1 : 0);
      add("large batches", c);
    }
  }
  return grid;
}

}  // namespace lean::cases
