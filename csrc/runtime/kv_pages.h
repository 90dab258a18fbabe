// Which pages of a KV cache belong to which sequence: bookkeeping alone, no memory of K or V.
//
// Sequences share the pages of what they have in common. A page is written by one owner only: an append that would
// write into a shared page first moves the sequence to a copy of it (copy on write). Pages that nobody owns are a
// stack: the last one freed is the next one taken. Every operation either succeeds or changes nothing.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "../core/append_params.h"

namespace lean {

// A slot in the table of sequences and the generation in which it was given out, so that an id that outlives its
// sequence never names another one. Below 2^53: JavaScript holds it exactly.
using SequenceId = int64_t;

// What append made room for. The stamp tells whether its sequences are still as the append left them.
struct Appended {
  int64_t stamp;
  std::vector<PageCopy> copies;  // to be made before anything is written
};

class KvPages {
 public:
  // Throws std::bad_alloc. num_pages and page_tokens are at least 1.
  KvPages(int32_t num_pages, int32_t page_tokens);

  SequenceId create();
  SequenceId fork(SequenceId id);  // of the same tokens, on the same pages
  void truncate(SequenceId id, int64_t length);
  bool free(SequenceId id);  // false: it was not live

  // Makes room for counts[i] more tokens of sequence i: of all sequences, or of none. Throws Error(kOutOfPages) with
  // how many pages are needed and how many are free, Error(kInvalidArgument) for an id that is not live or comes twice.
  Appended append(std::span<const SequenceId> ids, std::span<const int32_t> counts);

  // Throws Error(kInvalidArgument) for an id of a batch that is not live or comes twice.
  void expect_once(std::span<const SequenceId> ids);

  bool is_live(SequenceId id) const { return find(id) != nullptr; }
  int32_t length(SequenceId id) const { return at(id).length; }
  std::span<const int32_t> pages(SequenceId id) const { return at(id).pages; }
  // Whether a sequence is as the append with this stamp left it, and whether it was forked since.
  bool is_fresh(SequenceId id, int64_t stamp) const { return is_live(id) && at(id).changed == stamp; }
  bool was_forked(SequenceId id, int64_t stamp) const { return at(id).forked > stamp; }
  int32_t num_owners(int32_t page) const { return owners_[static_cast<size_t>(page)]; }

  struct Stats {
    int64_t num_pages;
    int64_t free_pages;
    int64_t shared_pages;  // pages of two sequences or more
    int64_t sequences;
    int64_t tokens;  // of all sequences; shared ones count once for each
  };
  Stats stats() const;
  int32_t page_tokens() const { return page_tokens_; }

  // Recounts everything. Throws Error(kInternal) where a page is lost, owned twice by one sequence, or miscounted.
  void verify() const;

 private:
  friend struct KvPagesTamper;  // the tests', to show that verify() sees what it breaks

  struct Sequence {
    int64_t generation = 0;
    bool live = false;
    int32_t length = 0;
    int64_t changed = 0;  // by the clock: the last append or truncate
    int64_t forked = 0;   // the last fork
    int64_t seen = 0;     // the last batch that was checked with it
    std::vector<int32_t> pages;
  };

  const Sequence* find(SequenceId id) const;
  const Sequence& at(SequenceId id) const;
  Sequence& at(SequenceId id);
  SequenceId take_slot();
  int64_t pages_for(int64_t tokens) const { return (tokens + page_tokens_ - 1) / page_tokens_; }
  bool writes_shared_page(const Sequence& sequence) const;
  void check_append(std::span<const SequenceId> ids, std::span<const int32_t> counts);
  void reserve_pages(Sequence& sequence, int32_t count);
  void share(int32_t page);
  void release(int32_t page);
  int32_t take_page();

  int32_t page_tokens_;
  std::vector<int32_t> owners_;      // [num_pages] sequences that own each page
  std::vector<int32_t> free_pages_;  // a stack, never longer than it was reserved for
  std::vector<Sequence> sequences_;
  std::vector<int32_t> free_slots_;
  int64_t clock_ = 0;
  int64_t shared_pages_ = 0;
  int64_t live_sequences_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace lean
