// SPDX-License-Identifier: MIT
// The split form: the reference against sums written out here and finite differences, every backend
// against the reference, and what a call must not do.
#include "cli/split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cases.h"
#include "cli/conformance.h"
#include "cli/errors.h"
#include "definition.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One slot that holds a key: the rows of query, key and output, and the slot, of one batch.
struct Slot {
  int64_t query, key, output, slot, bias;
};

// By the definition: the slots of every query, row-major over the axes.
std::vector<Slot> window_slots(const vecina_problem& problem, bool right_aligned) {
  std::vector<Slot> slots = {{0, 0, 0, 0, 0}};
  for (int a = 0; a < problem.rank; ++a) {
    const AxisRule axis = axis_rule(problem, a);
    const int64_t size = axis.is_attention ? axis.length : axis.kernel_size;
    const std::vector<int64_t> queries = query_tokens(axis);
    std::vector<Slot> longer;
    for (const Slot& outer : slots) {
      for (size_t q = 0; q < queries.size(); ++q) {
        const std::vector<int64_t> keys = visible_keys(axis, queries[q]);
        const int64_t missing = size - static_cast<int64_t>(keys.size());
        for (size_t k = 0; k < keys.size(); ++k) {
          const int64_t slot = static_cast<int64_t>(k) + (right_aligned ? missing : 0);
          longer.push_back(
              {outer.query * axis.query_length + queries[q], outer.key * axis.length + keys[k],
               outer.output * static_cast<int64_t>(queries.size()) + static_cast<int64_t>(q),
               outer.slot * size + slot,
               axis.is_attention ? 0
                                 : outer.bias * (2 * axis.kernel_size - 1) +
                                       bias_index(axis, queries[q], keys[k])});
        }
      }
    }
    slots = longer;
  }
  return slots;
}

// Calls visit(weight, query row, key row, output row, bias, is additional) with indices of whole
// tensors: of an element of weights, of rows (token and head) of the others, of an element of bias.
void for_each_pair(
    const vecina_problem& problem, bool right_aligned,
    const std::function<void(int64_t, int64_t, int64_t, int64_t, int64_t, bool)>& visit) {
  int64_t queries = 1, keys = 1, outputs = 1, window = 1, biases = 1;
  for (int a = 0; a < problem.rank; ++a) {
    const AxisRule axis = axis_rule(problem, a);
    queries *= axis.query_length;
    keys *= axis.length;
    outputs *= static_cast<int64_t>(query_tokens(axis).size());
    window *= axis.is_attention ? axis.length : axis.kernel_size;
    biases *= 2 * axis.kernel_size - 1;
  }
  const int64_t heads = problem.heads, heads_kv = problem.heads_kv ? problem.heads_kv : heads;
  const int64_t additional = problem.additional_tokens, slots = window + additional;
  const std::vector<Slot> list = window_slots(problem, right_aligned);
  std::vector<std::pair<int64_t, int64_t>> rows;  // of query and output
  for (const Slot& slot : list) rows.emplace_back(slot.query, slot.output);
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  for (int64_t batch = 0; batch < problem.batch; ++batch) {
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t head_kv = head / (heads / heads_kv);
      for (const Slot& slot : list) {
        const int64_t output = (batch * outputs + slot.output) * heads + head;
        visit(output * slots + slot.slot, (batch * queries + slot.query) * heads + head,
              (batch * keys + slot.key) * heads_kv + head_kv, output, head * biases + slot.bias,
              false);
      }
      for (const auto& [query, output_token] : rows) {
        const int64_t output = (batch * outputs + output_token) * heads + head;
        for (int64_t n = 0; n < additional; ++n) {
          visit(output * slots + window + n, (batch * queries + query) * heads + head,
                (batch * additional + n) * heads_kv + head_kv, output, 0, true);
        }
      }
    }
  }
}

double dot(const cli::HostTensor& a, int64_t row_a, const cli::HostTensor& b, int64_t row_b) {
  double sum = 0.0;
  const int64_t size = a.shape().back();
  for (int64_t c = 0; c < size; ++c) sum += a.get(row_a * size + c) * b.get(row_b * size + c);
  return sum;
}

