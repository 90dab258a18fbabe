// The bookkeeping of a KV cache's pages: against a model that keeps every sequence's tokens, under random operations.
#include "../../csrc/runtime/kv_pages.h"

#include <algorithm>
#include <map>

#include "../../csrc/runtime/error.h"
#include "harness.h"

namespace lean {

// Breaks the bookkeeping in every way that verify() must see.
struct KvPagesTamper {
  KvPages& pages;

  void lose_page() { pages.free_pages_.pop_back(); }
  void free_page(int32_t page) { pages.free_pages_.push_back(page); }
  void count_owner(int32_t page, int32_t more) { pages.owners_[static_cast<size_t>(page)] += more; }
  void own(size_t slot, int32_t page) { pages.sequences_[slot].pages.back() = page; }
  void disown(size_t slot) { pages.sequences_[slot].pages.pop_back(); }
  void kill(size_t slot) { pages.sequences_[slot].live = false; }
  void count_token() { ++pages.tokens_; }
  void count_shared() { ++pages.shared_pages_; }
};

}  // namespace lean

namespace lean::test {

namespace {

template <class Body>
std::string refusal(ErrorCode code, Body body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.code() == code);
    return error.what();
  }
  fail(__FILE__, __LINE__, "Expected an error");
}

// Pages whose slots hold the number of the token that was written there, and each sequence's tokens as they should be.
class Model {
 public:
  Model(int32_t num_pages, int32_t page_tokens)
      : pages(num_pages, page_tokens), slots_(static_cast<size_t>(num_pages) * static_cast<size_t>(page_tokens), -1) {}

  SequenceId create() { return remember(pages.create(), {}); }
  SequenceId fork(SequenceId id) { return remember(pages.fork(id), tokens.at(id)); }
  void truncate(SequenceId id, int64_t length) {
    pages.truncate(id, length);
    tokens.at(id).resize(static_cast<size_t>(length));
  }
  void free(SequenceId id) {
    CHECK(pages.free(id));
    CHECK(!pages.free(id));
    tokens.erase(id);
  }

  // Whether there was room. Where there was none, nothing may have changed.
  bool append(const std::vector<SequenceId>& ids, const std::vector<int32_t>& counts) {
    const int64_t needed = pages_needed(ids, counts);
    const KvPages::Stats before = pages.stats();
    Appended appended;
    try {
      appended = pages.append(ids, counts);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kOutOfPages);
      CHECK(needed > before.free_pages);
      CHECK(std::string(error.what()).find(" needs " + std::to_string(needed) + " page") != std::string::npos);
      CHECK_EQUAL(pages.stats().free_pages, before.free_pages);
      CHECK_EQUAL(pages.stats().tokens, before.tokens);
      return false;
    }
    CHECK_EQUAL(pages.stats().free_pages, before.free_pages - needed);
    for (const PageCopy& copy : appended.copies) std::copy_n(&slot(copy.source, 0), copy.tokens, &slot(copy.target, 0));
    for (size_t i = 0; i < ids.size(); ++i) {
      CHECK(pages.is_fresh(ids[i], appended.stamp) && !pages.was_forked(ids[i], appended.stamp));
      for (int32_t n = 0; n < counts[i]; ++n) {
        const auto position = static_cast<int32_t>(tokens.at(ids[i]).size());
        const int32_t page = pages.pages(ids[i])[static_cast<size_t>(position / pages.page_tokens())];
        CHECK_EQUAL(pages.num_owners(page), 1);
        tokens.at(ids[i]).push_back(next_token_);
        slot(page, position % pages.page_tokens()) = next_token_++;
      }
    }
    return true;
  }

  void verify() {
    pages.verify();
    CHECK_EQUAL(pages.stats().sequences, static_cast<int64_t>(tokens.size()));
    int64_t sum = 0;
    for (const auto& [id, expected] : tokens) {
      CHECK_EQUAL(pages.length(id), static_cast<int32_t>(expected.size()));
      for (size_t i = 0; i < expected.size(); ++i) {
        const auto position = static_cast<int32_t>(i);
        CHECK_EQUAL(slot(pages.pages(id)[i / static_cast<size_t>(pages.page_tokens())], position % pages.page_tokens()),
                    expected[i]);
      }
      sum += static_cast<int64_t>(expected.size());
    }
    CHECK_EQUAL(pages.stats().tokens, sum);
  }

  KvPages pages;
  std::map<SequenceId, std::vector<int64_t>> tokens;

 private:
  SequenceId remember(SequenceId id, std::vector<int64_t> its_tokens) {
    CHECK(tokens.emplace(id, std::move(its_tokens)).second);
    return id;
  }
  int64_t& slot(int32_t page, int32_t offset) {
    return slots_[static_cast<size_t>(page) * static_cast<size_t>(pages.page_tokens()) + static_cast<size_t>(offset)];
  }

  // Counted anew: whole pages past those owned, and a copy for each but the last owner of a page that is half full.
  int64_t pages_needed(const std::vector<SequenceId>& ids, const std::vector<int32_t>& counts) {
    std::map<int32_t, int32_t> owners;
    for (const auto& [id, unused] : tokens)
      for (const int32_t page : pages.pages(id)) ++owners[page];
    int64_t needed = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      const int64_t size = pages.page_tokens(), length = pages.length(ids[i]);
      needed += (length + counts[i] + size - 1) / size - (length + size - 1) / size;
      if (length % size != 0 && owners[pages.pages(ids[i]).back()]-- > 1) ++needed;
    }
    return needed;
  }

  std::vector<int64_t> slots_;
  int64_t next_token_ = 0;
};

