// SPDX-License-Identifier: MIT
// The rules of a problem: what Problem::make accepts, what it refuses, and that the sentence names
// the field, the value given and the rule. Struct sizes, equality and hashing.
#include "core/problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cli/conformance.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

using internal::Problem;
using internal::Status;

vecina_problem valid_2d() {
  vecina_problem p;
  vecina_problem_init(&p, sizeof(p), 2);
  p.batch = 2;
  p.heads = 4;
  p.heads_kv = 2;
  p.head_dim = 32;
  p.extent[0] = 16;
  p.extent[1] = 20;
  p.kernel_size[0] = 7;
  p.kernel_size[1] = 5;
  return p;
}

vecina_problem valid_attention() {
  vecina_problem p;
  vecina_problem_init(&p, sizeof(p), 1);
  p.kind = VECINA_ATTENTION;
  p.heads = 4;
  p.head_dim = 32;
  p.extent[0] = 16;
  p.query_extent[0] = 9;
  return p;
}

using Change = std::function<void(vecina_problem&)>;

// Each of `words` must stand in the sentence that refuses the changed problem.
struct Refusal {
  const char* what;
  Change change;
  std::vector<std::string> words;
};

void expect_refused(vecina_problem p, const Refusal& row) {
  row.change(p);
  Problem made;
  const Status status = Problem::make(p, &made);
  EXPECT_EQ(status.code(), VECINA_INVALID_ARGUMENT);
  for (const std::string& word : row.words) {
    EXPECT_NE(status.message().find(word), std::string::npos)
        << "'" << word << "' is missing in: " << status.message();
  }
  EXPECT_EQ(made, Problem()) << "a refused problem is left as it was";
  EXPECT_EQ(vecina_problem_check(&p), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_last_error(), status.message());
}

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

