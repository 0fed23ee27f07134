// SPDX-License-Identifier: MIT
// The problem line: the exact canonical text, every word, a round trip over random problems, and
// what a mistyped line is told.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "cases.h"
#include "cli/conformance.h"
#include "core/problem.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

using internal::Problem;
using internal::Status;

std::string canonical(const std::string& line) {
  Problem problem;
  const Status status = Problem::parse(line, &problem);
  return status.ok() ? problem.line() : "refused: " + status.message();
}

TEST(ProblemLine, Canonical) {
  const std::pair<const char*, const char*> rows[] = {
      // The lines of api.md.
      {"2d 32x32 kernel_size 7x7 batch 2 heads 4 head_dim 32 dtype f32",
       "2d 32x32 kernel_size 7x7 batch 2 heads 4 head_dim 32"},
      {"3d 30x48x80 kernel_size 18x24x24 stride 16x8x8 heads 24 head_dim 128 dtype bf16",
       "3d 30x48x80 kernel_size 18x24x24 stride 16x8x8 heads 24 head_dim 128 dtype bf16"},
      {"attention 77x1024 causal heads 8 heads_kv 2 head_dim 64 additional 4 dtype f16",
       "attention 77x1024 causal heads 8 heads_kv 2 head_dim 64 additional 4 dtype f16"},
      // Defaults are left out, one number stands for all axes, order does not matter.
      {"1d 9 kernel_size 3 stride 1 output_stride 1 dilation 1 causal 0 batch 1 heads 2 heads_kv 2 "
       "head_dim 4 head_dim_value 4 additional 0 dtype f32",
       "1d 9 kernel_size 3 heads 2 head_dim 4"},
      {"  2d\t9x8   dtype f16 head_dim 4 causal heads 2 kernel_size 3 ",
       "2d 9x8 kernel_size 3x3 causal heads 2 head_dim 4 dtype f16"},
      {"2d 9x8 kernel_size 3 causal 1 heads 2 head_dim 4",
       "2d 9x8 kernel_size 3x3 causal heads 2 head_dim 4"},
      {"2d 9x8 kernel_size 3 causal 1x1 heads 2 head_dim 4",
       "2d 9x8 kernel_size 3x3 causal heads 2 head_dim 4"},
      {"3d 9x8x7 kernel_size 3 causal 0x1x0 head_dim 4",
       "3d 9x8x7 kernel_size 3x3x3 causal 0x1x0 heads 1 head_dim 4"},
      {"2d 9x8 kernel_size 3 causal 0 head_dim 4", "2d 9x8 kernel_size 3x3 heads 1 head_dim 4"},
      {"2d 90x80 kernel_size 3x5 stride 2x1 output_stride 1x3 dilation 4x2 heads 6 heads_kv 3 "
       "head_dim 4 head_dim_value 9 additional 2 scale 0 bias lengths padded allow tf32 dtype bf16",
       "2d 90x80 kernel_size 3x5 stride 2x1 output_stride 1x3 dilation 4x2 heads 6 heads_kv 3 "
       "head_dim 4 head_dim_value 9 additional 2 scale 0 bias lengths padded allow tf32 dtype "
       "bf16"},
      {"1d 9 kernel_size 3 head_dim 4 lengths packed:12",
       "1d 9 kernel_size 3 heads 1 head_dim 4 lengths packed:12"},
      {"1d 9 kernel_size 3 head_dim 4 allow nondeterministic allow tf32",
       "1d 9 kernel_size 3 heads 1 head_dim 4 allow tf32 allow nondeterministic"},
      {"1d 9 kernel_size 3 head_dim 4 batch 0 scale -1.25e-3",
       "1d 9 kernel_size 3 batch 0 heads 1 head_dim 4 scale -0.00125"},
      {"attention 9x9 head_dim 4", "attention 9x9 heads 1 head_dim 4"},
      {"1d 9 kernel_size 3 head_dim 4 dtype f64",
       "1d 9 kernel_size 3 heads 1 head_dim 4 dtype f64"},
  };
  for (const auto& [given, expected] : rows) EXPECT_EQ(canonical(given), expected);
}

