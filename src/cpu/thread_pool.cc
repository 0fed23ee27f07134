// SPDX-License-Identifier: MIT
#include "cpu/thread_pool.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/cores.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define VECINA_HAS_FORK 1
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace vecina::internal {
namespace {

using std::chrono::microseconds;

// A job that follows within this time finds its workers awake. Longer would burn the cores of
// whoever runs between our calls.
constexpr microseconds kSpin(50);
// A worker that has nothing left to do in a job waits awake for the others: a chunk often takes
// longer than kSpin, and one that slept then would be late for the next job, and idle at its end
// again. The price: with more threads than free cores it takes a core from one that has chunks.
constexpr microseconds kSpinInJob(500);

// Up from the first waking a worker pays if it stays awake for calls that follow, up from the
// second it pays by itself, as a rule: in a virtual machine it begins after up to 150 us.
constexpr double kLeastToWakeInTurn = 100.0;
constexpr double kLeastToWake = 300.0;

int64_t now_nanoseconds() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `done()` or that time has passed; true if done. The clock is read every 64 pauses.
template <typename Done>
bool spin(microseconds time, Done done) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() - start < time);
  return done();
}

// Counts forks, so that a child knows its parent's workers are not there.
std::atomic<uint64_t> fork_generation{0};

void watch_forks() {
#if defined(VECINA_HAS_FORK)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++fork_generation; });
  static_cast<void>(registered);
#endif
}

int resolve_threads(const BackendOptions& options) {
  return options.threads > 0 ? options.threads : usable_cores();
}

// What others know of a worker, and how they wake it.
class Worker {
 public:
  // By the worker: until it is woken or has_job(), which is asked once: who publishes a job later
  // finds the worker parked. `parked` counts those that are.
  template <typename HasJob>
  void park(std::atomic<int>* parked, HasJob has_job) {
    read_cores();
    core_.store(current_core(), std::memory_order_relaxed);
    const uint32_t calls = calls_.load(std::memory_order_acquire);
    is_parked_.store(true, std::memory_order_seq_cst);
    parked->fetch_add(1, std::memory_order_seq_cst);
    if (!has_job()) calls_.wait(calls, std::memory_order_acquire);
    parked->fetch_sub(1, std::memory_order_relaxed);
    is_parked_.store(false, std::memory_order_relaxed);
  }
  // By the worker: it may run on all its cores again.
  void restore_cores() {
    if (avoids_.load(std::memory_order_acquire) != Avoids::some) return;
    cores_.restore();
    avoids_.store(Avoids::nothing, std::memory_order_release);
  }

  // By whoever wakes it: the core that it sleeps on, -1 if unknown, and whether it is theirs.
  int core() const { return core_.load(std::memory_order_relaxed); }
  bool claim() {
    return is_parked_.load(std::memory_order_seq_cst) &&
           is_parked_.exchange(false, std::memory_order_acq_rel);
  }
  // Elsewhere than on cores that are taken. Left to itself, Linux in a virtual machine often puts
  // the worker on the core of whoever wakes it, to wait for milliseconds: cores that sleep look to
  // it as if the host had taken them away.
  void wake_elsewhere(const std::array<int, 2>& taken) {
    if (may_change_cores()) {
      avoids_.store(cores_.avoid(taken) ? Avoids::some : Avoids::nothing,
                    std::memory_order_release);
    }
    wake();
  }
  void wake() {
    calls_.fetch_add(1, std::memory_order_release);
    calls_.notify_one();
  }

 private:
  enum class Avoids { nothing, changing, some };

  // False while another is at it, a late one that wakes a worker that is awake by now.
  bool may_change_cores() {
    Avoids expected = Avoids::nothing;
    return avoids_.compare_exchange_strong(expected, Avoids::changing, std::memory_order_acquire);
  }
  void read_cores() {
    restore_cores();
    if (!may_change_cores()) return;
    cores_.read();
    avoids_.store(Avoids::nothing, std::memory_order_release);
  }

  alignas(64) std::atomic<uint32_t> calls_{0};
  std::atomic<bool> is_parked_{false};
  std::atomic<int> core_{-1};
  std::atomic<Avoids> avoids_{Avoids::nothing};
  ThreadCores cores_;
};

}  // namespace