TEST(ProblemMake, RefusesNeighborhood) {
  ASSERT_EQ(vecina_problem_check(nullptr), VECINA_INVALID_ARGUMENT);
  const vecina_problem p = valid_2d();
  ASSERT_EQ(vecina_problem_check(&p), VECINA_OK) << vecina_last_error();
  const Refusal rows[] = {
      {"kind unknown", [](auto& q) { q.kind = 2; }, {"kind", "2"}},
      {"kind negative", [](auto& q) { q.kind = -1; }, {"kind", "-1"}},
      {"rank 0", [](auto& q) { q.rank = 0; }, {"rank", "0"}},
      {"rank 4", [](auto& q) { q.rank = 4; }, {"rank", "4"}},
      {"rank -2", [](auto& q) { q.rank = -2; }, {"rank", "-2"}},
      {"batch -1", [](auto& q) { q.batch = -1; }, {"batch", "-1"}},
      {"heads 0", [](auto& q) { q.heads = 0; }, {"heads", "0"}},
      {"heads -4", [](auto& q) { q.heads = -4; }, {"heads", "-4"}},
      {"heads_kv 3 of 4", [](auto& q) { q.heads_kv = 3; }, {"heads", "4", "heads_kv", "3"}},
      {"heads_kv 8 of 4", [](auto& q) { q.heads_kv = 8; }, {"heads", "4", "heads_kv", "8"}},
      {"heads_kv -2", [](auto& q) { q.heads_kv = -2; }, {"heads_kv", "-2"}},
      {"head_dim 0", [](auto& q) { q.head_dim = 0; }, {"head_dim", "0"}},
      {"head_dim -8", [](auto& q) { q.head_dim = -8; }, {"head_dim", "-8"}},
      {"head_dim_value -1", [](auto& q) { q.head_dim_value = -1; }, {"head_dim_value", "-1"}},
      {"extent 0", [](auto& q) { q.extent[1] = 0; }, {"extent", "0", "axis 1"}},
      {"extent negative", [](auto& q) { q.extent[0] = -16; }, {"extent", "-16", "axis 0"}},
      {"extent huge", [](auto& q) { q.extent[0] = kHuge; }, {"extent", "axis 0"}},
      {"extent 2^31", [](auto& q) { q.extent[0] = int64_t{1} << 31; }, {"extent", "2147483648"}},
      {"kernel_size 0", [](auto& q) { q.kernel_size[1] = 0; }, {"kernel_size", "0", "axis 1"}},
      {"kernel_size -3", [](auto& q) { q.kernel_size[0] = -3; }, {"kernel_size", "-3", "axis 0"}},
      {"kernel_size beyond the extent",
       [](auto& q) { q.kernel_size[1] = 21; },
       {"kernel_size 21", "20 tokens", "axis 1"}},
      {"kernel_size x dilation beyond the extent",
       [](auto& q) { q.dilation[0] = 3; },
       {"kernel_size 7", "dilation 3", "21", "16 tokens", "axis 0", "at most 5"}},
      {"kernel_size x dilation overflows",
       [](auto& q) {
         q.kernel_size[0] = int64_t{1} << 33;
         q.dilation[0] = int64_t{1} << 32;
       },
       {"kernel_size", "dilation", "axis 0"}},
      {"kernel_size x dilation wraps around to a small number",
       [](auto& q) {
         q.kernel_size[0] = 2;
         q.dilation[0] = kHuge;
       },
       {"dilation", "axis 0"}},
      {"dilation 0", [](auto& q) { q.dilation[1] = 0; }, {"dilation", "0", "axis 1"}},
      {"dilation -1", [](auto& q) { q.dilation[1] = -1; }, {"dilation", "-1", "axis 1"}},
      {"stride 0", [](auto& q) { q.stride[0] = 0; }, {"stride", "0", "axis 0"}},
      {"stride -1", [](auto& q) { q.stride[0] = -1; }, {"stride", "-1", "axis 0"}},
      {"stride beyond kernel_size",
       [](auto& q) { q.stride[1] = 6; },
       {"stride 6", "axis 1", "kernel_size 5"}},
      {"output_stride 0", [](auto& q) { q.output_stride[0] = 0; }, {"output_stride", "0"}},
      {"output_stride -2", [](auto& q) { q.output_stride[1] = -2; }, {"output_stride", "-2"}},
      {"output_stride huge", [](auto& q) { q.output_stride[1] = kHuge; }, {"output_stride"}},
      {"stride and output_stride on one axis",
       [](auto& q) { q.stride[1] = q.output_stride[1] = 2; },
       {"stride 2", "output_stride 2", "axis 1"}},
      {"is_causal 2", [](auto& q) { q.is_causal[1] = 2; }, {"is_causal", "2", "axis 1"}},
      {"is_causal -1", [](auto& q) { q.is_causal[0] = -1; }, {"is_causal", "-1", "axis 0"}},
      {"query_extent differs", [](auto& q) { q.query_extent[1] = 19; }, {"query_extent 19", "20"}},
      {"dtype unknown", [](auto& q) { q.dtype = 6; }, {"dtype", "6"}},
      {"dtype negative", [](auto& q) { q.dtype = -1; }, {"dtype", "-1"}},
      {"dtype i32", [](auto& q) { q.dtype = VECINA_I32; }, {"dtype", "i32"}},
      {"dtype i64", [](auto& q) { q.dtype = VECINA_I64; }, {"dtype", "i64"}},
      {"additional_tokens -1", [](auto& q) { q.additional_tokens = -1; }, {"additional", "-1"}},
      {"additional_tokens huge", [](auto& q) { q.additional_tokens = kHuge; }, {"additional"}},
      {"scale infinite",
       [](auto& q) {
         q.has_scale = 1;
         q.scale = -std::numeric_limits<double>::infinity();
       },
       {"scale", "-inf"}},
      {"scale NaN",
       [](auto& q) {
         q.has_scale = 1;
         q.scale = std::nan("");
       },
       {"scale", "nan"}},
      {"scale beyond f32",
       [](auto& q) {
         q.has_scale = 1;
         q.scale = -1e39;
       },
       {"scale", "-1e+39", "2.35e+38", "f32"}},
      {"scale beyond f32, times log2(e)",
       [](auto& q) {
         q.has_scale = 1;
         q.scale = 3e38;
         q.dtype = VECINA_BF16;
       },
       {"scale", "3e+38", "2.35e+38", "bf16"}},
      {"scale beyond f64, times log2(e)",
       [](auto& q) {
         q.has_scale = 1;
         q.scale = 1.3e308;
         q.dtype = VECINA_F64;
       },
       {"scale", "1.3e+308", "1.24e+308", "f64"}},
      {"has_scale 2", [](auto& q) { q.has_scale = 2; }, {"has_scale", "2"}},
      {"has_bias -1", [](auto& q) { q.has_bias = -1; }, {"has_bias", "-1"}},
      {"lengths unknown", [](auto& q) { q.lengths = 3; }, {"lengths", "3"}},
      {"lengths negative", [](auto& q) { q.lengths = -1; }, {"lengths", "-1"}},
      {"samples without packing", [](auto& q) { q.samples = 2; }, {"samples", "2"}},
      {"packed without samples",
       [](auto& q) {
         q.lengths = VECINA_LENGTHS_PACKED;
         q.batch = 1;
       },
       {"samples", "0"}},
      {"packed with batch 2",
       [](auto& q) {
         q.lengths = VECINA_LENGTHS_PACKED;
         q.samples = 3;
       },
       {"batch", "2"}},
      {"flags unknown", [](auto& q) { q.flags = 5; }, {"flags", "0x4"}},
      {"flags, highest bit", [](auto& q) { q.flags = 0x80000000u; }, {"flags", "0x80000000"}},
      {"query_key_dtype of 16 bits",
       [](auto& q) { q.query_key_dtype = VECINA_BF16; },
       {"query_key_dtype", "bf16", "e4m3"}},
      {"query_key_dtype unknown",
       [](auto& q) { q.query_key_dtype = -1; },
       {"query_key_dtype", "-1"}},
      {"dtype e4m3", [](auto& q) { q.dtype = VECINA_E4M3; }, {"dtype", "e4m3", "bf16"}},
      {"bytes beyond 2^60",
       [](auto& q) { q.batch = int64_t{1} << 60; },
       {"batch", "1152921504606846976"}},
      {"additional tokens of all packed samples beyond 2^60 bytes",
       [](auto& q) {
         q.lengths = VECINA_LENGTHS_PACKED;
         q.batch = 1;
         q.samples = 1 << 30;
         q.additional_tokens = 1 << 29;
       },
       {"samples 1073741824", "2^60"}},
      {"product of extents overflows",
       [](auto& q) {
         q.extent[0] = q.extent[1] = int64_t{1} << 29;
         q.heads = 1 << 20;
       },
       {"batch", "heads"}},
      {"product wraps around to 0",
       [](auto& q) {
         q.extent[0] = q.extent[1] = int64_t{1} << 29;
         q.heads = q.heads_kv = 64;
         q.batch = q.head_dim = 1 << 16;
       },
       {"batch", "heads"}},
      {"additional tokens overflow",
       [](auto& q) {
         q.additional_tokens = int64_t{1} << 29;
         q.batch = int64_t{1} << 29;
       },
       {"batch"}},
  };
  for (const Refusal& row : rows) {
    SCOPED_TRACE(row.what);
    expect_refused(p, row);
  }
}

