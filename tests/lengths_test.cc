// SPDX-License-Identifier: MIT
// Samples of different length: what lies beyond them, plans that meet new lengths, and what a call
// with the lengths of the call before allocates.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "allocations.h"
#include "cli/conformance.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using PlanPtr = std::unique_ptr<vecina_plan, decltype(&vecina_plan_destroy)>;

class LengthsOfSamples : public testing::TestWithParam<std::string> {
 protected:
  cli::ContextPtr context_ = cli::make_context(GetParam(), 2);
};
INSTANTIATE_TEST_SUITE_P(Backends, LengthsOfSamples, testing::ValuesIn(backend_names()),
                         [](const auto& name) { return name.param; });

std::vector<double> lengths_of(const cli::Inputs& inputs, bool of_queries) {
  return values_of(of_queries && inputs.query_lengths.given() ? inputs.query_lengths
                                                              : inputs.lengths);
}

// Calls visit(element) for those of a padded [batch, extents..., ...] tensor beyond the lengths.
template <typename Visit>
void for_each_beyond(const cli::HostTensor& tensor, int rank, const std::vector<double>& lengths,
                     const Visit& visit) {
  for (int64_t i = 0; i < tensor.size(); ++i) {
    int64_t rest = i;
    std::vector<int64_t> index(tensor.shape().size());
    for (size_t d = index.size(); d-- > 0; rest /= tensor.shape()[d]) {
      index[d] = rest % tensor.shape()[d];
    }
    bool is_beyond = false;
    for (int a = 0; a < rank; ++a) {
      is_beyond = is_beyond || static_cast<double>(index[static_cast<size_t>(1 + a)]) >=
                                   lengths[static_cast<size_t>(index[0] * rank + a)];
    }
    if (is_beyond) visit(i);
  }
}

// Large enough for the kernels of large problems: on a GPU with tensor cores.
constexpr const char* kLarge[] = {
    "1d 1000 kernel_size 180 dilation 2 batch 3 heads 1 head_dim 64 additional 2 lengths padded "
    "dtype bf16",
    "2d 30x29 kernel_size 15x14 causal 0x1 batch 3 heads 2 heads_kv 1 head_dim 64 lengths padded "
    "dtype f16",
    "3d 9x11x19 kernel_size 5x6x8 stride 1x2x1 batch 3 heads 1 head_dim 64 lengths padded dtype "
    "bf16",
    "attention 300x700 batch 4 heads 1 head_dim 64 lengths padded dtype bf16",
};

TEST_P(LengthsOfSamples, WhatLiesBeyondIsNotReadByLargeProblems) {
  for (const char* line : kLarge) {
    const vecina_problem problem = cli::parse_problem(line);
    if (!why_not(context_.get(), GetParam(), problem).empty()) continue;
    cli::Inputs inputs = cli::random_inputs(problem, 3);
    const cli::Outputs expected = run_forward(context_.get(), problem, inputs);
    const cli::Gradients gradients = run_backward(context_.get(), problem, inputs, expected);
    int64_t num_planted = 0;
    for (auto member : {&cli::Inputs::query, &cli::Inputs::key, &cli::Inputs::value,
                        &cli::Inputs::grad_output, &cli::Inputs::grad_lse}) {
      cli::HostTensor& tensor = inputs.*member;
      const bool of_queries = member != &cli::Inputs::key && member != &cli::Inputs::value;
      for_each_beyond(tensor, problem.rank, lengths_of(inputs, of_queries), [&](int64_t i) {
        tensor.set(i, kNan);
        ++num_planted;
      });
    }
    EXPECT_GT(num_planted, 0) << line;
    const cli::Outputs actual = run_forward(context_.get(), problem, inputs);
    EXPECT_EQ(bits_of(actual.output), bits_of(expected.output)) << line;
    EXPECT_EQ(bits_of(actual.lse), bits_of(expected.lse)) << line;
    for_each_beyond(actual.output, problem.rank, lengths_of(inputs, true), [&](int64_t i) {
      ASSERT_EQ(actual.output.get(i), 0.0) << line << " at " << i;
    });
    for_each_beyond(actual.lse, problem.rank, lengths_of(inputs, true), [&](int64_t i) {
      ASSERT_EQ(actual.lse.get(i), -std::numeric_limits<double>::infinity()) << line << " at " << i;
    });
    const cli::Gradients again = run_backward(context_.get(), problem, inputs, actual);
    for (auto member : {&cli::Gradients::query, &cli::Gradients::key, &cli::Gradients::value}) {
      EXPECT_EQ(bits_of(again.*member), bits_of(gradients.*member)) << line;
      const bool of_queries = member == &cli::Gradients::query;
      for_each_beyond(again.*member, problem.rank, lengths_of(inputs, of_queries), [&](int64_t i) {
        ASSERT_EQ((again.*member).get(i), 0.0) << line << " at " << i;
      });
    }
  }
}

