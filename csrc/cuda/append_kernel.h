// Filling a KV cache on a GPU: rows converted, rotated and stored in their pages; and the page copies of copy on write.
#pragma once

#include "../core/append_params.h"
#include "instances.h"
#include "kernel_params.h"
#include "primitives.h"

namespace lean {

// A CTA takes a row: its threads find out once how far each pair turns, then each warp takes a head at a time.
struct AppendKernel {
  using Params = AppendLaunch;
  static constexpr int kThreads = 128;
  static constexpr int kCtasPerSm = 8;
  static constexpr int kSharedBytes = kMaxHeadDim / 2 * sizeof(Rotation);
  static_assert(sizeof(Params) <= 4096, "what a launch may carry");

  LEAN_DEVICE static void run(const Params& launch, char* shared) {
    const AppendParams& params = launch.append;
    const int32_t row = cta_index_x();
    const RowPlace place = row_place(params, row);
    if (place.slot < 0) {
      if (place.slot != kIdleRow && thread_index() == 0)
        atomic_or_relaxed(launch.status, place.slot == kBadLengthRow ? kStatusBadContext : kStatusBadPage);
      return;
    }
    auto* rotations = reinterpret_cast<Rotation*>(shared);
    const int32_t pairs = params.inverse_frequencies ? params.rotary_dims / 2 : 0;
    const auto amplitude = static_cast<float>(params.amplitude);
    for (int32_t i = thread_index(); i < pairs; i += num_threads()) {
      const double turn = part_of_turn(place.position, launch.inverse_frequencies[i]);
      const SineCosine at = sine_cosine_of_turn(static_cast<float>(turn));
      rotations[i] = {at.cosine * amplitude, at.sine * amplitude};
    }
    sync_cta();

    const int64_t at = slot_offset(params, place.slot);
    const int32_t kv_heads = params.num_kv_heads;
    const int32_t heads = 2 * kv_heads + (params.q ? params.num_query_heads : 0);
    for (int32_t index = warp_index(); index < heads; index += num_threads() / kWarpLanes) {
      if (index < kv_heads) {
        copy_head(params, {params.k, row * params.k_strides.row + index * params.k_strides.head, params.k_type},
                  {params.k_pages, at + index * params.cache_strides.head, params.kv_type}, rotations, pairs);
      } else if (index < 2 * kv_heads) {
        const int32_t head = index - kv_heads;
        copy_head(params, {params.v, row * params.v_strides.row + head * params.v_strides.head, params.v_type},
                  {params.v_pages, at + head * params.cache_strides.head, params.kv_type}, rotations, 0);
      } else {
        const int32_t head = index - 2 * kv_heads;
        copy_head(params, {params.q, row * params.q_strides.row + head * params.q_strides.head, params.q_type},
                  {params.q_out, row * params.q_out_strides.row + head * params.q_out_strides.head, params.q_type},
                  rotations, pairs);
      }
    }
  }

 private:
  // A head's elements: where they begin, and what they are.
  struct Elements {
    const void* data;
    int64_t first;
    DType type;
  };

  LEAN_DEVICE static float load(const Elements& from, int32_t dim) {
    const int64_t i = from.first + dim;
    switch (from.type) {
      case DType::kF16:
        return to_float(static_cast<const Float16*>(from.data)[i]);
      case DType::kBF16:
        return to_float(static_cast<const BFloat16*>(from.data)[i]);
      default:
        return static_cast<const float*>(from.data)[i];
    }
  }

  LEAN_DEVICE static void store(const Elements& to, int32_t dim, float value) {
    const int64_t i = to.first + dim;
    void* const data = const_cast<void*>(to.data);
    switch (to.type) {
      case DType::kF16:
        static_cast<Float16*>(data)[i] = from_float<Float16>(value);
        break;
      case DType::kBF16:
        static_cast<BFloat16*>(data)[i] = from_float<BFloat16>(value);
        break;
      default:
        static_cast<float*>(data)[i] = value;
    }
  }

  // A pair is read and written by one lane, so a head may be rotated where it lies.
  LEAN_DEVICE static void copy_head(const AppendParams& params, const Elements& from, const Elements& to,
                                    const Rotation* rotations, int32_t pairs) {
    for (int32_t i = lane_index(); i < pairs; i += kWarpLanes) {
      const RotaryPair pair = rotary_pair(params.pairing, params.rotary_dims, i);
      float first = load(from, pair.first), second = load(from, pair.second);
      rotate(rotations[i], first, second);
      store(to, pair.first, first);
      store(to, pair.second, second);
    }
    for (int32_t dim = 2 * pairs + lane_index(); dim < params.head_dim; dim += kWarpLanes)
      store(to, dim, load(from, dim));
  }
};

// A CTA makes one copy in one block: K, or V, of one layer.
struct PageCopyKernel {
  using Params = PageCopyParams;
  static constexpr int kThreads = 128;
  static constexpr int kCtasPerSm = 8;
  static constexpr int kSharedBytes = 0;

  LEAN_DEVICE static void run(const Params& params, char*) {
    const PageCopy copy = params.copies[cta_index_x()];
    char* const pages = static_cast<char*>(params.memory) + cta_index_y() * params.block_bytes;
    const auto* const source = reinterpret_cast<const Float4*>(pages + copy.source * params.page_bytes);
    auto* const target = reinterpret_cast<Float4*>(pages + copy.target * params.page_bytes);
    const int64_t count = copy.tokens * params.token_bytes / 16;  // head dims are multiples of 8 elements
    for (int64_t i = thread_index(); i < count; i += num_threads()) store_global(target + i, load_global(source + i));
  }
};

}  // namespace lean