TEST(ProblemMake, RefusesAttention) {
  const vecina_problem p = valid_attention();
  ASSERT_EQ(vecina_problem_check(&p), VECINA_OK) << vecina_last_error();
  const Refusal rows[] = {
      {"rank 2", [](auto& q) { q.rank = 2; }, {"attention", "rank", "2"}},
      {"kernel_size given", [](auto& q) { q.kernel_size[0] = 5; }, {"kernel_size", "5"}},
      {"stride", [](auto& q) { q.stride[0] = 2; }, {"stride", "2"}},
      {"output_stride", [](auto& q) { q.output_stride[0] = 2; }, {"output_stride", "2"}},
      {"dilation", [](auto& q) { q.dilation[0] = 2; }, {"dilation", "2"}},
      {"bias", [](auto& q) { q.has_bias = 1; }, {"bias"}},
      {"extent 0", [](auto& q) { q.extent[0] = 0; }, {"extent", "0"}},
      {"query_extent -1", [](auto& q) { q.query_extent[0] = -1; }, {"query_extent", "-1"}},
      {"query_extent huge", [](auto& q) { q.query_extent[0] = kHuge; }, {"query_extent"}},
      {"is_causal 3", [](auto& q) { q.is_causal[0] = 3; }, {"is_causal", "3"}},
  };
  for (const Refusal& row : rows) {
    SCOPED_TRACE(row.what);
    expect_refused(p, row);
  }
}

