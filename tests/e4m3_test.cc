// SPDX-License-Identifier: MIT
// Query and key in e4m3: the reference against the oracle, every other backend against the
// reference or with a sentence why not, and what no backend has.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "cases.h"
#include "cli/conformance.h"
#include "cli/errors.h"
#include "oracle.h"
#include "results.h"
#include "vecina/vecina.hpp"

namespace vecina::tests {
namespace {

std::vector<std::string> problem_lines() {
  std::ifstream file(tests_path("e4m3_problems.txt"));
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

TEST(E4m3, ReferenceIsTheDefinition) {
  const cli::ContextPtr context = cli::make_context("reference", 1);
  for (const char* line : {
           "1d 23 kernel_size 6 batch 2 heads 4 heads_kv 2 head_dim 16",
           "2d 9x10 kernel_size 3x5 stride 1x2 causal 1x0 heads 2 head_dim 5 head_dim_value 3 "
           "additional 2 dtype bf16",
           "3d 6x5x7 kernel_size 3x2x3 dilation 2x1x1 heads 2 head_dim 8 bias dtype f64",
           "2d 9x8 kernel_size 3 batch 3 heads 2 head_dim 8 lengths padded dtype f16",
           "1d 20 kernel_size 4 heads 2 head_dim 8 scale -0.3 lengths packed:3",
           "attention 7x19 heads 2 head_dim 8 dtype bf16",
       }) {
    const vecina_problem problem = cli::parse_problem(std::string(line) + " query_key_dtype e4m3");
    for (uint64_t seed : {1, 2}) {  // with head_scale, and without
      SCOPED_TRACE(line + (" seed " + std::to_string(seed)));
      const cli::Placement placement = {3, 1};
      const cli::Inputs inputs = cli::random_inputs(problem, seed, placement);
      ASSERT_EQ(inputs.head_scale.given(), seed == 1);
      ASSERT_EQ(inputs.query.dtype(), VECINA_E4M3);
      const OracleOutputs expected = oracle_forward(problem, inputs);
      const cli::Outputs outputs = run_forward(context.get(), problem, inputs, placement);
      expect_rounded("output", outputs.output, expected.output, 1e-11);
      expect_rounded("lse", outputs.lse, expected.lse, 1e-11);
    }
  }
}

TEST(E4m3, EveryBackendIsRightOrSaysWhoTakesIt) {
  for (const std::string& backend : backend_names()) {
    if (backend == "reference") continue;
    cli::Checker checker(backend, 2);
    const std::vector<std::string> lines = problem_lines();
    ASSERT_FALSE(lines.empty());
    for (const std::string& line : lines) {
      const vecina_problem problem = cli::parse_problem(line);
      const std::string why = checker.why_not(problem);
      if (!why.empty()) {
        EXPECT_NE(why.find("e4m3"), std::string::npos) << why;
        EXPECT_NE(why.find("cuda"), std::string::npos) << why;
        EXPECT_NE(why.find("reference"), std::string::npos) << why;
        continue;
      }
      for (uint64_t seed : {1, 2}) {  // with head_scale, and without
        const cli::Verdict verdict = checker.check_forward(problem, seed);
        EXPECT_TRUE(verdict.passed) << backend << ": " << line << " seed " << seed << "\n"
                                    << verdict.detail;
      }
    }
  }
}

// The yardstick of lse: 14 bits of the largest product are added, and no more stay of a sum.
TEST(E4m3, PlainSumsAsTensorCoresDo) {
  const vecina_problem problem =
      cli::parse_problem("attention 1x1 head_dim 40 scale 1 query_key_dtype e4m3");
  const cli::ContextPtr context = cli::make_context("plain", 1);
  cli::Inputs inputs = cli::random_inputs(problem, 2);
  const auto sum_of = [&](const std::vector<double>& query) {
    for (int64_t d = 0; d < 40; ++d) {
      const auto at = static_cast<size_t>(d);
      inputs.query.set(d, at < query.size() ? query[at] : 0.0);
      inputs.key.set(d, 1.0);
    }
    return run_forward(context.get(), problem, inputs).lse.get(0);
  };
  EXPECT_EQ(sum_of({256.0, 0.0625, 0.03125}), 256.0 + 0.0625 + 0.03125);
  EXPECT_EQ(sum_of({256.0, 0.046875, 0.015625, 0.015625, -0.015625}), 256.0 + 0.03125) << "cut";
  EXPECT_EQ(sum_of({1.0, -0.015625, 0.001953125}), 1.0 - 0.015625 + 0.001953125);
  std::vector<double> query(40, 0.0);
  query[0] = 256.0, query[1] = -256.0, query[2] = 0.015625, query[32] = 0.015625;
  EXPECT_EQ(sum_of(query), 0.015625) << "only the first 32 have a largest one";
  query[1] = 256.0;
  query[32] = 0.0625;
  EXPECT_EQ(sum_of(query), 512.0 + 0.0625);
  query[32] = 0.03125;
  EXPECT_EQ(sum_of(query), 512.0) << "a sum has 14 bits, too";
  EXPECT_EQ(sum_of({}), 0.0);
  query[3] = NAN;
  EXPECT_TRUE(std::isnan(sum_of(query)));
}

TEST(E4m3, AWrongLseFails) {
  const cli::ContextPtr reference = cli::make_context("reference", 1);
  cli::Checker checker("plain", 1);
  for (const char* line : {
           "2d 12x13 kernel_size 5x7 heads 2 head_dim 128 dtype bf16",
           "3d 5x4x6 kernel_size 3 heads 4 heads_kv 2 head_dim 256 additional 3 dtype f16",
           "attention 23x60 batch 2 heads 2 head_dim 64 lengths padded dtype bf16",
           "1d 3 kernel_size 3 heads 2 head_dim 16 dtype bf16",
       }) {
    const vecina_problem problem = cli::parse_problem(std::string(line) + " query_key_dtype e4m3");
    for (uint64_t seed : {1, 2}) {  // with head_scale, and without
      SCOPED_TRACE(line + (" seed " + std::to_string(seed)));
      const cli::Inputs inputs = cli::random_inputs(problem, seed);
      cli::Outputs outputs = run_forward(reference.get(), problem, inputs);
      const auto verdict = [&] {
        return checker.judge_forward(problem, seed,
                                     {{"output", outputs.output}, {"lse", outputs.lse}});
      };
      EXPECT_TRUE(verdict().passed) << verdict().detail;
      const double right = outputs.lse.get(0);
      ASSERT_TRUE(std::isfinite(right));
      const double wrong = seed == 1 ? 0.02 : 0.005;
      for (const double error : {wrong, -wrong}) {
        outputs.lse.set(0, right + error);
        EXPECT_FALSE(verdict().passed) << verdict().worst;
      }
    }
  }
}

TEST(E4m3, HasNeitherGradientsNorTheSplitForm) {
  const vecina_problem problem =
      cli::parse_problem("1d 23 kernel_size 6 heads 2 head_dim 16 dtype bf16 query_key_dtype e4m3");
  cli::Checker checker("reference", 1);
  EXPECT_THROW(checker.check_backward(problem, 1), cli::Unsupported);
  expect_last_error({"e4m3", "forward only", "gradients"});
  EXPECT_THROW(checker.check_split(problem, 1), cli::Unsupported);
  expect_last_error({"e4m3", "forward only", "split form"});
}

TEST(E4m3, DtypeOfTheProblemIsAsNone) {
  vecina_problem problem = cli::parse_problem("1d 9 kernel_size 3 heads 2 head_dim 4 dtype bf16");
  const auto text = [&](int32_t query_key_dtype) {
    problem.query_key_dtype = query_key_dtype;
    char line[200] = "";
    vecina_problem_print(&problem, line, sizeof(line));
    return std::string(line);
  };
  EXPECT_EQ(text(VECINA_BF16), text(0));
  EXPECT_NE(text(VECINA_E4M3), text(0));
  problem.query_key_dtype = VECINA_F16;
  EXPECT_EQ(vecina_problem_check(&problem), VECINA_INVALID_ARGUMENT);
  expect_last_error({"query_key_dtype", "f16", "bf16", "e4m3"});
}

// The C++ interface, on spans.
TEST(E4m3, SpansOfTheCppInterface) {
  const Problem problem =
      Problem(1).extent(9).kernel_size(3).heads(2).head_dim(4).scale(1.0).query_key_dtype(
          VECINA_E4M3);
  const std::vector<float8_e4m3> query(72, float8_e4m3(0.5f)), key(72, float8_e4m3(1.0f));
  const std::vector<float> value(72, 2.0f), head_scale = {1.0f, 0.25f};
  std::vector<float> output(72), lse(18);
  const Context context;
  forward(context, problem,
          {.query = query,
           .key = key,
           .value = value,
           .output = output,
           .lse = lse,
           .head_scale = head_scale});
  for (const float number : output) EXPECT_FLOAT_EQ(number, 2.0f);
  for (size_t i = 0; i < lse.size(); ++i) {  // three keys, each with a logit of 2 * head_scale
    EXPECT_FLOAT_EQ(lse[i], std::log(3.0f) + (i % 2 == 0 ? 2.0f : 0.5f));
  }
}

}  // namespace
}  // namespace vecina::tests
