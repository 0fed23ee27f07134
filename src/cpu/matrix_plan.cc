// SPDX-License-Identifier: MIT
// When a pass takes the matrix form, and what its plan has of its own.
#include <algorithm>
#include <vector>

#include "core/problem.h"
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/layout.h"

namespace vecina::internal::cpu {
namespace {

// Measured on Sapphire Rapids (benchmarks/results/xeon-amx.json): a step of keys takes as long as
// vectors take for so many products, keys times head_dim, if all queries of its tiles are there. In
// the backward pass (xeon-amx-backward.json) it takes a share of its own, and one for each entry of
// a head, in whole steps, since sums of keys are in memory, and if delta is summed up beforehand
// (xeon-amx-delta.json) so many more, which fitted head dims of 32 to 128 alike. Additional tokens
// take one step more than they fill: mostly they are more than is held at once.
constexpr double kProductsOfStep = 400.0;
constexpr double kBackwardProductsOfStep = 150.0, kBackwardProductsOfEntry = 4.0;
constexpr double kBackwardProductsOfDelta = 120.0;

bool is_faster(const Partition& plan, double products_of_step) {
  const AxisGroup& row = plan.groups[kRank - 1].front();
  // Fewer leave the tiles of a step part empty, of keys and of queries.
  if (key_layout(row) == KeyLayout::shared && row.window.kernel_size < kMatrixStep) return false;
  const int64_t keys = window_keys(plan), rows = keys / row.window.kernel_size;
  const int lanes = matrix_lanes(choose_matrix_pair(plan));
  int64_t columns = rows * matrix_columns(row, lanes);
  if (plan.additional_tokens > 0) {
    columns += round_up<int64_t>(plan.additional_tokens, kMatrixStep) + kMatrixStep;
  }
  const int64_t products =
      (keys + plan.additional_tokens) * (int64_t{plan.head_dim} + plan.head_dim_value) / 2;
  const double share = 1.0 * row.num_queries / round_up(row.num_queries, lanes);
  return share * static_cast<double>(products) >=
         products_of_step * static_cast<double>(columns / kMatrixStep);
}

// As many as the smallest group has queries for; along a row only full ones.
int choose_tile_pairs(const BackwardPlan& plan) {
  const auto pairs_of = [](int queries) { return (queries + 1) / 2; };
  const auto least = [](const std::vector<AxisGroup>& groups) {
    int queries = groups.front().num_queries;
    for (const AxisGroup& group : groups) queries = std::min(queries, group.num_queries);
    return queries;
  };
  switch (plan.matrix.pair) {
    case MatrixPair::heads:
      return std::min(pairs_of(plan.head_group), kMostTilePairs);
    case MatrixPair::rows:
      return std::min(pairs_of(least(plan.groups[1])), kMostTilePairs);
    case MatrixPair::columns:
      return std::clamp(least(plan.groups[kRank - 1]) / (2 * kMatrixTile), 1, kMostTilePairs);
  }
  return 1;
}

}  // namespace

// The first that all groups have two of.
MatrixPair choose_matrix_pair(const Partition& plan) {
  if (plan.head_group > 1) return MatrixPair::heads;
  const std::vector<AxisGroup>& middle = plan.groups[1];
  const bool have_rows = std::all_of(middle.begin(), middle.end(),
                                     [](const AxisGroup& group) { return group.num_queries > 1; });
  return have_rows ? MatrixPair::rows : MatrixPair::columns;
}
int matrix_lanes(MatrixPair pair) {
  return pair == MatrixPair::columns ? 2 * kMatrixTile : kMatrixTile;
}

bool can_take_matrix_form(const Problem& problem) {
  if (problem.has_bias()) return false;
  if (problem.head_dim() % 2 != 0) return false;  // words of keys are transposed
  const Axis& row = problem.axis(problem.rank() - 1);
  return row.stride == 1 && row.dilation % row.output_stride == 0;  // queries are a key apart
}

// Words of values are multiplied too.
bool can_take_matrix_backward(const Problem& problem) {
  return can_take_matrix_form(problem) && problem.head_dim_value() % 2 == 0;
}

bool is_matrix_form_faster(const Partition& plan) { return is_faster(plan, kProductsOfStep); }
bool is_delta_rough(int64_t keys) {
  // With delta taken from output one of 20,000 random problems, of causal axes, erred by 1.17 of
  // what is allowed, others of fewer keys than these by up to 0.97.
  constexpr int64_t kEnoughKeys = 64;
  return keys < kEnoughKeys;
}
bool is_delta_rough(const Partition& plan) {
  return is_delta_rough(window_keys(plan) + plan.additional_tokens);
}
bool is_matrix_backward_faster(const Partition& plan) {
  // With few entries the rounding of dS shows: some problems erred by 1.6 of what is allowed.
  constexpr int kEnoughEntries = 16;
  if (std::min(plan.head_dim, plan.head_dim_value) < kEnoughEntries) return false;
  const double entries =
      (round_up(plan.head_dim, kMatrixStep) + round_up(plan.head_dim_value, kMatrixStep)) / 2.0;
  return is_faster(plan, kBackwardProductsOfStep + kBackwardProductsOfEntry * entries +
                             (is_delta_rough(plan) ? kBackwardProductsOfDelta : 0.0));
}

void begin_matrix(ForwardPlan* plan) {
  plan->matrix.pair = choose_matrix_pair(*plan);
  plan->lanes = matrix_lanes(plan->matrix.pair);
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

void begin_matrix(BackwardPlan* plan) {
  plan->matrix.pair = choose_matrix_pair(*plan);
  plan->matrix.tile_pairs = choose_tile_pairs(*plan);
  plan->lanes = matrix_lanes(plan->matrix.pair);
  if (plan->matrix.pair == MatrixPair::columns) plan->lanes *= plan->matrix.tile_pairs;
  plan->key_pitch = round_up(plan->head_dim, kMatrixStep);
  plan->value_pitch = round_up(plan->head_dim_value, kMatrixStep);
  plan->max_slots = kMatrixColumns;
}

// Rows of an odd number of cache lines.
int matrix_transposed_pitch(int columns) {
  return (round_up(columns, kMatrixStep) / kMatrixStep | 1) * kMatrixStep;
}

size_t matrix_row_elements(const BackwardPlan& plan, const PackedBox& packed) {
  const int columns = packed.ranges[kRank - 1].size();
  const int64_t halves = int64_t{columns} * (plan.key_pitch + plan.value_pitch) +
                         int64_t{matrix_transposed_pitch(columns)} * plan.key_pitch;
  return static_cast<size_t>(halves / 2 + BackwardPlan::sums_tokens(packed) *
                                              (plan.key_pitch + plan.value_pitch));
}

void lay_out_matrix(BackwardPlan* plan, ScratchLayout* take) {
  constexpr size_t kHalf = sizeof(float) / sizeof(uint16_t);
  constexpr size_t kQueries = kMatrixPairQueries, kOfStep = kMatrixPairStep;
  size_t columns = 0, transposed = 0;
  for (const PackedBox& packed : plan->packed) {
    const auto rows = static_cast<size_t>(packed.ring_rows());
    const int tokens = packed.ranges[kRank - 1].size();
    columns = std::max(columns, rows * static_cast<size_t>(tokens));
    transposed = std::max(transposed, rows * static_cast<size_t>(matrix_transposed_pitch(tokens)));
  }
  const int of_additional = round_up(static_cast<int>(plan->additional_tokens), kMatrixStep);
  const auto additional = static_cast<size_t>(of_additional);
  const auto key_pitch = static_cast<size_t>(plan->key_pitch);
  const auto value_pitch = static_cast<size_t>(plan->value_pitch);
  BackwardScratch& scratch = plan->scratch;
  MatrixBackward& matrix = plan->matrix;
  scratch.keys = (*take)(columns * key_pitch / kHalf);
  scratch.values = (*take)(columns * value_pitch / kHalf);
  scratch.transposed_keys = (*take)(transposed * key_pitch / kHalf);
  matrix.apart = (*take)(columns / kMatrixTile / kHalf + 1);
  scratch.additional_keys = (*take)(additional * key_pitch / kHalf);
  scratch.additional_values = (*take)(additional * value_pitch / kHalf);
  matrix.additional_transposed =
      (*take)(static_cast<size_t>(matrix_transposed_pitch(of_additional)) * key_pitch / kHalf);
  matrix.additional_apart = (*take)(additional / kMatrixTile / kHalf);
  scratch.sums = (*take)(plan->keeps_sums_apart ? 0 : plan->sums_size);
  scratch.additional_sums = (*take)(plan->keeps_additional_apart ? 0 : plan->additional_sums_size);
  const auto pairs = static_cast<size_t>(matrix.tile_pairs);
  scratch.transposed_queries = (*take)(pairs * kQueries * key_pitch / kHalf);
  scratch.transposed_grad_outputs = (*take)(pairs * kQueries * value_pitch / kHalf);
  scratch.queries = (*take)(pairs * kQueries * key_pitch / kHalf);
  scratch.grad_outputs = (*take)(pairs * kQueries * value_pitch / kHalf);
  scratch.grad_queries = (*take)(pairs * kQueries * key_pitch);
  matrix.logits = (*take)(2 * kOfStep);
  matrix.grad_probabilities = (*take)(2 * kOfStep);
  scratch.probabilities = (*take)(pairs * kOfStep / kHalf);
  scratch.grad_logits = (*take)(pairs * kOfStep / kHalf);
  matrix.paired_grad_logits = (*take)(kMatrixColumns / kMatrixStep * pairs * kOfStep / kHalf);
}

}  // namespace vecina::internal::cpu