const char* const kLines[] = {
    "1d 9 kernel_size 3 heads 2 head_dim 3 bias",
    "1d 8 kernel_size 4 causal batch 2 heads 1 head_dim 2",
    "1d 11 kernel_size 5 stride 3 causal heads 1 head_dim 3 additional 1",
    "1d 11 kernel_size 3 output_stride 2 dilation 3 heads 2 heads_kv 1 head_dim 2 bias",
    "1d 13 kernel_size 2 output_stride 3 heads 1 head_dim 2",
    "2d 5x6 kernel_size 3x2 stride 2x1 causal 0x1 heads 2 heads_kv 1 head_dim 2 bias additional 2",
    "2d 5x4 kernel_size 2x3 output_stride 2x1 heads 1 head_dim 2 head_dim_value 3 scale -0.7",
    "3d 3x2x4 kernel_size 2x1x3 stride 2x1x1 causal 1x0x0 heads 1 head_dim 2 bias",
    "attention 4x6 causal heads 4 heads_kv 2 head_dim 2 additional 1",
    "1d 6 kernel_size 3 heads 1 head_dim 2 scale 0",
};

class SplitDefinition : public testing::TestWithParam<std::tuple<const char*, bool>> {
 protected:
  cli::SplitResults run() const {
    return cli::run_split(context_.get(), problem_, inputs_, split_);
  }
  // Of sum(weights of the loss * what both calls write).
  double loss() const {
    const cli::SplitResults results = run();
    double sum = 0.0;
    for (int64_t i = 0; i < results.output.size(); ++i) {
      sum += results.output.get(i) * inputs_.grad_output.get(i);
    }
    for (int64_t i = 0; i < results.logits.size(); ++i) {
      if (std::isfinite(results.logits.get(i))) {
        sum += results.logits.get(i) * split_.grad_weights.get(i);
      }
    }
    return sum;
  }
  void expect_gradient(const char* name, cli::HostTensor& input, const cli::HostTensor& gradient) {
    constexpr double kStep = 1e-4;  // the loss is bilinear: central differences have no error
    std::vector<double> expected;
    for (int64_t i = 0; i < input.size(); ++i) {
      const double value = input.get(i);
      if (std::isnan(value)) {  // an empty slot
        expected.push_back(0.0);
        continue;
      }
      input.set(i, value + kStep);
      const double above = loss();
      input.set(i, value - kStep);
      const double below = loss();
      input.set(i, value);
      expected.push_back((above - below) / (2 * kStep));
    }
    expect_close(name, gradient, expected, 1e-9, 1e-9);
  }

  const bool right_aligned_ = std::get<1>(GetParam());
  const cli::ContextPtr context_ = cli::make_context("reference", 1);
  const vecina_problem problem_ =
      cli::parse_problem(std::string(std::get<0>(GetParam())) + " dtype f64");
  cli::Inputs inputs_ = cli::random_inputs(problem_, 17);
  cli::SplitInputs split_ = cli::random_split_inputs(
      cli::run_qk(context_.get(), problem_, inputs_, right_aligned_), right_aligned_, 18);
};

TEST_P(SplitDefinition, ReferenceIsTheSums) {
  const cli::SplitResults actual = run();
  std::vector<double> logits(static_cast<size_t>(actual.logits.size()), -kInfinity);
  std::vector<double> output(static_cast<size_t>(actual.output.size()), 0.0);
  const double scale =
      problem_.has_scale ? problem_.scale : 1.0 / std::sqrt(double{1} * problem_.head_dim);
  for_each_pair(problem_, right_aligned_,
                [&](int64_t weight, int64_t query, int64_t key, int64_t row, int64_t bias,
                    bool is_additional) {
                  double& logit = logits[static_cast<size_t>(weight)];
                  logit = scale * dot(inputs_.query, query,
                                      is_additional ? inputs_.additional_key : inputs_.key, key);
                  if (problem_.has_bias && !is_additional) logit += inputs_.bias.get(bias);
                  const cli::HostTensor& value =
                      is_additional ? inputs_.additional_value : inputs_.value;
                  const int64_t size = value.shape().back();
                  for (int64_t c = 0; c < size; ++c) {
                    output[static_cast<size_t>(row * size + c)] +=
                        split_.weights.get(weight) * value.get(key * size + c);
                  }
                });
  expect_close("weights", actual.logits, logits, 1e-13);
  expect_close("output", actual.output, output, 1e-13);
}

