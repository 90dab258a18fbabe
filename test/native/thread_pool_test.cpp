// The thread pool: every task once, exceptions, many submitters at once, and an end with jobs in line.
#include "../../csrc/runtime/thread_pool.h"

#include <chrono>
#include <future>
#include <latch>
#include <memory>
#include <thread>

#include "harness.h"

namespace lean::test {

namespace {

TEST(pool_run_calls_every_task_once) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK_EQUAL(pool.num_threads(), threads);
    for (const int64_t count : {1, 2, 3, 7, 64, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      std::atomic<bool> thread_in_range{true};
      pool.run(count, [&](int64_t index, int thread) {
        calls[static_cast<size_t>(index)].fetch_add(1);
        if (thread < 0 || thread > threads) thread_in_range = false;
      });
      for (const auto& called : calls) CHECK_EQUAL(called.load(), 1);
      CHECK(thread_in_range.load());
    }
  }
}

TEST(pool_threads_never_share_a_number) {
  // What a task does with its thread's scratch must not meet another task's.
  ThreadPool pool(4);
  std::vector<int64_t> scratch(5);  // not atomic: the thread sanitizer watches it
  int64_t caller_scratch = 0;
  for (int round = 0; round < 50; ++round)
    pool.run(100, [&](int64_t, int thread) {
      if (thread == 4)
        ++caller_scratch;
      else
        ++scratch[static_cast<size_t>(thread)];
    });
  int64_t sum = caller_scratch;
  for (const int64_t count : scratch) sum += count;
  CHECK_EQUAL(sum, 5000);
}

TEST(pool_run_throws_what_a_task_threw_and_goes_on) {
  ThreadPool pool(3);
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> ran{0};
    bool caught = false;
    try {
      pool.run(20, [&](int64_t index, int) {
        ++ran;
        if (index == 7) throw std::runtime_error("seven");
      });
    } catch (const std::runtime_error& error) {
      caught = error.what() == std::string("seven");
    }
    CHECK(caught);
    CHECK_EQUAL(ran.load(), 20);  // the others run to their end: they use the caller's memory
    pool.run(4, [&](int64_t, int) { ++ran; });
    CHECK_EQUAL(ran.load(), 24);
  }
}

TEST(pool_submit_calls_done_once_after_every_task) {
  ThreadPool pool(2);
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> ran{0};
    std::promise<int> ended;
    pool.submit(
        9, [&](int64_t, int) { ++ran; }, [&](std::exception_ptr error) { ended.set_value(error ? -1 : ran.load()); });
    CHECK_EQUAL(ended.get_future().get(), 9);
  }
}

TEST(pool_submit_hands_an_exception_to_done) {
  ThreadPool pool(2);
  std::promise<std::string> ended;
  pool.submit(
      5,
      [](int64_t index, int) {
        if (index == 3) throw std::runtime_error("three");
      },
      [&](std::exception_ptr error) {
        try {
          std::rethrow_exception(error);
        } catch (const std::exception& thrown) {
          ended.set_value(thrown.what());
        }
      });
  CHECK_EQUAL(ended.get_future().get(), "three");
}

TEST(pool_many_submitters_and_callers_at_once) {
  ThreadPool pool(3);
  std::atomic<int64_t> ran{0}, done{0};
  constexpr int kCallers = 6, kRounds = 100;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller)
    callers.emplace_back([&, caller] {
      for (int round = 0; round < kRounds; ++round) {
        if ((caller + round) % 2 == 0)
          pool.run(5, [&](int64_t, int) { ++ran; });
        else
          pool.submit(5, [&](int64_t, int) { ++ran; }, [&](std::exception_ptr) { ++done; });
      }
    });
  for (std::thread& caller : callers) caller.join();
  while (done.load() < kCallers * kRounds / 2) std::this_thread::yield();
  CHECK_EQUAL(ran.load(), kCallers * kRounds * 5);
}

TEST(pool_destruction_finishes_the_jobs_in_line) {
  for (int round = 0; round < 100; ++round) {
    std::atomic<int> ran{0}, done{0};
    {
      ThreadPool pool(1 + round % 3);
      for (int job = 0; job < 20; ++job)
        pool.submit(3, [&](int64_t, int) { ++ran; }, [&](std::exception_ptr) { ++done; });
    }
    CHECK_EQUAL(ran.load(), 60);
    CHECK_EQUAL(done.load(), 20);
  }
}

TEST(pool_destruction_while_idle_spinning_or_asleep) {
  for (int round = 0; round < 50; ++round) {
    ThreadPool pool(1 + round % 4);
    if (round % 2 == 0) pool.run(3, [](int64_t, int) {});
    if (round % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST(pool_jobs_own_what_their_tasks_hold_no_longer_than_they_run) {
  auto held = std::make_shared<int>(1);
  const std::weak_ptr<int> watched = held;
  ThreadPool pool(2);
  pool.run(4, [held](int64_t, int) {});
  std::promise<void> ended;
  pool.submit(4, [held](int64_t, int) {}, [&](std::exception_ptr) { ended.set_value(); });
  ended.get_future().wait();
  held.reset();
  // A thread may still be on its way out of the job.
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (!watched.expired() && std::chrono::steady_clock::now() < give_up) {
    pool.run(4, [](int64_t, int) {});
    std::this_thread::yield();
  }
  CHECK(watched.expired());
}

// Two tasks that need each other: neither may wait behind the other, so two threads must really run at once.
TEST(pool_runs_tasks_at_the_same_time) {
  ThreadPool pool(2);
  std::latch both(2);
  pool.run(2, [&](int64_t, int) { both.arrive_and_wait(); });
  std::promise<void> ended;
  std::latch both_again(2);
  pool.submit(2, [&](int64_t, int) { both_again.arrive_and_wait(); }, [&](std::exception_ptr) { ended.set_value(); });
  ended.get_future().wait();
}

}  // namespace

}  // namespace lean::test