TEST(ProblemMake, Accepts) {
  const std::pair<const char*, Change> rows[] = {
      {"batch 0", [](auto& q) { q.batch = 0; }},
      {"heads_kv 0 stands for heads", [](auto& q) { q.heads_kv = 0; }},
      {"kernel_size 1", [](auto& q) { q.kernel_size[0] = q.kernel_size[1] = 1; }},
      {"window of a whole axis", [](auto& q) { q.kernel_size[1] = 20; }},
      {"dilation fills the axis", [](auto& q) { q.dilation[1] = 4; }},
      {"stride == kernel_size", [](auto& q) { q.stride[1] = 5; }},
      {"stride and output_stride on different axes",
       [](auto& q) { q.stride[0] = q.output_stride[1] = 3; }},
      {"output_stride beyond the extent", [](auto& q) { q.output_stride[1] = 100; }},
      {"scale 0",
       [](auto& q) {
         q.has_scale = 1;
         q.scale = 0.0;
       }},
      {"scale 2.35e38",
       [](auto& q) {
         q.has_scale = 1;
         q.scale = -2.35e38;
       }},
      {"scale 1e300 of f64",
       [](auto& q) {
         q.has_scale = 1;
         q.scale = 1e300;
         q.dtype = VECINA_F64;
       }},
      {"scale is not looked at without has_scale", [](auto& q) { q.scale = std::nan(""); }},
      {"bias", [](auto& q) { q.has_bias = 1; }},
      {"padded", [](auto& q) { q.lengths = VECINA_LENGTHS_PADDED; }},
      {"packed",
       [](auto& q) {
         q.lengths = VECINA_LENGTHS_PACKED;
         q.batch = 1;
         q.samples = 7;
       }},
      {"all flags",
       [](auto& q) { q.flags = VECINA_ALLOW_TF32 | VECINA_NONDETERMINISTIC_BACKWARD; }},
      {"query_extent == extent", [](auto& q) { q.query_extent[0] = 16; }},
      {"axes beyond the rank are not looked at",
       [](auto& q) { q.extent[2] = q.kernel_size[2] = q.stride[2] = q.is_causal[2] = -9; }},
  };
  for (const auto& [what, change] : rows) {
    vecina_problem p = valid_2d();
    change(p);
    EXPECT_EQ(vecina_problem_check(&p), VECINA_OK) << what << ": " << vecina_last_error();
  }
}

