// SPDX-License-Identifier: MIT
// The rings of packed keys of the backward pass: what is in use at once is held, and no more than
// that is asked for where it is less than all.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "cli/conformance.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "cpu/backward.h"
#include "cpu/launch.h"
#include "cpu/matrix_tiles.h"
#include "vecina/vecina.h"

namespace vecina::internal::cpu {
namespace {

BackwardKernel kernel_for(const Problem& problem) {
  static const cli::ContextPtr context = cli::make_context("cpu", 1);  // chooses the target
  return backward_kernel(problem.dtype());
}

// The most rows of keys along the ring's axis between the last that was written and the last that
// was packed, as the tiles go along it.
int most_rows_in_use(const BackwardPlan& plan, size_t b) {
  const Box& box = plan.boxes[b];
  const auto a = static_cast<size_t>(plan.packed[b].ring.axis);
  const AxisGroup& axis = plan.groups[a][static_cast<size_t>(box.group[a])];
  const AxisGroup& lanes = plan.groups[2][static_cast<size_t>(box.group[2])];
  int rows_at_once = lanes.phases * plan.head_group, tile = kBackwardRows;
  if (key_layout(lanes) == KeyLayout::shared) {
    rows_at_once *= (box.end[2] - box.begin[2] + plan.lanes - 1) / plan.lanes;
  }
  if (a == 0) rows_at_once = tile = 1;
  if (plan.matrix.is_used()) {
    rows_at_once = 1;
    tile = plan.packed[b].ring.band;
  }
  const auto position = [&](int row) { return axis.position(box.begin[a] + row / rows_at_once); };
  const int rows = (box.end[a] - box.begin[a]) * rows_at_once;
  int packed = plan.packed[b].ranges[a].begin, written = packed, most = 0;
  for (int row = 0; row < rows; row += tile) {
    packed = std::max(packed, axis.end(position(std::min(row + tile, rows) - 1)));
    most = std::max(most, packed - written);
    if (row + tile < rows) written = std::min(packed, axis.begin(position(row + tile)));
  }
  return most;
}

class BackwardRings : public testing::TestWithParam<const char*> {};

BackwardPlan plan_of(const Problem& problem, const BackwardKernel& kernel) {
  vecina_backward_args args;
  imagine_arguments(problem, VECINA_CPU, &args);
  return plan_backward(problem, args, kernel);
}

void expect_to_hold_rows_in_use(const BackwardPlan& plan) {
  ASSERT_EQ(plan.packed.size(), plan.boxes.size());
  bool is_partial = false;
  for (size_t b = 0; b < plan.boxes.size(); ++b) {
    const PackedRing& ring = plan.packed[b].ring;
    EXPECT_LE(most_rows_in_use(plan, b), ring.rows);
    is_partial |= ring.rows < plan.packed[b].ranges[static_cast<size_t>(ring.axis)].size();
  }
  EXPECT_TRUE(is_partial) << "all keys are held: this tests nothing";
}

TEST_P(BackwardRings, HoldTheRowsInUse) {
  Problem problem;
  ASSERT_TRUE(Problem::parse(GetParam(), &problem).ok());
  expect_to_hold_rows_in_use(plan_of(problem, kernel_for(problem)));
}

TEST_P(BackwardRings, HoldTheRowsInUseByTiles) {
  vecina_problem line = cli::parse_problem(GetParam());
  line.dtype = VECINA_BF16;
  Problem problem;
  ASSERT_TRUE(Problem::make(line, &problem).ok());
  BackwardKernel kernel = kernel_for(problem);
  kernel.run_matrix = matrix_backward_function(MatrixTiles::emulated);
  kernel.matrix_everywhere = true;
  const BackwardPlan plan = plan_of(problem, kernel);
  if (!plan.matrix.is_used()) GTEST_SKIP() << "no AVX-512, or tiles cannot take the problem";
  expect_to_hold_rows_in_use(plan);
}

TEST_P(BackwardRings, AreRight) {
  static cli::Checker checker("cpu", 1);
  const cli::Verdict verdict = checker.check_backward(cli::parse_problem(GetParam()), /*seed=*/3);
  EXPECT_TRUE(verdict.passed) << verdict.detail;
}

INSTANTIATE_TEST_SUITE_P(
    Problems, BackwardRings,
    testing::Values("2d 64x32 kernel_size 7 batch 2 heads 2 head_dim 32",
                    "2d 30x20 kernel_size 7x5 batch 4 heads 1 head_dim 112",
                    "2d 61x20 kernel_size 7x5 batch 2 heads 6 heads_kv 2 head_dim 24 dtype bf16",
                    "2d 70x24 kernel_size 9x7 causal 1x0 batch 4 heads 1 head_dim 16 additional 2",
                    "2d 130x24 kernel_size 7x9 dilation 2x1 batch 4 heads 1 head_dim 16",
                    "2d 80x24 kernel_size 6x9 stride 3x2 batch 4 heads 1 head_dim 16 bias",
                    "2d 90x16 kernel_size 5x9 output_stride 7x1 batch 4 heads 1 head_dim 32",
                    "2d 50x12 kernel_size 12x12 batch 4 heads 1 head_dim 40 dtype f64",
                    "3d 14x6x16 kernel_size 3x5x5 batch 4 heads 1 head_dim 16",
                    "3d 19x5x16 kernel_size 4x3x9 stride 2x1x1 batch 4 heads 1 head_dim 16"));

}  // namespace
}  // namespace vecina::internal::cpu
