// SPDX-License-Identifier: MIT
// Many threads at once: sharing contexts and plans, a host's own pool, fork, and destruction in any
// order. Run under ThreadSanitizer too (label threads).
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cli/conformance.h"
#include "results.h"
#include "vecina/vecina.h"

#if defined(__SANITIZE_THREAD__)
#define VECINA_TEST_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VECINA_TEST_TSAN 1
#endif
#endif

namespace vecina::tests {
namespace {

// A problem with inputs and what one thread makes of them.
struct Known {
  explicit Known(const std::string& line, uint64_t seed = 5)
      : problem(cli::parse_problem(line)), inputs(cli::random_inputs(problem, seed)) {
    const cli::ContextPtr context = cli::make_context("", 1);
    const cli::Outputs outputs = run_forward(context.get(), problem, inputs);
    output = bits_of(outputs.output);
    lse = bits_of(outputs.lse);
  }

  // True if the context computes it to the bit.
  bool is_right(vecina_context* context) const {
    const cli::Outputs outputs = cli::make_outputs(problem);
    const vecina_forward_args args = cli::forward_args(inputs, outputs);
    if (vecina_forward(context, &problem, &args, nullptr) != VECINA_OK) return false;
    return bits_of(outputs.output) == output && bits_of(outputs.lse) == lse;
  }
  bool is_right(const vecina_plan* plan) const {
    const cli::Outputs outputs = cli::make_outputs(problem);
    const vecina_forward_args args = cli::forward_args(inputs, outputs);
    if (vecina_run_forward(plan, &args, nullptr) != VECINA_OK) return false;
    return bits_of(outputs.output) == output && bits_of(outputs.lse) == lse;
  }

