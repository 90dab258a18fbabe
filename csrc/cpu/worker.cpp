// A worker's segments of one sequence are folded side by side, as a bundle, where their heads lie next to each other in
// memory (NHD): a head alone would be read with gaps, which costs up to half of the bandwidth. What is bundled changes
// the order in which work is done, never the arithmetic. A unit is what the schedule knows as one output tile: a head,
// or several that it cuts at the same places.
#include "worker.h"

#include <algorithm>
#include <cstring>

namespace lean::cpu {

namespace {

// What a bundle may be: the run of memory that one token's heads make, and the sums of recent tiles, which must
// stay in the L1.
constexpr int64_t kBundleRunBytes = 4096;
constexpr int64_t kBundleAccBytes = 16 * 1024;

// Tiles of several heads are coarse: a worker gets this many of them at least, so that one more is 1/8 of its share.
constexpr int64_t kMinShare = 8;

// Weighted V is summed over so many tiles apart, then added to acc as one: over 10^6 tokens, rounding each against the
// sum of all before it would show.
constexpr int64_t kRecentTiles = 8;

// Prefetches are at least so many tokens ahead, however long their rows are.
constexpr int64_t kMinPrefetchTokens = 4;

// Segments of neighbouring units, in the order of a worker's range: only the first may begin inside its output tile,
// and only the last may end inside.
struct Bundle {
  Segment first;
  Segment last;
  int32_t num_units;

  // Tiles in which any of them has work.
  int64_t begin() const { return num_units == 1 ? first.begin : 0; }
  int64_t end() const { return num_units == 1 ? first.end : first.output_tiles; }
};

// Heads [begin, end) of a bundle.
struct Heads {
  int32_t begin;
  int32_t end;

  int32_t count() const { return end - begin; }
};

template <class T>
void store_row(void* data, int64_t offset, int32_t count, const float* values, float factor) {
  T* row = static_cast<T*>(data) + offset;
  for (int32_t i = 0; i < count; ++i) row[i] = from_float<T>(values[i] * factor);
}

class Worker {
 public:
  Worker(const DecodeCall& call, const TileCode& tile, Workspace& workspace, Arena& arena)
      : call_(call),
        params_(call.params),
        fold_(tile.of(call.params.kv_type).fold),
        widen_(tile.of(call.params.q_type).widen),
        prefetch_bytes_(tile.prefetch_bytes),
        workspace_(workspace),
        arena_(arena),
        rows_(params_.rows()),
        unit_heads_(call.plan->request().heads_per_tile),
        stride_(padded(params_.head_dim)),
        head_bytes_(params_.head_dim * dtype_size(params_.kv_type)),
        heads_adjacent_(params_.k_strides.head == params_.head_dim && params_.v_strides.head == params_.head_dim) {}

  void run(int64_t worker) {
    const Schedule& schedule = call_.plan->schedule();
    const TileMap map = call_.plan->map();
    Segment segment;
    WorkCursor work(schedule, map, worker);
    bool more = work.next(segment);
    while (more) {
      Bundle bundle{segment, segment, 1};
      for (; (more = work.next(segment)) && joins(bundle, segment); ++bundle.num_units) bundle.last = segment;
      run_bundle(bundle, worker);
    }
  }

  void write_empty(int32_t sequence) {
    for (int32_t kv_head = 0; kv_head < params_.num_kv_heads; ++kv_head)
      for (int32_t row = 0; row < rows_; ++row) write_row(sequence, kv_head, row, SoftmaxState{}, nullptr);
  }

 private:
  int32_t num_heads(const Bundle& bundle) const { return bundle.num_units * unit_heads_; }
  int32_t first_head(const Bundle& bundle) const { return bundle.first.kv_head * unit_heads_; }

  // The heads that have work in a tile: all, but for a first unit that begins later and a last one that has ended.
  Heads heads_in(const Bundle& bundle, int64_t tile) const {
    return {tile < bundle.first.begin ? unit_heads_ : 0,
            num_heads(bundle) - (tile < bundle.last.end ? 0 : unit_heads_)};
  }

  bool joins(const Bundle& bundle, const Segment& next) const {
    const int64_t heads = num_heads(bundle) + unit_heads_;
    return heads_adjacent_ && next.sequence == bundle.first.sequence && heads * head_bytes_ <= kBundleRunBytes &&
           heads * rows_ * stride_ * static_cast<int64_t>(sizeof(float)) <= kBundleAccBytes;
  }

