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
// Keys and values are transposed for few tiles of rows: strips cost more than they give.
constexpr bool kHasStrips = false;

// Packed tokens and transposed elements of so many rows of a box's keys.
struct BoxSize {
  size_t tokens = 0, shared_tokens = 0, transposed_keys = 0, transposed_values = 0;
};
BoxSize box_size(const BackwardPlan& plan, const PackedBox& packed, int64_t num_rows) {
  const auto rows = static_cast<size_t>(num_rows);
  const size_t tokens = rows * static_cast<size_t>(packed.ranges[2].size());
  return {tokens, packed.runs.num_runs == 0 ? tokens : 0,
          rows * static_cast<size_t>(packed.runs.row(plan.head_dim)),
          rows * static_cast<size_t>(packed.runs.row(plan.head_dim_value))};
}

PackedBox backward_box(const BackwardPlan& plan, const Box& box) {
  return plan.matrix.is_used() ? matrix_box(plan, box) : packed_box(plan, box, kHasStrips);
}

size_t unit_elements(const BackwardPlan& plan, const Box& box) {
  const PackedBox packed = backward_box(plan, box);
  if (plan.matrix.is_used()) {
    return static_cast<size_t>(packed.rows()) * matrix_row_elements(plan, packed);
  }
  const BoxSize size = box_size(plan, packed, packed.rows());
  return size.transposed_keys + size.transposed_values +
         2 * size.tokens * static_cast<size_t>(plan.key_pitch) +
         (size.tokens + size.shared_tokens) * static_cast<size_t>(plan.value_pitch);
}

// Rows of keys that are in use from when a tile packs them until it has written those that no later
// one sees.
PackedRing packed_ring(const BackwardPlan& plan, const Box& box) {
  PackedRing ring;
  ring.axis = ring_axis(box);
  const auto a = static_cast<size_t>(ring.axis);
  const AxisGroup& axis = plan.groups[a][static_cast<size_t>(box.group[a])];
  const AxisGroup& lanes = plan.groups[2][static_cast<size_t>(box.group[2])];
  int rows_at_once = lanes.phases * plan.head_group;
  if (key_layout(lanes) == KeyLayout::shared) {
    rows_at_once *= (box.end[2] - box.begin[2] + plan.lanes - 1) / plan.lanes;
  }
  ring.band = ring.axis == 0 ? 1 : (kBackwardRows + rows_at_once - 2) / rows_at_once + 1;
  if (plan.matrix.is_used() && ring.axis == 1) {
    ring.band = plan.matrix.pair == MatrixPair::rows ? 2 * plan.matrix.tile_pairs : 1;
  }
  for (int k = box.begin[a]; k < box.end[a]; ++k) {
    const KeyRange keys = key_range(axis, k, std::min(k + ring.band, box.end[a]));
    // Rows between the windows of a downsampled axis are packed, and written, too.
    const int begin =
        k == box.begin[a] ? keys.begin : std::min(keys.begin, axis.end(axis.position(k - 1)));
    ring.rows = std::max(ring.rows, keys.end - begin);
  }
  return ring;
}

// Of the tables of the heads of one key head.
size_t bias_entries(const BackwardPlan& plan) {
  return static_cast<size_t>(plan.head_group) * static_cast<size_t>(plan.bias.size());
}