TEST_P(SplitDefinition, GradientsAreFiniteDifferences) {
  const cli::SplitResults actual = run();
  expect_gradient("grad_query", inputs_.query, actual.gradients.query);
  expect_gradient("grad_key", inputs_.key, actual.gradients.key);
  expect_gradient("grad_value", inputs_.value, actual.gradients.value);
  expect_gradient("grad_additional_key", inputs_.additional_key, actual.gradients.additional_key);
  expect_gradient("grad_additional_value", inputs_.additional_value,
                  actual.gradients.additional_value);
  expect_gradient("grad_bias", inputs_.bias, actual.gradients.bias);
  expect_gradient("grad_weights", split_.weights, actual.grad_weights);
}

INSTANTIATE_TEST_SUITE_P(Problems, SplitDefinition,
                         testing::Combine(testing::ValuesIn(kLines), testing::Bool()));

// Every backend.

class SplitOfBackend : public testing::TestWithParam<std::string> {
 protected:
  cli::Checker checker_{GetParam(), 2};
};
INSTANTIATE_TEST_SUITE_P(Backends, SplitOfBackend, testing::ValuesIn(backend_names()),
                         [](const auto& name) { return name.param; });

// One test for each row of the table, so that they can be dealt to processes.
class SplitOfCase : public testing::TestWithParam<std::tuple<std::string, Case>> {};
std::vector<Case> cases_of_equal_lengths() {
  std::vector<Case> cases;
  for (const Case& row : all_cases()) {
    if (row.problem.lengths == VECINA_LENGTHS_EQUAL) cases.push_back(row);
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Cases, SplitOfCase,
                         testing::Combine(testing::ValuesIn(backend_names()),
                                          testing::ValuesIn(cases_of_equal_lengths())),
                         [](const auto& row) {
                           return std::get<0>(row.param) + "_" +
                                  test_name(std::get<1>(row.param).name);
                         });

TEST_P(SplitOfCase, MatchesReference) {
  const auto& [backend, row] = GetParam();
  cli::Checker checker(backend, 2);
  for (uint64_t seed : {1, 3}) {  // 3 is right-aligned
    const cli::Verdict verdict = checker.check_split(row.problem, seed);
    EXPECT_TRUE(verdict.passed) << row.line << " seed " << seed << "\n" << verdict.detail;
  }
}

TEST_P(SplitOfBackend, MatchesReferenceOnRandomProblems) {
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    cli::Random random(seed * 7907);
    vecina_problem problem = cli::random_problem(random, /*everything=*/true);
    problem.lengths = VECINA_LENGTHS_EQUAL;
    problem.samples = 0;
    const cli::Verdict verdict = checker_.check_split(problem, seed);
    ASSERT_TRUE(verdict.passed) << cli::print_problem(problem) << " seed " << seed << "\n"
                                << verdict.detail;
  }
}

// All that a run writes, to the bit.
std::vector<std::vector<uint64_t>> bits_of(const cli::SplitResults& results) {
  const cli::Gradients& g = results.gradients;
  std::vector<std::vector<uint64_t>> bits;
  for (const cli::HostTensor* tensor :
       {&results.logits, &results.output, &results.grad_weights, &g.query, &g.key, &g.value,
        &g.additional_key, &g.additional_value, &g.bias}) {
    bits.push_back(tests::bits_of(*tensor));
  }
  return bits;
}