TEST(ProblemLine, EveryWordReachesItsField) {
  vecina_problem p = {};
  p.struct_size = sizeof(p);
  ASSERT_EQ(vecina_problem_parse(
                "3d 90x80x70 kernel_size 3x5x7 stride 2x1x7 output_stride 1x3x1 dilation 4x2x6 "
                "causal 0x1x1 batch 5 heads 6 heads_kv 3 head_dim 4 head_dim_value 9 additional 2 "
                "scale 0.5 bias lengths padded allow tf32 allow nondeterministic dtype bf16",
                &p),
            VECINA_OK)
      << vecina_last_error();
  EXPECT_EQ(p.kind, VECINA_NEIGHBORHOOD);
  EXPECT_EQ(p.rank, 3);
  const auto axes = [](const auto& values) {
    return std::vector<int64_t>(std::begin(values), std::end(values));
  };
  EXPECT_EQ(axes(p.extent), (std::vector<int64_t>{90, 80, 70}));
  EXPECT_EQ(axes(p.kernel_size), (std::vector<int64_t>{3, 5, 7}));
  EXPECT_EQ(axes(p.stride), (std::vector<int64_t>{2, 1, 7}));
  EXPECT_EQ(axes(p.output_stride), (std::vector<int64_t>{1, 3, 1}));
  EXPECT_EQ(axes(p.dilation), (std::vector<int64_t>{4, 2, 6}));
  EXPECT_EQ(axes(p.is_causal), (std::vector<int64_t>{0, 1, 1}));
  EXPECT_EQ(p.batch, 5);
  EXPECT_EQ(p.heads, 6);
  EXPECT_EQ(p.heads_kv, 3);
  EXPECT_EQ(p.head_dim, 4);
  EXPECT_EQ(p.head_dim_value, 9);
  EXPECT_EQ(p.additional_tokens, 2);
  EXPECT_EQ(p.has_scale, 1);
  EXPECT_EQ(p.scale, 0.5);
  EXPECT_EQ(p.has_bias, 1);
  EXPECT_EQ(p.lengths, VECINA_LENGTHS_PADDED);
  EXPECT_EQ(p.flags, uint32_t{VECINA_ALLOW_TF32 | VECINA_NONDETERMINISTIC_BACKWARD});
  EXPECT_EQ(p.dtype, VECINA_BF16);
  ASSERT_EQ(vecina_problem_parse("attention 77x1024 head_dim 4 lengths packed:6", &p), VECINA_OK);
  EXPECT_EQ(p.kind, VECINA_ATTENTION);
  EXPECT_EQ(p.query_extent[0], 77);
  EXPECT_EQ(p.extent[0], 1024);
  EXPECT_EQ(p.lengths, VECINA_LENGTHS_PACKED);
  EXPECT_EQ(p.samples, 6);
  EXPECT_EQ(p.has_scale, 0);
  EXPECT_EQ(p.query_key_dtype, 0);
  ASSERT_EQ(
      vecina_problem_parse("1d 9 kernel_size 3 head_dim 4 dtype f16 query_key_dtype e4m3", &p),
      VECINA_OK);
  EXPECT_EQ(p.dtype, VECINA_F16);
  EXPECT_EQ(p.query_key_dtype, VECINA_E4M3);
}

void expect_round_trip(const Problem& problem) {
  const std::string line = problem.line();
  Problem again;
  const Status status = Problem::parse(line, &again);
  ASSERT_TRUE(status.ok()) << line << "\n" << status.message();
  ASSERT_EQ(again, problem) << line << "\n" << again.line();
  ASSERT_EQ(again.line(), line);
}

TEST(ProblemLine, RoundTripOfRandomProblems) {
  for (uint64_t seed = 1; seed <= 20000; ++seed) {
    cli::Random random(seed);
    vecina_problem p = cli::random_problem(random, true);
    if (random.chance(0.3)) {
      p.has_scale = 1;
      p.scale = random.normal() * (random.chance(0.5) ? 1e-200 : 1.0);
    }
    p.flags = static_cast<uint32_t>(random.integer(0, 3));
    Problem problem;
    ASSERT_TRUE(Problem::make(p, &problem).ok()) << cli::print_problem(p);
    expect_round_trip(problem);
    if (HasFatalFailure()) return;
  }
}

