// SPDX-License-Identifier: MIT
// When the forward pass takes the matrix form, and what its plan has of its own.
#include <algorithm>
#include <vector>

#include "core/problem.h"
#include "cpu/forward.h"
#include "cpu/layout.h"

namespace vecina::internal::cpu {
namespace {

// Measured on Sapphire Rapids (benchmarks/results/xeon-amx.json): a step of keys takes as long as
// vectors take for so many products, keys times head_dim, if all queries of its tiles are there.
// Additional tokens take one step more than they fill: mostly they are more than is held at once.
constexpr int64_t kProductsOfStep = 400;

// The first that all groups have two of.
MatrixPair choose_pair(const Partition& plan) {
  if (plan.head_group > 1) return MatrixPair::heads;
  const std::vector<AxisGroup>& middle = plan.groups[1];
  const bool have_rows = std::all_of(middle.begin(), middle.end(),
                                     [](const AxisGroup& group) { return group.num_queries > 1; });
  return have_rows ? MatrixPair::rows : MatrixPair::columns;
}
int lanes_of(MatrixPair pair) {
  return pair == MatrixPair::columns ? 2 * kMatrixTile : kMatrixTile;
}

}  // namespace

bool can_take_matrix_form(const Problem& problem, const ForwardKernel& kernel) {
  if (kernel.run_matrix == nullptr || problem.has_bias()) return false;
  if (problem.head_dim() % 2 != 0) return false;  // words of keys are transposed
  const Axis& row = problem.axis(problem.rank() - 1);
  return row.stride == 1 && row.dilation % row.output_stride == 0;  // queries are a key apart
}

bool is_matrix_form_faster(const Partition& plan) {
  const AxisGroup& row = plan.groups[kRank - 1].front();
  // Fewer leave the tiles of a step part empty, of keys and of queries.
  if (key_layout(row) == KeyLayout::shared && row.window.kernel_size < kMatrixStep) return false;
  const int64_t keys = window_keys(plan), rows = keys / row.window.kernel_size;
  const int lanes = lanes_of(choose_pair(plan));
  int64_t columns = rows * matrix_columns(row, lanes);
  if (plan.additional_tokens > 0) {
    columns += round_up<int64_t>(plan.additional_tokens, kMatrixStep) + kMatrixStep;
  }
  const int64_t products =
      (keys + plan.additional_tokens) * (int64_t{plan.head_dim} + plan.head_dim_value) / 2;
  const double share = 1.0 * row.num_queries / round_up(row.num_queries, lanes);
  return share * static_cast<double>(products) >=
         static_cast<double>(kProductsOfStep * (columns / kMatrixStep));
}

void begin_matrix(ForwardPlan* plan) {
  plan->matrix.pair = choose_pair(*plan);
  plan->lanes = lanes_of(plan->matrix.pair);
  plan->key_words = round_up(plan->head_dim, kMatrixStep) / 2;
  plan->value_pitch = round_up(plan->head_dim_value, kMatrixStep);
  plan->max_slots = kMatrixColumns;
}

int matrix_columns(const AxisGroup& axis, int lanes) {
  const int keys = axis.window.kernel_size;
  return round_up(key_layout(axis) == KeyLayout::shared ? keys : lanes - 1 + keys, kMatrixStep);
}

PackedBox matrix_box(const Partition& plan, const Box& box) {
  PackedBox packed = packed_box(plan, box, /*may_have_strips=*/false);
  const AxisGroup& axis = plan.groups[kRank - 1][static_cast<size_t>(box.group[kRank - 1])];
  KeyRange& range = packed.ranges[kRank - 1];
  range.end = range.begin + matrix_columns(axis, plan.lanes);
  if (key_layout(axis) == KeyLayout::shifted) {
    const int count = box.end[kRank - 1] - box.begin[kRank - 1];
    range.end += round_up(count, plan.lanes) - plan.lanes;
  }
  packed.runs = key_runs(axis, range, plan.lanes, /*may_have_strips=*/false);
  return packed;
}

void lay_out_matrix(size_t columns, ForwardPlan* plan, ScratchLayout* take) {
  constexpr size_t kQueries = 2 * kMatrixTile, kHalf = sizeof(float) / sizeof(uint16_t);
  const auto additional =
      static_cast<size_t>(round_up<int64_t>(plan->additional_tokens, kMatrixStep));
  const auto key_words = static_cast<size_t>(plan->key_words);
  const auto value_pitch = static_cast<size_t>(plan->value_pitch);
  plan->scratch.additional_keys = (*take)(additional * key_words);
  plan->scratch.additional_values = (*take)(additional * value_pitch / kHalf);
  plan->scratch.queries = (*take)(kQueries * key_words);
  plan->matrix.logits = (*take)(kQueries * kMatrixLogitsPitch);
  plan->scratch.sums = (*take)(kQueries * value_pitch);
  plan->matrix.weights = (*take)(kQueries * kMatrixWeightsPitch / kHalf);
  plan->matrix.apart = (*take)(columns / kMatrixTile / kHalf + 1);
  plan->matrix.additional_apart = (*take)(additional / kMatrixTile / kHalf);
}

}  // namespace vecina::internal::cpu
