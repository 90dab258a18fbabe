// Compiled, never run: the headers of csrc/core must also be device code. The kernel below does with them what a decode
// kernel does: walks a worker's segments, folds scores into a softmax state, merges, finishes and stores.
#include "../../csrc/core/append_params.h"
#include "../../csrc/core/decode_params.h"
#include "../../csrc/core/numeric.h"
#include "../../csrc/core/rotary.h"
#include "../../csrc/core/schedule.h"
#include "../../csrc/core/softmax_state.h"

namespace lean {

template <class T>
__global__ void walk(Schedule schedule, TileMap map, DecodeParams params, int64_t* slots) {
  const int64_t worker = blockIdx.x;
  Segment segment;
  for (WorkCursor work(schedule, map, worker); work.next(segment);) {
    SoftmaxState state;
    for (int64_t tile = segment.begin; tile < segment.end; ++tile) {
      const float score = to_float(static_cast<const T*>(params.k)[tile]) * kLog2E;
      const Merge merged = merge(state, SoftmaxState{score, 1.0f});
      state = merged.state;
    }
    const QueryRow row = query_row(params, segment.kv_head, static_cast<int32_t>(threadIdx.x));
    const int64_t at = output_row(params, segment.sequence, row);
    if (!segment.covers_output()) slots[worker] = partial_slot(segment.first_worker, worker - segment.first_worker);
    const bool sees = visible_tokens(params, params.context_lengths[segment.sequence], row.query) > 0;
    const Finish finished = finish(merge(state, sink_state(sees ? 0.0f : 1.0f)).state);
    params.lse[at] = finished.lse;
    static_cast<T*>(params.out)[query_offset(params, segment.sequence, row)] = from_float<T>(finished.normalise);
    slots[worker] += page_index(params, segment.sequence, 0) + contributors(schedule, map, output_at(map, 0)).begin;
  }
}

template __global__ void walk<float>(Schedule, TileMap, DecodeParams, int64_t*);
template __global__ void walk<Float16>(Schedule, TileMap, DecodeParams, int64_t*);
template __global__ void walk<BFloat16>(Schedule, TileMap, DecodeParams, int64_t*);

__global__ void plan_on_the_device(TileMap map, int64_t workers, Schedule* schedules) {
  schedules[0] = lean_schedule(map, workers, true);
  schedules[1] = fixed_split_schedule(map, choose_num_splits(map.num_outputs(), map.total_cost(), workers));
  schedules[2] = flash_attention_2_schedule(map);
}

}  // namespace lean
