// The last line of defence: no call reaches a backend unless every byte it may touch lies inside the caller's buffers.
// Host only; caller mistakes that TypeScript can name better have been refused before.
#pragma once

#include <cstddef>
#include <vector>

#include "../core/append_params.h"
#include "../core/decode_params.h"

namespace lean {

// Bytes that stand behind each pointer of the parameters.
struct BufferSizes {
  size_t q;
  size_t k;
  size_t v;
  size_t out;
  size_t lse;
};

// The bytes that a call with these parameters reaches from each pointer on. Throws where they do not fit 64 bits.
BufferSizes needed_bytes(const DecodeParams& params);

// Checks shapes, strides, sizes, context lengths and every page index that a context reaches.
// Page-table entries past a context are not looked at. Throws Error(kInvalidArgument) with one sentence.
void check_params(const DecodeParams& params, const BufferSizes& sizes);

// The same where context lengths and page table lie in device memory: all but their contents, which kernels check.
void check_params_on_device(const DecodeParams& params, const BufferSizes& sizes);

// Bytes that stand behind what a caller gives to write into a KV cache, and inverse frequencies.
struct AppendSizes {
  size_t k;
  size_t v;
  size_t q;
  size_t q_out;
  size_t frequencies;
};

// The bytes that a call with these parameters reaches from each pointer on.
AppendSizes needed_bytes(const AppendParams& params);

// Checks shapes, strides, sizes and slots; the cache's own memory is taken to hold num_pages.
void check_append(const AppendParams& params, const AppendSizes& sizes);

}  // namespace lean
