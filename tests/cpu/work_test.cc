// SPDX-License-Identifier: MIT
// What plans count, against the definition, and what is predicted from it.
#include "cpu/work.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "cli/calls.h"
#include "cli/conformance.h"
#include "cli/machine.h"
#include "cli/prediction.h"
#include "core/arguments.h"
#include "cpu/launch.h"
#include "vecina/vecina.h"

namespace vecina::internal::cpu {
namespace {

ForwardKernel kernel_for(const Problem& problem) {
  static const cli::ContextPtr context = cli::make_context("cpu", 1);  // chooses the target
  return forward_kernel(problem.dtype());
}

ForwardPlan forward_plan(const std::string& line) {
  Problem problem;
  EXPECT_TRUE(Problem::parse(line.c_str(), &problem).ok()) << line;
  vecina_forward_args args;
  imagine_arguments(problem, VECINA_CPU, &args);
  return plan_forward(problem, args, kernel_for(problem), /*enough=*/0);
}
BackwardPlan backward_plan(const std::string& line) {
  Problem problem;
  EXPECT_TRUE(Problem::parse(line.c_str(), &problem).ok()) << line;
  vecina_backward_args args;
  imagine_arguments(problem, VECINA_CPU, &args);
  kernel_for(problem);
  return plan_backward(problem, args, backward_kernel(problem.dtype()));
}
// (query, key) pairs of all heads and samples.
double pairs(const std::string& line) {
  Problem problem;
  EXPECT_TRUE(Problem::parse(line.c_str(), &problem).ok()) << line;
  return problem.visible_pairs() * problem.heads() * static_cast<double>(problem.batch());
}

// Rows of queries that fill vectors of every instruction set and kernel: no lane is empty.
class WholeVectors : public testing::TestWithParam<const char*> {};

TEST_P(WholeVectors, AreCountedAsTheDefinitionHasThem) {
  const std::string line = GetParam();
  const ForwardPlan plan = forward_plan(line);
  ASSERT_FALSE(plan.direct.is_used) << "that form fills up windows";
  const double expected = pairs(line);
  const Work forward = work_of(plan);
  EXPECT_DOUBLE_EQ(forward.exponentials, expected);
  EXPECT_DOUBLE_EQ(forward.multiply_adds, expected * (plan.head_dim + plan.head_dim_value));
  const Work backward = work_of(backward_plan(line));
  EXPECT_DOUBLE_EQ(backward.exponentials, expected);
  EXPECT_DOUBLE_EQ(backward.multiply_adds,
                   expected * (3.0 * plan.head_dim + 2.0 * plan.head_dim_value));
}

INSTANTIATE_TEST_SUITE_P(
    Problems, WholeVectors,
    testing::Values("2d 64x64 kernel_size 9 batch 2 heads 3 head_dim 32",
                    "2d 40x64 kernel_size 9x11 heads 4 heads_kv 2 head_dim 32 head_dim_value 64",
                    "2d 40x64 kernel_size 9x11 causal 1x0 heads 1 head_dim 32 additional 3",
                    "2d 60x128 kernel_size 9 dilation 3x2 heads 1 head_dim 32",
                    "2d 60x64 kernel_size 9 stride 4x1 heads 1 head_dim 32",
                    "2d 40x64 kernel_size 5x17 stride 1x4 heads 1 head_dim 32",
                    "3d 6x10x64 kernel_size 3x5x9 heads 1 head_dim 64",
                    "1d 128 kernel_size 128 heads 2 head_dim 64"));

TEST(Work, EmptyLanesCount) {
  // 65 queries take one vector more than 64.
  const Work full = work_of(forward_plan("2d 30x64 kernel_size 9 heads 1 head_dim 32"));
  const Work more = work_of(forward_plan("2d 30x65 kernel_size 9 heads 1 head_dim 32"));
  EXPECT_GT(more.exponentials, 1.04 * full.exponentials);
}

TEST(Work, CausalRowsThatShareKeysReadAsFarAsTheirLastQuery) {
  const std::string line = "1d 256 kernel_size 256 heads 1 head_dim 32";
  const double all = work_of(forward_plan(line)).exponentials;
  const double causal = work_of(forward_plan(line + " causal")).exponentials;
  EXPECT_GE(causal, pairs(line + " causal"));
  EXPECT_LT(causal, 0.7 * all);
}

TEST(Work, CausalAttentionReadsNoKeysBeyondTheLast) {
  const std::string line = "attention 1024x32 causal heads 1 head_dim 32";
  const double expected = pairs(line);
  for (const Work& work : {work_of(forward_plan(line)), work_of(backward_plan(line))}) {
    EXPECT_GE(work.exponentials, expected);
    EXPECT_LE(work.exponentials, 1024.0 * 32.0);
  }
}

TEST(Work, SumsThatAreKeptApartAreGathered) {
  const BackwardPlan one = backward_plan("2d 12x16 kernel_size 7 heads 8 head_dim 32");
  const BackwardPlan several = backward_plan("2d 256x64 kernel_size 9 heads 1 head_dim 64");
  ASSERT_FALSE(one.keeps_sums_apart);
  ASSERT_TRUE(several.keeps_sums_apart);
  EXPECT_EQ(work_of(one).gathered, 0.0);
  EXPECT_GT(work_of(several).gathered, 256.0 * 64.0 * 2.0 * 64.0) << "every key once, and halos";
}

TEST(Prediction, FollowsTheMachineAndTheWork) {
  const Peak peak = {100.0, 10.0, 200.0, 100.0, 50.0, 10.0};
  const Peak twice = {200.0, 20.0, 400.0, 200.0, 100.0, 20.0};
  for (const char* line : {"1d 256 kernel_size 7 heads 8 head_dim 32 batch ",
                           "2d 32x32 kernel_size 7 heads 4 head_dim 32 batch ",
                           "2d 32x32 kernel_size 7 heads 4 head_dim 32 dtype f64 batch "}) {
    SCOPED_TRACE(line);
    const ForwardPlan small = forward_plan(line + std::string("16"));  // beyond L2
    const ForwardPlan large = forward_plan(line + std::string("32"));
    const int32_t dtype = cli::parse_problem(line + std::string("16")).dtype;
    const ForwardKernel kernel = forward_kernel(dtype);
    const double ms = predict_ms(small, kernel, peak);
    EXPECT_GT(ms, 0.0);
    EXPECT_NEAR(predict_ms(small, kernel, twice), ms / 2.0, 1e-9 * ms);
    EXPECT_GT(predict_ms(large, kernel, peak), 1.99 * ms);
    const double backward =
        predict_ms(backward_plan(line + std::string("16")), backward_kernel(dtype), peak);
    EXPECT_GT(backward, ms);
  }
}

std::optional<double> described(const std::string& line, int threads) {
  const cli::ContextPtr context = cli::make_context("cpu", threads);
  const vecina_problem problem = cli::parse_problem(line);
  const cli::Inputs inputs = cli::random_inputs(problem, /*seed=*/1);
  const cli::Outputs outputs = cli::make_outputs(problem);
  return cli::predicted_ms(cli::ForwardCall(context.get(), problem, inputs, outputs).describe());
}

TEST(Prediction, IsDescribedOnceThePeakIsKnown) {
  const std::string line = "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32";
  if (!known_peak()) {
    EXPECT_FALSE(described(line, 1));
  }
  cli::context_info(cli::make_context("cpu", 1).get(), "peak");
  const std::optional<double> one = described(line, 1), two = described(line, 2);
  ASSERT_TRUE(one && two);
  EXPECT_GT(*one, 0.0);
  EXPECT_GE(*two, 0.499 * *one);
  EXPECT_LT(*two, 0.7 * *one);
  const std::string tiny = "1d 16 kernel_size 3 heads 1 head_dim 8";
  EXPECT_EQ(described(tiny, 1), described(tiny, 2)) << "over before another thread has joined in";
}

}  // namespace
}  // namespace vecina::internal::cpu
