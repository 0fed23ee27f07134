// SPDX-License-Identifier: MIT
// Plans of the gradients in one launch: that a block's shared memory holds the facts of every query
// that sees its keys, and where one launch is taken. No GPU is needed.
#include "cuda/gradient_span_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "cases.h"
#include "cli/conformance.h"
#include "cli/random.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "core/tensor.h"
#include "core/window.h"
#include "cuda/gradient_plan.h"
#include "cuda/kernels/gradient_params.h"
#include "cuda/parsed_problem.h"

namespace vecina::internal::cuda {
namespace {

std::vector<BackwardLaunch> launches_of(const Problem& problem) {
  vecina_backward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  std::vector<BackwardLaunch> launches;
  EXPECT_TRUE(gradient_plan_backward(problem, example, {}, &launches).ok()) << problem.line();
  return launches;
}
std::vector<std::string> files(const std::string& line) {
  std::vector<std::string> files;
  for (const BackwardLaunch& launch : launches_of(parsed(line))) {
    files.push_back(launch.source.file);
  }
  return files;
}
// Along the outermost axis of `length` tokens (a sample may be shorter than the axis), by the
// windows of the queries and not by their inverse.
bool is_seen(const Axis& axis, bool is_attention, int length, int query, int key) {
  if (is_attention) return !axis.is_causal || key <= query;
  const auto dilation = static_cast<int>(axis.dilation);
  if (query % dilation != key % dilation) return false;
  const NaAxis dense = {na_group_length(length, dilation, query % dilation),
                        static_cast<int>(axis.kernel_size), static_cast<int>(axis.stride),
                        axis.is_causal};
  const int index = query / dilation;
  return na_window_begin(dense, index) <= key / dilation &&
         key / dilation < na_window_end(dense, index);
}

struct Inside {
  int64_t keys = 1, queries = 1;  // of one token of the outermost axis
};
Inside inside_of(const Problem& problem) {
  Inside inside;
  for (int a = 1; a < problem.rank(); ++a) {
    inside.keys *= problem.axis(a).extent;
    inside.queries *= problem.axis(a).query_extent;
  }
  return inside;
}

// What a block meets, counted query by query.
int64_t count_by_windows(const Problem& problem, int64_t span_keys, int64_t span_queries,
                         int length) {
  const Axis& axis = problem.axis(0);
  const Inside inside = inside_of(problem);
  const int64_t num_keys = axis.extent * inside.keys;
  const int64_t num_queries = axis.query_extent * inside.queries;
  const int64_t queries = problem.is_attention() ? axis.query_extent : length;
  int64_t most = 0;
  for (int64_t first = 0, own = 0; first < num_keys; first += span_keys, own += span_queries) {
    int64_t begin = num_queries, end = 0;
    for (int64_t i = std::min(own, num_queries); i < std::min(own + span_queries, num_queries);
         ++i) {
      begin = std::min(begin, i / inside.queries);
      end = std::max(end, i / inside.queries + 1);
    }
    const int64_t last = std::min(first + span_keys, num_keys) - 1;
    for (int64_t key = first / inside.keys; key <= last / inside.keys && key < length; ++key) {
      for (int64_t i = 0; i < queries; ++i) {
        if (!is_seen(axis, problem.is_attention(), length, static_cast<int>(i),
                     static_cast<int>(key))) {
          continue;
        }
        begin = std::min(begin, i);
        end = std::max(end, i + 1);
      }
    }
    most = std::max(most, (end - begin) * inside.queries);
  }
  return most;
}

TEST(GradientSpanPlan, SharedMemoryHoldsEveryQueryThatSeesAKey) {
  cli::Random random(7);
  int exact = 0;
  for (int i = 0; i < 600; ++i) {
    const vecina_problem drawn = cli::random_problem(random, /*everything=*/true);
    Problem problem;
    ASSERT_TRUE(Problem::make(drawn, &problem).ok());
    const Axis& axis = problem.axis(0);
    const int64_t keys = random.integer(1, 40);
    const Inside inside = inside_of(problem);
    const int64_t num_keys = axis.extent * inside.keys;
    const int64_t num_queries = axis.query_extent * inside.queries;
    const int64_t spans = (num_keys + keys - 1) / keys;
    const int64_t queries = num_keys == num_queries ? keys : (num_queries + spans - 1) / spans;
    const int64_t counted = count_seeing_queries(problem, keys, queries);
    const auto shortest = static_cast<int>(axis.kernel_size * axis.dilation);
    for (int length = static_cast<int>(axis.extent); length >= shortest; length -= 7) {
      EXPECT_GE(counted, count_by_windows(problem, keys, queries, length))
          << problem.line() << " of " << length << " tokens, " << keys << " keys a block";
      if (problem.lengths() == VECINA_LENGTHS_EQUAL) break;
    }
    if (problem.lengths() == VECINA_LENGTHS_EQUAL && !problem.is_attention()) {
      EXPECT_EQ(counted, count_by_windows(problem, keys, queries, static_cast<int>(axis.extent)))
          << problem.line() << ", " << keys << " keys a block";
      ++exact;
    }
  }
  EXPECT_GT(exact, 100);
}

// Of long axes the middle is not walked.
TEST(GradientSpanPlan, LongAxesAreCountedAsShortOnes) {
  for (const char* line :
       {"1d 3000 kernel_size 7", "1d 3001 kernel_size 8 stride 3",
        "1d 2999 kernel_size 5 dilation 7", "1d 3007 kernel_size 9 stride 4 dilation 3 causal",
        "2d 150x11 kernel_size 3x11", "2d 211x3 kernel_size 4x3 stride 3x1 dilation 2x1",
        "1d 3000 kernel_size 7 output_stride 2", "3d 90x3x5 kernel_size 3 causal 1x0x0"}) {
    const Problem problem = parsed(std::string(line) + " head_dim 8");
    const auto length = static_cast<int>(problem.axis(0).extent);
    for (const int64_t keys : {1, 2, 3, 8, 16, 37, 64}) {
      EXPECT_EQ(count_seeing_queries(problem, keys, keys),
                count_by_windows(problem, keys, keys, length))
          << line << ", " << keys << " keys a block";
    }
  }
}

TEST(GradientSpanPlan, BlocksCoverEveryKeyAndQuery) {
  cli::Random random(11);
  int taken = 0;
  for (int i = 0; i < 400; ++i) {
    const vecina_problem drawn = cli::random_problem(random, /*everything=*/true);
    Problem problem;
    ASSERT_TRUE(Problem::make(drawn, &problem).ok());
    int64_t num_keys = 1, num_queries = 1;
    for (int a = 0; a < problem.rank(); ++a) {
      num_keys *= problem.axis(a).extent;
      num_queries *= problem.axis(a).query_extent;
    }
    for (const BackwardLaunch& launch : launches_of(problem)) {
      if (launch.source.file != "gradient_span.cu") continue;
      vecina_backward_args args;
      imagine_arguments(problem, VECINA_CUDA, &args);
      std::vector<char> memory(launch.params_bytes);
      ASSERT_TRUE(launch.fill(args, memory.data()).ok());
      vecina::cuda::GradientParams params;
      std::memcpy(&params, memory.data(), sizeof params);
      EXPECT_EQ(launch.grid[0], params.spans * problem.num_samples() * problem.heads_kv());
      EXPECT_GE(int64_t{params.spans} * params.span_keys, num_keys) << problem.line();
      EXPECT_GE(int64_t{params.spans} * params.span_queries, num_queries) << problem.line();
      const int64_t facts = 4 * dtype_bytes(lse_dtype(problem.dtype())) * problem.head_group();
      EXPECT_EQ(launch.shared_bytes,
                facts * count_seeing_queries(problem, params.span_keys, params.span_queries));
      EXPECT_LE(launch.shared_bytes, 48u * 1024u);
      ++taken;
    }
  }
  EXPECT_GT(taken, 20);
}

TEST(GradientSpanPlan, OneLaunchForFewKeys) {
  for (const char* line : {"1d 256 kernel_size 7 batch 2 heads 8 head_dim 32",
                           "1d 256 kernel_size 7 batch 2 heads 8 heads_kv 2 head_dim 32",
                           "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32 dtype bf16",
                           "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32 dtype f64",
                           "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32 lengths padded",
                           "1d 16384 kernel_size 7 heads 16 head_dim 32",
                           "2d 32x32 kernel_size 3 batch 2 heads 4 head_dim 32"}) {
    EXPECT_EQ(files(line), (std::vector<std::string>{"gradient_span.cu"})) << line;
    EXPECT_EQ(launches_of(parsed(line)).front().workspace_bytes, 0u) << line;
  }
  const std::vector<std::string> both = {"gradient_query.cu", "gradient_key.cu"};
  for (const char* line : {"1d 32768 kernel_size 7 heads 16 head_dim 32",
                           "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32",
                           "1d 16 kernel_size 16 batch 4 heads 8 head_dim 32",
                           "1d 64 kernel_size 64 batch 4 heads 8 head_dim 32"}) {
    EXPECT_EQ(files(line), both) << line;
  }
  // In 16 bits tensor cores come first for more keys.
  EXPECT_EQ(files("1d 256 kernel_size 19 batch 2 heads 8 head_dim 32 dtype bf16").front(),
            "halo_gradient_query.cu");
}

// Those of additional tokens and of a bias are sums over all blocks.
TEST(GradientSpanPlan, OtherGradientsAreLaunchesOfTheirOwn) {
  const std::string line = "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32 ";
  EXPECT_EQ(files(line + "additional 4"),
            (std::vector<std::string>{"gradient_span.cu", "gradient_key.cu"}));
  EXPECT_EQ(files(line + "bias"),
            (std::vector<std::string>{"gradient_span.cu", "gradient_bias.cu"}));
  const Problem problem = parsed(line + "bias");
  EXPECT_EQ(launches_of(problem).front().workspace_bytes, gradient_facts_bytes(problem));
}

// So the bits of a gradient do not depend on which others are wanted. (Those of problems that allow
// other bits in every run may: tiles_plan_test.cc.)
TEST(GradientSpanPlan, TheFormDoesNotDependOnWhatIsWanted) {
  using Args = vecina_backward_args;
  for (const char* line :
       {"1d 256 kernel_size 7 batch 2 heads 8 head_dim 32",
        "1d 256 kernel_size 7 batch 2 heads 8 heads_kv 2 head_dim 32 additional 4",
        "1d 256 kernel_size 7 stride 3 batch 2 heads 8 head_dim 32 bias",
        "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32 dtype bf16"}) {
    const Problem problem = parsed(line);
    Args all;
    imagine_arguments(problem, VECINA_CUDA, &all);
    const std::vector<BackwardLaunch> expected = launches_of(problem);
    ASSERT_EQ(expected.front().source.file, "gradient_span.cu") << line;
    for (vecina_tensor Args::*wanted : {&Args::grad_query, &Args::grad_key, &Args::grad_value,
                                        &Args::grad_additional_key, &Args::grad_bias}) {
      if (!given(all.*wanted)) continue;
      Args example = all;
      example.grad_query = example.grad_key = example.grad_value = {};
      example.grad_additional_key = example.grad_additional_value = example.grad_bias = {};
      example.*wanted = all.*wanted;
      std::vector<BackwardLaunch> launches;
      ASSERT_TRUE(gradient_plan_backward(problem, example, {}, &launches).ok());
      EXPECT_EQ(launches.front().source.file, "gradient_span.cu") << line;
      EXPECT_EQ(launches.front().description, expected.front().description) << line;
      const bool is_stored = wanted == &Args::grad_query;
      EXPECT_EQ(launches.front().source.config.find(".is_stored = true") != std::string::npos,
                is_stored);
    }
  }
}

// So that the conformance tests run it in every dtype, and with further launches.
TEST(GradientSpanPlan, TheTableReachesIt) {
  std::set<int32_t> dtypes;
  int followed = 0;
  for (const tests::Case& row : tests::all_cases()) {
    Problem problem;
    ASSERT_TRUE(Problem::make(row.problem, &problem).ok()) << row.line;
    if (!gradient_why_not(problem, Pass::backward, {}).empty()) continue;
    const std::vector<BackwardLaunch> launches = launches_of(problem);
    if (launches.empty() || launches.front().source.file != "gradient_span.cu") continue;
    dtypes.insert(problem.dtype());
    if (launches.size() > 1) ++followed;
  }
  EXPECT_EQ(dtypes, (std::set<int32_t>{VECINA_F32, VECINA_F64, VECINA_F16, VECINA_BF16}));
  EXPECT_GT(followed, 3);
}

}  // namespace
}  // namespace vecina::internal::cuda