// One job at a time. The ticket holds the job's number (upper half) and the next chunk (lower
// half); a claim is one compare-and-swap on both, so no worker can take a chunk of a job whose
// fields it has not read. Odd job numbers mean the fields are being changed.
struct ThreadPool::Workers {
  explicit Workers(int num_workers) : workers(static_cast<size_t>(num_workers)) {
    for (size_t i = 0; i < workers.size(); ++i) {
      try {
        threads.emplace_back([this, i] { work(i); });
      } catch (const std::system_error&) {
        break;  // no more threads to be had: the caller and those that started do it
      }
    }
  }

  ~Workers() {
    stop.store(true, std::memory_order_relaxed);
    ticket.fetch_add(uint64_t{2} << 32, std::memory_order_release);
    for (Worker& worker : workers) worker.wake();
    for (std::thread& thread : threads) thread.join();
  }

  // Whoever reads one of the released fields also sees that the ticket has moved on, so a claim
  // of the former job fails. Returns the job's number.
  uint64_t publish(int32_t job_count, bool job_wakes, Body job_body, void* job_user) {
    const uint64_t changing = (ticket.load(std::memory_order_relaxed) >> 32) + 1;
    ticket.store(changing << 32, std::memory_order_relaxed);
    count.store(job_count, std::memory_order_release);
    wakes.store(job_wakes, std::memory_order_release);
    body.store(job_body, std::memory_order_release);
    user_body.store(job_user, std::memory_order_release);
    done.store(0, std::memory_order_release);
    caller_core.store(current_core(), std::memory_order_relaxed);
    ticket.store((changing + 1) << 32, std::memory_order_seq_cst);
    return (changing + 1) & 0xffffffffu;  // what the ticket holds of it
  }

  // Wakes one parked worker if there is one: from `first` on, and rather one that sleeps on another
  // core than the caller's and this one.
  void wake_one(size_t first) {
    if (parked.load(std::memory_order_seq_cst) == 0) return;
    const std::array<int, 2> taken = {current_core(), caller_core.load(std::memory_order_relaxed)};
    for (const bool takes_all : {false, true}) {
      for (size_t i = 0; i < workers.size(); ++i) {
        Worker& worker = workers[(first + i) % workers.size()];
        const int core = worker.core();
        if (!takes_all && (core == taken[0] || core == taken[1])) continue;
        if (worker.claim()) return worker.wake_elsewhere(taken);
      }
    }
  }

  // Claims and runs chunks of job `number` until none is left. A worker that finds chunks left
  // wakes the next, from `next` on; the caller, who has woken one, does not.
  void run_chunks(uint64_t number, bool is_worker, size_t next = 0) {
    bool wakes_next = is_worker;
    while (true) {
      uint64_t seen = ticket.load(std::memory_order_acquire);
      const int32_t total = count.load(std::memory_order_acquire);
      const bool wakes_others = wakes.load(std::memory_order_acquire);
      const Body run = body.load(std::memory_order_acquire);
      void* user = user_body.load(std::memory_order_acquire);
      const int64_t chunk = static_cast<int64_t>(seen & 0xffffffffu);
      if (seen >> 32 != number || chunk >= total) return;
      if (!ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
      if (wakes_next && wakes_others && chunk + 1 < total) wake_one(next);
      wakes_next = false;
      run(chunk, user);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == total) done.notify_all();
    }
  }

  void wait(int32_t total) {
    if (spin(kSpin, [&] { return done.load(std::memory_order_acquire) == total; })) return;
    for (int32_t seen; (seen = done.load(std::memory_order_acquire)) != total;) {
      done.wait(seen, std::memory_order_acquire);
    }
  }

  // True on the caller's core, which a worker that waits awake would take from it. One that is
  // woken runs elsewhere.
  bool is_in_the_way() const {
    const int core = current_core();
    return core >= 0 && core == caller_core.load(std::memory_order_relaxed);
  }

  void work(size_t index) {
    Worker& worker = workers[index];
    uint64_t last = 0;
    const auto has_job = [&] {
      const uint64_t number = ticket.load(std::memory_order_seq_cst) >> 32;
      return number != last && number % 2 == 0;
    };
    const auto is_over = [&] {
      return done.load(std::memory_order_acquire) == count.load(std::memory_order_acquire);
    };
    while (true) {
      if (!is_in_the_way()) spin(kSpinInJob, [&] { return is_over() || has_job(); });
      if (is_in_the_way() || !spin(kSpin, has_job)) {
        worker.park(&parked, has_job);
      }
      // In this order: who sees the ticket that ends the pool also sees `stop`.
      const uint64_t number = ticket.load(std::memory_order_acquire) >> 32;
      if (stop.load(std::memory_order_relaxed)) return;
      if (number == last || number % 2 != 0) continue;
      last = number;
      run_chunks(number, /*is_worker=*/true, index + 1);
      worker.restore_cores();
    }
  }

