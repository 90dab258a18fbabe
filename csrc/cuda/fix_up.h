// The fix-up: the partials of one output tile, from neighbouring workers, become its result.
//
// Nobody waits. A contributor stores its partial and counts its arrival; whoever completes the count merges all
// partials in worker order, its own included, so the bits do not depend on who was last. Counters return to 0 by
// themselves.
//
// Many partials are merged in two levels: groups of neighbouring contributors first, each by the last arriver of the
// group, its result in the slot of the group's first contributor; then the groups' results by the last group's last
// arriver. That spreads the reading over as many CTAs as there are groups.
#pragma once

#include "../core/schedule.h"
#include "../core/softmax_state.h"
#include "output.h"
#include "traits.h"

namespace lean {

// The cost model. One CTA reads partials from the L2 cache at about kMergeBytesPerNs; a level more costs storing its
// result, an arrival and the first reads of the next level, about kLevelNs.
inline constexpr int64_t kMergeBytesPerNs = 64;
inline constexpr int64_t kLevelNs = 2000;

// log2 of the number of contributors in a first-level group. A group that holds them all: one level.
// Two levels read (group + num_groups) partials one after the other, least when both are near the square root.
// Worked examples, slots of 4 KB (8 rows of 128 dims): 264 contributors cost 264 * 4160 / 64 = 17,160 ns at one level
// and (32 + 9) * 4160 / 64 + 2000 = 4,665 ns at two, so groups of 32; 33 contributors cost 2,145 and 2,925 ns, so one
// level.
LEAN_HD constexpr int fix_up_group_log2(int64_t num_contributors, int64_t slot_bytes) {
  int root = 0;
  while (int64_t{1} << 2 * root < num_contributors) ++root;
  const int64_t group = int64_t{1} << root;
  const int64_t num_groups = (num_contributors + group - 1) >> root;
  const bool two_levels =
      (group + num_groups) * slot_bytes + kLevelNs * kMergeBytesPerNs < num_contributors * slot_bytes;
  return two_levels ? root : 2 * root;
}
static_assert(fix_up_group_log2(264, 4160) == 5 && 1 << fix_up_group_log2(33, 4160) >= 33);

template <class K>
class FixUp {
 public:
  LEAN_DEVICE FixUp(const KernelParams& params, const DecodeParams& decode, const RowBlock& block,
                    const SharedMemory<K>& shared)
      : decode_(decode),
        block_(block),
        workspace_(Workspace<K>::of_cta(params, decode.rows())),
        shared_(shared),
        thread_(opaque(thread_index())) {}

  // Where contributor `index` of an output tile stores its partial.
  LEAN_DEVICE PartialSlot<K> slot(const Segment& segment, int64_t index) const {
    return workspace_.slot(partial_slot(segment.first_worker, index));
  }

  // Contributor `index` has stored its partial; all computing threads call. Ends with the output tile stored if this
  // CTA was the last one.
  LEAN_DEVICE void arrive(const Segment& segment, int64_t index) const {
    const int64_t count = segment.num_contributors;
    const int log2 = fix_up_group_log2(count, workspace_.slot_size * int64_t{sizeof(float)});
    const int64_t group = int64_t{1} << log2;
    Members members{index & -group, count, 0};
    if (count - members.begin > group) members.end = members.begin + group;
    for (bool whole = group >= count;; whole = true) {
      const int64_t leader = partial_slot(segment.first_worker, members.begin);
      if (!is_last(whole ? workspace_.output_counter(leader) : workspace_.group_counter(leader), members.count()))
        return;
      merge_members(segment, members, whole);
      if (whole) return;
      members = {0, count, log2};
    }
  }

 private:
  // Those whose partials are merged at one level: contributors begin, begin + stride, … before end.
  struct Members {
    int64_t begin;
    int64_t end;
    int log2_stride;

    LEAN_DEVICE int64_t stride() const { return int64_t{1} << log2_stride; }
    LEAN_DEVICE int64_t count() const { return (end - begin + stride() - 1) >> log2_stride; }
  };

