// SPDX-License-Identifier: MIT
// window.h, window_of and vecina_window against the definition by enumeration: every extent up to
// 24 with every kernel_size, stride and causality, then dilation and output_stride.
#include "core/window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/problem.h"
#include "definition.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

using internal::Problem;
using internal::Window;
using internal::window_of;

constexpr int kMaxExtent = 24;

// Calls body(axis in window.h's terms, the same axis in the definition's) for every axis there is.
template <typename Body>
void for_every_axis(const Body& body) {
  for (int extent = 1; extent <= kMaxExtent; ++extent) {
    for (int kernel_size = 1; kernel_size <= extent; ++kernel_size) {
      for (int stride = 1; stride <= kernel_size; ++stride) {
        for (bool is_causal : {false, true}) {
          SCOPED_TRACE(testing::Message() << "extent " << extent << " kernel_size " << kernel_size
                                          << " stride " << stride << " causal " << is_causal);
          body(NaAxis{extent, kernel_size, stride, is_causal},
               AxisRule{extent, extent, kernel_size, stride, 1, 1, is_causal, false});
          if (testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

std::vector<int64_t> range(int64_t begin, int64_t step, int64_t count) {
  std::vector<int64_t> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(begin + i * step);
  return values;
}

TEST(WindowFormula, BeginAndEndHoldTheVisibleKeys) {
  for_every_axis([](NaAxis axis, const AxisRule& rule) {
    for (int i = 0; i < axis.extent; ++i) {
      const int begin = na_window_begin(axis, i);
      ASSERT_EQ(range(begin, 1, na_window_end(axis, i) - begin), visible_keys(rule, i))
          << "query " << i;
    }
  });
}

TEST(WindowFormula, LeaderIsTheOneWhoseOwnWindowIsUsed) {
  for_every_axis([](NaAxis axis, const AxisRule& rule) {
    for (int i = 0; i < axis.extent; ++i) {
      const int leader = na_leader(axis, i);
      ASSERT_EQ(leader / axis.stride, i / axis.stride) << "the leader is of the same stride group";
      AxisRule alone = rule;
      alone.stride = 1;
      std::vector<int64_t> keys = visible_keys(alone, leader);
      if (axis.is_causal) {
        keys.erase(std::remove_if(keys.begin(), keys.end(), [&](int64_t key) { return key > i; }),
                   keys.end());
      }
      ASSERT_EQ(keys, visible_keys(rule, i)) << "query " << i << " leader " << leader;
    }
  });
}

TEST(WindowFormula, InverseHoldsExactlyTheQueriesThatSeeAKey) {
  for_every_axis([](NaAxis axis, const AxisRule& rule) {
    std::vector<std::vector<int64_t>> queries(static_cast<size_t>(axis.extent));
    for (int i = 0; i < axis.extent; ++i) {
      for (int64_t key : visible_keys(rule, i)) queries[static_cast<size_t>(key)].push_back(i);
    }
    for (int j = 0; j < axis.extent; ++j) {
      const int begin = na_query_begin(axis, j);
      ASSERT_EQ(range(begin, 1, na_query_end(axis, j) - begin), queries[static_cast<size_t>(j)])
          << "key " << j;
    }
  });
}

TEST(WindowFormula, EveryQuerySeesItselfAndAFullWindowUnlessCausal) {
  for_every_axis([](NaAxis axis, const AxisRule& rule) {
    for (int i = 0; i < axis.extent; ++i) {
      const std::vector<int64_t> keys = visible_keys(rule, i);
      ASSERT_TRUE(std::count(keys.begin(), keys.end(), i) == 1) << "query " << i;
      if (!axis.is_causal) {
        ASSERT_EQ(keys.size(), static_cast<size_t>(axis.kernel_size));
      }
    }
  });
}

// The examples that semantics.md spells out, so that the enumeration itself stands on something.
TEST(Definition, WrittenExamples) {
  const auto keys = [](AxisRule axis, int64_t query) { return visible_keys(axis, query); };
  const AxisRule grouped = {10, 10, 5, 3, 1, 1, false, false};
  for (int64_t query : {0, 1, 2}) EXPECT_EQ(keys(grouped, query), range(0, 1, 5));
  for (int64_t query : {3, 4, 5}) EXPECT_EQ(keys(grouped, query), range(2, 1, 5));
  for (int64_t query : {6, 7, 8, 9}) EXPECT_EQ(keys(grouped, query), range(5, 1, 5));
  const AxisRule causal = {10, 10, 5, 3, 1, 1, true, false};
  EXPECT_EQ(keys(causal, 3), range(1, 1, 3));
  EXPECT_EQ(keys(causal, 4), range(1, 1, 4));
  EXPECT_EQ(keys(causal, 5), range(1, 1, 5));
  const AxisRule even = {10, 10, 4, 1, 1, 1, false, false};
  EXPECT_EQ(keys(even, 5), range(3, 1, 4));  // two before, itself, one after
  EXPECT_EQ(keys(even, 9), range(6, 1, 4));
  const AxisRule pair = {2, 2, 2, 1, 1, 1, false, false};
  EXPECT_EQ(keys(pair, 1), range(0, 1, 2));
  const AxisRule dilated = {7, 7, 2, 1, 1, 3, false, false};  // groups 0 3 6, 1 4 and 2 5
  EXPECT_EQ(keys(dilated, 6), range(3, 3, 2));
  EXPECT_EQ(keys(dilated, 4), range(1, 3, 2));
  EXPECT_EQ(bias_index(dilated, 6, 3), 0);
  EXPECT_EQ(bias_index(dilated, 3, 6), 2);
}

// Every dilation, output_stride and sample length of small axes, by the C++ and the C function.
TEST(WindowOf, DilationAndOutputStride) {
  for (int64_t extent = 1; extent <= 14; ++extent) {
    for (int64_t dilation = 1; dilation <= extent; ++dilation) {
      for (int64_t kernel_size = 1; kernel_size * dilation <= extent; ++kernel_size) {
        for (int64_t step = 1; step <= 4; ++step) {
          for (int variant = 0; variant < 4; ++variant) {
            const bool is_causal = variant % 2 == 1;
            const int64_t stride = variant / 2 == 1 ? std::min<int64_t>(step, kernel_size) : 1;
            const int64_t output_stride = variant / 2 == 1 ? 1 : step;
            vecina_problem given;
            vecina_problem_init(&given, sizeof(given), 2);
            given.extent[0] = given.kernel_size[0] = 1;  // the axis in question is the second
            given.extent[1] = extent;
            given.kernel_size[1] = kernel_size;
            given.dilation[1] = dilation;
            given.stride[1] = stride;
            given.output_stride[1] = output_stride;
            given.is_causal[1] = is_causal;
            given.heads = given.head_dim = 1;
            Problem problem;
            ASSERT_TRUE(Problem::make(given, &problem).ok());
            const std::vector<int64_t> tokens = query_tokens(axis_rule(given, 1));
            ASSERT_EQ(problem.axis(1).num_queries(), static_cast<int64_t>(tokens.size()));
            for (size_t i = 0; i < tokens.size(); ++i) {
              const auto index = static_cast<int64_t>(i);
              const std::vector<int64_t> keys = visible_keys(axis_rule(given, 1), tokens[i]);
              const Window window = window_of(problem, 1, index);
              ASSERT_EQ(range(window.begin, window.step, window.count), keys) << problem.line();
              int64_t begin = -1, between = -1, count = -1;
              ASSERT_EQ(vecina_window(&given, 1, index, &begin, &between, &count), VECINA_OK);
              ASSERT_EQ(range(begin, between, count), keys) << problem.line();
            }
          }
        }
      }
    }
  }
}

TEST(WindowOf, ASampleUsesItsOwnLength) {
  vecina_problem given;
  vecina_problem_init(&given, sizeof(given), 1);
  given.extent[0] = 17;
  given.kernel_size[0] = 4;
  given.dilation[0] = 3;
  given.heads = given.head_dim = 1;
  given.lengths = VECINA_LENGTHS_PADDED;
  Problem problem;
  ASSERT_TRUE(Problem::make(given, &problem).ok());
  for (int64_t length = 12; length <= 17; ++length) {
    AxisRule rule = axis_rule(given, 0);
    rule.length = rule.query_length = length;
    for (int64_t query = 0; query < length; ++query) {
      const Window window = window_of(problem, 0, query, length);
      EXPECT_EQ(range(window.begin, window.step, window.count), visible_keys(rule, query))
          << "length " << length << " query " << query;
    }
  }
}

TEST(WindowOf, Attention) {
  for (int64_t queries : {1, 5, 9}) {
    for (int64_t extent : {1, 6, 9}) {
      for (int32_t is_causal : {0, 1}) {
        vecina_problem given;
        vecina_problem_init(&given, sizeof(given), 1);
        given.kind = VECINA_ATTENTION;
        given.extent[0] = extent;
        given.query_extent[0] = queries;
        given.is_causal[0] = is_causal;
        given.heads = given.head_dim = 1;
        for (int64_t query = 0; query < queries; ++query) {
          int64_t begin = -1, step = -1, count = -1;
          ASSERT_EQ(vecina_window(&given, 0, query, &begin, &step, &count), VECINA_OK)
              << vecina_last_error();
          EXPECT_EQ(range(begin, step, count), visible_keys(axis_rule(given, 0), query));
        }
        int64_t begin = 7, step = 7, count = 7;
        EXPECT_EQ(vecina_window(&given, 0, queries, &begin, &step, &count),
                  VECINA_INVALID_ARGUMENT);
      }
    }
  }
}

// The largest axis: window.h computes in 32 bits and must not wrap around.
TEST(WindowOf, LargestExtent) {
  const int64_t extent = int64_t{1} << 29;
  vecina_problem given;
  vecina_problem_init(&given, sizeof(given), 1);
  given.extent[0] = extent;
  given.heads = given.head_dim = 1;
  int64_t begin = 0, step = 0, count = 0;
  given.kernel_size[0] = given.stride[0] = extent;  // one group: everyone sees everything
  for (int64_t query : {int64_t{0}, extent / 2, extent - 1}) {
    ASSERT_EQ(vecina_window(&given, 0, query, &begin, &step, &count), VECINA_OK);
    EXPECT_EQ(begin, 0);
    EXPECT_EQ(count, extent);
  }
  given.kernel_size[0] = 7;
  given.stride[0] = 1;
  ASSERT_EQ(vecina_window(&given, 0, extent - 1, &begin, &step, &count), VECINA_OK);
  EXPECT_EQ(begin, extent - 7);
  ASSERT_EQ(vecina_window(&given, 0, extent / 2, &begin, &step, &count), VECINA_OK);
  EXPECT_EQ(begin, extent / 2 - 3);
  given.kernel_size[0] = 3;
  given.dilation[0] = extent / 3;
  ASSERT_EQ(vecina_window(&given, 0, extent - 3, &begin, &step, &count), VECINA_OK);
  EXPECT_EQ(begin, (extent - 3) % (extent / 3));
  EXPECT_EQ(step, extent / 3);
  EXPECT_EQ(count, 3);
}

TEST(WindowOf, CFunctionRefuses) {
  vecina_problem given;
  vecina_problem_init(&given, sizeof(given), 1);
  given.extent[0] = 10;
  given.kernel_size[0] = 3;
  given.output_stride[0] = 2;
  given.heads = given.head_dim = 1;
  int64_t begin = 7, step = 7, count = 7;
  for (int32_t axis : {-1, 1, 3}) {
    EXPECT_EQ(vecina_window(&given, axis, 0, &begin, &step, &count), VECINA_INVALID_ARGUMENT);
  }
  for (int64_t index : {int64_t{-1}, int64_t{5}, int64_t{1} << 40}) {
    EXPECT_EQ(vecina_window(&given, 0, index, &begin, &step, &count), VECINA_INVALID_ARGUMENT);
  }
  EXPECT_EQ(vecina_window(nullptr, 0, 0, &begin, &step, &count), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_window(&given, 0, 0, nullptr, &step, &count), VECINA_INVALID_ARGUMENT);
  given.kernel_size[0] = 11;
  EXPECT_EQ(vecina_window(&given, 0, 0, &begin, &step, &count), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(begin, 7);
  EXPECT_EQ(step, 7);
  EXPECT_EQ(count, 7);
  given.kernel_size[0] = 3;
  EXPECT_EQ(vecina_window(&given, 0, 4, &begin, &step, &count), VECINA_OK) << vecina_last_error();
}

}  // namespace
}  // namespace vecina::tests
