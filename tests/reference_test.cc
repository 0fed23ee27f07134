// SPDX-License-Identifier: MIT
// The reference backend against the oracle: forward, lse, and every gradient, over the cases and a
// sweep of random problems with every field.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>

#include "cases.h"
#include "cli/conformance.h"
#include "oracle.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

// Sums of a few hundred products in double, in another order.
constexpr double kRounding = 1e-11;

class Reference : public testing::Test {
 protected:
  cli::ContextPtr context_ = cli::make_context("reference", 1);

  void expect_forward(const vecina_problem& problem, uint64_t seed) {
    const cli::Placement placement = {static_cast<int64_t>(seed % 3), 0};
    const cli::Inputs inputs = cli::random_inputs(problem, seed, placement);
    const OracleOutputs expected = oracle_forward(problem, inputs);
    const cli::Outputs outputs = run_forward(context_.get(), problem, inputs, placement);
    expect_rounded("output", outputs.output, expected.output, kRounding);
    expect_rounded("lse", outputs.lse, expected.lse, kRounding);
    EXPECT_TRUE(outputs.output.gaps_intact());
    EXPECT_TRUE(outputs.lse.gaps_intact());
  }

  void expect_backward(const vecina_problem& problem, uint64_t seed, bool has_grad_lse) {
    const cli::Placement placement = {static_cast<int64_t>(seed % 3), 0};
    cli::Inputs inputs = cli::random_inputs(problem, seed, placement);
    if (!has_grad_lse) inputs.grad_lse = {};
    const OracleGradients expected = oracle_backward(problem, inputs);
    const cli::Outputs outputs = run_forward(context_.get(), problem, inputs, placement);
    const cli::Gradients actual = run_backward(context_.get(), problem, inputs, outputs, placement);
    // Sums over queries are larger than one output, so is what their rounding may leave.
    expect_rounded("grad_query", actual.query, expected.query, 100 * kRounding);
    expect_rounded("grad_key", actual.key, expected.key, 100 * kRounding);
    expect_rounded("grad_value", actual.value, expected.value, 100 * kRounding);
    expect_rounded("grad_additional_key", actual.additional_key, expected.additional_key,
                   100 * kRounding);
    expect_rounded("grad_additional_value", actual.additional_value, expected.additional_value,
                   100 * kRounding);
    expect_rounded("grad_bias", actual.bias, expected.bias, 100 * kRounding);
    for (const cli::HostTensor* tensor : {&actual.query, &actual.key, &actual.value}) {
      EXPECT_TRUE(tensor->gaps_intact());
    }
  }
};

TEST_F(Reference, ForwardOfTheCases) {
  uint64_t seed = 100;
  for (const Case& row : small_cases(3e5)) {
    SCOPED_TRACE(row.name + ": " + row.line);
    expect_forward(row.problem, ++seed);
  }
}

TEST_F(Reference, GradientsOfTheCases) {
  uint64_t seed = 200;
  for (const Case& row : small_cases(1e5)) {
    SCOPED_TRACE(row.name + ": " + row.line);
    ++seed;
    expect_backward(row.problem, seed, seed % 2 == 0);
  }
}

TEST_F(Reference, RandomProblemsWithEveryField) {
  for (uint64_t seed = 1; seed <= 250; ++seed) {
    cli::Random random(seed);
    const vecina_problem problem = cli::random_problem(random, true);
    double pairs = static_cast<double>(problem.batch) * problem.heads;
    for (int a = 0; a < problem.rank; ++a) {
      pairs *= static_cast<double>(problem.extent[a] *
                                   std::max(problem.extent[a], problem.query_extent[a]));
    }
    if (pairs > 3e5) continue;  // the oracle is dense
    SCOPED_TRACE(cli::print_problem(problem) + " seed " + std::to_string(seed));
    expect_forward(problem, seed);
    expect_backward(problem, seed, seed % 3 != 0);
    if (HasFailure()) return;
  }
}

