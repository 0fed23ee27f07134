// SPDX-License-Identifier: MIT
// Runs the chunks of one call on the caller and on parked or spinning workers.
//
// Chunks are claimed one by one from an atomic counter, so a worker that wakes late can only help,
// and the caller never waits for one that has not started. A worker spins for a while after its
// last job (the next call is often microseconds away), then parks. A hand-over to a spinning worker
// takes 0.3 us. Waking a parked one takes 25 to 150 us, the longer the longer it slept, so only
// long calls do, and short ones that follow each other: the worker is then awake for the next. A
// call wakes at most one, on another core than its own; a worker that finds chunks left wakes
// another.
#ifndef VECINA_CPU_THREAD_POOL_H_
#define VECINA_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>

#include "core/backend.h"

namespace vecina::internal {

class ThreadPool {
 public:
  using Body = void (*)(int64_t i, void* user_body);

  // Calls of fewer microseconds are over before another thread has joined in.
  static constexpr double kLeastShared = 10.0;

  // options.threads counts the caller; workers start with the first call that wants them.
  explicit ThreadPool(const BackendOptions& options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // How many may work at once, the caller included.
  int threads() const { return threads_; }

  // A call of one job or several in turn. expected_us: about what one thread takes for all.
  class Call {
   public:
    Call(ThreadPool* pool, double expected_us);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    // False if the caller will be alone: others sleep, and waking them does not pay.
    bool is_shared() const { return is_shared_; }

    // Calls body(i, user_body) for every i in [0, count), each once, and returns when all are done.
    // A second caller meanwhile runs its own chunks alone. In a forked child workers start anew.
    void parallel_for(int64_t count, Body body, void* user_body) const;

   private:
    ThreadPool& pool_;
    const double expected_us_;
    bool is_shared_ = false, wakes_ = false;
    mutable bool has_woken_ = false;
  };

 private:
  struct Workers;

  void forget_parent();

  const BackendOptions options_;
  const int threads_;
  std::atomic<bool> busy_{false};
  std::atomic<Workers*> workers_{nullptr};
  std::atomic<uint64_t> fork_generation_{0};
  std::atomic<int64_t> last_end_{0};  // of a call that may wake workers, in nanoseconds
};

}  // namespace vecina::internal
#endif  // VECINA_CPU_THREAD_POOL_H_