TEST(ProblemMake, FillsInDefaults) {
  vecina_problem p = valid_2d();
  p.heads_kv = 0;
  Problem problem;
  ASSERT_TRUE(Problem::make(p, &problem).ok());
  EXPECT_EQ(problem.heads_kv(), 4);
  EXPECT_EQ(problem.head_dim_value(), 32);
  EXPECT_DOUBLE_EQ(problem.scale(), 1.0 / std::sqrt(32.0));
  EXPECT_FALSE(problem.has_scale());
  EXPECT_EQ(problem.num_keys(), 320);
  EXPECT_EQ(problem.num_queries(), 320);
  EXPECT_DOUBLE_EQ(problem.visible_pairs(), 320.0 * 35);
  p.heads_kv = 1;
  p.head_dim_value = 8;
  p.has_scale = 1;
  p.scale = 0.0;
  p.output_stride[0] = 3;  // 0 3 ... 15
  p.output_stride[1] = 7;  // 0 7 14
  p.additional_tokens = 2;
  ASSERT_TRUE(Problem::make(p, &problem).ok());
  EXPECT_EQ(problem.head_group(), 4);
  EXPECT_EQ(problem.head_dim_value(), 8);
  EXPECT_EQ(problem.scale(), 0.0);
  EXPECT_EQ(problem.num_queries(), 18);
  EXPECT_DOUBLE_EQ(problem.visible_pairs(), 18.0 * (35 + 2));
  EXPECT_DOUBLE_EQ(problem.forward_flops(), 2.0 * 18 * 37 * (32 + 8) * 2 * 4);
}

TEST(ProblemMake, VisiblePairsOfCausalProblems) {
  Problem problem;
  ASSERT_TRUE(Problem::parse("1d 6 kernel_size 3 causal head_dim 1", &problem).ok());
  EXPECT_DOUBLE_EQ(problem.visible_pairs(), 1 + 2 + 3 * 4);
  ASSERT_TRUE(Problem::parse("attention 4x3 causal head_dim 1 additional 2", &problem).ok());
  EXPECT_DOUBLE_EQ(problem.visible_pairs(), 1 + 2 + 3 + 3 + 4 * 2);
}

TEST(ProblemOf, OneFieldIsChangedAsMakeWouldChangeIt) {
  const auto parsed = [](const std::string& line) {
    Problem problem;
    EXPECT_TRUE(Problem::parse(line, &problem).ok()) << line;
    return problem;
  };
  const std::string window = "2d 9x8 kernel_size 3 heads 4 heads_kv 2 head_dim 16 ";
  const Problem equal = parsed(window + "head_dim_value 48 batch 3 additional 2 bias");
  EXPECT_EQ(equal.with_head_dim_value(24),
            parsed(window + "head_dim_value 24 batch 3 additional 2 bias"));
  EXPECT_EQ(equal.with_head_dim_value(16), parsed(window + "batch 3 additional 2 bias"));
  EXPECT_EQ(equal.of_full_samples(1), parsed(window + "head_dim_value 48 additional 2 bias"));
  for (const char* lengths : {"batch 5 lengths padded", "lengths packed:5"}) {
    EXPECT_EQ(parsed(window + lengths).of_full_samples(5), parsed(window + "batch 5")) << lengths;
  }
}

TEST(ProblemInit, SetsOnesAndZeros) {
  vecina_problem p;
  std::memset(static_cast<void*>(&p), 0x5a, sizeof(p));
  vecina_problem_init(&p, sizeof(p), 3);
  vecina_problem expected;
  std::memset(static_cast<void*>(&expected), 0, sizeof(expected));
  expected.struct_size = sizeof(expected);
  expected.rank = 3;
  expected.batch = 1;
  expected.heads = 1;
  for (int a = 0; a < 3; ++a) {
    expected.stride[a] = expected.output_stride[a] = expected.dilation[a] = 1;
  }
  EXPECT_EQ(std::memcmp(&p, &expected, sizeof(p)), 0);
  vecina_problem_init(nullptr, sizeof(p), 3);  // nothing happens
}

TEST(ProblemInit, WritesNothingBeyondTheCallersSize) {
  for (size_t size : {sizeof(size_t), offsetof(vecina_problem, additional_tokens),
                      offsetof(vecina_problem, has_scale), sizeof(vecina_problem)}) {
    unsigned char bytes[sizeof(vecina_problem) + 16];
    std::memset(bytes, 0x5a, sizeof(bytes));
    vecina_problem_init(reinterpret_cast<vecina_problem*>(bytes), size, 1);
    for (size_t i = size; i < sizeof(bytes); ++i) ASSERT_EQ(bytes[i], 0x5a) << size << " " << i;
  }
}