// Lengths that the random inputs rarely draw: empty samples, full ones, i32 and i64.
TEST_F(Reference, LengthsOfEverySize) {
  const vecina_problem problem = cli::parse_problem(
      "2d 6x7 kernel_size 3x2 dilation 1x2 output_stride 2x1 batch 4 heads 2 head_dim 4 "
      "additional 2 lengths padded dtype f64");
  const double lengths[] = {6, 7, 3, 4, 0, 0, 5, 6};
  for (int32_t dtype : {VECINA_I32, VECINA_I64}) {
    cli::Inputs inputs = cli::random_inputs(problem, 5);
    inputs.lengths = cli::HostTensor({4, 2}, dtype);
    for (int64_t i = 0; i < 8; ++i) inputs.lengths.set(i, lengths[i]);
    const OracleOutputs expected = oracle_forward(problem, inputs);
    const cli::Outputs outputs = run_forward(context_.get(), problem, inputs);
    expect_close("output", outputs.output, expected.output, 1e-13);
    expect_close("lse", outputs.lse, expected.lse, 1e-13);
    // Beyond a sample's lengths: output 0, lse -infinity. Sample 2 is all beyond.
    const int64_t sample = 3 * 7 * 2;
    EXPECT_EQ(outputs.output.get(2 * sample * 4 + 3), 0.0);
    EXPECT_EQ(outputs.lse.get(2 * sample + 3), -std::numeric_limits<double>::infinity());
    const cli::Gradients gradients = run_backward(context_.get(), problem, inputs, outputs);
    const OracleGradients back = oracle_backward(problem, inputs);
    expect_close("grad_query", gradients.query, back.query, 1e-13);
    expect_close("grad_key", gradients.key, back.key, 1e-13);
    expect_close("grad_value", gradients.value, back.value, 1e-13);
    expect_close("grad_additional_key", gradients.additional_key, back.additional_key, 1e-13);
    expect_close("grad_additional_value", gradients.additional_value, back.additional_value, 1e-13);
  }
}

TEST_F(Reference, QueryLengthsOfPaddedAttention) {
  const vecina_problem problem = cli::parse_problem(
      "attention 5x8 causal batch 4 heads 2 head_dim 4 lengths padded dtype f64");
  cli::Inputs inputs = cli::random_inputs(problem, 6);
  inputs.lengths = cli::HostTensor({4, 1}, VECINA_I32);
  inputs.query_lengths = cli::HostTensor({4, 1}, VECINA_I64);
  const double keys[] = {8, 2, 0, 5}, queries[] = {5, 4, 3, 0};
  for (int64_t i = 0; i < 4; ++i) {
    inputs.lengths.set(i, keys[i]);
    inputs.query_lengths.set(i, queries[i]);
  }
  const OracleOutputs expected = oracle_forward(problem, inputs);
  const cli::Outputs outputs = run_forward(context_.get(), problem, inputs);
  expect_close("output", outputs.output, expected.output, 1e-13);
  expect_close("lse", outputs.lse, expected.lse, 1e-13);
  // Sample 2 has queries but no key: output 0 and lse -infinity, not NaN.
  EXPECT_EQ(outputs.output.get(2 * 5 * 2 * 4), 0.0);
  EXPECT_EQ(outputs.lse.get(2 * 5 * 2), -std::numeric_limits<double>::infinity());
  const cli::Gradients gradients = run_backward(context_.get(), problem, inputs, outputs);
  const OracleGradients back = oracle_backward(problem, inputs);
  expect_close("grad_query", gradients.query, back.query, 1e-13);
  expect_close("grad_key", gradients.key, back.key, 1e-13);
  expect_close("grad_value", gradients.value, back.value, 1e-13);
}

// Without query_lengths the lengths count for queries too (vecina.h).
TEST_F(Reference, LengthsStandForQueryLengths) {
  const vecina_problem problem =
      cli::parse_problem("attention 9x9 batch 2 heads 1 head_dim 4 lengths padded");
  cli::Inputs inputs = cli::random_inputs(problem, 7);
  inputs.lengths.set(1, 4.0);
  inputs.query_lengths = {};
  const OracleOutputs expected = oracle_forward(problem, inputs);
  const cli::Outputs outputs = run_forward(context_.get(), problem, inputs);
  expect_rounded("output", outputs.output, expected.output, kRounding);
  expect_rounded("lse", outputs.lse, expected.lse, kRounding);
}

// What is not wanted is not written, and does not change the rest.
TEST_F(Reference, EachGradientAlone) {
  const vecina_problem problem = cli::parse_problem(
      "1d 9 kernel_size 3 heads 2 heads_kv 1 head_dim 4 additional 2 bias dtype f64");
  const cli::Inputs inputs = cli::random_inputs(problem, 8);
  const cli::Outputs outputs = run_forward(context_.get(), problem, inputs);
  const cli::Gradients all = run_backward(context_.get(), problem, inputs, outputs);
  cli::HostTensor cli::Gradients::*const fields[] = {&cli::Gradients::query,
                                                     &cli::Gradients::key,
                                                     &cli::Gradients::value,
                                                     &cli::Gradients::additional_key,
                                                     &cli::Gradients::additional_value,
                                                     &cli::Gradients::bias};
  for (auto field : fields) {
    const cli::Gradients made = cli::make_gradients(problem);
    cli::Gradients wanted;
    wanted.*field = made.*field;
    const vecina_backward_args args = cli::backward_args(inputs, outputs, wanted);
    ASSERT_EQ(vecina_backward(context_.get(), &problem, &args, nullptr), VECINA_OK)
        << vecina_last_error();
    EXPECT_EQ(bits_of(made.*field), bits_of(all.*field));
  }
}

}  // namespace
}  // namespace vecina::tests
