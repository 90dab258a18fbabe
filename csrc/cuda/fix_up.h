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
  // CTA was the last one. Behind a barrier after the stores.
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
      sync();
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
  static constexpr int kMostRows = K::kBulk            ? 1
                                   : K::kQueryInShared ? 2
                                                       : 4;             // merged at once by a warp: registers set it
  static constexpr int kFewRows = kMostRows == 1 ? 1 : 2;               // where it has no more
  static constexpr int kPartsAhead = (K::kBulk ? 8 : 16) / kLaneQuads;  // members' parts requested at once

  LEAN_DEVICE void sync() const { sync_named(K::kComputeBarrier, compute_threads(shared_.config)); }

  // Counts this CTA's arrival, behind a barrier after all its threads' stores; true for the last of `count`, which then
  // sees everybody's.
  LEAN_DEVICE bool is_last(uint32_t* counter, int64_t count) const {
    const uint32_t last = static_cast<uint32_t>(count - 1);
    if (thread_ == 0) *shared_.flag() = atomic_increment_wrap(counter, last) == last;
    sync();
    return *shared_.flag() != 0;
  }

  // The members' merged state becomes the output tile's rows (`whole`), or replaces the first member's partial. A warp
  // merges the rows warp, warp + warps, …: as many at once as it has, because what takes time is waiting for one part
  // after the other.
  LEAN_DEVICE void merge_members(const Segment& segment, const Members& members, bool whole) const {
    const int32_t warps = shared_.config.warps;
    if (kMostRows == 1 || block_.count <= warps)
      merge_rows<1>(segment, members, whole);
    else if (kMostRows == 2 || block_.count <= 2 * warps)
      merge_rows<kFewRows>(segment, members, whole);
    else
      merge_rows<kMostRows>(segment, members, whole);
  }

  // Each lane looks at the state of one member, in one of the rows: their maximum first, so that the weights do not
  // wait for each other. Then the members' acc, in their order, several requested at once. Collective.
  template <int kRows>
  LEAN_DEVICE void merge_rows(const Segment& segment, const Members& members, bool whole) const {
    constexpr int kStates = kWarpLanes / kRows;  // members whose states of a row are looked at together
    constexpr int kParts = kPartsAhead / kRows;  // members whose parts of a row are requested together
    static_assert(kStates % kParts == 0);
    const int lane = thread_ & (kWarpLanes - 1);
    const int32_t count = static_cast<int32_t>(members.count()), last = count - 1;
    // All but the first contributor's slot lie at equal distances.
    const PartialSlot<K> first = slot(segment, members.begin);
    const int64_t first_step = slot(segment, members.begin + members.stride()).base - first.base;
    const int64_t step = partial_slot(0, members.stride()) * workspace_.slot_size;
    const int32_t stride = shared_.config.warps;

#pragma unroll 1
    for (int32_t first_row = thread_ / kWarpLanes; first_row < block_.count; first_row += kRows * stride) {
      const float* at[kRows];  // the rows of the next member to be requested
#pragma unroll
      for (int r = 0; r < kRows; ++r) {  // past the last row that is merged again, and not stored
        const int32_t row = first_row + r * stride;
        at[r] = reinterpret_cast<const float*>(first.acc(row < block_.count ? row : first_row, 0));
      }
      SoftmaxState merged;  // of the row whose states the lane looks at
      Float4 acc[kRows][kLaneQuads] = {};
      float weight = 0.0f;
#pragma unroll 1
      for (int32_t i = 0; i < count; i += kParts) {
        Float4 parts[kRows][kParts][kLaneQuads];
#pragma unroll
        for (int j = 0; j < kParts; ++j) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int k = 0; k < kLaneQuads; ++k) {
              const int quad = k * kWarpLanes + lane;
              parts[r][j][k] =
                  quad < kQuads ? load_global(reinterpret_cast<const Float4*>(at[r]) + quad) : Float4{0, 0, 0, 0};
            }
            if (i + j < last) at[r] += j == 0 && i == 0 ? first_step : step;  // behind the last one: that again
          }
        }
        if (i % kStates == 0) {
          const int32_t member = i + lane % kStates, row = first_row + lane / kStates * stride;
          const bool present = member < count && row < block_.count;
          const Float2 read = present ? load_global(slot(segment, members.begin + member * members.stride()).state(row))
                                      : Float2{kNegInf, 0.0f};
          const float m = fmaxf(merged.m, maximum<kStates>(read.x));
          const float kept = weight_of(merged.m, m);
          weight = weight_of(read.x, m);
          merged = {m, kept * merged.l + sum<kStates>(weight * read.y)};
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const float row_kept = kRows == 1 ? kept : shuffle(kept, r * kStates);
#pragma unroll
            for (int k = 0; k < kLaneQuads; ++k) acc[r][k] = row_kept * acc[r][k];
          }
        }
#pragma unroll
        for (int j = 0; j < kParts; ++j) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const float part_weight = shuffle(weight, r * kStates + (i + j) % kStates);
#pragma unroll
            for (int k = 0; k < kLaneQuads; ++k) acc[r][k] = acc[r][k] + part_weight * parts[r][j][k];
          }
        }
      }
      sync_warp();  // all lanes have read the states, of which the first member's may be replaced
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const SoftmaxState state{shuffle(merged.m, r * kStates), shuffle(merged.l, r * kStates)};
        const int32_t row = first_row + r * stride;
        if (row < block_.count) store_row(segment, first, row, whole, state, acc[r]);
      }
    }
  }

  // A row's merged state, as results or as the first member's partial. By a warp.
  LEAN_DEVICE void store_row(const Segment& segment, const PartialSlot<K>& first, int32_t row, bool whole,
                             const SoftmaxState& state, const Float4 (&acc)[kLaneQuads]) const {
    const int lane = thread_ & (kWarpLanes - 1);
    const Finish result = finish(state);
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
      store_global(first.state(row), Float2{state.m, state.l});
  }

  // Over `kLanes` neighbouring lanes.
  template <int kLanes>
  LEAN_DEVICE static float maximum(float value) {
#pragma unroll
    for (int mask = kLanes / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
  }
  template <int kLanes>
  LEAN_DEVICE static float sum(float value) {
#pragma unroll
    for (int mask = kLanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
  }

  const DecodeParams& decode_;
  const RowBlock& block_;
  Workspace<K> workspace_;
  const SharedMemory<K>& shared_;
  int thread_;
};

}  // namespace lean
