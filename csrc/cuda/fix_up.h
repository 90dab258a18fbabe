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

// The cost model, of estimates (an H200 took 2.6 us for 32 partials of 2 KB, from the last arrival to the result). One
// CTA reads partials from the L2 cache at about kMergeBytesPerNs; a level more costs storing its result, an arrival and
// the first reads of the next level, about kLevelNs.
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
        workspace_(Workspace<K>::of_cta(params, block.most)),
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

  static constexpr int kQuads = K::kHeadDim / 4;                             // of a row
  static constexpr int kLaneQuads = (kQuads + kWarpLanes - 1) / kWarpLanes;  // that a lane merges
  static constexpr int kReadAhead = 16 / kLaneQuads;                         // partials requested at once
  static_assert(kWarpLanes % kReadAhead == 0);

  // Counts this CTA's arrival, after all its threads' stores; true for the last of `count`, which then sees
  // everybody's.
  LEAN_DEVICE bool is_last(uint32_t* counter, int64_t count) const {
    sync_named(K::kComputeBarrier, compute_threads(shared_.config));
    const uint32_t last = static_cast<uint32_t>(count - 1);
    if (thread_ == 0) *shared_.flag() = atomic_increment_wrap(counter, last) == last;
    sync_named(K::kComputeBarrier, compute_threads(shared_.config));
    return *shared_.flag() != 0;
  }

  // The members' merged state becomes the output tile's rows (`whole`), or replaces the first member's partial. A warp
  // merges a row at a time, and nobody else reads or writes that.
  LEAN_DEVICE void merge_members(const Segment& segment, const Members& members, bool whole) const {
#pragma unroll 1
    for (int32_t row = thread_ / kWarpLanes; row < block_.count; row += shared_.config.warps)
      merge_row(segment, members, row, whole);
  }

  // Lane i looks at the state of member i, of 32 at a time: their maximum first, so that the weights do not wait for
  // each other. Then the members' acc, in their order, several requested at once. Collective.
  LEAN_DEVICE void merge_row(const Segment& segment, const Members& members, int32_t row, bool whole) const {
    const int lane = thread_ & (kWarpLanes - 1);
    const int32_t count = static_cast<int32_t>(members.count());
    const PartialSlot<K> first = slot(segment, members.begin);
    const float* at = reinterpret_cast<const float*>(first.acc(row, 0));  // the row of the next member to be requested
    // All but the first one's slots lie at equal distances.
    const int64_t first_step = slot(segment, members.begin + members.stride()).base - first.base;
    const int64_t step = partial_slot(0, members.stride()) * workspace_.slot_size;

    SoftmaxState merged;
    Float4 acc[kLaneQuads] = {};
    float weight = 0.0f;  // of member `lane`
#pragma unroll 1
    for (int32_t i = 0; i < count; i += kReadAhead) {
      Float4 parts[kReadAhead][kLaneQuads];
#pragma unroll
      for (int j = 0; j < kReadAhead; ++j) {
#pragma unroll
        for (int k = 0; k < kLaneQuads; ++k) {
          const int quad = k * kWarpLanes + lane;
          parts[j][k] = quad < kQuads ? load_global(reinterpret_cast<const Float4*>(at) + quad) : Float4{0, 0, 0, 0};
        }
        if (i + j + 1 < count)
          at += j == 0 && i == 0 ? first_step : step;  // behind the last one: that again, for nothing
      }
      if (i % kWarpLanes == 0) {
        const bool member = i + lane < count;
        const Float2 read = member
                                ? load_global(slot(segment, members.begin + (i + lane) * members.stride()).state(row))
                                : Float2{kNegInf, 0.0f};
        const float m = fmaxf(merged.m, warp_maximum(read.x));
        const float kept = weight_of(merged.m, m);
        weight = weight_of(read.x, m);
        merged = {m, kept * merged.l + warp_sum(weight * read.y)};
#pragma unroll
        for (int k = 0; k < kLaneQuads; ++k) acc[k] = kept * acc[k];
      }
#pragma unroll
      for (int j = 0; j < kReadAhead; ++j) {
        const float part_weight = shuffle(weight, (i + j) % kWarpLanes);
#pragma unroll
        for (int k = 0; k < kLaneQuads; ++k) acc[k] = acc[k] + part_weight * parts[j][k];
      }
    }

    const Finish result = finish(merged);
    const int64_t out = output_row(decode_, segment.sequence, block_.query_row(segment.kv_head, row));
#pragma unroll
    for (int k = 0; k < kLaneQuads; ++k) {
      const int dim = (k * kWarpLanes + lane) * 4;
      if (dim >= K::kHeadDim) continue;
      if (whole)
        store_output(decode_, out, dim, result.normalise * acc[k]);
      else
        store_global(first.acc(row, dim), acc[k]);
    }
    if (lane != 0) return;
    if (whole)
      store_global(decode_.lse + out, result.lse);
    else
      store_global(first.state(row), Float2{merged.m, merged.l});
  }

  LEAN_DEVICE static float warp_maximum(float value) {
#pragma unroll
    for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
  }
  LEAN_DEVICE static float warp_sum(float value) {
#pragma unroll
    for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
  }

  const DecodeParams& decode_;
  const RowBlock& block_;
  Workspace<K> workspace_;
  const SharedMemory<K>& shared_;
  int thread_;
};

}  // namespace lean