void lay_out_sums(BackwardPlan* plan) {
  plan->first_box.clear();
  for (size_t b = 0; b < plan->boxes.size(); ++b) {
    if (b == 0 || plan->boxes[b].group != plan->boxes[b - 1].group) {
      plan->first_box.push_back(static_cast<int>(b));
    }
  }
  plan->keeps_sums_apart = plan->first_box.size() < plan->boxes.size();
  plan->first_box.push_back(static_cast<int>(plan->boxes.size()));
  size_t tokens = 0;
  for (const PackedBox& packed : plan->packed) {
    const int64_t rows = plan->keeps_sums_apart ? packed.rows() : packed.ring_rows();
    tokens = std::max(tokens, static_cast<size_t>(rows * plan->sums_tokens(packed)));
  }
  plan->sums_value = tokens * static_cast<size_t>(plan->key_pitch);
  plan->sums_size = plan->sums_value + tokens * static_cast<size_t>(plan->value_pitch);

  const auto additional = static_cast<size_t>(
      plan->matrix.is_used() ? round_up<int64_t>(plan->additional_tokens, kMatrixStep)
                             : plan->additional_tokens);
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

void lay_out_lanes(BackwardPlan* plan, ScratchLayout* take_from) {
  ScratchLayout& take = *take_from;
  BoxSize most;
  for (const PackedBox& packed : plan->packed) {
    const BoxSize size = box_size(*plan, packed, packed.ring_rows());
    most = {std::max(most.tokens, size.tokens), std::max(most.shared_tokens, size.shared_tokens),
            std::max(most.transposed_keys, size.transposed_keys),
            std::max(most.transposed_values, size.transposed_values)};
  }
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
  if (plan->bias.given) {
    // Vectors of lanes that are no queries reach out.
    scratch.bias = take(bias_entries(*plan) + 2 * lanes) + lanes;
  }
  if (plan->grad_bias.given) scratch.bias_sums = take(bias_entries(*plan) * lanes);
}

void lay_out_scratch(BackwardPlan* plan, int element_bytes) {
  ScratchLayout take(element_bytes);
  plan->matrix.is_used() ? lay_out_matrix(plan, &take) : lay_out_lanes(plan, &take);
  plan->packed_scratch =
      lay_out_packed(*plan, std::max(plan->key_pitch, plan->value_pitch), element_bytes, &take);
  plan->scratch.total = take.total();
}

void begin_lanes(const BackwardKernel& kernel, BackwardPlan* plan) {
  plan->key_pitch = round_up(plan->head_dim, kernel.lanes);
  plan->value_pitch = round_up(plan->head_dim_value, kernel.lanes);
  plan->max_slots =
      static_cast<int>(std::min<int64_t>(kRowBytes / (kernel.lanes * kernel.element_bytes),
                                         window_keys(*plan) + plan->additional_tokens));
  plan->weights_pitch = plan->max_slots | 1;  // a power of two would put all rows in few cache sets
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
  const bool may_be_matrix = kernel.run_matrix != nullptr && can_take_matrix_backward(problem);
  if (may_be_matrix && (kernel.matrix_everywhere || is_matrix_backward_faster(plan))) {
    plan.matrix.run = kernel.run_matrix;
    begin_matrix(&plan);
  } else {
    begin_lanes(kernel, &plan);
  }
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
  for (const vecina_tensor* tensor :
       {&example.query, &example.key, &example.value, &example.grad_output, &example.grad_query,
        &example.grad_key, &example.grad_value}) {
    plan.tensor_bytes += num_elements(*tensor) * dtype_bytes(tensor->dtype);
  }
  plan.fetches_far = plan.tensor_bytes > kFarBytes;
  plan.streams_gradients = plan.tensor_bytes > kStreamedBytes;
  for (int a = 0; a < rank; ++a) plan.has_unseen_tokens |= problem.axis(a).output_stride > 1;

  cut_boxes(&plan, kEnoughUnits, [&](const Box& box) {
    return unit_elements(plan, box) * static_cast<size_t>(kernel.element_bytes) > kUnitBytes;
  });
  for (const Box& box : plan.boxes) {
    plan.packed.push_back(backward_box(plan, box));
    plan.packed.back().ring = packed_ring(plan, box);
  }
  lay_out_sums(&plan);
  if (plan.keeps_sums_apart) cut_slices(&plan);
  lay_out_scratch(&plan, kernel.element_bytes);
  return plan;
}

}  // namespace vecina::internal::cpu
