// SPDX-License-Identifier: MIT
// Every listed backend on every row of tests/cases.json: right by the rule of cli/conformance.h, or
// a sentence why not. Then a sweep of random problems.
#include "cli/conformance.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cases.h"
#include "cli/errors.h"
#include "cli/random.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

cli::Checker& checker_of(const std::string& backend) {
  static std::map<std::string, cli::Checker> checkers;
  return checkers.try_emplace(backend, backend, 2).first->second;
}

class Conformance : public testing::TestWithParam<std::tuple<std::string, Case>> {};

TEST_P(Conformance, ForwardMatchesReference) {
  const auto& [backend, row] = GetParam();
  cli::Checker& checker = checker_of(backend);
  const std::string why = checker.why_not(row.problem);
  if (!why.empty()) {
    // A refusal holds for every call, says the same, and writes nothing.
    const cli::Outputs outputs = cli::make_outputs(row.problem);
    const cli::Inputs inputs = cli::random_inputs(row.problem, 1);
    const vecina_forward_args args = cli::forward_args(inputs, outputs);
    EXPECT_EQ(vecina_forward(checker.context(), &row.problem, &args, nullptr), VECINA_UNSUPPORTED);
    expect_last_error({backend, why});
    for (double value : values_of(outputs.output)) ASSERT_TRUE(std::isnan(value));
    GTEST_SKIP() << backend << ": " << why;
  }
  for (uint64_t seed : {1, 2, 3}) {  // each picks its placement
    const cli::Verdict verdict = checker.check_forward(row.problem, seed);
    EXPECT_TRUE(verdict.passed) << row.line << " seed " << seed << "\n" << verdict.detail;
  }
}