  struct Partial {
    SoftmaxState state;
    Float4 acc;
  };
  static constexpr int kQuads = K::kHeadDim / 4;
  static constexpr int kReadAhead = 8;  // partials requested at once: a power of two

  // Counts this CTA's arrival, after all its threads' stores; true for the last of `count`, which then sees
  // everybody's.
  LEAN_DEVICE bool is_last(uint32_t* counter, int64_t count) const {
    sync_named(K::kComputeBarrier, compute_threads(shared_.config));
    const uint32_t last = static_cast<uint32_t>(count - 1);
    if (thread_ == 0) *shared_.flag() = atomic_increment_wrap(counter, last) == last;
    sync_named(K::kComputeBarrier, compute_threads(shared_.config));
    return *shared_.flag() != 0;
  }

  LEAN_DEVICE static Partial merge_two(const Partial& a, const Partial& b) {
    const Merge both = merge(a.state, b.state);
    return {both.state, both.weight_a * a.acc + both.weight_b * b.acc};
  }

  LEAN_DEVICE static Partial load(const PartialSlot<K>& slot, int32_t row, int32_t dim) {
    const Float2 state = load_global(slot.state(row));
    return {{state.x, state.y}, load_global(slot.acc(row, dim))};
  }

  // Four dims of one row, merged over the members in their order: several are read at once, and merged two by two, so
  // that neither reads nor merges wait for each other.
  LEAN_DEVICE Partial merge_partials(const Segment& segment, const Members& members, int32_t row, int32_t dim) const {
    constexpr Partial kNothing{{}, {0, 0, 0, 0}};
    const int64_t first_worker = segment.first_worker;  // once: the segment lies in memory that loads may change
    Partial merged = kNothing;
#pragma unroll 1
    for (int64_t first = members.begin; first < members.end; first += kReadAhead * members.stride()) {
      Partial next[kReadAhead];
#pragma unroll
      for (int i = 0; i < kReadAhead; ++i) {
        const int64_t member = first + i * members.stride();
        next[i] = member < members.end ? load(workspace_.slot(partial_slot(first_worker, member)), row, dim) : kNothing;
      }
#pragma unroll
      for (int width = 1; width < kReadAhead; width *= 2)
#pragma unroll
        for (int i = 0; i < kReadAhead; i += 2 * width)
          if (first + (i + width) * members.stride() < members.end) next[i] = merge_two(next[i], next[i + width]);
      merged = merge_two(merged, next[0]);
    }
    return merged;
  }

  // The members' merged state becomes the output tile's rows (`whole`), or replaces the first member's partial. In its
  // slot each thread overwrites only what it alone has read; the states, which several threads read, change afterwards.
  LEAN_DEVICE void merge_members(const Segment& segment, const Members& members, bool whole) const {
    const PartialSlot<K> target = slot(segment, members.begin);
#pragma unroll 1
    for (int32_t i = thread_; i < block_.count * kQuads; i += compute_threads(shared_.config)) {
      const int32_t row = i / kQuads, dim = i % kQuads * 4;
      const Partial merged = merge_partials(segment, members, row, dim);
      if (whole) {
        const Finish result = finish(merged.state);
        const int64_t out =
            output_row(decode_, segment.sequence, query_row(decode_, segment.kv_head, block_.first + row));
        store_output(decode_, out, dim, result.normalise * merged.acc);
        if (dim == 0) store_global(decode_.lse + out, result.lse);
      } else {
        store_global(target.acc(row, dim), merged.acc);
        if (dim == 0) shared_.states(row / kMmaRows)[row % kMmaRows] = merged.state;
      }
    }
    if (whole) return;
    sync_named(K::kComputeBarrier, compute_threads(shared_.config));
    for (int32_t row = thread_; row < block_.count; row += compute_threads(shared_.config)) {
      const SoftmaxState state = shared_.states(row / kMmaRows)[row % kMmaRows];
      store_global(target.state(row), Float2{state.m, state.l});
    }
  }

  const DecodeParams& decode_;
  const RowBlock& block_;
  Workspace<K> workspace_;
  const SharedMemory<K>& shared_;
  int thread_;
};

}  // namespace lean
