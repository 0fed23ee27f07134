// SPDX-License-Identifier: MIT
// Units of the forward pass that do not hold all their packed keys at once: what each band of
// queries sees is there, and what comes out is right.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "cli/conformance.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "cpu/forward.h"
#include "cpu/launch.h"
#include "cpu/scratch.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::internal::cpu {
namespace {

ForwardKernel kernel_for(const Problem& problem) {
  static const cli::ContextPtr context = cli::make_context("cpu", 1);  // chooses the target
  return forward_kernel(problem.dtype());
}

class PackedRings : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { ASSERT_TRUE(Problem::parse(GetParam(), &problem_).ok()); }

  Problem problem_;
};

TEST_P(PackedRings, HoldTheKeysOfEachBand) {
  vecina_forward_args args;
  imagine_arguments(problem_, VECINA_CPU, &args);
  const ForwardPlan plan = plan_forward(problem_, args, kernel_for(problem_), /*enough=*/1);
  ASSERT_FALSE(plan.direct.is_used);
  ASSERT_EQ(plan.packed.size(), plan.boxes.size());
  bool is_partial = false;
  for (size_t b = 0; b < plan.boxes.size(); ++b) {
    const PackedRing& ring = plan.packed[b].ring;
    const Box& box = plan.boxes[b];
    const auto axis = static_cast<size_t>(ring.axis);
    const AxisGroup& group = plan.groups[axis][static_cast<size_t>(box.group[axis])];
    for (int first = box.begin[axis]; first < box.end[axis]; first += ring.band) {
      const int last = std::min(first + ring.band, box.end[axis]);
      EXPECT_LE(key_range(group, first, last).size(), ring.rows);
    }
    is_partial |= ring.rows < key_range(group, box.begin[axis], box.end[axis]).size();
  }
  EXPECT_TRUE(is_partial) << "all keys are held: this tests nothing";
}

TEST_P(PackedRings, AreRight) {
  static cli::Checker checker("cpu", 1);  // more threads cut a unit into some that hold all
  const cli::Verdict verdict = checker.check_forward(cli::parse_problem(GetParam()), /*seed=*/3);
  EXPECT_TRUE(verdict.passed) << verdict.detail;
}

INSTANTIATE_TEST_SUITE_P(
    Problems, PackedRings,
    testing::Values("2d 64x32 kernel_size 7 heads 1 head_dim 64",
                    "2d 61x40 kernel_size 7x5 heads 2 heads_kv 1 head_dim 48 dtype bf16",
                    "2d 70x24 kernel_size 9x7 causal 1x0 heads 2 heads_kv 1 head_dim 64 "
                    "additional 2",
                    "2d 130x24 kernel_size 7x9 dilation 2x1 heads 1 head_dim 64",
                    "2d 80x24 kernel_size 6x9 stride 3x1 heads 1 head_dim 64 bias",
                    "2d 90x32 kernel_size 5x9 output_stride 7x1 heads 1 head_dim 128",
                    "2d 50x32 kernel_size 12x10 causal heads 1 head_dim 40 dtype f64",
                    "3d 14x14x16 kernel_size 3x5x5 heads 1 head_dim 64",
                    "3d 9x20x16 kernel_size 4x3x9 stride 2x1x1 heads 1 head_dim 64"));

// Rows of keys in bfloat16 are taken two at a time where the CPU multiplies pairs: windows and
// bands that begin in the middle of a pair, rows that are seen whole, steps between bands.
class PairsOfRows : public testing::TestWithParam<const char*> {};