TEST_P(SplitOfBackend, BitsDoNotDependOnThreads) {
  const vecina_problem problem = cli::parse_problem(
      "2d 40x41 kernel_size 5x3 dilation 1x2 batch 2 heads 4 heads_kv 2 head_dim 12 bias "
      "additional 2");
  const cli::Inputs inputs = cli::random_inputs(problem, 4);
  const cli::ContextPtr one = cli::make_context(GetParam(), 1);
  const cli::SplitInputs split =
      cli::random_split_inputs(cli::run_qk(one.get(), problem, inputs, false), false, 5);
  const auto expected = bits_of(cli::run_split(one.get(), problem, inputs, split));
  for (int threads : {2, 5}) {
    const cli::ContextPtr many = cli::make_context(GetParam(), threads);
    for (int repeat = 0; repeat < 3; ++repeat) {
      EXPECT_EQ(bits_of(cli::run_split(many.get(), problem, inputs, split)), expected);
    }
  }
}

// An infinity or NaN in a token reaches the rows that the definition says, and no other.
TEST_P(SplitOfBackend, NonFiniteTokensStayInTheirWindows) {
  const vecina_problem problem =
      cli::parse_problem("2d 6x7 kernel_size 3 causal 0x1 heads 2 heads_kv 1 head_dim 13");
  cli::Inputs inputs = cli::random_inputs(problem, 4);
  const cli::SplitInputs split =
      cli::random_split_inputs(cli::run_qk(checker_.context(), problem, inputs, false), false, 5);
  const auto clean = cli::run_split(checker_.context(), problem, inputs, split);
  const int64_t token = 17;
  for (const double value : {kInfinity, std::numeric_limits<double>::quiet_NaN()}) {
    // Of key and value, which have one head. The last vector of a row of 13 begins at 5 or 9.
    for (int64_t i : {token * 13, token * 13 + 6, token * 13 + 10}) {
      inputs.key.set(i, value);
      inputs.value.set(i, value);
      const auto dirty = cli::run_split(checker_.context(), problem, inputs, split);
      std::vector<bool> is_reached(static_cast<size_t>(dirty.logits.size()), false);
      for_each_pair(problem, false,
                    [&](int64_t weight, int64_t, int64_t key, int64_t, int64_t, bool) {
                      is_reached[static_cast<size_t>(weight)] = key == token;
                    });
      for (int64_t w = 0; w < dirty.logits.size(); ++w) {
        for (auto tensor : {&cli::SplitResults::logits, &cli::SplitResults::grad_weights}) {
          const double before = (clean.*tensor).get(w), after = (dirty.*tensor).get(w);
          if (is_reached[static_cast<size_t>(w)]) {
            ASSERT_FALSE(std::isfinite(after));
            ASSERT_EQ(std::isinf(after), std::isinf(value)) << "the product is infinite, not NaN";
          } else {
            ASSERT_EQ(after, before);
          }
        }
      }
      inputs.key.set(i, 1.0);
      inputs.value.set(i, 1.0);
    }
  }
}

// Bad input, cold and warm: a sentence, and nothing is written.

class SplitArguments : public testing::Test {
 protected:
  using Function = decltype(&vecina_qk);

  SplitArguments() {
    args_.struct_size = sizeof(args_);
    args_.query = inputs_.query.view();
    args_.key = inputs_.key.view();
    args_.value = inputs_.value.view();
    args_.bias = inputs_.bias.view();
    args_.additional_key = inputs_.additional_key.view();
    args_.additional_value = inputs_.additional_value.view();
    args_.weights = weights_.view();
    args_.output = output_.view();
  }
  void expect_refused(Function call, const std::function<void(vecina_split_args&)>& change,
                      const std::vector<std::string>& words) {
    for (int repeat = 0; repeat < 2; ++repeat) {
      output_.fill(7.0);
      vecina_split_args args = args_;
      change(args);
      EXPECT_EQ(call(context_.get(), &problem_, &args, nullptr), VECINA_INVALID_ARGUMENT);
      expect_last_error(words);
      for (double value : values_of(output_)) ASSERT_EQ(value, 7.0);
      ASSERT_EQ(vecina_qk(context_.get(), &problem_, &args_, nullptr), VECINA_OK)
          << vecina_last_error();
    }
  }