TEST(ProblemStructSize, OlderShorterWorksAndWrongIsRefused) {
  vecina_problem p = valid_2d();
  p.additional_tokens = -7;  // beyond the older struct: not read
  p.has_scale = 99;
  p.struct_size = offsetof(vecina_problem, additional_tokens);
  EXPECT_EQ(vecina_problem_check(&p), VECINA_OK) << vecina_last_error();
  char line[200];
  vecina_problem_print(&p, line, sizeof(line));
  EXPECT_STREQ(line, "2d 16x20 kernel_size 7x5 batch 2 heads 4 heads_kv 2 head_dim 32");
  p.additional_tokens = 3;
  p.struct_size = offsetof(vecina_problem, has_scale);
  vecina_problem_print(&p, line, sizeof(line));
  EXPECT_STREQ(line,
               "2d 16x20 kernel_size 7x5 batch 2 heads 4 heads_kv 2 head_dim 32 additional 3");
  for (size_t size : {size_t{0}, size_t{1}, sizeof(size_t), offsetof(vecina_problem, extent)}) {
    p.struct_size = size;
    EXPECT_EQ(vecina_problem_check(&p), VECINA_INVALID_ARGUMENT) << size;
    EXPECT_NE(std::string(vecina_last_error()).find("struct_size"), std::string::npos);
  }
}

TEST(ProblemStructSize, NewerLongerWorksIfTheRestIsZero) {
  struct Newer {
    vecina_problem known;
    int64_t later[2];
  } newer = {valid_2d(), {0, 0}};
  newer.known.struct_size = sizeof(newer);
  EXPECT_EQ(vecina_problem_check(&newer.known), VECINA_OK) << vecina_last_error();
  newer.later[1] = 1;
  EXPECT_EQ(vecina_problem_check(&newer.known), VECINA_INVALID_ARGUMENT);
  EXPECT_NE(std::string(vecina_last_error()).find("struct_size"), std::string::npos);
}

TEST(ProblemStructSize, ParseFillsWhatTheCallerHas) {
  unsigned char bytes[sizeof(vecina_problem)];
  std::memset(bytes, 0x5a, sizeof(bytes));
  auto* p = reinterpret_cast<vecina_problem*>(bytes);
  const size_t size = offsetof(vecina_problem, has_scale);
  p->struct_size = size;
  ASSERT_EQ(vecina_problem_parse("1d 9 kernel_size 3 head_dim 4 additional 2", p), VECINA_OK)
      << vecina_last_error();
  EXPECT_EQ(p->struct_size, size);
  EXPECT_EQ(p->additional_tokens, 2);
  for (size_t i = size; i < sizeof(bytes); ++i) ASSERT_EQ(bytes[i], 0x5a);
  EXPECT_EQ(vecina_problem_parse("1d 9 kernel_size 3 head_dim 4 scale 2", p),
            VECINA_INVALID_ARGUMENT);
  EXPECT_NE(std::string(vecina_last_error()).find("scale 2"), std::string::npos);
  p->struct_size = 0;
  EXPECT_EQ(vecina_problem_parse("1d 9 kernel_size 3 head_dim 4", p), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_problem_parse(nullptr, p), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_problem_parse("1d 9 kernel_size 3 head_dim 4", nullptr),
            VECINA_INVALID_ARGUMENT);
}