  void run_bundle(const Bundle& bundle, int64_t worker) {
    load_queries(bundle);
    if (heads_adjacent_)
      fold_bundle(bundle, {0, num_heads(bundle)});
    else  // a unit of several heads that lie apart: one after the other
      for (int32_t head = 0; head < num_heads(bundle); ++head) fold_bundle(bundle, {head, head + 1});
    for (int32_t unit = 0; unit < bundle.num_units; ++unit) {
      const bool is_first = unit == 0, is_last = unit == bundle.num_units - 1;
      const Segment& segment = is_first ? bundle.first : bundle.last;
      const int32_t head = unit * unit_heads_;
      if ((!is_first && !is_last) || segment.covers_output())
        write_unit(bundle.first.sequence, first_head(bundle) + head, states(head), acc(head));
      else
        publish_partial(segment, worker, states(head), acc(head));
    }
  }

  // Folds the bundle's tiles into the states of some of its heads.
  void fold_bundle(const Bundle& bundle, Heads heads) {
    TileRows rows[2];  // of this tile, and of the next one, which is prefetched
    int64_t tile = locate_next(bundle, heads, bundle.begin(), rows[0]);
    for (int turn = 0; tile < bundle.end(); turn ^= 1) {
      const int64_t next = locate_next(bundle, heads, tile + 1, rows[turn ^ 1]);
      const Heads folded = working(bundle, heads, tile);
      fold_tile(bundle, folded, tile, rows[turn], rows[turn ^ 1]);
      if ((tile + 1) % kRecentTiles == 0) settle(folded);
      tile = next;
    }
    settle(heads);
  }

  // Adds the recent sums to acc, each as one.
  void settle(Heads heads) {
    const int64_t count = int64_t{heads.count()} * rows_ * stride_;
    float* sums = acc(heads.begin);
    float* added = recent(heads.begin);
    for (int64_t i = 0; i < count; ++i) {
      sums[i] += added[i];
      added[i] = 0.0f;
    }
  }

  Heads working(const Bundle& bundle, Heads heads, int64_t tile) const {
    const Heads all = heads_in(bundle, tile);
    return {std::max(heads.begin, all.begin), std::min(heads.end, all.end)};
  }

  float* query(int32_t head, int32_t row) { return arena_.q.data() + (int64_t{head} * rows_ + row) * stride_; }
  float* acc(int32_t head) { return arena_.acc.data() + int64_t{head} * rows_ * stride_; }
  float* recent(int32_t head) { return arena_.recent.data() + int64_t{head} * rows_ * stride_; }
  SoftmaxState* states(int32_t head) { return arena_.states.data() + int64_t{head} * rows_; }

  // Queries as float32, padded with zeros; states empty.
  void load_queries(const Bundle& bundle) {
    const auto rows = static_cast<size_t>(num_heads(bundle)) * static_cast<size_t>(rows_);
    arena_.q.assign(rows * static_cast<size_t>(stride_), 0.0f);
    arena_.acc.assign(rows * static_cast<size_t>(stride_), 0.0f);
    arena_.recent.assign(rows * static_cast<size_t>(stride_), 0.0f);
    arena_.states.assign(rows, SoftmaxState{});
    arena_.scores.resize(rows * kScoreStride);
    arena_.visible.resize(static_cast<size_t>(rows_));
    for (int32_t head = 0; head < num_heads(bundle); ++head)
      for (int32_t row = 0; row < rows_; ++row) {
        const QueryRow at = query_row(params_, first_head(bundle) + head, row);
        const int64_t offset = query_offset(params_, bundle.first.sequence, at);
        widen_(static_cast<const char*>(params_.q) + offset * dtype_size(params_.q_type), params_.head_dim,
               query(head, row));
      }
  }

  // The first tile with any work for the heads from `tile` on, and the addresses of its tokens for the first of them.
  // Only tokens of the context are looked up. At the end: bundle.end(), and no tokens.
  int64_t locate_next(const Bundle& bundle, Heads heads, int64_t tile, TileRows& rows) const {
    while (tile < bundle.end() && working(bundle, heads, tile).count() <= 0) ++tile;
    rows.count = 0;
    if (tile >= bundle.end()) return bundle.end();
    const int32_t kv_head = first_head(bundle) + working(bundle, heads, tile).begin;
    const int64_t size = dtype_size(params_.kv_type);
    const char* k = static_cast<const char*>(params_.k) + kv_head * params_.k_strides.head * size;
    const char* v = static_cast<const char*>(params_.v) + kv_head * params_.v_strides.head * size;
    const auto first = static_cast<int32_t>(tile * kTileTokens);
    rows.count = std::min(kTileTokens, context_length(bundle) - first);
    int32_t page = first / params_.page_tokens;
    int32_t slot = first % params_.page_tokens;
    for (int32_t token = 0; token < rows.count; ++page, slot = 0) {
      const int64_t index = page_index(params_, bundle.first.sequence, page);
      const char* page_k = k + index * params_.k_strides.page * size;
      const char* page_v = v + index * params_.v_strides.page * size;
      for (; token < rows.count && slot < params_.page_tokens; ++token, ++slot) {
        rows.k[token] = page_k + slot * params_.k_strides.token * size;
        rows.v[token] = page_v + slot * params_.v_strides.token * size;
      }
    }
    std::fill_n(rows.k + rows.count, kTailRows, rows.k[rows.count - 1]);
    return tile;
  }