TEST_P(LengthsOfSamples, WhatLiesBeyondIsNotReadAndWrittenAsDefined) {
  for (const char* line :
       {"1d 70 kernel_size 5 dilation 2 batch 4 heads 2 head_dim 8 additional 2 lengths padded",
        "2d 20x22 kernel_size 5x3 causal 0x1 batch 3 heads 2 heads_kv 1 head_dim 12 bias lengths "
        "padded",
        "3d 5x6x19 kernel_size 3x2x4 stride 1x1x2 batch 3 heads 1 head_dim 8 lengths padded",
        "attention 30x40 batch 4 heads 2 head_dim 8 lengths padded"}) {
    const vecina_problem problem = cli::parse_problem(line);
    if (!why_not(context_.get(), GetParam(), problem).empty()) continue;
    cli::Inputs inputs = cli::random_inputs(problem, 3);
    const cli::Outputs expected = run_forward(context_.get(), problem, inputs);
    const cli::Gradients gradients = run_backward(context_.get(), problem, inputs, expected);

    int64_t num_planted = 0;
    const auto plant = [&](cli::HostTensor& tensor, bool of_queries) {
      for_each_beyond(tensor, problem.rank, lengths_of(inputs, of_queries), [&](int64_t i) {
        tensor.set(i, kNan);
        ++num_planted;
      });
    };
    plant(inputs.query, true);
    plant(inputs.key, false);
    plant(inputs.value, false);
    plant(inputs.grad_output, true);
    plant(inputs.grad_lse, true);
    EXPECT_GT(num_planted, 0) << line;
    const cli::Outputs actual = run_forward(context_.get(), problem, inputs);
    const cli::Gradients actual_gradients = run_backward(context_.get(), problem, inputs, actual);
    EXPECT_EQ(bits_of(actual.output), bits_of(expected.output)) << line;
    EXPECT_EQ(bits_of(actual.lse), bits_of(expected.lse)) << line;
    for (auto member : {&cli::Gradients::query, &cli::Gradients::key, &cli::Gradients::value,
                        &cli::Gradients::additional_key, &cli::Gradients::additional_value,
                        &cli::Gradients::bias}) {
      if (!(gradients.*member).given()) continue;
      EXPECT_EQ(bits_of(actual_gradients.*member), bits_of(gradients.*member)) << line;
    }

    const auto expect_beyond = [&](const cli::HostTensor& tensor, bool of_queries, double value) {
      for_each_beyond(tensor, problem.rank, lengths_of(inputs, of_queries),
                      [&](int64_t i) { ASSERT_EQ(tensor.get(i), value) << line << " at " << i; });
    };
    expect_beyond(actual.output, true, 0.0);
    expect_beyond(actual.lse, true, -std::numeric_limits<double>::infinity());
    expect_beyond(actual_gradients.query, true, 0.0);
    expect_beyond(actual_gradients.key, false, 0.0);
    expect_beyond(actual_gradients.value, false, 0.0);
  }
}

