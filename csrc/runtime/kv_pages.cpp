#include "kv_pages.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "error.h"

namespace lean {

namespace {

constexpr int64_t kSlotBits = 20;
constexpr int64_t kMaxSequences = int64_t{1} << kSlotBits;
constexpr int64_t kMaxGeneration = (int64_t{1} << (53 - kSlotBits)) - 1;  // a slot that has had them all retires

std::string name(size_t index) { return "`sequences[" + std::to_string(index) + "]`"; }

std::string plural(int64_t count, const char* what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

}  // namespace

KvPages::KvPages(int32_t num_pages, int32_t page_tokens)
    : page_tokens_(page_tokens), owners_(static_cast<size_t>(num_pages)), free_pages_(static_cast<size_t>(num_pages)) {
  for (int32_t page = 0; page < num_pages; ++page) free_pages_[static_cast<size_t>(page)] = num_pages - 1 - page;
}

const KvPages::Sequence* KvPages::find(SequenceId id) const {
  const int64_t slot = id & (kMaxSequences - 1);
  if (id < 0 || slot >= static_cast<int64_t>(sequences_.size())) return nullptr;
  const Sequence& sequence = sequences_[static_cast<size_t>(slot)];
  return sequence.live && sequence.generation == id >> kSlotBits ? &sequence : nullptr;
}

const KvPages::Sequence& KvPages::at(SequenceId id) const {
  const Sequence* sequence = find(id);
  if (!sequence) refuse("Expected a sequence that is live, got one that has been freed");
  return *sequence;
}

KvPages::Sequence& KvPages::at(SequenceId id) { return const_cast<Sequence&>(std::as_const(*this).at(id)); }

SequenceId KvPages::take_slot() {
  if (free_slots_.empty()) {
    if (static_cast<int64_t>(sequences_.size()) == kMaxSequences)
      refuse("Expected at most " + std::to_string(kMaxSequences) + " live sequences, got one more");
    if (free_slots_.capacity() <= sequences_.size()) free_slots_.reserve(2 * sequences_.size() + 1);  // for free()
    sequences_.emplace_back();
    free_slots_.push_back(static_cast<int32_t>(sequences_.size() - 1));
  }
  const int32_t slot = free_slots_.back();
  free_slots_.pop_back();
  Sequence& sequence = sequences_[static_cast<size_t>(slot)];
  ++sequence.generation;
  sequence.live = true;
  ++live_sequences_;
  return sequence.generation << kSlotBits | slot;
}

SequenceId KvPages::create() {
  const SequenceId id = take_slot();
  at(id).changed = ++clock_;
  return id;
}

SequenceId KvPages::fork(SequenceId id) {
  std::vector<int32_t> pages = at(id).pages;
  const SequenceId child_id = take_slot();
  Sequence& parent = at(id);
  Sequence& child = at(child_id);
  for (const int32_t page : pages) share(page);
  child.pages = std::move(pages);
  child.length = parent.length;
  child.changed = parent.forked = ++clock_;
  tokens_ += child.length;
  return child_id;
}

void KvPages::truncate(SequenceId id, int64_t length) {
  Sequence& sequence = at(id);
  if (length < 0 || length > sequence.length)
    refuse("Expected `length` from 0 to " + std::to_string(sequence.length) + ", got " + std::to_string(length));
  const auto kept = static_cast<size_t>(pages_for(length));
  while (sequence.pages.size() > kept) {
    release(sequence.pages.back());
    sequence.pages.pop_back();
  }
  tokens_ -= sequence.length - length;
  sequence.length = static_cast<int32_t>(length);
  sequence.changed = ++clock_;
}

bool KvPages::free(SequenceId id) {
  if (!is_live(id)) return false;
  truncate(id, 0);
  Sequence& sequence = at(id);
  sequence.live = false;
  --live_sequences_;
  if (sequence.generation < kMaxGeneration) free_slots_.push_back(static_cast<int32_t>(id & (kMaxSequences - 1)));
  return true;
}

bool KvPages::writes_shared_page(const Sequence& sequence) const {
  return sequence.length % page_tokens_ != 0 && num_owners(sequence.pages.back()) > 1;
}

void KvPages::expect_once(std::span<const SequenceId> ids) {
  const int64_t now = ++clock_;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!is_live(ids[i])) refuse("Expected " + name(i) + " to be live, got one that has been freed");
    Sequence& sequence = at(ids[i]);
    if (sequence.seen == now) refuse("Expected " + name(i) + " once in a batch, got it twice");
    sequence.seen = now;
  }
}

void KvPages::check_append(std::span<const SequenceId> ids, std::span<const int32_t> counts) {
  if (ids.size() != counts.size())
    refuse("Expected `counts` to hold " + std::to_string(ids.size()) + " counts, one a sequence, got " +
           std::to_string(counts.size()));
  expect_once(ids);
  for (size_t i = 0; i < ids.size(); ++i) {
    const Sequence& sequence = at(ids[i]);
    if (counts[i] < 1)
      refuse("Expected `counts[" + std::to_string(i) + "]` to be at least 1, got " + std::to_string(counts[i]));
    if (counts[i] > std::numeric_limits<int32_t>::max() - sequence.length)
      refuse("Expected " + name(i) + " to stay below 2147483648 tokens, got " + std::to_string(sequence.length) +
             " and " + std::to_string(counts[i]) + " more");
  }
}

