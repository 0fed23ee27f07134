// SPDX-License-Identifier: MIT
// Cuts a backward problem into units and lays out their scratch and sums. Nothing here knows the
// number of threads.
#include <algorithm>

#include "core/tensor.h"
#include "cpu/backward.h"
#include "cpu/layout.h"

namespace vecina::internal::cpu {
namespace {

// What a unit packs and sums may be this large: it is walked along the outer axes, so that only a
// few rows have to stay in L2.
constexpr size_t kUnitBytes = 3 * 1024 * 1024;
// Units that a problem is cut into if there are fewer, as long as that repeats little work.
constexpr int64_t kEnoughUnits = 4;
// Probabilities of a tile row held at once, in bytes; their gradients take as much again.
constexpr int kRowBytes = 8 * 1024;
constexpr int kSlicePositions = 256;

std::array<KeyRange, kRank> key_ranges(const BackwardPlan& plan, const Box& box) {
  std::array<KeyRange, kRank> ranges;
  for (size_t a = 0; a < kRank; ++a) {
    const AxisGroup& axis = plan.groups[a][static_cast<size_t>(box.group[a])];
    ranges[a] = a + 1 < kRank ? key_range(axis, box.begin[a], box.end[a])
                              : lane_key_range(axis, box.begin[a], box.end[a], plan.lanes);
  }
  return ranges;
}

// Packed tokens and transposed elements of a box's keys.
struct BoxSize {
  size_t tokens, shared_tokens, transposed_keys, transposed_values;
  size_t row;  // tokens of one row
};
BoxSize box_size(const BackwardPlan& plan, const Box& box) {
  const auto ranges = key_ranges(plan, box);
  const AxisGroup& axis = plan.groups[2][static_cast<size_t>(box.group[2])];
  const bool is_shared = key_layout(axis) == KeyLayout::shared;
  const size_t rows = static_cast<size_t>(ranges[0].size()) * static_cast<size_t>(ranges[1].size());
  const auto row = static_cast<size_t>(ranges[2].size());
  const size_t columns =
      is_shared ? 0
                : static_cast<size_t>(transposed_columns(axis, ranges[2], plan.lanes) * axis.step);
  return {rows * row, is_shared ? rows * row : 0,
          rows * columns * static_cast<size_t>(plan.head_dim),
          rows * columns * static_cast<size_t>(plan.head_dim_value), row};
}

size_t unit_elements(const BackwardPlan& plan, const Box& box) {
  const BoxSize size = box_size(plan, box);
  return size.transposed_keys + size.transposed_values +
         2 * size.tokens * static_cast<size_t>(plan.key_pitch) +
         (size.tokens + size.shared_tokens) * static_cast<size_t>(plan.value_pitch);
}

// Of the tables of the heads of one key head.
size_t bias_entries(const BackwardPlan& plan) {
  return static_cast<size_t>(plan.head_group) * static_cast<size_t>(plan.bias.size());
}

void lay_out_sums(BackwardPlan* plan) {
  size_t tokens = 0;
  plan->first_box.clear();
  for (size_t b = 0; b < plan->boxes.size(); ++b) {
    tokens = std::max(tokens, box_size(*plan, plan->boxes[b]).tokens);
    if (b == 0 || plan->boxes[b].group != plan->boxes[b - 1].group) {
      plan->first_box.push_back(static_cast<int>(b));
    }
  }
  plan->keeps_sums_apart = plan->first_box.size() < plan->boxes.size();
  plan->first_box.push_back(static_cast<int>(plan->boxes.size()));
  tokens += 3;  // up to four keys are summed at once: the last ones with some that are none
  plan->sums_value = tokens * static_cast<size_t>(plan->key_pitch);
  plan->sums_size = plan->sums_value + tokens * static_cast<size_t>(plan->value_pitch);

  const auto additional = static_cast<size_t>(plan->additional_tokens);
  plan->keeps_additional_apart = additional > 0 && plan->boxes.size() > 1;
  plan->additional_value_sums = additional * static_cast<size_t>(plan->key_pitch);
  plan->additional_sums_size =
      plan->additional_value_sums + additional * static_cast<size_t>(plan->value_pitch);

  if (plan->grad_bias.given) plan->bias_sums_size = bias_entries(*plan);
}

// Every key of the combinations that have queries, in pieces.
void cut_slices(BackwardPlan* plan) {
  for (size_t c = 0; c + 1 < plan->first_box.size(); ++c) {
    const Box& box = plan->boxes[static_cast<size_t>(plan->first_box[c])];
    const auto extent = [&](size_t a) {
      return plan->groups[a][static_cast<size_t>(box.group[a])].window.extent;
    };
    for (int z = 0; z < extent(0); ++z) {
      for (int y = 0; y < extent(1); ++y) {
        for (int x = 0; x < extent(2); x += kSlicePositions) {
          plan->slices.push_back(
              {static_cast<int>(c), z, y, x, std::min(x + kSlicePositions, extent(2))});
        }
      }
    }
  }
}

void lay_out_scratch(BackwardPlan* plan, int element_bytes) {
  BoxSize most = {0, 0, 0, 0, 0};
  for (const Box& box : plan->boxes) {
    const BoxSize size = box_size(*plan, box);
    most = {std::max(most.tokens, size.tokens), std::max(most.shared_tokens, size.shared_tokens),
            std::max(most.transposed_keys, size.transposed_keys),
            std::max(most.transposed_values, size.transposed_values), std::max(most.row, size.row)};
  }
  ScratchLayout take(element_bytes);
  const auto lanes = static_cast<size_t>(plan->lanes);
  const auto key_pitch = static_cast<size_t>(plan->key_pitch);
  const auto value_pitch = static_cast<size_t>(plan->value_pitch);
  const auto additional = static_cast<size_t>(plan->additional_tokens);
  BackwardScratch& scratch = plan->scratch;
  scratch.keys = take(most.tokens * key_pitch);
  scratch.values = take(most.shared_tokens * value_pitch);
  scratch.transposed_keys = take(most.transposed_keys + 2 * lanes);
  scratch.transposed_values = take(most.transposed_values + 2 * lanes);
  scratch.sums = take(plan->keeps_sums_apart ? 0 : plan->sums_size);
  scratch.additional_keys = take(additional * key_pitch);
  scratch.additional_values = take(additional * value_pitch);
  scratch.additional_sums = take(plan->keeps_additional_apart ? 0 : plan->additional_sums_size);
  scratch.queries = take(kBackwardRows * lanes * key_pitch);
  scratch.grad_outputs = take(kBackwardRows * lanes * value_pitch);
  scratch.transposed_queries = take(kBackwardRows * lanes * key_pitch);
  scratch.transposed_grad_outputs = take(kBackwardRows * lanes * value_pitch);
  scratch.grad_queries = take(kBackwardRows * lanes * key_pitch);
  const size_t weights = kBackwardRows * lanes * static_cast<size_t>(plan->weights_pitch);
  scratch.probabilities = take(weights);
  scratch.grad_logits = take(weights);
  scratch.products = take(2 * lanes * lanes + value_pitch);
  scratch.num_zeros = static_cast<size_t>(std::max(plan->key_pitch, plan->value_pitch));
  scratch.zeros = take(scratch.num_zeros);
  const size_t per_offset = sizeof(int64_t) / static_cast<size_t>(element_bytes);
  scratch.tokens = take(most.row * per_offset);
  scratch.key_offsets = take(most.row * per_offset);  // a window is no longer than what it is in
  if (plan->bias.given) {
    // Vectors of lanes that are no queries reach out.
    scratch.bias = take(bias_entries(*plan) + 2 * lanes) + lanes;
  }
  if (plan->grad_bias.given) scratch.bias_sums = take(bias_entries(*plan) * lanes);
  scratch.total = take.total();
}

// Token extents of a [batch, axes..., heads, head_dim] tensor, moved innermost.
std::array<int64_t, kRank> token_extents(const vecina_tensor& tensor, int rank) {
  std::array<int64_t, kRank> extents = {1, 1, 1};
  for (int a = 0; a < rank; ++a) {
    extents[static_cast<size_t>(kRank - rank + a)] = tensor.shape[1 + a];
  }
  return extents;
}

}  // namespace

int transposed_columns(const AxisGroup& axis, const KeyRange& range, int lanes) {
  const int columns = (range.size() + axis.step - 1) / axis.step;
  // An odd number of vectors: a power of two would put all head_dim entries in a few cache sets.
  return ((round_up(columns, lanes) / lanes) | 1) * lanes;
}

size_t BackwardPlan::shared_size() const {
  return static_cast<size_t>(num_units()) *
         ((keeps_sums_apart ? sums_size : 0) + (keeps_additional_apart ? additional_sums_size : 0) +
          bias_sums_size);
}

int64_t BackwardPlan::num_gathers() const {
  return batch * heads_kv *
             ((keeps_sums_apart ? static_cast<int64_t>(slices.size()) : 0) +
              (keeps_additional_apart ? 1 : 0)) +
         (grad_bias.given ? heads_kv : 0);
}

int64_t BackwardPlan::num_clears() const {
  return has_unseen_tokens ? batch * (query_extent[0] + key_extent[0]) : 0;
}

BackwardPlan plan_backward(const Problem& problem, const vecina_backward_args& example,
                           const BackwardKernel& kernel) {
  const bool dense =
      is_dense(problem, {&example.query, &example.key, &example.value, &example.output,
                         &example.lse, &example.grad_output, &example.grad_lse, &example.grad_query,
                         &example.grad_key, &example.grad_value});
  BackwardPlan plan;
  partition(problem, dense, /*has_phases=*/true, kernel.lanes, &plan);
  const int rank = problem.rank();
  plan.key_pitch = round_up(plan.head_dim, kernel.lanes);
  plan.value_pitch = round_up(plan.head_dim_value, kernel.lanes);
  plan.max_slots =
      static_cast<int>(std::min<int64_t>(kRowBytes / (kernel.lanes * kernel.element_bytes),
                                         window_keys(plan) + plan.additional_tokens));
  plan.weights_pitch = plan.max_slots | 1;  // a power of two would put all rows in a few cache sets
  plan.query = strides_of(example.query, rank);
  plan.key = strides_of(example.key, rank);
  plan.value = strides_of(example.value, rank);
  plan.additional_key = strides_of(example.additional_key, 1);
  plan.additional_value = strides_of(example.additional_value, 1);
  plan.output = strides_of(example.output, rank);
  plan.lse = strides_of(example.lse, rank);
  plan.grad_output = strides_of(example.grad_output, rank);
  plan.grad_lse = strides_of(example.grad_lse, rank);
  plan.grad_query = strides_of(example.grad_query, rank);
  plan.grad_key = strides_of(example.grad_key, rank);
  plan.grad_value = strides_of(example.grad_value, rank);
  plan.grad_additional_key = strides_of(example.grad_additional_key, 1);
  plan.grad_additional_value = strides_of(example.grad_additional_value, 1);
  plan.bias = bias_table(problem, example.bias);
  plan.grad_bias = bias_table(problem, example.grad_bias);
  plan.query_extent = token_extents(example.query, rank);
  plan.key_extent = token_extents(example.key, rank);
  for (int a = 0; a < rank; ++a) plan.has_unseen_tokens |= problem.axis(a).output_stride > 1;

  cut_boxes(&plan, kEnoughUnits, [&](const Box& box) {
    return unit_elements(plan, box) * static_cast<size_t>(kernel.element_bytes) > kUnitBytes;
  });
  for (const Box& box : plan.boxes) plan.key_ranges.push_back(key_ranges(plan, box));
  lay_out_sums(&plan);
  cut_slices(&plan);
  lay_out_scratch(&plan, kernel.element_bytes);
  return plan;
}

}  // namespace vecina::internal::cpu