  int32_t context_length(const Bundle& bundle) const {
    return call_.plan->context_lengths()[static_cast<size_t>(bundle.first.sequence)];
  }

  void fold_tile(const Bundle& bundle, Heads heads, int64_t tile, const TileRows& current, const TileRows& next) {
    const int64_t run_bytes = heads.count() * head_bytes_;
    const auto ahead =
        static_cast<int32_t>(std::clamp<int64_t>(prefetch_bytes_ / run_bytes, kMinPrefetchTokens, kTileTokens));
    const char* k_ahead[kTileTokens + kTailRows];
    const char* v_ahead[kTileTokens + kTailRows];
    look_ahead(current.k, current.count, current.v, current.count, ahead, k_ahead);
    look_ahead(current.v, current.count, next.k, next.count, ahead, v_ahead);
    TileFold fold;
    fold.k_rows = current.k;
    fold.v_rows = current.v;
    fold.k_ahead = k_ahead;
    fold.v_ahead = v_ahead;
    fold.count = current.count;
    fold.heads = heads.count();
    fold.head_bytes = head_bytes_;
    fold.rows = rows_;
    fold.head_dim = params_.head_dim;
    fold.visible = mask_rows(tile, context_length(bundle), current.count) ? arena_.visible.data() : nullptr;
    fold.scale = params_.scale * kLog2E;
    fold.q = query(heads.begin, 0);
    fold.scores = arena_.scores.data();
    fold.states = states(heads.begin);
    fold.acc = acc(heads.begin);
    fold.recent = recent(heads.begin);
    fold_(fold);
  }

  // For each row, tail included: the stream is read rows first, then `after`; its end, prefetched again and again,
  // stands in for what lies beyond.
  static void look_ahead(const char* const* rows, int32_t count, const char* const* after, int32_t after_count,
                         int32_t distance, const char** ahead) {
    for (int32_t token = 0; token < count + kTailRows; ++token) {
      const int32_t at = token + distance;
      if (at < count)
        ahead[token] = rows[at];
      else if (after_count > 0)
        ahead[token] = after[std::min(at - count, after_count - 1)];
      else
        ahead[token] = rows[count - 1];
    }
  }

  // Tokens of this tile that each row sees; false: every row sees them all.
  bool mask_rows(int64_t tile, int32_t length, int32_t count) {
    const int64_t first = tile * kTileTokens;
    bool masked = false;
    for (int32_t row = 0; row < rows_; ++row) {
      const int64_t visible = visible_tokens(params_, length, query_row(params_, 0, row).query) - first;
      arena_.visible[static_cast<size_t>(row)] = static_cast<int32_t>(std::clamp<int64_t>(visible, 0, count));
      masked |= visible < count;
    }
    return masked;
  }

  void write_row(int32_t sequence, int32_t kv_head, int32_t row, SoftmaxState state, const float* acc) {
    static const float kZeros[kMaxHeadDim] = {};
    const int64_t at = output_row(params_, sequence, query_row(params_, kv_head, row));
    const Finish finished = finish(state);
    params_.lse[at] = finished.lse;
    const float* values = acc && state.l != 0.0f ? acc : kZeros;
    const int64_t offset = at * params_.head_dim;
    switch (params_.q_type) {
      case DType::kF32:
        store_row<float>(params_.out, offset, params_.head_dim, values, finished.normalise);
        break;
      case DType::kF16:
        store_row<Float16>(params_.out, offset, params_.head_dim, values, finished.normalise);
        break;
      case DType::kBF16:
        store_row<BFloat16>(params_.out, offset, params_.head_dim, values, finished.normalise);
        break;
    }
  }

  void write_unit(int32_t sequence, int32_t first_head, const SoftmaxState* states, const float* acc) {
    for (int32_t row = 0; row < unit_heads_ * rows_; ++row)
      write_row(sequence, first_head + row / rows_, row % rows_, states[row], acc + int64_t{row} * stride_);
  }

  // Stores the partial; the last of the contributors to arrive merges them all. The increment releases this partial and
  // acquires the others'.
  void publish_partial(const Segment& segment, int64_t worker, SoftmaxState* states, float* acc) {
    const int64_t rows = int64_t{unit_heads_} * rows_;
    const int64_t slot = partial_slot(segment.first_worker, worker - segment.first_worker);
    std::copy_n(states, rows, workspace_.states(slot));
    std::copy_n(acc, rows * stride_, workspace_.acc(slot));
    std::atomic<int64_t>& arrivals = workspace_.arrivals(segment.first_worker);
    if (arrivals.fetch_add(1, std::memory_order_acq_rel) + 1 < segment.num_contributors) return;
    arrivals.store(0, std::memory_order_relaxed);
    fix_up(segment, states, acc);
  }