TEST_P(Conformance, BackwardMatchesReference) {
  const auto& [backend, row] = GetParam();
  cli::Checker& checker = checker_of(backend);
  if (!checker.why_not(row.problem).empty()) GTEST_SKIP() << checker.why_not(row.problem);
  for (uint64_t seed : {1, 2}) {  // each picks its placement
    cli::Verdict verdict;
    try {
      verdict = checker.check_backward(row.problem, seed);
    } catch (const cli::Unsupported& refusal) {  // of backward alone
      EXPECT_NE(backend, "reference") << refusal.what();
      GTEST_SKIP() << refusal.what();
    }
    EXPECT_TRUE(verdict.passed) << row.line << " seed " << seed << "\n" << verdict.detail;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Conformance,
                         testing::Combine(testing::ValuesIn(backend_names()),
                                          testing::ValuesIn(all_cases())),
                         [](const auto& row) {
                           return std::get<0>(row.param) + "_" +
                                  test_name(std::get<1>(row.param).name);
                         });

// A row that no backend takes is a failure; one that only the reference takes is listed.
TEST(ConformanceTable, EveryRowIsTaken) {
  int num_reference_only = 0;
  for (const Case& row : all_cases()) {
    bool is_fast = false, is_taken = false;
    for (const std::string& backend : backend_names()) {
      if (!checker_of(backend).why_not(row.problem).empty()) continue;
      is_taken = true;
      is_fast = is_fast || backend != "reference";
    }
    EXPECT_TRUE(is_taken) << row.line;
    if (is_taken && !is_fast) {
      ++num_reference_only;
      std::printf("only reference takes: %s (%s)\n", row.name.c_str(), row.line.c_str());
    }
  }
  RecordProperty("rows_only_reference_takes", num_reference_only);
}

// The names of the seed's 21 configurations whose problems differ stand in the table.
TEST(ConformanceTable, HoldsTheSeed) {
  int num_seed = 0;
  for (const Case& row : all_cases())
    num_seed += row.name.find("_L") != std::string::npos ||
                row.name.find("_32x32_") != std::string::npos ||
                row.name.find("Kfull") != std::string::npos;
  EXPECT_EQ(num_seed, 17);
}

TEST(ConformanceSweep, RandomProblems) {
  for (const std::string& backend : backend_names()) {
    if (backend == "reference") continue;
    int num_checked = 0;
    for (uint64_t seed = 1; seed <= 400; ++seed) {
      cli::Random random(seed * 7919);
      vecina_problem problem = cli::random_problem(random, /*everything=*/true);
      if (!checker_of(backend).why_not(problem).empty()) problem = cli::random_problem(random);
      if (!checker_of(backend).why_not(problem).empty()) continue;
      const cli::Verdict verdict = checker_of(backend).check_forward(problem, seed);
      ASSERT_TRUE(verdict.passed) << backend << ": " << cli::print_problem(problem) << " seed "
                                  << seed << "\n"
                                  << verdict.detail;
      const cli::Verdict gradients = checker_of(backend).check_backward(problem, seed);
      ASSERT_TRUE(gradients.passed)
          << backend << ": " << cli::print_problem(problem) << " seed " << seed << "\n"
          << gradients.detail;
      ++num_checked;
    }
    EXPECT_GE(num_checked, 300) << backend << " refuses too many of its own fields";
  }
}

// Logits of which rounding leaves lse no digits, of more keys than a tile holds and of fewer.
// Rounding the logits themselves in another order than plain maths may take a few times what is
// allowed; probabilities that followed from lse took thousands.
TEST(ConformanceOfLargeLogits, Gradients) {
  cli::Checker& checker = checker_of("cpu");
  for (const char* line : {"1d 600 kernel_size 550 heads 1 head_dim 16",
                           "1d 600 kernel_size 550 causal heads 2 heads_kv 1 head_dim 16",
                           "2d 30x30 kernel_size 25 causal 0x1 heads 1 head_dim 8 bias",
                           "2d 60x60 kernel_size 25 output_stride 3x2 heads 1 head_dim 8",
                           "attention 50x600 causal heads 1 head_dim 8 additional 150",
                           "1d 198 kernel_size 10 causal heads 2 head_dim 64"}) {
    for (const char* scale :
         {"scale -1e5", "scale 1e9", "scale -1e5 dtype bf16", "scale 1e9 dtype bf16"}) {
      const std::string whole = std::string(line) + " " + scale;
      for (uint64_t seed : {1, 2}) {
        const cli::Verdict verdict = checker.check_backward(cli::parse_problem(whole), seed);
        EXPECT_LT(verdict.worst, 20.0) << whole << " seed " << seed << "\n" << verdict.detail;
      }
    }
  }
}

// What is added to all logits of a query changes no weight, however large, while the logits stay
// exact: their base in base 2 is query 0 times 1, and the keys differ by whole numbers from it.
TEST(ConformanceOfLargeLogits, ABaseOfAllChangesNothing) {
  const cli::ContextPtr context = cli::make_context("cpu", 2);
  for (const char* line :
       {"1d 40 kernel_size 40 heads 1 head_dim 16", "1d 300 kernel_size 41 heads 1 head_dim 16",
        "2d 9x21 kernel_size 3x5 heads 1 head_dim 16",
        "2d 9x33 kernel_size 9x33 causal heads 1 head_dim 32"}) {
    for (const int32_t dtype : {VECINA_F32, VECINA_F64}) {
      vecina_problem problem = cli::parse_problem(line);
      problem.dtype = dtype;
      problem.has_scale = 1;
      problem.scale = std::log(2.0);
      cli::Inputs inputs = cli::random_inputs(problem, /*seed=*/6);
      cli::Random random(7);
      inputs.query.fill(0.0);
      inputs.key.fill(0.0);
      const int64_t size = problem.head_dim, tokens = inputs.query.size() / size;
      for (int64_t i = 0; i < tokens; ++i) {
        inputs.query.set(i * size + 1, 1.0);
        inputs.key.set(i * size, 1.0);
        inputs.key.set(i * size + 1, std::floor(4.0 * random.normal()));
      }
      const cli::Outputs plain = run_forward(context.get(), problem, inputs);
      const double limit = dtype == VECINA_F32 ? 0x1p21 : 0x1p50, digits = limit * 8.0;
      // Of queries side by side: all within the limit, around it, beyond it, and a few among
      // others.
      for (const std::vector<double>& bases :
           {std::vector{0.25 * limit, -0.5 * limit},
            {limit, -limit, limit - 3.0, 3.0 - limit},
            {2.0 * limit, -4.0 * limit},
            {3.0, -5.0, 2.0 * limit, 0.0, 7.0, -2.0 * limit, 1.0}}) {
        for (int64_t i = 0; i < tokens; ++i) {
          inputs.query.set(i * size, bases[static_cast<size_t>(i) % bases.size()]);
        }
        const cli::Outputs shifted = run_forward(context.get(), problem, inputs);
        const std::string name = cli::print_problem(problem);
        expect_close(name, shifted.output, values_of(plain.output), 4.0 / digits, 4.0 / digits);
        std::vector<double> lse = values_of(plain.lse);
        for (size_t i = 0; i < lse.size(); ++i) lse[i] += problem.scale * bases[i % bases.size()];
        expect_close(name + " lse", shifted.lse, lse, 4.0 / digits, 4.0 / digits);
      }
    }
  }
}

// Of large tensors too, which several threads draw.
TEST(RandomInputs, AreOneSequence) {
  const vecina_problem problem = cli::parse_problem("1d 100000 kernel_size 3 head_dim 8 dtype f64");
  const cli::Inputs inputs = cli::random_inputs(problem, /*seed=*/5);
  cli::Random random(5);
  for (const cli::HostTensor* tensor : {&inputs.query, &inputs.key, &inputs.value}) {
    for (int64_t i = 0; i < tensor->size(); ++i) ASSERT_EQ(tensor->get(i), random.normal()) << i;
  }
}

// Plain maths that was right by luck is drawn again, and nothing else is forgiven.
TEST(CompareRule, AsksForOtherNumbersBeforeItFails) {
  constexpr uint64_t kSeed = 7;
  uint64_t num_draws = 0;
  const auto tensor = [](double value) {
    cli::HostTensor single({1}, VECINA_F64);
    single.fill(value);
    return cli::Results{{"output", single}};
  };
  const auto passes = [&](double actual) {
    num_draws = 0;
    const auto draw = [&](uint64_t seed) -> cli::Yardsticks {
      ++num_draws;
      return {tensor(1.0), tensor(seed == kSeed ? 1.0 : 1.0 + 1e-3)};
    };
    return cli::judge(tensor(actual), kSeed, VECINA_F32, draw).passed;
  };
  EXPECT_TRUE(passes(1.0));
  EXPECT_EQ(num_draws, 1u);
  EXPECT_TRUE(passes(1.0 + 1.9e-3));
  EXPECT_EQ(num_draws, 2u);
  EXPECT_FALSE(passes(1.0 + 2.2e-3));
  EXPECT_EQ(num_draws, 8u);
  EXPECT_FALSE(passes(NAN));
  EXPECT_EQ(num_draws, 1u) << "other numbers excuse no NaN";
}

// The rule itself: what it lets pass and what it does not.
TEST(CompareRule, FailsOnWhatItShould) {
  cli::HostTensor exact({4}, VECINA_F64), plain({4}, VECINA_F32), actual({4}, VECINA_F32);
  const auto fill = [&](double error, double plain_error) {
    for (int64_t i = 0; i < 4; ++i) {
      exact.set(i, static_cast<double>(i));
      plain.set(i, static_cast<double>(i) + (i == 2 ? plain_error : 0.0));
      actual.set(i, static_cast<double>(i) + (i == 1 ? error : 0.0));
    }
  };
  const auto passes = [&] {
    return cli::compare("output", actual, exact, plain, VECINA_F32).passed;
  };
  fill(0.0, 0.0);
  EXPECT_TRUE(passes());
  fill(2.9e-6, 0.0);  // floor: 1e-6 of the largest, 3
  EXPECT_TRUE(passes());
  fill(3.5e-6, 0.0);
  EXPECT_FALSE(passes());
  fill(1.9e-3, 1e-3);  // twice the plain error
  EXPECT_TRUE(passes());
  fill(2.2e-3, 1e-3);
  EXPECT_FALSE(passes());
  fill(0.0, 0.0);
  actual.set(3, NAN);
  EXPECT_FALSE(passes());
  exact.set(3, NAN);
  plain.set(3, NAN);
  EXPECT_TRUE(passes());
  actual.set(3, 3.0);
  EXPECT_FALSE(passes()) << "a NaN that is due must come";

  cli::HostTensor exact_lse({2}, VECINA_F64), lse({2}, VECINA_F32), plain_lse({2}, VECINA_F32);
  double plain_lse_error = 0.0;
  const auto lse_passes = [&](double value, double error, int32_t dtype) {
    for (int64_t i = 0; i < 2; ++i) {
      exact_lse.set(i, value);
      plain_lse.set(i, value + (i == 0 ? plain_lse_error : 0.0));
      lse.set(i, value + (i == 1 ? error : 0.0));
    }
    return cli::compare_lse(lse, exact_lse, plain_lse, dtype).passed;
  };
  EXPECT_TRUE(lse_passes(0.25, 1.8e-6, VECINA_F32));
  EXPECT_FALSE(lse_passes(0.25, 2.3e-6, VECINA_F32));
  EXPECT_TRUE(lse_passes(64.0, 64 * 1.8e-6, VECINA_F32));
  EXPECT_FALSE(lse_passes(64.0, 64 * 2.3e-6, VECINA_F32));
  EXPECT_TRUE(lse_passes(0.25, 9e-6, VECINA_BF16));
  EXPECT_FALSE(lse_passes(0.25, 1.2e-5, VECINA_F16));
  EXPECT_FALSE(lse_passes(0.25, NAN, VECINA_F32));
  plain_lse_error = 2e-6;
  EXPECT_TRUE(lse_passes(0.25, 3.5e-6, VECINA_F32)) << "the plain sum is no better";
  EXPECT_FALSE(lse_passes(0.25, 5e-6, VECINA_F32));
  EXPECT_FALSE(lse_passes(0.25, 1.2e-5, VECINA_F16));
  plain_lse_error = 1e-3;
  EXPECT_FALSE(lse_passes(0.25, 1.2e-5, VECINA_F16));
  EXPECT_TRUE(lse_passes(0.25, 1.9e-3, VECINA_E4M3));
  EXPECT_FALSE(lse_passes(0.25, 2.2e-3, VECINA_E4M3));
}

}  // namespace
}  // namespace vecina::tests
