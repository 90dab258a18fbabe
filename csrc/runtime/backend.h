// The interface between the runtime and a device. A backend runs plans; it neither checks nor converts anything.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../core/append_params.h"
#include "../core/decode_params.h"
#include "error.h"
#include "plan.h"

namespace lean {

// One decode call, complete and checked. It owns the small arrays, so a caller may change its own as soon as the call
// is made; K, V, Q and the outputs stay the caller's.
struct DecodeCall {
  std::shared_ptr<const Plan> plan;
  std::vector<int32_t> page_table;               // empty: contiguous
  std::vector<std::shared_ptr<void>> owners;     // of memory that it uses and no JavaScript object holds
  DecodeParams params;                           // its context_lengths and page_table point into this call
  std::shared_ptr<std::atomic<bool>> cancelled;  // true: nobody waits for the result any more; may be null
};

// Rows to write into a KV cache, complete and checked. It owns the small arrays; the rows stay the caller's.
struct AppendCall {
  std::vector<int64_t> slots;
  std::vector<int32_t> positions;
  AppendParams params;  // its slots and positions point into this call
};

// Called once, from any thread, when an asynchronous call has ended; null: it succeeded.
using Done = std::function<void(std::exception_ptr)>;

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;             // "cpu", "cuda:0"
  virtual std::string instruction_set() const = 0;  // what the tile code is built for: "avx512", "sm_90a"
  virtual int64_t processors() const = 0;           // a CPU's threads, a GPU's multiprocessors
  // Workers that run at once, for tiles of this kind: what a schedule is cut for unless the caller says otherwise.
  virtual int64_t default_workers(int32_t head_dim, DType kv_type) const = 0;
  virtual int32_t tile_tokens(int32_t head_dim, DType kv_type) const = 0;
  virtual size_t workspace_bytes(const Plan& plan, int32_t rows, int32_t head_dim) const = 0;

  virtual void decode(const DecodeCall& call) = 0;                             // blocks until done
  virtual void submit(std::shared_ptr<const DecodeCall> call, Done done) = 0;  // returns at once

  // What a KV cache needs: memory in which decode reads K and V, 64-byte aligned and of undefined content, and the
  // calls that fill it. They block until done, and nobody else writes there meanwhile.
  virtual std::shared_ptr<void> allocate_kv_cache(size_t) { no_kv_cache(); }
  virtual void append(const AppendCall&) { no_kv_cache(); }
  virtual void copy_pages(const PageCopyParams&) { no_kv_cache(); }

  // Seconds that a plain read of these bytes takes with the threads that decode uses: the roofline.
  virtual double time_read(std::span<const std::span<const std::byte>> buffers) = 0;

 private:
  [[noreturn]] void no_kv_cache() const {
    throw Error(ErrorCode::kUnsupported,
                "The device " + name() + " cannot hold a KV cache yet: open 'cpu', or pass `k`, `v` and `pageTable`");
  }
};

}  // namespace lean
