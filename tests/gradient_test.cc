// SPDX-License-Identifier: MIT
// Gradients of the reference against central finite differences in f64: of a random weighting of
// output and lse, with respect to every element of every input.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "cli/conformance.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

constexpr double kStep = 1e-5;  // error of a central difference: about kStep^2 and 1e-16 / kStep
constexpr double kTolerance = 1e-8;  // relative to the largest gradient, measured: below 1e-9

double weighted(const cli::HostTensor& values, const cli::HostTensor& weights) {
  double sum = 0.0;
  for (int64_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values.get(i))) sum += values.get(i) * weights.get(i);
  }
  return sum;
}

class FiniteDifferences : public testing::TestWithParam<const char*> {
 protected:
  double loss() const {
    const cli::Outputs outputs = run_forward(context_.get(), problem_, inputs_);
    return weighted(outputs.output, inputs_.grad_output) + weighted(outputs.lse, inputs_.grad_lse);
  }

  void expect_gradient(const char* name, cli::HostTensor& input, const cli::HostTensor& gradient) {
    std::vector<double> expected;
    for (int64_t i = 0; i < input.size(); ++i) {
      const double value = input.get(i);
      input.set(i, value + kStep);
      const double above = loss();
      input.set(i, value - kStep);
      const double below = loss();
      input.set(i, value);
      expected.push_back((above - below) / (2 * kStep));
    }
    expect_close(name, gradient, expected, kTolerance, kTolerance);
  }

  const cli::ContextPtr context_ = cli::make_context("reference", 1);
  const vecina_problem problem_ = cli::parse_problem(std::string(GetParam()) + " dtype f64");
  cli::Inputs inputs_ = cli::random_inputs(problem_, 17);
};

TEST_P(FiniteDifferences, OfEveryInput) {
  const cli::Outputs outputs = run_forward(context_.get(), problem_, inputs_);
  const cli::Gradients gradients = run_backward(context_.get(), problem_, inputs_, outputs);
  expect_gradient("grad_query", inputs_.query, gradients.query);
  expect_gradient("grad_key", inputs_.key, gradients.key);
  expect_gradient("grad_value", inputs_.value, gradients.value);
  expect_gradient("grad_additional_key", inputs_.additional_key, gradients.additional_key);
  expect_gradient("grad_additional_value", inputs_.additional_value, gradients.additional_value);
  expect_gradient("grad_bias", inputs_.bias, gradients.bias);
}

INSTANTIATE_TEST_SUITE_P(
    Problems, FiniteDifferences,
    testing::Values(
        "1d 9 kernel_size 3 heads 2 head_dim 3",
        "1d 8 kernel_size 4 causal batch 2 heads 1 head_dim 2",
        "1d 11 kernel_size 5 stride 3 heads 1 head_dim 3 bias",
        "1d 11 kernel_size 3 dilation 3 heads 2 heads_kv 1 head_dim 2 additional 2",
        "1d 11 kernel_size 3 output_stride 2 dilation 2 heads 1 head_dim 3 additional 1 bias",
        "1d 7 kernel_size 3 heads 2 head_dim 2 head_dim_value 4 scale -0.7",
        "1d 6 kernel_size 3 heads 1 head_dim 2 scale 0",
        "2d 4x5 kernel_size 3x2 stride 2x1 causal 0x1 heads 2 heads_kv 1 head_dim 2 bias",
        "2d 5x4 kernel_size 2x3 dilation 2x1 output_stride 1x2 heads 1 head_dim 2 additional 1",
        "3d 3x2x4 kernel_size 2x1x3 stride 2x1x1 causal 1x0x0 heads 1 head_dim 2 bias",
        "attention 4x6 causal heads 4 heads_kv 2 head_dim 2 additional 1",
        "attention 6x3 heads 1 head_dim 2 head_dim_value 3",
        "1d 7 kernel_size 2 dilation 2 batch 3 heads 1 head_dim 2 additional 1 lengths padded",
        "2d 4x5 kernel_size 2 heads 1 head_dim 2 bias lengths packed:3",
        "attention 5x4 batch 2 heads 1 head_dim 2 lengths padded",
        "attention 5x4 causal heads 1 head_dim 2 additional 1 lengths packed:3"));

// An axis of the problem's dtype other than f64: the same numbers, rounded once.
TEST(GradientDtypes, AreTheF64GradientsRounded) {
  const cli::ContextPtr context = cli::make_context("reference", 1);
  const std::string line =
      "2d 5x6 kernel_size 3 dilation 1x2 heads 4 heads_kv 2 head_dim 6 additional 2 bias dtype ";
  for (const char* dtype : {"f32", "f16", "bf16"}) {
    SCOPED_TRACE(dtype);
    const vecina_problem problem = cli::parse_problem(line + dtype);
    const vecina_problem wide = cli::parse_problem(line + "f64");
    const cli::Inputs inputs = cli::random_inputs(problem, 3);
    cli::Inputs copies = cli::random_inputs(wide, 3);
    cli::HostTensor cli::Inputs::*const fields[] = {&cli::Inputs::query,
                                                    &cli::Inputs::key,
                                                    &cli::Inputs::value,
                                                    &cli::Inputs::additional_key,
                                                    &cli::Inputs::additional_value,
                                                    &cli::Inputs::bias,
                                                    &cli::Inputs::grad_output,
                                                    &cli::Inputs::grad_lse};
    for (auto field : fields) {
      for (int64_t i = 0; i < (inputs.*field).size(); ++i) {
        (copies.*field).set(i, (inputs.*field).get(i));
      }
    }
    const cli::Outputs outputs = run_forward(context.get(), problem, inputs);
    const cli::Gradients actual = run_backward(context.get(), problem, inputs, outputs);
    const cli::Outputs exact_outputs = run_forward(context.get(), wide, copies);
    const cli::Gradients exact = run_backward(context.get(), wide, copies, exact_outputs);
    expect_rounded("output", outputs.output, values_of(exact_outputs.output), 1e-13);
    expect_rounded("lse", outputs.lse, values_of(exact_outputs.lse), 1e-13);
    expect_rounded("grad_query", actual.query, values_of(exact.query), 1e-12);
    expect_rounded("grad_key", actual.key, values_of(exact.key), 1e-12);
    expect_rounded("grad_value", actual.value, values_of(exact.value), 1e-12);
    expect_rounded("grad_additional_key", actual.additional_key, values_of(exact.additional_key),
                   1e-12);
    expect_rounded("grad_additional_value", actual.additional_value,
                   values_of(exact.additional_value), 1e-12);
    expect_rounded("grad_bias", actual.bias, values_of(exact.bias), 1e-12);
  }
}

}  // namespace
}  // namespace vecina::tests