  alignas(64) std::atomic<uint64_t> ticket{0};
  alignas(64) std::atomic<int32_t> done{0};
  alignas(64) std::atomic<int> parked{0};
  std::atomic<int32_t> count{0};
  std::atomic<Body> body{nullptr};
  std::atomic<void*> user_body{nullptr};
  std::atomic<bool> wakes{false};
  std::atomic<int> caller_core{-1};
  std::atomic<bool> stop{false};
  std::vector<Worker> workers;
  std::vector<std::thread> threads;  // one for each worker, or fewer
};

ThreadPool::ThreadPool(const BackendOptions& options)
    : options_(options), threads_(resolve_threads(options)) {
  watch_forks();
  fork_generation_ = fork_generation.load();
}

ThreadPool::~ThreadPool() {
  forget_parent();
  delete workers_.load();
}

// In a forked child the workers are the parent's, and a caller may have been in the middle of a
// job: their bookkeeping is left behind, never joined.
void ThreadPool::forget_parent() {
  const uint64_t now = fork_generation.load(std::memory_order_relaxed);
  uint64_t then = fork_generation_.load(std::memory_order_relaxed);
  if (then == now || !fork_generation_.compare_exchange_strong(then, now)) return;
  workers_.store(nullptr, std::memory_order_relaxed);
  busy_.store(false, std::memory_order_release);
}

ThreadPool::Call::Call(ThreadPool* pool, double expected_us)
    : pool_(*pool), expected_us_(expected_us) {
  if (expected_us < kLeastShared) return;
  if (pool_.options_.parallel_for != nullptr) {
    is_shared_ = true;
    return;
  }
  pool_.forget_parent();
  if (pool_.threads_ <= 1) return;
  // A long call of several jobs looks again at each.
  if (expected_us < kLeastToWake && pool_.busy_.load(std::memory_order_relaxed)) return;
  const Workers* workers = pool_.workers_.load(std::memory_order_acquire);
  const int parked = workers == nullptr ? 0 : workers->parked.load(std::memory_order_relaxed);
  wakes_ = expected_us >= kLeastToWake;
  if (parked > 0 && !wakes_ && expected_us >= kLeastToWakeInTurn) {
    const int64_t pause = now_nanoseconds() - pool_.last_end_.load(std::memory_order_relaxed);
    wakes_ = pause <= std::chrono::nanoseconds(kSpin).count();
  }
  is_shared_ = wakes_ || parked < pool_.threads_ - 1;
}

ThreadPool::Call::~Call() {
  if (expected_us_ < kLeastToWakeInTurn || pool_.threads_ <= 1) return;
  pool_.last_end_.store(now_nanoseconds(), std::memory_order_relaxed);
}

void ThreadPool::Call::parallel_for(int64_t count, Body body, void* user_body) const {
  const BackendOptions& options = pool_.options_;
  if (is_shared_ && options.parallel_for != nullptr) {
    options.parallel_for(options.parallel_for_user, count, body, user_body);
    return;
  }
  constexpr int64_t kMaxCount = INT32_MAX;
  if (!is_shared_ || count <= 1 || count > kMaxCount ||
      pool_.busy_.exchange(true, std::memory_order_acquire)) {
    for (int64_t i = 0; i < count; ++i) body(i, user_body);
    return;
  }
  Workers* workers = pool_.workers_.load(std::memory_order_relaxed);
  if (workers == nullptr) {
    workers = new Workers(pool_.threads_ - 1);
    pool_.workers_.store(workers, std::memory_order_release);
  }
  const auto total = static_cast<int32_t>(count);
  const uint64_t number = workers->publish(total, wakes_, body, user_body);
  if (wakes_ && !has_woken_) workers->wake_one(0);
  has_woken_ = true;
  workers->run_chunks(number, /*is_worker=*/false);
  workers->wait(total);
  pool_.busy_.store(false, std::memory_order_release);
}

}  // namespace vecina::internal