void run_random_operations(uint64_t seed, int32_t num_pages, int32_t page_tokens, int operations) {
  Random random(seed);
  Model model(num_pages, page_tokens);
  const auto any = [&] {
    auto at = model.tokens.begin();
    std::advance(at, random.integer(0, static_cast<int64_t>(model.tokens.size()) - 1));
    return at->first;
  };
  for (int i = 0; i < operations; ++i) {
    const int64_t choice = model.tokens.empty() ? 0 : random.integer(0, 99);
    if (choice < 8 && model.tokens.size() < 24) {
      model.create();
    } else if (choice < 16 && model.tokens.size() < 24) {
      model.fork(any());
    } else if (choice < 24) {
      model.free(any());
    } else if (choice < 36) {
      const SequenceId id = any();
      model.truncate(id, random.integer(0, model.pages.length(id)));
    } else {
      std::vector<SequenceId> ids;
      std::vector<int32_t> counts;
      for (const auto& [id, unused] : model.tokens)
        if (random.integer(0, 2) == 0) {
          ids.push_back(id);
          counts.push_back(static_cast<int32_t>(random.integer(1, choice < 60 ? 3 * page_tokens : 2)));
        }
      model.append(ids, counts);
    }
    if (i % 16 == 0) model.verify();
  }
  while (!model.tokens.empty()) model.free(model.tokens.begin()->first);
  model.verify();
  CHECK_EQUAL(model.pages.stats().free_pages, num_pages);
  CHECK_EQUAL(model.pages.stats().shared_pages, 0);
}

}  // namespace

TEST(kv_pages_hold_their_invariants_over_random_operations) {
  run_random_operations(1, 64, 4, 40000);
  run_random_operations(2, 40, 1, 20000);
  run_random_operations(3, 9, 16, 20000);
  run_random_operations(4, 1, 3, 10000);
  run_random_operations(5, 300, 64, 10000);
}

TEST(kv_pages_are_taken_in_order_and_the_last_freed_first) {
  KvPages pages(4, 2);
  const SequenceId a = pages.create(), b = pages.create();
  pages.append(std::vector{a, b}, std::vector{3, 1});
  CHECK(std::ranges::equal(pages.pages(a), std::vector{0, 1}));
  CHECK(std::ranges::equal(pages.pages(b), std::vector{2}));
  pages.truncate(a, 2);
  pages.free(b);
  const SequenceId c = pages.create();
  pages.append(std::vector{c}, std::vector{6});
  CHECK(std::ranges::equal(pages.pages(c), std::vector{2, 1, 3}));
  pages.verify();
}