TEST(ProblemLine, RoundTripOfTheCases) {
  for (const Case& row : all_cases()) {
    Problem problem;
    ASSERT_TRUE(Problem::parse(row.line, &problem).ok()) << row.line;
    expect_round_trip(problem);
  }
}

TEST(ProblemLine, PrintFollowsTheRuleOfSnprintf) {
  vecina_problem p = {};
  p.struct_size = sizeof(p);
  ASSERT_EQ(vecina_problem_parse("1d 9 kernel_size 3 head_dim 4", &p), VECINA_OK);
  const std::string line = "1d 9 kernel_size 3 heads 1 head_dim 4";
  EXPECT_EQ(vecina_problem_print(&p, nullptr, 0), line.size());
  for (size_t size : {size_t{1}, size_t{5}, line.size(), line.size() + 1, line.size() + 9}) {
    std::string text(line.size() + 16, '#');
    EXPECT_EQ(vecina_problem_print(&p, text.data(), size), line.size());
    const size_t kept = std::min(size - 1, line.size());
    EXPECT_EQ(text.substr(0, kept), line.substr(0, kept));
    EXPECT_EQ(text[kept], '\0');
    EXPECT_EQ(text.substr(size), std::string(text.size() - size, '#'));
  }
}

// Each word that is wrong stands in the sentence.
TEST(ProblemLine, SentencesForMistakes) {
  struct Row {
    const char* line;
    std::vector<std::string> words;
  };
  const std::string good = "1d 9 kernel_size 3 head_dim 4";
  const Row rows[] = {
      {"", {"1d", "attention"}},
      {"   ", {"1d", "attention"}},
      {"4d 3x3x3x3 kernel_size 3", {"'4d'"}},
      {"1D 9 kernel_size 3", {"'1D'"}},
      {"1d", {"number"}},
      {"2d 9", {"'9'"}},
      {"2d 9x8x7 kernel_size 3 head_dim 4", {"9x8x7"}},
      {"2d 9x kernel_size 3 head_dim 4", {"9x"}},
      {"2d x9 kernel_size 3 head_dim 4", {"x9"}},
      {"2d 9xx9 kernel_size 3 head_dim 4", {"9xx9"}},
      {"1d nine kernel_size 3", {"nine"}},
      {"1d 9 kernel_size", {"kernel_size", "number"}},
      {"1d 9 kernel_size three head_dim 4", {"kernel_size", "three"}},
      {"1d 9 kernel_size 3.5 head_dim 4", {"kernel_size", "3.5"}},
      {"1d 9 kernel_size 0x3 head_dim 4", {"kernel_size", "0x3"}},
      {"1d 9 kernel_size 3x3 head_dim 4", {"kernel_size", "3x3"}},
      {"1d 9 kernel_size +3 head_dim 4", {"kernel_size", "+3"}},
      {"1d 9 kernel_size 99999999999999999999 head_dim 4", {"kernel_size", "99999999999999999999"}},
      {"1d 9 kernel_sizes 3 head_dim 4", {"'kernel_sizes'", "kernel_size"}},
      {"1d 9 kernel_size 3 head_dim 4 head_dim 5", {"head_dim", "twice"}},
      {"1d 9 kernel_size 3 causal causal head_dim 4", {"causal", "twice"}},
      {"1d 9 kernel_size 3 causal 1x0 head_dim 4", {"causal", "1x0"}},
      {"1d 9 kernel_size 3 causal 10 head_dim 4", {"causal", "10"}},
      {"1d 9 kernel_size 3 heads 2147483648 head_dim 4", {"heads", "2147483648"}},
      {"1d 9 kernel_size 3 heads 4 heads_kv 3 head_dim 4", {"heads_kv", "3"}},
      {"1d 9 kernel_size 3 head_dim 4 query_key_dtype bf16", {"query_key_dtype", "bf16", "e4m3"}},
      {"1d 9 kernel_size 3 head_dim 4 query_key_dtype", {"query_key_dtype", "e4m3"}},
      {"1d 9 kernel_size 3 head_dim 4 dtype e4m3", {"dtype", "e4m3"}},
      {"1d 9 kernel_size 3 head_dim 4 scale", {"scale", "number"}},
      {"1d 9 kernel_size 3 head_dim 4 scale big", {"scale", "big"}},
      {"1d 9 kernel_size 3 head_dim 4 scale 1e400", {"scale", "within", "1e400"}},
      {"1d 9 kernel_size 3 head_dim 99999999999", {"head_dim", "2147483647", "99999999999"}},
      {"1d 99999999999999999999 kernel_size 3 head_dim 4", {"extents", "9223372036854775807"}},
      {"1d 9", {"kernel_size", "must be given"}},
      {"1d 9 kernel_size 3", {"head_dim", "must be given"}},
      {"attention 4x9", {"head_dim", "must be given"}},
      {"1d 9 kernel_size 3 heads 2 heads_kv 0 head_dim 4", {"heads_kv", "1 or more", "0"}},
      {"1d 9 kernel_size 3 head_dim 4 head_dim_value 0", {"head_dim_value", "1 or more", "0"}},
      {"1d 9 kernel_size 3 head_dim 4 scale inf", {"scale", "inf"}},
      {"1d 9 kernel_size 3 head_dim 4 scale nan", {"scale", "nan"}},
      {"1d 9 kernel_size 3 head_dim 4 scale 1e999", {"scale", "1e999"}},
      {"1d 9 kernel_size 3 head_dim 4 lengths", {"lengths", "padded", "packed"}},
      {"1d 9 kernel_size 3 head_dim 4 lengths equal", {"lengths", "'equal'"}},
      {"1d 9 kernel_size 3 head_dim 4 lengths packed", {"lengths", "'packed'"}},
      {"1d 9 kernel_size 3 head_dim 4 lengths packed:", {"lengths", "'packed:'"}},
      {"1d 9 kernel_size 3 head_dim 4 lengths packed:0", {"samples", "0"}},
      {"1d 9 kernel_size 3 head_dim 4 lengths packed:2x", {"lengths", "packed:2x"}},
      {"1d 9 kernel_size 3 batch 2 head_dim 4 lengths packed:2", {"batch", "2"}},
      {"1d 9 kernel_size 3 head_dim 4 allow", {"allow", "tf32"}},
      {"1d 9 kernel_size 3 head_dim 4 allow all", {"allow", "'all'"}},
      {"1d 9 kernel_size 3 head_dim 4 dtype", {"dtype", "f32"}},
      {"1d 9 kernel_size 3 head_dim 4 dtype fp8", {"dtype", "'fp8'"}},
      {"1d 9 kernel_size 3 head_dim 4 dtype i32", {"dtype", "'i32'"}},
      {"1d 9 kernel_size 3 head_dim 4 F16", {"'F16'"}},
      {"1d 9 kernel_size 3", {"head_dim"}},
      {"1d 9 head_dim 4", {"kernel_size"}},
      {"1d 9 kernel_size 4 dilation 3 head_dim 4", {"kernel_size 4", "dilation 3", "12", "9"}},
      {"attention 9 head_dim", {"head_dim", "number"}},
      {"attention 9x9x9 head_dim 4", {"9x9x9"}},
      {"attention 9x9 kernel_size 3 head_dim 4", {"attention", "kernel_size", "3"}},
      {"attention 0x9 head_dim 4", {"query"}},
      {"attention 9x0 head_dim 4", {"extent", "0"}},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.line);
    Problem problem;
    ASSERT_TRUE(Problem::parse(good, &problem).ok());
    const Problem before = problem;
    const Status status = Problem::parse(row.line, &problem);
    EXPECT_EQ(status.code(), VECINA_INVALID_ARGUMENT);
    for (const std::string& word : row.words) {
      EXPECT_NE(status.message().find(word), std::string::npos)
          << "'" << word << "' is missing in: " << status.message();
    }
    EXPECT_EQ(problem, before) << "a refused line leaves the problem as it was";
  }
}

}  // namespace
}  // namespace vecina::tests
