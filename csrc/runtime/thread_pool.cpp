#include "thread_pool.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

#include "error.h"

namespace lean {

namespace {

using Clock = std::chrono::steady_clock;

// Who waits does so awake at first, for as long as its last work took: a caller that comes back soon, as the layers of
// a model do, finds the threads awake, and none waits awake for longer than it worked. To wake one takes some 50 us.
constexpr Clock::duration kLeastSpin = std::chrono::microseconds(50);
constexpr Clock::duration kMostSpin = std::chrono::milliseconds(1);

Clock::duration spin_after(Clock::time_point work_began) {
  return std::clamp(Clock::now() - work_began, kLeastSpin, kMostSpin);
}

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spins until `ready` or the time is over; tells which.
template <class Ready>
bool spin(Clock::duration time, Ready ready) {
  const auto end = Clock::now() + time;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  threads_.reserve(static_cast<size_t>(num_threads));
  try {
    for (int thread = 0; thread < num_threads; ++thread) threads_.emplace_back([this, thread] { thread_main(thread); });
  } catch (const std::system_error& refusal) {  // the threads that run must be joined before the members go
    const size_t running = threads_.size();
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    wake_spare_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    throw Error(ErrorCode::kOutOfMemory, "The system refused a thread after " + std::to_string(running) + " of " +
                                             std::to_string(num_threads) + " (" + refusal.code().message() + ")" +
                                             (num_threads > 1 ? ": ask for fewer with `threads`" : ""));
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    enqueued_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  wake_spare_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::enqueue(const JobPtr& job) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(job);
    enqueued_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  if (!job->caller_takes_part) wake_spare_.notify_one();
}

void ThreadPool::run(int64_t count, Task task) {
  const auto job = std::make_shared<Job>();
  job->count = count;
  job->task = std::move(task);
  job->caller_takes_part = true;
  if (count > 1 && num_threads() > 1) enqueue(job);  // a pool's only thread is the one the caller stands in for
  const auto start = Clock::now();
  work_on(*job, num_threads());
  const auto ended = [&] { return job->finished.load(std::memory_order_acquire) == count; };
  if (!spin(spin_after(start), ended)) {
    std::unique_lock lock(job->mutex);
    job->all_finished.wait(lock, ended);
  }
  if (const std::exception_ptr error = take_error(*job)) std::rethrow_exception(error);
}

void ThreadPool::submit(int64_t count, Task task, Done done) {
  const auto job = std::make_shared<Job>();
  job->count = count;
  job->task = std::move(task);
  job->done = std::move(done);
  enqueue(job);
}

// Whoever hears of the error owns it alone: a job may linger in line, and its last reference go on any thread.
std::exception_ptr ThreadPool::take_error(Job& job) {
  const std::lock_guard lock(job.mutex);
  return std::exchange(job.error, nullptr);
}

bool ThreadPool::work_on(Job& job, int thread) {
  for (;;) {
    const int64_t index = job.next.fetch_add(1, std::memory_order_relaxed);
    if (index >= job.count) return false;
    try {
      job.task(index, thread);
    } catch (...) {
      const std::lock_guard lock(job.mutex);
      if (!job.error) job.error = std::current_exception();
    }
    if (job.finished.fetch_add(1, std::memory_order_acq_rel) + 1 < job.count) continue;
    const std::lock_guard lock(job.mutex);  // a caller between its test and its sleep must not miss this
    job.all_finished.notify_all();
    return true;
  }
}

ThreadPool::JobPtr ThreadPool::next_job(bool is_spare, Clock::duration spin_time) {
  const auto find = [&]() -> JobPtr {
    while (!jobs_.empty() && jobs_.front()->next.load(std::memory_order_relaxed) >= jobs_.front()->count)
      jobs_.pop_front();  // all its tasks are taken
    for (const JobPtr& job : jobs_)
      if (job->next.load(std::memory_order_relaxed) < job->count && !(is_spare && job->caller_takes_part)) return job;
    return nullptr;
  };
  JobPtr job;
  std::unique_lock lock(mutex_);
  job = find();
  if (job || closing_) return job;
  if (!is_spare) {
    const uint64_t seen = enqueued_.load(std::memory_order_relaxed);
    lock.unlock();
    spin(spin_time, [&] { return enqueued_.load(std::memory_order_acquire) != seen; });
    lock.lock();
  }
  (is_spare ? wake_spare_ : wake_).wait(lock, [&] { return (job = find()) || closing_; });
  return job;
}

void ThreadPool::thread_main(int thread) {
  // The caller of run() stands in for thread 0, which would only take a core from the others.
  const bool is_spare = thread == 0;
  auto spin_time = kLeastSpin;
  while (const JobPtr job = next_job(is_spare, spin_time)) {
    const auto start = Clock::now();
    if (work_on(*job, thread) && job->done) job->done(take_error(*job));
    spin_time = spin_after(start);
  }
}

}  // namespace lean