// Two problems are equal exactly if every field that is looked at is; equal ones hash alike.
TEST(ProblemEquality, EveryFieldCounts) {
  const Change changes[] = {
      [](auto& q) { q.batch = 3; },
      [](auto& q) { q.heads = 8; },
      [](auto& q) { q.heads_kv = 1; },
      [](auto& q) { q.head_dim = 31; },
      [](auto& q) { q.head_dim_value = 31; },
      [](auto& q) { q.extent[0] = 17; },
      [](auto& q) { q.extent[1] = 21; },
      [](auto& q) { q.kernel_size[0] = 6; },
      [](auto& q) { q.kernel_size[1] = 4; },
      [](auto& q) { q.stride[0] = 2; },
      [](auto& q) { q.stride[1] = 2; },
      [](auto& q) { q.output_stride[0] = 2; },
      [](auto& q) { q.output_stride[1] = 2; },
      [](auto& q) { q.dilation[0] = 2; },
      [](auto& q) { q.dilation[1] = 2; },
      [](auto& q) { q.is_causal[0] = 1; },
      [](auto& q) { q.is_causal[1] = 1; },
      [](auto& q) { q.dtype = VECINA_BF16; },
      [](auto& q) { q.query_key_dtype = VECINA_E4M3; },
      [](auto& q) { q.additional_tokens = 1; },
      [](auto& q) { q.has_scale = 1; },
      [](auto& q) {
        q.has_scale = 1;
        q.scale = 0.5;
      },
      [](auto& q) { q.has_bias = 1; },
      [](auto& q) { q.lengths = VECINA_LENGTHS_PADDED; },
      [](auto& q) { q.flags = VECINA_ALLOW_TF32; },
      [](auto& q) { q.flags = VECINA_NONDETERMINISTIC_BACKWARD; },
  };
  std::vector<Problem> problems(1);
  ASSERT_TRUE(Problem::make(valid_2d(), &problems[0]).ok());
  for (const Change& change : changes) {
    vecina_problem p = valid_2d();
    change(p);
    Problem problem, again;
    ASSERT_TRUE(Problem::make(p, &problem).ok());
    ASSERT_TRUE(Problem::make(problem.to_c(), &again).ok());
    EXPECT_EQ(problem, again) << problem.line();
    EXPECT_EQ(problem.hash(), again.hash()) << problem.line();
    problems.push_back(problem);
  }
  for (size_t i = 0; i < problems.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      EXPECT_FALSE(problems[i] == problems[j]) << problems[i].line();
      EXPECT_NE(problems[i].hash(), problems[j].hash()) << problems[i].line();
    }
  }
}

TEST(ProblemEquality, DifferentSpellingsOfOneProblemAreEqual) {
  vecina_problem p = valid_2d();
  p.head_dim_value = 32;
  p.query_extent[0] = 16;
  p.scale = 7.0;       // has_scale is 0
  p.extent[2] = 1234;  // beyond the rank
  Problem spelled, plain;
  ASSERT_TRUE(Problem::make(p, &spelled).ok());
  ASSERT_TRUE(Problem::make(valid_2d(), &plain).ok());
  EXPECT_EQ(spelled, plain);
  EXPECT_EQ(spelled.hash(), plain.hash());
}

TEST(ProblemEquality, EqualProblemsHashAlikeWithScaleMinusZero) {
  Problem zero, minus_zero;
  ASSERT_TRUE(Problem::parse("1d 9 kernel_size 3 head_dim 4 scale 0", &zero).ok());
  ASSERT_TRUE(Problem::parse("1d 9 kernel_size 3 head_dim 4 scale -0", &minus_zero).ok());
  EXPECT_TRUE(!(zero == minus_zero) || zero.hash() == minus_zero.hash());
}

TEST(ProblemHash, SpreadsRandomProblems) {
  cli::Random random(11);
  std::vector<std::pair<uint64_t, std::string>> seen;
  for (int i = 0; i < 2000; ++i) {
    const vecina_problem p = cli::random_problem(random, true);
    Problem problem;
    ASSERT_TRUE(Problem::make(p, &problem).ok());
    seen.emplace_back(problem.hash(), problem.line());
  }
  std::sort(seen.begin(), seen.end());
  for (size_t i = 1; i < seen.size(); ++i) {
    if (seen[i].first == seen[i - 1].first) {
      EXPECT_EQ(seen[i].second, seen[i - 1].second);
    }
  }
}

}  // namespace
}  // namespace vecina::tests
