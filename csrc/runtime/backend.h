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
  bool q_on_device = false;  // which of them lie in memory that the backend allocated; the others are the host's
  bool k_on_device = false;
  bool v_on_device = false;
  std::vector<int32_t> page_table;               // empty: contiguous
  std::vector<std::shared_ptr<void>> owners;     // of memory that it uses and no JavaScript object holds
  DecodeParams params{};                         // its context_lengths and page_table point into this call
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

class Stream;  // stream.h

// Bytes of a device's memory, for all that use it together.
struct MemoryInfo {
  size_t free;
  size_t total;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;             // "cpu", "cuda:0"
  virtual std::string instruction_set() const = 0;  // what the tile code is built for: "avx512", "sm_90"
  virtual int64_t processors() const = 0;           // a CPU's threads, a GPU's multiprocessors
  // What a request leaves to the device: the workers that run at once, which a schedule is cut for unless the caller
  // says otherwise, and the tokens of a LeanTile. Throws Error if the device cannot run such a request.
  virtual int64_t default_workers(const PlanRequest& request) const = 0;
  virtual int32_t tile_tokens(const PlanRequest& request) const = 0;
  // How a lean schedule for the default workers is cut: fills in by_cost, heads_per_tile and heads_at_once. The
  // contexts are empty where only the device knows them.
  virtual void choose_cuts(PlanRequest& request, std::span<const int32_t> context_lengths) const = 0;
  virtual size_t workspace_bytes(const Plan& plan, int32_t rows) const = 0;
  virtual std::string describe_launch(const Plan& plan, int32_t rows) const = 0;  // one line: what runs the plan

  // Memory of the device, 64-byte aligned and zero, freed with its last owner; and copies to it and from it, which
  // block.
  virtual std::shared_ptr<void> allocate(size_t bytes) = 0;
  virtual void upload(void* target, const void* source, size_t bytes) = 0;
  virtual void download(void* target, const void* source, size_t bytes) = 0;
  virtual MemoryInfo memory_info() const { throw Error(ErrorCode::kUnsupported, "The host's system knows its memory"); }
  virtual std::shared_ptr<Stream> create_stream() = 0;  // throws Error(kUnsupported) where there are none

  virtual void decode(const DecodeCall& call) = 0;                             // blocks until done
  virtual void submit(std::shared_ptr<const DecodeCall> call, Done done) = 0;  // returns at once

  // What fills a KV cache, in memory that was allocated here. Both block until done, and nobody else writes there
  // meanwhile.
  virtual void append(const AppendCall& call) = 0;
  virtual void copy_pages(const PageCopyParams& params) = 0;

  // Seconds that a plain read of these bytes takes with the threads that decode uses: the roofline.
  virtual double time_read(std::span<const std::span<const std::byte>> buffers) = 0;
};

}  // namespace lean