  // Merges the partials in worker order, so that the bits do not depend on who came last.
  void fix_up(const Segment& segment, SoftmaxState* states, float* acc) {
    const int32_t rows = unit_heads_ * rows_;
    std::fill_n(states, rows, SoftmaxState{});
    std::fill_n(acc, int64_t{rows} * stride_, 0.0f);
    for (int64_t index = 0; index < segment.num_contributors; ++index) {
      const int64_t slot = partial_slot(segment.first_worker, index);
      for (int32_t row = 0; row < rows; ++row) {
        const Merge merged = merge(states[row], workspace_.states(slot)[row]);
        float* sum = acc + int64_t{row} * stride_;
        const float* part = workspace_.acc(slot) + int64_t{row} * stride_;
        for (int64_t d = 0; d < stride_; ++d) sum[d] = merged.weight_a * sum[d] + merged.weight_b * part[d];
        states[row] = merged.state;
      }
    }
    write_unit(segment.sequence, segment.kv_head * unit_heads_, states, acc);
  }

  const DecodeCall& call_;
  const DecodeParams& params_;
  void (*const fold_)(const TileFold&);
  void (*const widen_)(const void*, int32_t, float*);
  const int64_t prefetch_bytes_;
  Workspace& workspace_;
  Arena& arena_;
  const int32_t rows_;  // of a head
  const int32_t unit_heads_;
  const int64_t stride_;      // floats from one row to the next
  const int64_t head_bytes_;  // bytes of one token's K (or V) of one head
  const bool heads_adjacent_;
};

}  // namespace

int32_t heads_per_tile(const PlanRequest& request, std::span<const int32_t> context_lengths) {
  if (request.strategy != Strategy::kLean || !request.heads_adjacent) return 1;
  int64_t tiles = 0;
  for (const int32_t length : context_lengths) tiles += (int64_t{length} + kTileTokens - 1) / kTileTokens;
  const int64_t acc_bytes = request.rows * padded(request.head_dim) * static_cast<int64_t>(sizeof(float));
  for (int32_t heads = request.num_kv_heads; heads > 1; --heads) {
    const int64_t units = request.num_kv_heads / heads;
    if (request.num_kv_heads % heads == 0 && heads * acc_bytes <= kBundleAccBytes &&
        tiles * units >= kMinShare * request.processors)
      return heads;
  }
  return 1;
}

void Workspace::reserve(const Plan& plan, int32_t head_rows, int32_t head_dim) {
  const int32_t rows = head_rows * plan.request().heads_per_tile;
  const bool has_partials = plan.has_partials();
  const auto slots = static_cast<size_t>(has_partials ? plan.schedule().num_slots() : 0);
  rows_ = rows;
  stride_ = padded(head_dim);
  states_.resize(std::max(states_.size(), slots * static_cast<size_t>(rows)));
  acc_.resize(std::max(acc_.size(), slots * static_cast<size_t>(rows) * static_cast<size_t>(stride_)));
  const auto counters = static_cast<size_t>(has_partials ? plan.schedule().num_counters() : 0);
  if (counters > arrivals_.size()) arrivals_ = std::vector<std::atomic<int64_t>>(counters);
}

size_t Workspace::bytes(const Plan& plan, int32_t head_rows, int32_t head_dim) {
  if (!plan.has_partials()) return 0;
  const int32_t rows = head_rows * plan.request().heads_per_tile;
  const size_t row_bytes = sizeof(SoftmaxState) + static_cast<size_t>(padded(head_dim)) * sizeof(float);
  return static_cast<size_t>(plan.schedule().num_slots()) * static_cast<size_t>(rows) * row_bytes +
         static_cast<size_t>(plan.schedule().num_counters()) * sizeof(std::atomic<int64_t>);
}

void Workspace::reset_counters() {
  for (std::atomic<int64_t>& arrivals : arrivals_) arrivals.store(0, std::memory_order_relaxed);
}

void run_worker(const DecodeCall& call, const TileCode& tile, int64_t worker, int64_t num_workers, Workspace& workspace,
                Arena& arena) {
  Worker self(call, tile, workspace, arena);
  // Empty contexts own no tile, so the workers share them out by their number.
  const auto& lengths = call.plan->context_lengths();
  for (auto sequence = worker; sequence < static_cast<int64_t>(lengths.size()); sequence += num_workers)
    if (lengths[static_cast<size_t>(sequence)] == 0) self.write_empty(static_cast<int32_t>(sequence));
  if (worker < call.plan->schedule().num_workers) self.run(worker);
}

}  // namespace lean::cpu