TEST_P(PairsOfRows, AreRightWithAnyThreads) {
  for (const int threads : {1, 2, 3}) {
    cli::Checker checker("cpu", threads);
    const cli::Verdict verdict = checker.check_forward(cli::parse_problem(GetParam()), /*seed=*/3);
    EXPECT_TRUE(verdict.passed) << threads << " threads: " << verdict.detail;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Problems, PairsOfRows,
    testing::Values(
        "2d 32x32 kernel_size 7 heads 2 head_dim 32 dtype bf16",
        "2d 56x56 kernel_size 7 heads 1 head_dim 32 dtype bf16",
        "2d 61x40 kernel_size 19x17 heads 1 head_dim 16 dtype bf16",
        "2d 56x30 kernel_size 7x30 heads 1 head_dim 32 dtype bf16",
        "2d 200x64 kernel_size 3 output_stride 8x1 heads 1 head_dim 32 dtype bf16",
        "2d 112x56 kernel_size 7 dilation 2x1 heads 1 head_dim 32 head_dim_value 40 dtype bf16",
        "2d 90x33 kernel_size 5x7 stride 3x2 heads 4 heads_kv 2 head_dim 40 head_dim_value 20 bias "
        "dtype bf16",
        "2d 75x33 kernel_size 9x6 causal heads 4 heads_kv 2 head_dim 64 head_dim_value 33 dtype "
        "bf16",
        "2d 56x56 kernel_size 7 causal 1x0 heads 1 head_dim 32 dtype bf16",
        "3d 24x12x10 kernel_size 11x7x5 causal 1x0x0 heads 1 head_dim 32 dtype bf16",
        "1d 300 kernel_size 16 dilation 3 heads 4 heads_kv 2 head_dim 32 dtype bf16"));

// Where half of a row's last vector or more would be empty, it has half the lanes, if the kernels
// have such.
TEST(NarrowVectors, AreTakenWhereHalfOfTheLastIsEmpty) {
  for (const char* dtype : {"f32", "f64", "f16", "bf16"}) {
    int num_narrow = 0;
    bool has_narrow = false;
    for (int tokens = 8; tokens <= 80; ++tokens) {
      const std::string line = "2d 12x" + std::to_string(tokens) +
                               " kernel_size 6 heads 2 heads_kv 1 head_dim 32 bias dtype " + dtype;
      SCOPED_TRACE(line);
      Problem problem;
      ASSERT_TRUE(Problem::parse(line.c_str(), &problem).ok());
      const ForwardKernel kernel = kernel_for(problem);
      has_narrow = kernel.has_narrow_vectors;
      vecina_forward_args args;
      imagine_arguments(problem, VECINA_CPU, &args);
      const ForwardPlan plan = plan_forward(problem, args, kernel, /*enough=*/1);
      ASSERT_FALSE(plan.direct.is_used);
      const int last = tokens % kernel.lanes;
      const bool is_narrow = kernel.has_narrow_vectors && last > 0 && 2 * last <= kernel.lanes;
      EXPECT_EQ(plan.last_lanes(), is_narrow ? kernel.lanes / 2 : kernel.lanes);
      // What is packed is what the lanes see.
      const int whole = plan.boxes.back().end[2] - plan.boxes.back().begin[2] - last;
      const int lanes = whole + (last > 0 ? plan.last_lanes() : 0);
      EXPECT_EQ(plan.packed.back().ranges[2].size(), lanes + 6 - 1);
      num_narrow += is_narrow;
    }
    EXPECT_TRUE(num_narrow > 20 || !has_narrow) << "too few: this tests little";
  }
}

class NarrowRows : public testing::TestWithParam<const char*> {};

TEST_P(NarrowRows, AreRightWithAnyThreads) {
  Problem problem;
  ASSERT_TRUE(Problem::parse(GetParam(), &problem).ok());
  vecina_forward_args args;
  imagine_arguments(problem, VECINA_CPU, &args);
  const ForwardKernel kernel = kernel_for(problem);
  const ForwardPlan plan = plan_forward(problem, args, kernel, /*enough=*/1);
  EXPECT_EQ(plan.last_lanes() < kernel.lanes, kernel.has_narrow_vectors);
  for (const int threads : {1, 3}) {
    cli::Checker checker("cpu", threads);
    const cli::Verdict verdict = checker.check_forward(cli::parse_problem(GetParam()), /*seed=*/3);
    EXPECT_TRUE(verdict.passed) << threads << " threads: " << verdict.detail;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Problems, NarrowRows,
    testing::Values(
        "2d 56x56 kernel_size 7 heads 2 head_dim 32",
        "2d 24x24 kernel_size 7 batch 2 heads 4 heads_kv 2 head_dim 20 head_dim_value 36",
        "2d 9x8 kernel_size 7 heads 2 head_dim 32 additional 3",
        "2d 28x28 kernel_size 7 dilation 4 heads 2 head_dim 32",
        "2d 20x42 kernel_size 5 dilation 1x5 heads 2 head_dim 32",
        "2d 20x24 kernel_size 5x9 causal 1x0 heads 1 head_dim 32",
        "2d 20x23 kernel_size 5x9 causal 0x1 heads 4 heads_kv 2 head_dim 33 bias",
        "2d 20x70 kernel_size 5x9 stride 2x3 heads 2 head_dim 32 bias",
        "2d 20x45 kernel_size 5x8 output_stride 1x2 heads 2 head_dim 32",
        "2d 60x40 kernel_size 37x40 heads 1 head_dim 32",
        "2d 60x24 kernel_size 19x17 causal 0x1 heads 1 head_dim 48",
        "1d 136 kernel_size 39 heads 2 head_dim 32",
        "1d 72 kernel_size 33 causal heads 2 head_dim 40 additional 2",
        "1d 40 kernel_size 40 causal heads 3 head_dim 64",
        "3d 4x9x20 kernel_size 3x5x7 heads 2 head_dim 32",
        "2d 12x12 kernel_size 5x7 heads 2 head_dim 24 dtype f64",
        "2d 12x10 kernel_size 5x7 causal heads 2 head_dim 12 bias dtype f64",
        "2d 24x24 kernel_size 7 heads 2 head_dim 33 dtype f16",
        "2d 24x24 kernel_size 7 heads 2 head_dim 33 dtype bf16",
        "2d 25x24 kernel_size 7 heads 2 head_dim 32 dtype bf16",
        "2d 25x39 kernel_size 6x9 stride 2x1 heads 2 head_dim 64 bias dtype bf16",
        "2d 30x8 kernel_size 9x8 heads 2 head_dim 32 dtype bf16"));

// A caller who is alone runs fewer units than several threads share: with the same bits, whatever
// others left in their scratch.
// And whether the last vector of a row has half the lanes or all.
TEST(ForwardPlan, GivesTheSameBitsHoweverRowsAreCut) {
  cli::Random random(7);
  int num_cut = 0, num_narrow = 0;
  bool has_narrow = false;
  for (int i = 0; i < 300; ++i) {
    const vecina_problem line = cli::random_problem(random);
    SCOPED_TRACE(cli::print_problem(line));
    Problem problem;
    ASSERT_TRUE(Problem::make(line, &problem).ok());
    const ForwardKernel kernel = kernel_for(problem);
    ForwardKernel wide = kernel;
    wide.has_narrow_vectors = false;
    has_narrow |= kernel.has_narrow_vectors;
    const cli::Inputs inputs = cli::random_inputs(line, /*seed=*/1);
    const auto run = [&](const ForwardKernel& planned, int64_t enough, int64_t* num_units) {
      const cli::Outputs outputs = cli::make_outputs(line);
      const vecina_forward_args args = cli::forward_args(inputs, outputs);
      const ForwardPlan plan = plan_forward(problem, args, planned, enough);
      num_narrow += !plan.direct.is_used && plan.last_lanes() < plan.lanes;
      ScratchPool pool;
      const ScratchPool::Lease scratch(
          &pool, plan.scratch.total * static_cast<size_t>(kernel.element_bytes));
      *num_units = plan.num_units();
      const size_t bytes = plan.scratch.total * static_cast<size_t>(kernel.element_bytes);
      for (int64_t unit = *num_units - 1; unit >= 0; --unit) {
        std::memset(scratch.data(), 0xff, bytes);  // NaN
        kernel.run(plan, pointers_of(args), unit, scratch.data());
      }
      return std::pair(tests::bits_of(outputs.output), tests::bits_of(outputs.lse));
    };
    int64_t few = 0, many = 0, of_wide = 0;
    const auto expected = run(kernel, 0, &few);
    EXPECT_TRUE(run(kernel, 21, &many) == expected) << few << " and " << many << " units";
    EXPECT_TRUE(run(wide, 0, &of_wide) == expected) << "whole vectors";
    num_cut += many > few;
  }
  EXPECT_GE(num_cut, 50) << "too few are cut: this tests little";
  EXPECT_TRUE(num_narrow >= 50 || !has_narrow) << "too few are narrow: this tests little";
}

// Rows whose strips would be beyond 2^31 elements: planned, not run.
// Queries in lanes fetch ahead what is beyond far_bytes, tiles of matrices what is beyond L2.
TEST(ForwardPlan, FetchesAheadWhatIsFar) {
  Problem problem;
  ASSERT_TRUE(
      Problem::parse("2d 32x32 kernel_size 13 batch 4 heads 4 head_dim 32 dtype bf16", &problem)
          .ok());
  constexpr int64_t kBytes = int64_t{4} * 4 * 32 * 32 * 4 * 32 * 2;
  vecina_forward_args args;
  imagine_arguments(problem, VECINA_CPU, &args);
  for (const int64_t far_bytes : {kBytes, kBytes - 1}) {
    ForwardKernel kernel = kernel_for(problem);
    kernel.far_bytes = far_bytes;
    kernel.run_matrix = nullptr;
    const ForwardPlan lanes = plan_forward(problem, args, kernel, /*enough=*/1);
    ASSERT_FALSE(lanes.direct.is_used || lanes.matrix.is_used());
    EXPECT_EQ(lanes.fetches_far, far_bytes < kBytes);
    kernel.run_matrix = kernel.run;  // only its plan is looked at
    kernel.matrix_everywhere = true;
    const ForwardPlan matrix = plan_forward(problem, args, kernel, /*enough=*/1);
    ASSERT_TRUE(matrix.matrix.is_used());
    EXPECT_TRUE(matrix.fetches_far);
  }
}

TEST(ForwardPlan, HasRoomForLongRows) {
  for (const char* line : {"1d 262144 kernel_size 65537 heads 32 heads_kv 8 head_dim 8",
                           "1d 262144 kernel_size 65537 heads 64 heads_kv 16 head_dim 128",
                           "1d 1048576 kernel_size 262145 heads 8 head_dim 64"}) {
    SCOPED_TRACE(line);
    Problem problem;
    ASSERT_TRUE(Problem::parse(line, &problem).ok());
    vecina_forward_args args;
    imagine_arguments(problem, VECINA_CPU, &args);
    const ForwardPlan plan = plan_forward(problem, args, kernel_for(problem), /*enough=*/1);
    const AxisGroup& row = plan.groups[kRank - 1].front();
    const Box& box = plan.boxes.front();
    const KeyRange keys = lane_key_range(row, box.begin[2], box.end[2], plan.lanes);
    const KeyRuns runs = key_runs(row, keys, plan.lanes, /*may_have_strips=*/true);
    const auto head_dim = static_cast<size_t>(problem.head_dim());
    const size_t packed_row =
        static_cast<size_t>(std::max(runs.strips, 1)) * static_cast<size_t>(runs.pitch) * head_dim;
    EXPECT_GE(plan.scratch.total, packed_row);
    EXPECT_LE(packed_row, 2 * static_cast<size_t>(keys.size()) * head_dim);
  }
}

// The maximum of a few logits, one of them NaN, may come out as -infinity.
TEST(Softmax, OfNaNsIsNaN) {
  const cli::ContextPtr context = cli::make_context("cpu", 1);
  for (const char* size :
       {"head_dim 3", "head_dim 8", "head_dim 8 dtype f64", "head_dim 8 additional 1"}) {
    const vecina_problem problem =
        cli::parse_problem("1d 25 kernel_size 3 heads 1 " + std::string(size));
    for (int64_t token = 1; token < 24; ++token) {
      cli::Inputs inputs = cli::random_inputs(problem, 1);
      inputs.key.set(token * problem.head_dim, std::nan(""));
      const cli::Outputs outputs = tests::run_forward(context.get(), problem, inputs);
      for (int64_t query = token - 1; query <= token + 1; ++query) {
        const int64_t begin = std::clamp<int64_t>(query - 1, 0, 22);
        if (token < begin || token > begin + 2) continue;
        EXPECT_TRUE(std::isnan(outputs.lse.get(query))) << size << ": " << token << ' ' << query;
        EXPECT_TRUE(std::isnan(outputs.output.get(query * problem.head_dim)));
      }
    }
  }
}

// bfloat16 is packed, and its outputs written, in pairs of vectors: what is no number in a column
// stays in it.
TEST(DirectForm, KeepsColumnsApart) {
  const cli::ContextPtr context = cli::make_context("cpu", 1);
  constexpr int64_t kToken = 11;
  for (const int64_t head_dim : {8, 16, 24, 32, 40, 48, 56, 64}) {
    const std::string line =
        "1d 40 kernel_size 5 heads 1 dtype bf16 head_dim " + std::to_string(head_dim);
    const vecina_problem problem = cli::parse_problem(line);
    Problem planned;
    ASSERT_TRUE(Problem::parse(line.c_str(), &planned).ok());
    vecina_forward_args args;
    imagine_arguments(planned, VECINA_CPU, &args);
    ASSERT_TRUE(plan_forward(planned, args, kernel_for(planned), /*enough=*/1).direct.is_used);
    const cli::Inputs inputs = cli::random_inputs(problem, 1);
    const cli::Outputs finite = tests::run_forward(context.get(), problem, inputs);
    for (int64_t column = 0; column < head_dim; ++column) {
      cli::Inputs changed = cli::random_inputs(problem, 1);
      const auto set = [&](int64_t c, double value) {
        changed.value.set(kToken * head_dim + c % head_dim, value);
      };
      set(column, std::nan(""));
      set(column + 1, INFINITY);
      set(column + 2, -INFINITY);
      const cli::Outputs outputs = tests::run_forward(context.get(), problem, changed);
      for (int64_t i = 0; i < 40 * head_dim; ++i) {
        const int64_t after = (i % head_dim + head_dim - column) % head_dim;
        const double output = outputs.output.get(i);
        if (std::abs(i / head_dim - kToken) > 2 || after > 2) {
          EXPECT_EQ(output, finite.output.get(i)) << head_dim << ": " << column << ' ' << i;
        } else if (after == 0) {
          EXPECT_TRUE(std::isnan(output)) << head_dim << ": " << column << ' ' << i;
        } else {
          EXPECT_EQ(output, after == 1 ? INFINITY : -INFINITY) << head_dim << ": " << column;
        }
      }
    }
  }
}

// One dimension, where rows are read where they lie, also those that fill no vectors.
class DirectRows : public testing::TestWithParam<const char*> {};

TEST_P(DirectRows, AreRightWithAnyThreads) {
  Problem problem;
  ASSERT_TRUE(Problem::parse(GetParam(), &problem).ok());
  vecina_forward_args args;
  imagine_arguments(problem, VECINA_CPU, &args);
  const ForwardKernel kernel = kernel_for(problem);
  const bool is_whole = problem.head_dim() % kernel.direct_lanes == 0 &&
                        problem.head_dim_value() % kernel.direct_lanes == 0;
  EXPECT_EQ(plan_forward(problem, args, kernel, /*enough=*/1).direct.is_used,
            is_whole || kernel.reads_parts);
  for (const int threads : {1, 3}) {
    cli::Checker checker("cpu", threads);
    const cli::Verdict verdict = checker.check_forward(cli::parse_problem(GetParam()), /*seed=*/3);
    EXPECT_TRUE(verdict.passed) << threads << " threads: " << verdict.detail;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Problems, DirectRows,
    testing::Values(
        "1d 300 kernel_size 5 batch 2 heads 2 head_dim 12 bias",
        "1d 300 kernel_size 5 heads 3 head_dim 1 head_dim_value 3",
        "1d 70 kernel_size 1 heads 3 head_dim 7 head_dim_value 9 bias",
        "1d 90 kernel_size 6 dilation 3 causal heads 4 heads_kv 2 head_dim 20 "
        "head_dim_value 13 bias",
        "1d 90 kernel_size 8 stride 3 heads 2 head_dim 44 head_dim_value 60 bias",
        "1d 90 kernel_size 7 stride 4 causal heads 2 head_dim 31 head_dim_value 33",
        "1d 90 kernel_size 8 output_stride 5 heads 2 head_dim 50 head_dim_value 18 bias",
        "1d 60 kernel_size 4 heads 2 head_dim 63 head_dim_value 65",
        "1d 60 kernel_size 3 heads 2 head_dim 67 head_dim_value 131 bias",
        "1d 99 kernel_size 7 dilation 2 heads 4 heads_kv 1 head_dim 32 additional 2 bias",
        "1d 99 kernel_size 4 heads 2 head_dim 16 bias dtype f16",
        "1d 99 kernel_size 3 heads 2 head_dim 64 bias dtype bf16",
        "1d 70 kernel_size 3 heads 11 head_dim 12"));

// Vectors of a head's bias reach into the next head's.
TEST(DirectForm, KeepsTheBiasOfHeadsApart) {
  const cli::ContextPtr context = cli::make_context("cpu", 1);
  const vecina_problem problem = cli::parse_problem("1d 40 kernel_size 5 heads 2 head_dim 8 bias");
  const cli::Outputs finite =
      tests::run_forward(context.get(), problem, cli::random_inputs(problem, 1));
  cli::Inputs changed = cli::random_inputs(problem, 1);
  for (int64_t entry = 9; entry < 18; ++entry) changed.bias.set(entry, std::nan(""));
  const cli::Outputs outputs = tests::run_forward(context.get(), problem, changed);
  for (int64_t i = 0; i < 40 * 2 * 8; ++i) {
    if (i / 8 % 2 == 0) {
      EXPECT_EQ(outputs.output.get(i), finite.output.get(i)) << i;
    } else {
      EXPECT_TRUE(std::isnan(outputs.output.get(i))) << i;
    }
  }
}

}  // namespace
}  // namespace vecina::internal::cpu