// A sample without keys sees the additional tokens alone, or nothing; one without queries leaves
// zeros to its keys.
TEST_P(LengthsOfSamples, MayBeZero) {
  for (const char* additional : {"", " additional 2"}) {
    const vecina_problem problem = cli::parse_problem(
        std::string("attention 9x7 batch 3 heads 2 head_dim 8 lengths padded") + additional);
    if (!why_not(context_.get(), GetParam(), problem).empty()) GTEST_SKIP();
    cli::Inputs inputs = cli::random_inputs(problem, 3);
    inputs.lengths.set(0, 0);
    inputs.query_lengths.set(0, 5);
    inputs.lengths.set(1, 7);
    inputs.query_lengths.set(1, 0);
    const cli::Outputs outputs = run_forward(context_.get(), problem, inputs);
    const cli::Gradients gradients = run_backward(context_.get(), problem, inputs, outputs);
    const bool has_keys = problem.additional_tokens > 0;
    for (int64_t i = 0; i < 5 * 2; ++i) {  // queries and heads of sample 0
      EXPECT_EQ(std::isfinite(outputs.lse.get(i)), has_keys);
      EXPECT_EQ(outputs.output.get(i * 8) != 0.0, has_keys);
    }
    const int64_t sample = gradients.key.size() / 3;
    for (int64_t i = 0; i < 2 * sample; ++i) ASSERT_EQ(gradients.key.get(i), 0.0) << i;
    EXPECT_NE(gradients.key.get(2 * sample), 0.0);
    if (!has_keys) continue;
    const int64_t of_sample = gradients.additional_value.size() / 3;
    EXPECT_NE(gradients.additional_value.get(0), 0.0);
    for (int64_t i = of_sample; i < 2 * of_sample; ++i) {
      ASSERT_EQ(gradients.additional_value.get(i), 0.0) << i;
    }
  }
}

// A large problem whose samples have no keys, or no queries.
TEST_P(LengthsOfSamples, MayBeZeroInLargeProblems) {
  for (const char* additional : {"", " additional 70"}) {
    const vecina_problem problem = cli::parse_problem(
        std::string("attention 400x700 batch 3 heads 1 head_dim 64 lengths padded dtype bf16") +
        additional);
    if (!why_not(context_.get(), GetParam(), problem).empty()) GTEST_SKIP();
    cli::Inputs inputs = cli::random_inputs(problem, 3);
    const double lengths[3][2] = {{0, 300}, {700, 0}, {650, 390}};  // keys, queries
    for (int64_t s = 0; s < 3; ++s) {
      inputs.lengths.set(s, lengths[s][0]);
      inputs.query_lengths.set(s, lengths[s][1]);
    }
    const cli::Outputs outputs = run_forward(context_.get(), problem, inputs);
    for (int64_t s = 0; s < 3; ++s) {
      const bool sees = lengths[s][0] > 0 || problem.additional_tokens > 0;
      for (int64_t i = 0; i < 400; ++i) {
        const bool is_written = sees && static_cast<double>(i) < lengths[s][1];
        ASSERT_EQ(std::isfinite(outputs.lse.get(s * 400 + i)), is_written) << s << " at " << i;
        ASSERT_EQ(outputs.output.get((s * 400 + i) * 64) != 0.0, is_written) << s << " at " << i;
      }
    }
    const cli::Gradients gradients = run_backward(context_.get(), problem, inputs, outputs);
    for (int64_t s = 0; s < 3; ++s) {
      const bool has_keys = lengths[s][0] > 0 && lengths[s][1] > 0;
      for (int64_t i = 0; i < 700; ++i) {
        const bool is_seen = has_keys && static_cast<double>(i) < lengths[s][0];
        ASSERT_EQ(gradients.key.get((s * 700 + i) * 64) != 0.0, is_seen) << s << " at " << i;
      }
    }
  }
}

void expect_lengths_may_change(const std::string& backend, const char* line) {
  const cli::ContextPtr context = cli::make_context(backend, 2);
  const vecina_problem problem = cli::parse_problem(line);
  if (!why_not(context.get(), backend, problem).empty()) return;
  const cli::Inputs some = cli::random_inputs(problem, 3), others = cli::random_inputs(problem, 4);
  ASSERT_NE(values_of(some.lengths), values_of(others.lengths));
  const cli::Outputs outputs = cli::make_outputs(problem);
  const vecina_forward_args args = cli::forward_args(some, outputs);
  vecina_plan* made = nullptr;
  ASSERT_EQ(vecina_plan_forward(context.get(), &problem, &args, &made), VECINA_OK);
  const PlanPtr plan(made, vecina_plan_destroy);
  for (int round = 0; round < 2; ++round) {
    for (const cli::Inputs* inputs : {&others, &some}) {
      const cli::ContextPtr fresh = cli::make_context(backend, 1);
      const cli::Outputs expected = run_forward(fresh.get(), problem, *inputs);
      const auto in_dtype_of_plan = [&](const cli::HostTensor& drawn) {
        cli::HostTensor lengths(drawn.shape(), args.lengths.dtype);
        for (int64_t i = 0; i < lengths.size(); ++i) lengths.set(i, drawn.get(i));
        return lengths;
      };
      vecina_forward_args now = cli::forward_args(*inputs, outputs);
      const cli::HostTensor lengths = in_dtype_of_plan(inputs->lengths);
      cli::HostTensor query_lengths;
      now.lengths = lengths.view();
      if (inputs->query_lengths.given()) {
        query_lengths = in_dtype_of_plan(inputs->query_lengths);
        now.query_lengths = query_lengths.view();
      }
      ASSERT_EQ(vecina_run_forward(plan.get(), &now, nullptr), VECINA_OK) << vecina_last_error();
      EXPECT_EQ(bits_of(outputs.output), bits_of(expected.output)) << line;
      EXPECT_EQ(bits_of(outputs.lse), bits_of(expected.lse)) << line;
    }
  }
}

