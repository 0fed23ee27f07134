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
  KeptCores() : cores_(now()) {}
  ~KeptCores() { sched_setaffinity(0, sizeof(cores_), &cores_); }
  KeptCores(const KeptCores&) = delete;
  KeptCores& operator=(const KeptCores&) = delete;

  static cpu_set_t now() {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    EXPECT_EQ(sched_getaffinity(0, sizeof(cores), &cores), 0);
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

  // The worker's cores in its chunk, or the caller's where it did not come.
  const auto cores_of_worker = [&] {
    struct Job {
      std::thread::id caller = std::this_thread::get_id();
      std::atomic<int> begun{0};
      Clock::time_point end = Clock::now() + milliseconds(100);
      cpu_set_t cores = KeptCores::now();
    } job;
    const ThreadPool::Call call(&pool_, kLong);
    call.parallel_for(
        2,
        [](int64_t, void* user) {
          Job& shared = *static_cast<Job*>(user);
          ++shared.begun;
          if (std::this_thread::get_id() != shared.caller) shared.cores = KeptCores::now();
          while (shared.begun < 2 && Clock::now() < shared.end) std::this_thread::yield();
        },
        &job);
    return job.cores;
  };
  bool has_kept_off = false, is_free_again = false;
  for (int i = 0; i < kTries && !is_free_again; ++i) {
    let_worker_park();
    const cpu_set_t woken = cores_of_worker(), awake = cores_of_worker();
    has_kept_off = CPU_COUNT(&woken) == CPU_COUNT(&kept.before()) - 1 && !CPU_ISSET(core, &woken);
    is_free_again = has_kept_off && CPU_EQUAL(&awake, &kept.before());
  }
  EXPECT_TRUE(has_kept_off);
  EXPECT_TRUE(is_free_again);
}

#endif

}  // namespace
}  // namespace vecina::internal