TEST(kv_pages_copy_a_shared_page_only_when_it_is_about_to_be_written) {
  KvPages pages(8, 4);
  const SequenceId a = pages.create();
  pages.append(std::vector{a}, std::vector{6});
  const SequenceId b = pages.fork(a), c = pages.fork(a);
  CHECK_EQUAL(pages.stats().shared_pages, 2);
  CHECK_EQUAL(pages.stats().free_pages, 6);
  const Appended first = pages.append(std::vector{b}, std::vector{1});
  CHECK_EQUAL(first.copies.size(), size_t{1});
  CHECK_EQUAL(first.copies[0].source, pages.pages(a)[1]);
  CHECK_EQUAL(first.copies[0].target, pages.pages(b)[1]);
  CHECK_EQUAL(first.copies[0].tokens, 2);
  // Both others move on: one of them may stay where it is.
  CHECK_EQUAL(pages.append(std::vector{a, c}, std::vector{1, 1}).copies.size(), size_t{1});
  CHECK_EQUAL(pages.stats().free_pages, 4);
  // A sequence cut inside a page that another one holds whole.
  pages.append(std::vector{a}, std::vector{5});
  const SequenceId d = pages.fork(a);
  pages.truncate(d, 1);
  const Appended cut = pages.append(std::vector{d}, std::vector{1});
  CHECK_EQUAL(cut.copies.size(), size_t{1});
  CHECK_EQUAL(cut.copies[0].tokens, 1);
  // At a page's end nothing is copied.
  const SequenceId e = pages.fork(d);
  pages.truncate(e, 0);
  CHECK(pages.append(std::vector{e}, std::vector{1}).copies.empty());
  pages.verify();
}

TEST(kv_pages_ids_outlive_their_sequence_without_naming_another) {
  KvPages pages(2, 1);
  const SequenceId first = pages.create();
  pages.append(std::vector{first}, std::vector{1});
  CHECK(pages.free(first));
  for (int i = 0; i < 1000; ++i) {
    const SequenceId next = pages.create();
    CHECK(next != first && next > 0 && next < int64_t{1} << 53);
    CHECK(!pages.is_live(first) && !pages.free(first));
    CHECK(pages.free(next));
  }
  for (const SequenceId id : {first, SequenceId{-1}, SequenceId{0}, SequenceId{1} << 52, INT64_MAX, INT64_MIN}) {
    CHECK(!pages.is_live(id));
    CHECK_EQUAL(refusal(ErrorCode::kInvalidArgument, [&] { pages.fork(id); }),
                "Expected a sequence that is live, got one that has been freed");
  }
  pages.verify();
}

TEST(kv_pages_verify_sees_what_is_broken) {
  const auto expect = [](const std::string& message, auto body) {
    KvPages pages(6, 2);
    const SequenceId a = pages.create(), b = pages.create();
    pages.append(std::vector{a, b}, std::vector{4, 1});
    pages.verify();
    body(KvPagesTamper{pages});
    CHECK_EQUAL(refusal(ErrorCode::kInternal, [&] { pages.verify(); }),
                "The cache's bookkeeping is broken: " + message);
  };
  expect("1 page lost", [](KvPagesTamper tamper) { tamper.lose_page(); });
  expect("page 0 is free and owned", [](KvPagesTamper tamper) { tamper.free_page(0); });
  expect("page 5 is free and owned", [](KvPagesTamper tamper) { tamper.free_page(5); });  // twice, that is
  expect("page 9 is free and owned", [](KvPagesTamper tamper) { tamper.free_page(9); });
  expect("page 1 has 1 owner and counts 2", [](KvPagesTamper tamper) { tamper.count_owner(1, 1); });
  expect("page 4 has 0 owners and counts -1", [](KvPagesTamper tamper) { tamper.count_owner(4, -1); });
  expect("sequence 0 owns page 0 twice", [](KvPagesTamper tamper) { tamper.own(0, 0); });
  expect("page 6 of sequence 1 is not there", [](KvPagesTamper tamper) { tamper.own(1, 6); });
  expect("page -1 of sequence 1 is not there", [](KvPagesTamper tamper) { tamper.own(1, -1); });
  expect("page 1 has 2 owners and counts 1", [](KvPagesTamper tamper) { tamper.own(1, 1); });
  expect("sequence 0 of 4 tokens owns 1 page", [](KvPagesTamper tamper) { tamper.disown(0); });
  expect("sequence 1 is free and holds tokens", [](KvPagesTamper tamper) { tamper.kill(1); });
  expect("the sums are off", [](KvPagesTamper tamper) { tamper.count_token(); });
  expect("the sums are off", [](KvPagesTamper tamper) { tamper.count_shared(); });
}