TEST_P(LengthsOfSamples, MayDifferFromRunToRunOfAPlan) {
  expect_lengths_may_change(
      GetParam(), "2d 12x14 kernel_size 3 batch 3 heads 2 head_dim 8 bias lengths padded");
  for (const char* line : kLarge) expect_lengths_may_change(GetParam(), line);
}

// A call whose two samples have these lengths, in tensors that a row too many does not leave.
struct StridedCall {
  StridedCall(double first, double second, int64_t count)
      : num_outputs(count),
        outputs{tensor({1, count, 1, 8}), tensor({1, count, 1})},
        gradients{tensor({1, 8, 1, 8}), tensor({1, 8, 1, 8}), tensor({1, 8, 1, 8}), {}, {}, {}} {
    inputs.query = inputs.key = inputs.value = tensor({1, 8, 1, 8});
    inputs.grad_output = tensor({1, count, 1, 8});
    set_lengths(first, second);
  }
  static cli::HostTensor tensor(const std::vector<int64_t>& shape) {
    cli::HostTensor filled(shape, VECINA_F32, {/*gap=*/0, /*offset=*/64});
    filled.fill(0.5);
    return filled;
  }
  void set_lengths(double first, double second) {
    inputs.lengths = cli::HostTensor({2, 1}, VECINA_I32);
    inputs.lengths.set(0, first);
    inputs.lengths.set(1, second);
  }
  vecina_forward_args forward() const { return cli::forward_args(inputs, outputs); }
  vecina_backward_args backward() const { return cli::backward_args(inputs, outputs, gradients); }

  int64_t num_outputs;
  cli::Inputs inputs;
  cli::Outputs outputs;
  cli::Gradients gradients;
};

// With an output_stride as many tokens may have more or fewer outputs, which the tensors of a plan
// that is in the cache do not have.
TEST_P(LengthsOfSamples, OfPackedSamplesLeaveAsManyOutputsAsThePlanHas) {
  const vecina_problem problem =
      cli::parse_problem("1d 5 kernel_size 3 output_stride 2 heads 1 head_dim 8 lengths packed:2");
  if (!why_not(context_.get(), GetParam(), problem).empty()) GTEST_SKIP();
  StridedCall four(4, 4, /*count=*/4), five(3, 5, /*count=*/5);
  for (StridedCall* call : {&four, &five}) {
    const vecina_forward_args forward = call->forward();
    const vecina_backward_args backward = call->backward();
    ASSERT_EQ(vecina_forward(context_.get(), &problem, &forward, nullptr), VECINA_OK)
        << vecina_last_error();
    ASSERT_EQ(vecina_backward(context_.get(), &problem, &backward, nullptr), VECINA_OK)
        << vecina_last_error();
  }
  four.set_lengths(3, 5);
  five.set_lengths(4, 4);
  for (StridedCall* call : {&four, &five}) {
    call->outputs.output.fill(77.0);
    call->outputs.lse.fill(77.0);
    call->gradients.query.fill(77.0);
    const vecina_forward_args forward = call->forward();
    const vecina_backward_args backward = call->backward();
    const std::vector<std::string> words = {call == &four ? "5 outputs" : "4 outputs",
                                            std::to_string(call->num_outputs)};
    EXPECT_EQ(vecina_forward(context_.get(), &problem, &forward, nullptr), VECINA_INVALID_ARGUMENT);
    expect_last_error(words);
    EXPECT_EQ(vecina_backward(context_.get(), &problem, &backward, nullptr),
              VECINA_INVALID_ARGUMENT);
    expect_last_error(words);
    for (const cli::HostTensor* tensor :
         {&call->outputs.output, &call->outputs.lse, &call->gradients.query}) {
      for (const double value : values_of(*tensor)) ASSERT_EQ(value, 77.0);
      EXPECT_TRUE(tensor->gaps_intact());
    }
  }
}

