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

// Contributors of a first-level group; num_contributors itself: one level.
// Two levels read (group + num_groups) partials one after the other, least when both are near the square root.
// Worked examples, slots of 4 KB (8 rows of 128 dims): 264 contributors cost 264 * 4160 / 64 = 17,160 ns at one level
// and (32 + 9) * 4160 / 64 + 2000 = 4,665 ns at two, so groups of 32; 33 contributors cost 2,145 and 2,845 ns, so one
// level.
LEAN_HD constexpr int64_t fix_up_group(int64_t num_contributors, int64_t slot_bytes) {
  int64_t group = 1;
  while (group * group < num_contributors) group *= 2;
  const int64_t num_groups = (num_contributors + group - 1) / group;
  const int64_t one_level = num_contributors * slot_bytes / kMergeBytesPerNs;
  const int64_t two_levels = (group + num_groups) * slot_bytes / kMergeBytesPerNs + kLevelNs;
  return two_levels < one_level ? group : num_contributors;
}
static_assert(fix_up_group(264, 4160) == 32 && fix_up_group(33, 4160) == 33);

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
    const int64_t group = fix_up_group(count, workspace_.slot_size * int64_t{sizeof(float)});
    Members members{index / group * group, count, 1};
    if (count - members.begin > group) members.end = members.begin + group;
    for (bool whole = group == count;; whole = true) {
      const int64_t leader = partial_slot(segment.first_worker, members.begin);
      if (!is_last(whole ? workspace_.output_counter(leader) : workspace_.group_counter(leader), members.count()))
        return;
      merge_members(segment, members, whole);
      if (whole) return;
      members = {0, count, group};
    }
  }

 private:
  // Those whose partials are merged at one level: contributors begin, begin + stride, … before end.
  struct Members {
    int64_t begin;
    int64_t end;
    int64_t stride;

    LEAN_DEVICE int64_t count() const { return (end - begin + stride - 1) / stride; }
  };

  struct Partial {
    SoftmaxState state;
    Float4 acc;
  };
  static constexpr int kQuads = K::kHeadDim / 4;
  static constexpr int kReadAhead = 4;  // partials requested at once

  // Counts this CTA's arrival, after all its threads' stores; true for the last of `count`, which then sees
  // everybody's.
  LEAN_DEVICE bool is_last(uint32_t* counter, int64_t count) const {
    sync_named(K::kComputeBarrier, compute_threads(shared_.config));
    const uint32_t last = static_cast<uint32_t>(count - 1);
    if (thread_ == 0) *shared_.flag() = atomic_increment_wrap(counter, last) == last;
    sync_named(K::kComputeBarrier, compute_threads(shared_.config));
    return *shared_.flag() != 0;
  }

  // Four dims of one row, merged over the members in their order.
  LEAN_DEVICE Partial merge_partials(const Segment& segment, const Members& members, int32_t row, int32_t dim) const {
    Partial merged{{}, {0, 0, 0, 0}};
#pragma unroll 1
    for (int64_t i = members.begin; i < members.end; i += kReadAhead * members.stride) {
      Float2 states[kReadAhead];
      Float4 accs[kReadAhead];
#pragma unroll
      for (int ahead = 0; ahead < kReadAhead; ++ahead) {
        if (i + ahead * members.stride >= members.end) continue;
        const PartialSlot<K> partial = slot(segment, i + ahead * members.stride);
        states[ahead] = load_global(partial.state(row));
        accs[ahead] = load_global(partial.acc(row, dim));
      }
#pragma unroll
      for (int ahead = 0; ahead < kReadAhead; ++ahead) {
        if (i + ahead * members.stride >= members.end) continue;
        const Merge both = merge(merged.state, {states[ahead].x, states[ahead].y});
        merged = {both.state, both.weight_a * merged.acc + both.weight_b * accs[ahead]};
      }
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