Appended KvPages::append(std::span<const SequenceId> ids, std::span<const int32_t> counts) {
  check_append(ids, counts);
  Appended appended{0, {}};
  appended.copies.reserve(ids.size());
  int64_t needed = 0, tokens = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const Sequence& sequence = at(ids[i]);
    needed += pages_for(int64_t{sequence.length} + counts[i]) - static_cast<int64_t>(sequence.pages.size());
    tokens += counts[i];
    // Of the sequences that share a page and all move on, the last one may stay: so each gives its page up in turn.
    if (writes_shared_page(sequence)) {
      appended.copies.push_back({sequence.pages.back(), static_cast<int32_t>(i), sequence.length % page_tokens_});
      release(sequence.pages.back());
    }
  }
  const auto copies = static_cast<int64_t>(appended.copies.size());
  const auto free = static_cast<int64_t>(free_pages_.size());
  try {
    if (needed + copies > free)
      throw Error(ErrorCode::kOutOfPages,
                  "Appending " + plural(tokens, "token") + " to " +
                      plural(static_cast<int64_t>(ids.size()), "sequence") + " needs " +
                      plural(needed + copies, "page") +
                      (copies > 0 ? " (" + std::to_string(copies) + " to copy shared ones)" : "") + ", and " +
                      std::to_string(free) + " of " + std::to_string(owners_.size()) +
                      " are free; free or truncate sequences, or make the cache larger");
    for (size_t i = 0; i < ids.size(); ++i) reserve_pages(at(ids[i]), counts[i]);
  } catch (...) {
    for (const PageCopy& copy : appended.copies) share(copy.source);
    throw;
  }
  // From here on nothing fails.
  for (PageCopy& copy : appended.copies) {
    Sequence& sequence = at(ids[static_cast<size_t>(copy.target)]);
    sequence.pages.back() = copy.target = take_page();
  }
  appended.stamp = ++clock_;
  for (size_t i = 0; i < ids.size(); ++i) {
    Sequence& sequence = at(ids[i]);
    sequence.length += counts[i];
    sequence.changed = appended.stamp;
    const auto pages = static_cast<size_t>(pages_for(sequence.length));
    while (sequence.pages.size() < pages) sequence.pages.push_back(take_page());
  }
  tokens_ += tokens;
  return appended;
}

void KvPages::reserve_pages(Sequence& sequence, int32_t count) {
  const auto pages = static_cast<size_t>(pages_for(int64_t{sequence.length} + count));
  if (pages > sequence.pages.capacity()) sequence.pages.reserve(std::max(pages, 2 * sequence.pages.capacity()));
}

void KvPages::share(int32_t page) {
  if (++owners_[static_cast<size_t>(page)] == 2) ++shared_pages_;
}

void KvPages::release(int32_t page) {
  const int32_t left = --owners_[static_cast<size_t>(page)];
  if (left == 1) --shared_pages_;
  if (left == 0) free_pages_.push_back(page);
}

int32_t KvPages::take_page() {
  const int32_t page = free_pages_.back();
  free_pages_.pop_back();
  owners_[static_cast<size_t>(page)] = 1;
  return page;
}

KvPages::Stats KvPages::stats() const {
  return {static_cast<int64_t>(owners_.size()), static_cast<int64_t>(free_pages_.size()), shared_pages_,
          live_sequences_, tokens_};
}

void KvPages::verify() const {
  const auto expect = [](bool holds, const std::string& what) {
    if (!holds) throw Error(ErrorCode::kInternal, "The cache's bookkeeping is broken: " + what);
  };
  std::vector<int32_t> owners(owners_.size()), last_owner(owners_.size(), -1);
  int64_t live = 0, tokens = 0;
  for (size_t slot = 0; slot < sequences_.size(); ++slot) {
    const Sequence& sequence = sequences_[slot];
    const std::string which = "sequence " + std::to_string(slot);
    expect(static_cast<int64_t>(sequence.pages.size()) == pages_for(sequence.length),
           which + " of " + plural(sequence.length, "token") + " owns " +
               plural(static_cast<int64_t>(sequence.pages.size()), "page"));
    expect(sequence.live || sequence.length == 0, which + " is free and holds tokens");
    live += sequence.live;
    tokens += sequence.length;
    for (const int32_t page : sequence.pages) {
      const std::string it = "page " + std::to_string(page);
      expect(page >= 0 && page < static_cast<int64_t>(owners.size()), it + " of " + which + " is not there");
      expect(last_owner[static_cast<size_t>(page)] != static_cast<int32_t>(slot), which + " owns " + it + " twice");
      last_owner[static_cast<size_t>(page)] = static_cast<int32_t>(slot);
      ++owners[static_cast<size_t>(page)];
    }
  }
  int64_t shared = 0, unowned = 0;
  for (size_t page = 0; page < owners.size(); ++page) {
    expect(owners[page] == owners_[page], "page " + std::to_string(page) + " has " + plural(owners[page], "owner") +
                                              " and counts " + std::to_string(owners_[page]));
    shared += owners[page] > 1;
    unowned += owners[page] == 0;
  }
  for (const int32_t page : free_pages_) {
    expect(page >= 0 && page < static_cast<int64_t>(owners.size()) && owners[static_cast<size_t>(page)] == 0,
           "page " + std::to_string(page) + " is free and owned");
    owners[static_cast<size_t>(page)] = -1;  // a second time would not pass
  }
  expect(unowned == static_cast<int64_t>(free_pages_.size()),
         plural(unowned - static_cast<int64_t>(free_pages_.size()), "page") + " lost");
  expect(shared == shared_pages_ && live == live_sequences_ && tokens == tokens_, "the sums are off");
}

}  // namespace lean