TEST(kv_pages_know_which_steps_are_stale) {
  KvPages pages(16, 2);
  const SequenceId a = pages.create(), b = pages.create();
  const int64_t step = pages.append(std::vector{a, b}, std::vector{3, 3}).stamp;
  CHECK(pages.is_fresh(a, step) && pages.is_fresh(b, step));
  const int64_t next = pages.append(std::vector{a}, std::vector{1}).stamp;
  CHECK(!pages.is_fresh(a, step) && pages.is_fresh(b, step) && pages.is_fresh(a, next));
  pages.truncate(a, 4);
  CHECK(!pages.is_fresh(a, next));
  const SequenceId child = pages.fork(b);
  CHECK(pages.is_fresh(b, step) && pages.was_forked(b, step) && !pages.is_fresh(child, step));
  pages.free(b);
  CHECK(!pages.is_fresh(b, step));
}

TEST(kv_pages_refuse_what_cannot_be_and_change_nothing) {
  KvPages pages(2, 4);
  const SequenceId a = pages.create(), b = pages.create(), gone = pages.create();
  pages.free(gone);
  pages.append(std::vector{a}, std::vector{3});
  const auto append = [&](std::vector<SequenceId> ids, std::vector<int32_t> counts) {
    return refusal(ErrorCode::kInvalidArgument, [&] { pages.append(ids, counts); });
  };
  CHECK_EQUAL(append({a, b, a}, {1, 1, 1}), "Expected `sequences[2]` once in a batch, got it twice");
  CHECK_EQUAL(append({a, gone}, {1, 1}), "Expected `sequences[1]` to be live, got one that has been freed");
  CHECK_EQUAL(append({a, b}, {1, 0}), "Expected `counts[1]` to be at least 1, got 0");
  CHECK_EQUAL(append({a}, {1, 1}), "Expected `counts` to hold 1 counts, one a sequence, got 2");
  CHECK_EQUAL(append({a}, {INT32_MAX}),
              "Expected `sequences[0]` to stay below 2147483648 tokens, got 3 and 2147483647 more");
  CHECK_EQUAL(refusal(ErrorCode::kInvalidArgument, [&] { pages.truncate(a, 4); }),
              "Expected `length` from 0 to 3, got 4");
  CHECK_EQUAL(refusal(ErrorCode::kInvalidArgument, [&] { pages.truncate(a, -1); }),
              "Expected `length` from 0 to 3, got -1");
  const SequenceId c = pages.fork(a);
  CHECK_EQUAL(refusal(ErrorCode::kOutOfPages, [&] { pages.append(std::vector{a, b, c}, std::vector{1, 1, 2}); }),
              "Appending 4 tokens to 3 sequences needs 3 pages (1 to copy shared ones), and 1 of 2 are free; free or "
              "truncate sequences, or make the cache larger");
  CHECK_EQUAL(refusal(ErrorCode::kOutOfPages, [&] { pages.append(std::vector{b}, std::vector{INT32_MAX}); }),
              "Appending 2147483647 tokens to 1 sequence needs 536870912 pages, and 1 of 2 are free; free or truncate "
              "sequences, or make the cache larger");
  pages.verify();
  CHECK_EQUAL(pages.stats().shared_pages, 1);
  CHECK_EQUAL(pages.stats().tokens, 6);
  CHECK_EQUAL(pages.stats().free_pages, 1);
}

}  // namespace lean::test