// A run's tensor of lengths is the plan's at another address, whatever it says of itself: what is
// checked are the numbers that are read.
TEST_P(LengthsOfSamples, AreCheckedWhereTheyAreRead) {
  const vecina_problem problem =
      cli::parse_problem("1d 9 kernel_size 3 batch 2 heads 2 head_dim 8 lengths padded");
  if (!why_not(context_.get(), GetParam(), problem).empty()) GTEST_SKIP();
  constexpr cli::Placement kRoomy = {/*gap=*/0, /*offset=*/64};
  cli::Inputs inputs = cli::random_inputs(problem, 1, kRoomy);
  inputs.lengths = cli::HostTensor({2, 1}, VECINA_I32);
  inputs.lengths.fill(4.0);
  const cli::Outputs outputs = cli::make_outputs(problem, kRoomy);
  const vecina_forward_args args = cli::forward_args(inputs, outputs);
  vecina_plan* made = nullptr;
  ASSERT_EQ(vecina_plan_forward(context_.get(), &problem, &args, &made), VECINA_OK);
  const PlanPtr plan(made, vecina_plan_destroy);
  cli::HostTensor table({4, 1}, VECINA_I32);
  for (int64_t i = 0; i < 4; ++i) table.set(i, i == 1 ? 10 : 4);
  vecina_forward_args every_second = args;
  every_second.lengths = table.view();
  every_second.lengths.shape[0] = 2;
  every_second.lengths.strides[0] = 2;
  EXPECT_EQ(vecina_run_forward(plan.get(), &every_second, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"lengths[1, 0]", "10", "9"});
  vecina_forward_args wide = args;
  wide.lengths = table.view();
  wide.lengths.shape[0] = 2;
  wide.lengths.dtype = VECINA_I64;
  EXPECT_EQ(vecina_run_forward(plan.get(), &wide, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"lengths[1, 0]", "10", "9"});
  EXPECT_TRUE(outputs.output.gaps_intact());
  for (const double value : values_of(outputs.output)) ASSERT_TRUE(std::isnan(value));
}

TEST(LengthsOfSamplesOnTheCpu, TheSameAgainAllocateNothing) {
  if (!kCountsAllocations) GTEST_SKIP() << "not beside a sanitizer";
  const cli::ContextPtr context = cli::make_context("cpu", 1);
  for (const char* line :
       {"1d 70 kernel_size 5 batch 4 heads 2 head_dim 8 additional 2 lengths padded",
        "2d 12x14 kernel_size 3 heads 2 head_dim 8 bias lengths packed:3"}) {
    const vecina_problem problem = cli::parse_problem(line);
    const cli::Inputs inputs = cli::random_inputs(problem, 3);
    const cli::Outputs outputs = run_forward(context.get(), problem, inputs);
    const cli::Gradients gradients = run_backward(context.get(), problem, inputs, outputs);
    const vecina_forward_args forward = cli::forward_args(inputs, outputs);
    const vecina_backward_args backward = cli::backward_args(inputs, outputs, gradients);
    const int64_t before = num_allocations();
    const vecina_status status_forward = vecina_forward(context.get(), &problem, &forward, nullptr);
    const int64_t after_forward = num_allocations();
    const vecina_status status_backward =
        vecina_backward(context.get(), &problem, &backward, nullptr);
    const int64_t after_backward = num_allocations();
    EXPECT_EQ(status_forward, VECINA_OK);
    EXPECT_EQ(status_backward, VECINA_OK);
    EXPECT_EQ(after_forward, before) << line;
    EXPECT_EQ(after_backward, after_forward) << line;
    const cli::ContextPtr cold = cli::make_context("cpu", 1);
    const int64_t before_cold = num_allocations();
    EXPECT_EQ(vecina_forward(cold.get(), &problem, &forward, nullptr), VECINA_OK);
    EXPECT_GT(num_allocations(), before_cold) << "nothing is counted";
  }
}

}  // namespace
}  // namespace vecina::tests