  vecina_problem problem;
  cli::Inputs inputs;
  std::vector<uint64_t> output, lse;
};

const std::vector<Known>& known_problems() {
  static const std::vector<Known> problems = [] {
    std::vector<Known> made;
    for (const char* line :
         {"2d 24x24 kernel_size 7 batch 2 heads 2 head_dim 16",
          "1d 200 kernel_size 9 heads 4 heads_kv 2 head_dim 16 additional 3",
          "1d 100 kernel_size 6 stride 2 dilation 3 causal heads 2 head_dim 12 dtype bf16",
          "3d 6x7x8 kernel_size 3 heads 2 head_dim 8", "attention 40x60 heads 2 head_dim 16",
          "2d 20x18 kernel_size 5 batch 3 heads 2 head_dim 16 additional 1 lengths padded",
          "1d 300 kernel_size 9 heads 2 head_dim 16 bias lengths packed:5",
          "1d 7 kernel_size 3 heads 1 head_dim 4", "2d 61x40 kernel_size 19x17 heads 1 head_dim 16",
          "3d 24x12x10 kernel_size 11x7x5 causal 1x0x0 heads 1 head_dim 8"}) {
      made.emplace_back(line);
    }
    return made;
  }();
  return problems;
}

// Runs body(i) on num_threads threads that start together.
template <typename Body>
void on_threads(int num_threads, const Body& body) {
  std::atomic<int> num_waiting{num_threads};
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&, i] {
      num_waiting.fetch_sub(1);
      while (num_waiting.load() > 0) std::this_thread::yield();
      body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Where tensors are larger than the caches, outputs that begin with a line are written past them.
TEST(Threads, LargeProblemsAreTheirSamples) {
  const vecina_problem problem =
      cli::parse_problem("2d 40x44 kernel_size 5 batch 10 heads 4 head_dim 32");
  const cli::Inputs inputs = cli::random_inputs(problem, /*seed=*/3);
  const cli::ContextPtr context = cli::make_context("cpu", 2);
  constexpr size_t kLine = 64;
  const size_t size = size_t{40} * 44 * 4 * 32, samples = 10;
  std::vector<float> storage(samples * size + kLine, 7.0f);
  void* output = storage.data();
  size_t space = storage.size() * sizeof(float);
  ASSERT_NE(std::align(kLine, samples * size * sizeof(float), output, space), nullptr);
  const cli::Outputs of_all = cli::make_outputs(problem);
  vecina_forward_args all = cli::forward_args(inputs, of_all);
  all.output.data = output;
  all.output.byte_offset = 0;
  ASSERT_EQ(vecina_forward(context.get(), &problem, &all, nullptr), VECINA_OK);

  vecina_problem sample = problem;
  sample.batch = 1;
  const cli::Outputs outputs = cli::make_outputs(sample);
  for (size_t b = 0; b < samples; ++b) {
    vecina_forward_args args = cli::forward_args(inputs, outputs);
    for (vecina_tensor* tensor : {&args.query, &args.key, &args.value}) {
      tensor->byte_offset +=
          static_cast<int64_t>(b) * tensor->strides[0] * static_cast<int64_t>(sizeof(float));
      tensor->shape[0] = 1;
    }
    ASSERT_EQ(vecina_forward(context.get(), &sample, &args, nullptr), VECINA_OK);
    const char* expected = static_cast<const char*>(args.output.data) + args.output.byte_offset;
    EXPECT_EQ(
        std::memcmp(static_cast<const float*>(output) + b * size, expected, size * sizeof(float)),
        0)
        << "sample " << b;
  }
}

// So are gradients, with the numbers that other stores write.
TEST(Threads, LargeGradientsAreTheSameWhereverTheyLie) {
  const cli::ContextPtr one = cli::make_context("cpu", 1), two = cli::make_context("cpu", 2);
  for (const char* line : {"2d 40x44 kernel_size 3 batch 6 heads 4 head_dim 32",
                           "2d 40x44 kernel_size 3 batch 2 heads 4 head_dim 112"}) {
    const vecina_problem problem = cli::parse_problem(line);
    const cli::Inputs inputs = cli::random_inputs(problem, /*seed=*/4);
    const cli::Outputs outputs = run_forward(two.get(), problem, inputs);
    const cli::Placement beside_lines = {.offset = 1};
    const cli::Gradients expected = run_backward(two.get(), problem, inputs, outputs, beside_lines);
    for (vecina_context* context : {one.get(), two.get()}) {
      const cli::Gradients gradients = run_backward(context, problem, inputs, outputs);
      EXPECT_EQ(bits_of(gradients.query), bits_of(expected.query)) << line;
      EXPECT_EQ(bits_of(gradients.key), bits_of(expected.key)) << line;
      EXPECT_EQ(bits_of(gradients.value), bits_of(expected.value)) << line;
    }
  }
}

TEST(Threads, ShareAContext) {
  const std::vector<Known>& problems = known_problems();
  for (int num_workers : {1, 2, 4}) {
    const cli::ContextPtr context = cli::make_context("", num_workers);
    std::atomic<int> num_wrong{0};
    on_threads(6, [&](int i) {
      for (size_t round = 0; round < 30; ++round) {
        const Known& known = problems[(static_cast<size_t>(i) + round) % problems.size()];
        if (!known.is_right(context.get())) ++num_wrong;
      }
    });
    EXPECT_EQ(num_wrong, 0) << num_workers << " workers";
  }
}

// Units of backward hand sums to each other. The same bits for any number of threads.
TEST(Threads, ShareAContextBackward) {
  const cli::ContextPtr one = cli::make_context("", 1), shared = cli::make_context("", 3);
  for (const char* line : {"2d 33x40 kernel_size 7 heads 1 head_dim 16 additional 2",  // is cut
                           "1d 100 kernel_size 6 stride 2 dilation 3 causal heads 2 head_dim 12",
                           "attention 90x60 heads 2 head_dim 16",
                           "2d 33x20 kernel_size 5 batch 2 heads 2 heads_kv 1 head_dim 16 bias",
                           "2d 20x18 kernel_size 5 heads 2 head_dim 16 bias lengths packed:4"}) {
    const Known known(line);
    const cli::Outputs outputs = run_forward(one.get(), known.problem, known.inputs);
    const auto bits = [&](vecina_context* context) {
      const cli::Gradients gradients = run_backward(context, known.problem, known.inputs, outputs);
      std::vector<uint64_t> all;
      for (const cli::HostTensor* tensor : {&gradients.query, &gradients.key, &gradients.value,
                                            &gradients.additional_key, &gradients.bias}) {
        if (!tensor->given()) continue;
        const std::vector<uint64_t> part = bits_of(*tensor);
        all.insert(all.end(), part.begin(), part.end());
      }
      return all;
    };
    const std::vector<uint64_t> expected = bits(one.get());
    std::atomic<int> num_wrong{0};
    on_threads(5, [&](int) {
      for (int round = 0; round < 6; ++round) num_wrong += bits(shared.get()) != expected;
    });
    EXPECT_EQ(num_wrong, 0) << line;
  }
}

TEST(Threads, HaveContextsOfTheirOwn) {
  const std::vector<Known>& problems = known_problems();
  std::atomic<int> num_wrong{0};
  on_threads(4, [&](int i) {
    for (int round = 0; round < 5; ++round) {
      const cli::ContextPtr context = cli::make_context("", 1 + (i + round) % 3);
      for (const Known& known : problems) {
        if (!known.is_right(context.get())) ++num_wrong;
      }
    }
  });
  EXPECT_EQ(num_wrong, 0);
}

vecina_plan* plan_of(vecina_context* context, const Known& known) {
  const cli::Outputs outputs = cli::make_outputs(known.problem);
  const vecina_forward_args args = cli::forward_args(known.inputs, outputs);
  vecina_plan* plan = nullptr;
  EXPECT_EQ(vecina_plan_forward(context, &known.problem, &args, &plan), VECINA_OK)
      << vecina_last_error();
  return plan;
}

TEST(Threads, ShareAPlan) {
  const cli::ContextPtr context = cli::make_context("", 3);
  for (const Known& known : known_problems()) {
    vecina_plan* plan = plan_of(context.get(), known);
    std::atomic<int> num_wrong{0};
    on_threads(6, [&](int) {
      for (int round = 0; round < 10; ++round) num_wrong += !known.is_right(plan);
    });
    EXPECT_EQ(num_wrong, 0);
    vecina_plan_destroy(plan);
  }
}

// One plan, calls of different lengths at once.
TEST(Threads, ShareAPlanOfDifferentLengths) {
  const char* line = "2d 24x26 kernel_size 5 batch 3 heads 2 head_dim 16 lengths padded";
  std::vector<Known> calls;
  for (uint64_t seed = 1; calls.size() < 4; ++seed) {
    calls.emplace_back(line, seed);
    if (calls.back().inputs.lengths.dtype() != VECINA_I32) calls.pop_back();
  }
  const cli::ContextPtr context = cli::make_context("", 3);
  vecina_plan* plan = plan_of(context.get(), calls[0]);
  std::atomic<int> num_wrong{0};
  on_threads(4, [&](int i) {
    for (size_t round = 0; round < 20; ++round) {
      num_wrong += !calls[(static_cast<size_t>(i) + round / 5) % calls.size()].is_right(plan);
    }
  });
  EXPECT_EQ(num_wrong, 0);
  vecina_plan_destroy(plan);
}

TEST(Threads, DestroyTheContextWhileOthersRunItsPlans) {
  for (int round = 0; round < 10; ++round) {
    cli::ContextPtr context = cli::make_context("", 3);
    const Known& known = known_problems()[static_cast<size_t>(round) % known_problems().size()];
    std::vector<vecina_plan*> plans;
    for (int i = 0; i < 4; ++i) plans.push_back(plan_of(context.get(), known));
    std::atomic<int> num_wrong{0};
    on_threads(5, [&](int i) {
      if (i == 4) {
        context.reset();
        return;
      }
      vecina_plan* plan = plans[static_cast<size_t>(i)];
      for (int repeat = 0; repeat < 5; ++repeat) num_wrong += !known.is_right(plan);
      vecina_plan_destroy(plan);  // the last one takes what was left of the context
    });
    EXPECT_EQ(num_wrong, 0);
  }
}

// More problems than a cache of plans holds, looked up from several threads at once.
TEST(Threads, FillThePlanCacheTogether) {
  const cli::ContextPtr context = cli::make_context("", 1);
  std::atomic<int> num_wrong{0};
  on_threads(4, [&](int i) {
    for (int extent = 3; extent < 350; ++extent) {
      vecina_problem problem =
          cli::parse_problem("1d " + std::to_string(extent) + " kernel_size 3 head_dim 2");
      problem.batch = 1 + (i % 2);  // two threads each look up the same
      const cli::Outputs outputs = cli::make_outputs(problem);
      const cli::Inputs inputs = cli::random_inputs(problem, 1);
      const vecina_forward_args args = cli::forward_args(inputs, outputs);
      num_wrong += vecina_forward(context.get(), &problem, &args, nullptr) != VECINA_OK ||
                   !std::isfinite(outputs.output.get(outputs.output.size() - 1));
    }
  });
  EXPECT_EQ(num_wrong, 0);
}

TEST(Threads, EachHasItsOwnLastError) {
  std::atomic<int> num_wrong{0};
  on_threads(6, [&](int i) {
    for (int round = 0; round < 200; ++round) {
      const std::string word = "word" + std::to_string(i);
      vecina_problem problem = {};
      problem.struct_size = sizeof(problem);
      const bool refused = vecina_problem_parse(("1d 9 " + word).c_str(), &problem) != VECINA_OK;
      num_wrong += !refused || std::string(vecina_last_error()).find(word) == std::string::npos;
    }
  });
  EXPECT_EQ(num_wrong, 0);
}

TEST(Threads, LogWhileTheListenerChanges) {
  static std::atomic<int> num_lines{0};
  const auto count = [](void* user, int32_t severity, const char* line) {
    num_lines += user == &num_lines && severity >= 0 && line != nullptr && line[0] != '\0';
  };
  const cli::ContextPtr context = cli::make_context("", 1);
  on_threads(4, [&](int i) {
    for (int round = 0; round < 50; ++round) {
      if (i == 0) {
        vecina_set_log(round % 2 == 0 ? +count : nullptr, &num_lines);
      } else {
        vecina_plan_destroy(plan_of(context.get(), known_problems()[5]));
      }
    }
  });
  num_lines = 0;
  vecina_set_log(+count, &num_lines);
  vecina_plan_destroy(plan_of(context.get(), known_problems()[5]));
  vecina_set_log(nullptr, nullptr);
  EXPECT_GT(num_lines, 0) << "a plan is worth a line";
}

// A host's pool: how it runs bodies is its own business, as long as each runs once.
struct HostPool {
  enum class Order { forward, reverse, own_threads, all_on_one_other_thread };
  Order order = Order::forward;
  std::atomic<int64_t> num_calls{0}, num_bodies{0};

  static void parallel_for(void* user, int64_t count, void (*body)(int64_t, void*),
                           void* user_body) {
    auto& pool = *static_cast<HostPool*>(user);
    ++pool.num_calls;
    pool.num_bodies += count;
    switch (pool.order) {
      case Order::forward:
        for (int64_t i = 0; i < count; ++i) body(i, user_body);
        return;
      case Order::reverse:
        for (int64_t i = count; i-- > 0;) body(i, user_body);
        return;
      case Order::own_threads:
        for (int64_t first = 0; first < count; first += 8) {
          const auto size = static_cast<int>(std::min<int64_t>(8, count - first));
          on_threads(size, [&](int i) { body(first + i, user_body); });
        }
        return;
      case Order::all_on_one_other_thread:
        std::thread([&] {
          for (int64_t i = 0; i < count; ++i) body(i, user_body);
        }).join();
        return;
    }
  }
};

cli::ContextPtr context_with(HostPool& pool, int threads) {
  vecina_context_options options = {};
  options.struct_size = sizeof(options);
  options.threads = threads;
  options.parallel_for = HostPool::parallel_for;
  options.parallel_for_user = &pool;
  vecina_context* context = nullptr;
  EXPECT_EQ(vecina_context_create(&options, &context), VECINA_OK) << vecina_last_error();
  return {context, vecina_context_destroy};
}

TEST(HostPools, RunBodiesAsTheyLike) {
  using Order = HostPool::Order;
  for (Order order :
       {Order::forward, Order::reverse, Order::own_threads, Order::all_on_one_other_thread}) {
    for (int threads : {1, 2, 4}) {
      HostPool pool;
      pool.order = order;
      const cli::ContextPtr context = context_with(pool, threads);
      for (const Known& known : known_problems()) {
        EXPECT_TRUE(known.is_right(context.get()))
            << "order " << static_cast<int>(order) << " threads " << threads << " "
            << cli::print_problem(known.problem) << " " << vecina_last_error();
      }
      if (threads > 1) {
        EXPECT_GT(pool.num_calls, 0);
        EXPECT_GT(pool.num_bodies, pool.num_calls) << "work was split";
      }
    }
  }
}

TEST(HostPools, AreSharedByThreads) {
  HostPool pool;
  pool.order = HostPool::Order::own_threads;
  const cli::ContextPtr context = context_with(pool, 4);
  std::atomic<int> num_wrong{0};
  on_threads(3, [&](int i) {
    for (size_t round = 0; round < 4; ++round) {
      const Known& known =
          known_problems()[(static_cast<size_t>(i) + round) % known_problems().size()];
      num_wrong += !known.is_right(context.get());
    }
  });
  EXPECT_EQ(num_wrong, 0);
}

// Those of a process whose contexts are gone. ThreadSanitizer starts one of its own with the first
// that the process starts.
#if defined(VECINA_TEST_TSAN)
constexpr size_t kThreadsWithoutContexts = 2;
#else
constexpr size_t kThreadsWithoutContexts = 1;
#endif

size_t threads_of_this_process() {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    count += entry.is_directory();
  }
  return count;
}

// The number of threads once it is `expected`, or after ten seconds whatever it is then: /proc
// still lists a thread for a moment after it was joined.
size_t threads_settled_at(size_t expected) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  size_t count = threads_of_this_process();
  while (count != expected && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    count = threads_of_this_process();
  }
  return count;
}

// With a host's pool, or one thread, the library starts none of its own.
TEST(NumThreads, AreWhatWasAskedFor) {
  if (!std::filesystem::exists("/proc/self/task")) GTEST_SKIP() << "needs /proc";
  const Known& known = known_problems()[0];
  std::thread([] {}).join();
  const auto threads_started = [&](const cli::ContextPtr& context, size_t expected) {
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(known.is_right(context.get()));
    return threads_settled_at(kThreadsWithoutContexts + expected) - kThreadsWithoutContexts;
  };
  ASSERT_EQ(setenv("VECINA_NUM_THREADS", "3", 1), 0);
  EXPECT_EQ(threads_started(cli::make_context("", 1), 0), 0u);
  EXPECT_EQ(threads_started(cli::make_context("", 2), 1), 1u) << "an option goes before VECINA_...";
  EXPECT_EQ(threads_started(cli::make_context("", 0), 2), 2u) << "VECINA_NUM_THREADS 3";
  HostPool pool;
  EXPECT_EQ(threads_started(context_with(pool, 4), 0), 0u);
  for (const char* bad : {"0", "-2", "many", "3x", "99999999999"}) {
    ASSERT_EQ(setenv("VECINA_NUM_THREADS", bad, 1), 0);
    vecina_context* context = nullptr;
    EXPECT_EQ(vecina_context_create(nullptr, &context), VECINA_INVALID_ARGUMENT) << bad;
    expect_last_error({"VECINA_NUM_THREADS"});
  }
  unsetenv("VECINA_NUM_THREADS");
}

TEST(NumThreads, EndWithTheContext) {
  if (!std::filesystem::exists("/proc/self/task")) GTEST_SKIP() << "needs /proc";
  for (int i = 0; i < 20; ++i) {
    const cli::ContextPtr context = cli::make_context("", 4);
    EXPECT_TRUE(known_problems()[0].is_right(context.get()));
  }
  EXPECT_EQ(threads_settled_at(kThreadsWithoutContexts), kThreadsWithoutContexts);
}

#if !defined(VECINA_TEST_TSAN)
// The status of a child that runs body() and leaves with 0 if it returns true. A child that hangs
// is ended by its alarm.
template <typename Body>
int status_of_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

// After a run in a child: the parent's workers are not there, new ones are.
bool has_workers_of_its_own(size_t num_workers) {
  return !std::filesystem::exists("/proc/self/task") ||
         threads_settled_at(1 + num_workers) == 1 + num_workers;
}

TEST(Fork, ChildrenUseTheContext) {
  const Known& known = known_problems()[0];
  known_problems();
  const cli::ContextPtr unused = cli::make_context("", 3);
  const cli::ContextPtr used = cli::make_context("", 3);
  vecina_plan* plan = plan_of(used.get(), known);
  ASSERT_TRUE(known.is_right(used.get()));
  for (int round = 0; round < 5; ++round) {
    EXPECT_EQ(
        status_of_child([&] { return known.is_right(used.get()) && has_workers_of_its_own(2); }),
        0);
    EXPECT_EQ(status_of_child([&] { return known.is_right(plan); }), 0);
    EXPECT_EQ(status_of_child([&] { return known.is_right(unused.get()); }), 0);
    EXPECT_EQ(status_of_child([&] {
                // A grandchild, and a context made in the child.
                const cli::ContextPtr own = cli::make_context("", 2);
                return known.is_right(own.get()) && known.is_right(used.get()) &&
                       status_of_child([&] {
                         return known.is_right(own.get()) && known.is_right(used.get());
                       }) == 0;
              }),
              0);
    EXPECT_TRUE(known.is_right(used.get())) << "the parent goes on";
  }
  vecina_plan_destroy(plan);
}

TEST(Fork, ChildrenDestroyTheContext) {
  const Known& known = known_problems()[0];
  cli::ContextPtr context = cli::make_context("", 3);
  ASSERT_TRUE(known.is_right(context.get()));
  EXPECT_EQ(status_of_child([&] {
              context.reset();
              return true;
            }),
            0);
  EXPECT_EQ(status_of_child([&] {
              const bool right = known.is_right(context.get());
              context.reset();
              return right;
            }),
            0);
  EXPECT_TRUE(known.is_right(context.get()));
}

// Another thread is in the middle of a call when the process forks.
TEST(Fork, WhileAnotherThreadRuns) {
#if defined(__SANITIZE_ADDRESS__)
  // Seen in a debugger: the child waits for a lock of the sanitizer's allocator, which the runner
  // held when the process forked. glibc's allocator is made for this.
  GTEST_SKIP() << "AddressSanitizer's allocator does not survive a fork beside a running thread";
#endif
  const Known& known = known_problems()[0];
  const cli::ContextPtr context = cli::make_context("", 3);
  ASSERT_TRUE(known.is_right(context.get()));
  std::atomic<bool> stop{false};
  std::thread runner([&] {
    while (!stop) known.is_right(context.get());
  });
  vecina_plan* plan = plan_of(context.get(), known);
  const cli::Outputs outputs = cli::make_outputs(known.problem);
  const vecina_forward_args args = cli::forward_args(known.inputs, outputs);
  for (int round = 0; round < 10; ++round) {
    EXPECT_EQ(status_of_child([&] {
                return vecina_run_forward(plan, &args, nullptr) == VECINA_OK &&
                       has_workers_of_its_own(2);
              }),
              0);
  }
  stop = true;
  runner.join();
  vecina_plan_destroy(plan);
}
#endif

}  // namespace
}  // namespace vecina::tests
