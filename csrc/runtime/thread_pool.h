// A persistent thread pool: jobs wait in line, each is a number of tasks that any thread may take.
//
// Threads that find nothing to do spin for about as long as they worked, because decode calls follow each other soon,
// and then sleep, because a barrier that only spins stalls for a scheduler's slice when another process takes the core.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lean {

class ThreadPool {
 public:
  // `task(index, thread)`: thread is from 0 to num_threads() - 1, or num_threads() for a caller of run().
  using Task = std::function<void(int64_t index, int thread)>;
  using Done = std::function<void(std::exception_ptr)>;

  explicit ThreadPool(int num_threads);  // throws Error(kOutOfMemory) where the system refuses a thread
  ~ThreadPool();                         // waits for the jobs that are in line

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()); }

  // Runs task(0) … task(count - 1) and returns when all have ended; the calling thread takes part, in place of one of
  // the pool's own. Throws what a task threw first.
  void run(int64_t count, Task task);

  // The same without waiting: `done` is called on a pool thread once all tasks have ended.
  void submit(int64_t count, Task task, Done done);

 private:
  struct Job {
    int64_t count;
    Task task;
    Done done;
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> finished{0};
    std::mutex mutex;  // guards error; and finished, for those who sleep on it
    std::condition_variable all_finished;
    std::exception_ptr error;
    bool caller_takes_part = false;
  };
  using JobPtr = std::shared_ptr<Job>;

  void enqueue(const JobPtr& job);
  static std::exception_ptr take_error(Job& job);
  bool work_on(Job& job, int thread);  // takes tasks until none is left; true: it ended the job's last one
  // Waits, spinning for so long first; null: the pool is closing.
  JobPtr next_job(bool is_spare, std::chrono::steady_clock::duration spin_time);
  void thread_main(int thread);

  std::mutex mutex_;  // guards jobs_ and closing_
  std::condition_variable wake_;
  std::condition_variable wake_spare_;
  std::deque<JobPtr> jobs_;
  bool closing_ = false;
  std::atomic<uint64_t> enqueued_{0};  // what spinning threads watch
  std::vector<std::thread> threads_;
};

}  // namespace lean
