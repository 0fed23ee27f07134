// SPDX-License-Identifier: MIT
// Which calls the pool shares, and which it wakes sleeping workers for.
#include "cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "core/backend.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace vecina::internal {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr double kShort = 200.0, kLong = 1e6;  // microseconds

class ThreadPoolTest : public testing::Test {
 protected:
  ThreadPoolTest() : pool_(two_threads()) { call(kLong); }  // starts the worker

  static BackendOptions two_threads() {
    BackendOptions options;
    options.threads = 2;
    return options;
  }

  // Calls with two chunks, each of which waits for the other to begin, but not long. True if they
  // met, on two threads.
  bool call(double microseconds) {
    struct Job {
      std::atomic<int> begun{0};
      std::atomic<bool> have_met{false};
      Clock::time_point end = Clock::now() + milliseconds(100);
    } job;
    const auto chunk = [](int64_t, void* user) {
      Job& shared = *static_cast<Job*>(user);
      ++shared.begun;
      while (shared.begun < 2 && Clock::now() < shared.end) std::this_thread::yield();
      if (shared.begun == 2 && Clock::now() < shared.end) shared.have_met = true;
    };
    const ThreadPool::Call call(&pool_, microseconds);
    was_shared_ = call.is_shared();
    if (was_shared_) call.parallel_for(2, chunk, &job);
    return job.have_met;
  }
  static void let_worker_park() { std::this_thread::sleep_for(milliseconds(20)); }

  ThreadPool pool_;
  bool was_shared_ = false;
};

// Each is tried a few times: on a busy machine a worker may park late, or not come.
constexpr int kTries = 20;

TEST_F(ThreadPoolTest, WakesAWorkerForALongCall) {
  bool has_come = false;
  for (int i = 0; i < kTries && !has_come; ++i) {
    let_worker_park();
    has_come = call(kLong);
    EXPECT_TRUE(was_shared_);
  }
  EXPECT_TRUE(has_come);
}

TEST_F(ThreadPoolTest, LetsAWorkerSleepForAShortCall) {
  bool was_alone = false;
  for (int i = 0; i < kTries && !was_alone; ++i) {
    let_worker_park();
    call(kShort);
    was_alone = !was_shared_;
  }
  EXPECT_TRUE(was_alone);
}

TEST_F(ThreadPoolTest, WakesAWorkerForTheSecondOfShortCalls) {
  bool has_come = false;
  for (int i = 0; i < kTries && !has_come; ++i) {
    let_worker_park();
    call(kShort);
    if (!was_shared_) has_come = call(kShort);
  }
  EXPECT_TRUE(has_come);
}

TEST_F(ThreadPoolTest, SharesNothingThatIsOverAtOnce) {
  call(kLong);
  call(1.0);
  EXPECT_FALSE(was_shared_);
}

#if defined(__linux__)

// What a thread may run on, while it lives put back as it was.
class KeptCores {
 public:
  KeptCores() : cores_(of(pthread_self())) {}
  ~KeptCores() { sched_setaffinity(0, sizeof(cores_), &cores_); }
  KeptCores(const KeptCores&) = delete;
  KeptCores& operator=(const KeptCores&) = delete;

  static cpu_set_t of(pthread_t thread) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    EXPECT_EQ(pthread_getaffinity_np(thread, sizeof(cores), &cores), 0);
    return cores;
  }
  const cpu_set_t& before() const { return cores_; }

 private:
  const cpu_set_t cores_;
};

TEST_F(ThreadPoolTest, AWokenWorkerKeepsOffTheCallersCore) {
  const KeptCores kept;
  if (CPU_COUNT(&kept.before()) < 2) GTEST_SKIP() << "one core";
  const int core = sched_getcpu();
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(core, &own);
  ASSERT_EQ(sched_setaffinity(0, sizeof(own), &own), 0);

  // The worker that came, and its cores in its chunk; the caller and its own where none did.
  struct Job {
    pthread_t caller = pthread_self(), worker = caller;
    std::atomic<int> begun{0};
    Clock::time_point end = Clock::now() + milliseconds(100);
    cpu_set_t cores = KeptCores::of(caller);
  };
  const auto chunk = [](int64_t, void* user) {
    Job& shared = *static_cast<Job*>(user);
    ++shared.begun;
    if (pthread_self() != shared.caller) {
      shared.worker = pthread_self();
      shared.cores = KeptCores::of(shared.worker);
    }
    while (shared.begun < 2 && Clock::now() < shared.end) std::this_thread::yield();
  };
  bool has_kept_off = false;
  pthread_t worker{};
  for (int i = 0; i < kTries && !has_kept_off; ++i) {
    let_worker_park();
    Job job;
    const ThreadPool::Call call(&pool_, kLong);
    call.parallel_for(2, chunk, &job);
    worker = job.worker;
    has_kept_off =
        CPU_COUNT(&job.cores) == CPU_COUNT(&kept.before()) - 1 && !CPU_ISSET(core, &job.cores);
  }
  ASSERT_TRUE(has_kept_off);
  // Asked from here: on a busy machine the worker of a next call may have been woken again.
  bool is_free_again = false;
  for (const auto end = Clock::now() + milliseconds(2000); !is_free_again && Clock::now() < end;) {
    std::this_thread::sleep_for(milliseconds(1));
    const cpu_set_t cores = KeptCores::of(worker);
    is_free_again = CPU_EQUAL(&cores, &kept.before());
  }
  EXPECT_TRUE(is_free_again);
}

#endif

}  // namespace
}  // namespace vecina::internal
