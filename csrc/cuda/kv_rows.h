// Which K and V rows a worker needs, tile by tile, and where in device memory they lie.
//
// Copies run ahead of the computation and cross from one output tile into the next without a pause, so they have a walk
// of their own over the worker's tiles.
#pragma once

#include <new>

#include "../core/schedule.h"
#include "kernel_params.h"
#include "primitives.h"
#include "tile_map.h"
#include "traits.h"

namespace lean {

struct TilePlace {
  int32_t sequence;
  int32_t kv_head;
  int32_t first_token;
  int32_t context_length;
};

// A warp's walk over its worker's segments. It lies in shared memory: it is needed once a segment, and the registers of
// the warps that copy and compute are dear.
struct SegmentWalk {
  WorkCursor cursor;
  int32_t sequence;
  int32_t kv_head;
  int32_t begin;
  int32_t end;
  int32_t context_length;
  bool more;  // segments follow

  LEAN_DEVICE void advance(const KernelParams& params) {
    Segment segment;
    cursor.next_place(segment);
    more = cursor.more();
    sequence = segment.sequence;
    kv_head = Team::of_cta(params).kv_head(segment.kv_head);
    begin = static_cast<int32_t>(segment.begin);
    end = static_cast<int32_t>(segment.end);
    context_length = lean::context_length(params, sequence);
  }
};
static_assert(sizeof(SegmentWalk) <= kSegmentWalkBytes);

class TileWalk {
 public:
  // `storage` has room for a SegmentWalk, and is this warp's own. Collective.
  LEAN_DEVICE TileWalk(const KernelParams& params, const SharedWork& work, char* storage)
      : params_(params),
        walk_(reinterpret_cast<SegmentWalk*>(storage)),
        tile_(static_cast<int32_t>(work.segments[0].begin)),
        segment_end_(static_cast<int32_t>(work.segments[0].end)) {
    if (lane_index() == 0) {
      const WorkCursor& start = *reinterpret_cast<const WorkCursor*>(work.start);
      new (storage) SegmentWalk{start,
                                work.segments[0].sequence,
                                Team::of_cta(params).kv_head(work.segments[0].kv_head),
                                tile_,
                                segment_end_,
                                work.first_length,
                                start.more()};
    }
    sync_warp();
  }

  // The worker's next tile; false: there is none. Collective.
  LEAN_DEVICE bool next(TilePlace& place) {
    if (tile_ == segment_end_) {
      if (!walk_->more) return false;
      sync_warp();  // nobody reads the last segment any more
      if (lane_index() == 0) walk_->advance(params_);
      sync_warp();
      tile_ = walk_->begin;
      segment_end_ = walk_->end;
    }
    place = {walk_->sequence, walk_->kv_head, tile_++ * params_.config.tile_tokens, walk_->context_length};
    return true;
  }

 private:
  const KernelParams& params_;
  SegmentWalk* walk_;
  int32_t tile_;
  int32_t segment_end_;
};

// One token's rows, found in two steps: look_up() starts to read the page table, rows() needs the answer. A tile's
// work lies between the two, and hides the latency.
class TokenRows {
 public:
  static constexpr int64_t kElementBytes = 2;  // f16, bf16

  LEAN_DEVICE void look_up(const DecodeParams& decode, const TilePlace& place, int32_t token) {
    valid_ = token < place.context_length;
    if (!valid_) return;  // page tables are not read past a context
    const int32_t page = token / decode.page_tokens;
    page_ = page_index(decode, place.sequence, page);
    token_in_page_ = token - page * decode.page_tokens;
    kv_head_ = place.kv_head;
  }

  LEAN_DEVICE bool page_exists(const DecodeParams& decode) const { return page_ >= 0 && page_ < decode.num_pages; }

  LEAN_DEVICE RowPair rows(const KernelParams& params) const {
    const DecodeParams& decode = params.decode;
    if (!valid_) return {};
    if (!page_exists(decode)) {
      atomic_or_relaxed(params.status, kStatusBadPage);
      return {};
    }
    return {row(decode.k, decode.k_strides), row(decode.v, decode.v_strides)};
  }

 private:
  LEAN_DEVICE const char* row(const void* cache, const CacheStrides& strides) const {
    return static_cast<const char*>(cache) +
           kElementBytes * (page_ * strides.page + token_in_page_ * strides.token + kv_head_ * strides.head);
  }

  bool valid_ = false;
  int32_t page_ = 0;
  int32_t token_in_page_ = 0;
  int32_t kv_head_ = 0;
};

}  // namespace lean