  const cli::ContextPtr context_ = cli::make_context("", 1);
  vecina_problem problem_ = cli::parse_problem(
      "1d 12 kernel_size 3 heads 2 head_dim 4 head_dim_value 5 additional 1 bias");
  const cli::Inputs inputs_ = cli::random_inputs(problem_, 9);
  const cli::HostTensor weights_ = cli::make_weights(problem_);
  cli::HostTensor output_ = cli::make_outputs(problem_).output;
  vecina_split_args args_ = {};
};

TEST_F(SplitArguments, AreCheckedWithASentence) {
  using Args = vecina_split_args;
  expect_refused(vecina_qk, [](Args& args) { args.weights.shape[3] = 3; },
                 {"weights has shape [1, 12, 2, 3]", "[1, 12, 2, 4]"});
  expect_refused(vecina_qk, [](Args& args) { args.key.data = nullptr; }, {"key is not given"});
  expect_refused(vecina_qk, [](Args& args) { args.bias.dtype = VECINA_BF16; }, {"bias", "bf16"});
  expect_refused(vecina_qk, [](Args& args) { args.weights = args.query; },
                 {"weights is written", "shares memory with query"});
  expect_refused(vecina_qk, [](Args& args) { args.right_aligned = 2; }, {"right_aligned is 2"});
  expect_refused(vecina_qk, [](Args& args) { args.reserved = 1; }, {"reserved is 1"});
  expect_refused(vecina_qk, [](Args& args) { args.struct_size = 8; }, {"struct_size is 8"});
  expect_refused(vecina_av, [](Args& args) { args.weights.dtype = VECINA_F16; },
                 {"weights is f16", "f32"});
  expect_refused(vecina_av, [](Args& args) { args.output = args.value; }, {"output", "value"});
  expect_refused(vecina_av, [](Args& args) { args.additional_value.data = nullptr; },
                 {"additional_value is not given"});
  expect_refused(vecina_qk_backward, [](Args&) {}, {"grad_weights is not given"});
  expect_refused(vecina_av_backward, [](Args&) {}, {"grad_output is not given"});
  expect_refused(vecina_av_backward,
                 [](Args& args) {
                   args.grad_output = args.output;
                   args.grad_value = args.key;
                 },
                 {"grad_value has shape [1, 12, 2, 4]", "[1, 12, 2, 5]"});
  EXPECT_EQ(vecina_qk(context_.get(), &problem_, nullptr, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"args is NULL"});
}

TEST_F(SplitArguments, WhatTheProblemLacksIsRefused) {
  problem_.has_bias = 0;
  EXPECT_EQ(vecina_qk(context_.get(), &problem_, &args_, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"bias is given", "has_bias 0"});
  problem_.additional_tokens = 0;
  EXPECT_EQ(vecina_av(context_.get(), &problem_, &args_, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"additional_value is given", "additional_tokens 0"});
  problem_.lengths = VECINA_LENGTHS_PADDED;
  EXPECT_EQ(vecina_av(context_.get(), &problem_, &args_, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"lengths are not equal", "each sample"});
}

// Each call reads its own tensors: the others may be anything.
TEST_F(SplitArguments, OthersAreIgnored) {
  vecina_split_args args = args_;
  args.output.shape[0] = -1;
  args.value.dtype = 77;
  EXPECT_EQ(vecina_qk(context_.get(), &problem_, &args, nullptr), VECINA_OK) << vecina_last_error();
}

// The logits of one problem, aligned both ways, from one context: two plans.
TEST_F(SplitArguments, AlignmentIsPartOfThePlan) {
  const vecina_problem problem = cli::parse_problem("1d 6 kernel_size 3 causal head_dim 2");
  const cli::Inputs inputs = cli::random_inputs(problem, 9);
  for (int repeat = 0; repeat < 2; ++repeat) {
    for (const bool right_aligned : {false, true}) {
      const cli::HostTensor logits = cli::run_qk(context_.get(), problem, inputs, right_aligned);
      EXPECT_EQ(std::isinf(logits.get(0)), right_aligned);
      EXPECT_EQ(std::isinf(logits.get(2)), !right_aligned);
    }
  }
}

}  // namespace
}  // namespace vecina::tests
