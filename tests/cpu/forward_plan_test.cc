// SPDX-License-Identifier: MIT
// Units of the forward pass that do not hold all their packed keys at once: what each band of
// queries sees is there, and what comes out is right.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "cli/conformance.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "cpu/forward.h"
#include "vecina/vecina.h"

namespace vecina::internal::cpu {
namespace {

ForwardKernel kernel_for(const Problem& problem) {
  switch (problem.dtype()) {
    case VECINA_F64:
      return forward_kernel_f64();
    case VECINA_F16:
      return forward_kernel_f16();
    case VECINA_BF16:
      return forward_kernel_bf16();
    default:
      return forward_kernel_f32();
  }
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
  ASSERT_EQ(plan.rings.size(), plan.boxes.size());
  bool is_partial = false;
  for (size_t b = 0; b < plan.boxes.size(); ++b) {
    const PackedRing& ring = plan.rings[b];
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
  static cli::Checker checker("cpu", 2);
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

}  // namespace
}  // namespace vecina::internal::cpu
