// SPDX-License-Identifier: MIT
#include "cpu/work.h"

#include <algorithm>
#include <climits>

#include "cpu/layout.h"

namespace vecina::internal::cpu {
namespace {

// A box of queries for one head.
struct BoxWork {
  double query_rows = 0;  // along the innermost axis
  double key_rows = 0;    // that they see, each counted for each of them
  double vectors = 0;     // of queries in a row of them
  double queries = 0;     // in a row of them
  double summed = 0;      // likewise, with those that fill up the last ones summed at once
  double row_keys = 0;    // that a vector meets in a row of keys, in the mean
};

double seen_rows(const AxisGroup& axis, int begin, int end) {
  double rows = 0;
  for (int k = begin; k < end; ++k) {
    const int position = axis.position(k);
    rows += axis.end(position) - axis.begin(position);
  }
  return rows;
}

// Causal lanes of the shared layout read as far as the last query of their vector sees; attention
// may have more queries than keys.
double keys_of_row(const AxisGroup& axis, int begin, int end, int lanes) {
  if (!axis.window.is_causal || key_layout(axis) == KeyLayout::shifted) {
    return axis.window.kernel_size;
  }
  double keys = 0;
  int vectors = 0;
  for (int k = begin; k < end; k += lanes, ++vectors) {
    const int last = axis.position(std::min(k + lanes, end) - 1) + axis.phases - 1;
    keys += std::min(last + 1, axis.window.extent);
  }
  return keys / vectors;
}

BoxWork box_work(const Partition& plan, const Box& box) {
  const auto axis = [&](size_t a) -> const AxisGroup& {
    return plan.groups[a][static_cast<size_t>(box.group[a])];
  };
  const AxisGroup& row = axis(2);
  const int count = box.end[2] - box.begin[2];
  const int at_once = std::max(plan.lanes / 2, 1);
  BoxWork work;
  work.query_rows = 1.0 * (box.end[0] - box.begin[0]) * (box.end[1] - box.begin[1]);
  work.key_rows =
      seen_rows(axis(0), box.begin[0], box.end[0]) * seen_rows(axis(1), box.begin[1], box.end[1]);
  work.vectors = 1.0 * filled_up(row, count, plan.lanes) / plan.lanes * row.phases;
  work.queries = 1.0 * count * row.phases;
  work.summed = 1.0 * round_up(count, at_once) * row.phases;
  work.row_keys = keys_of_row(row, box.begin[2], box.end[2], plan.lanes);
  return work;
}

// Steps of keys that the tiles of a row of queries meet in a row of keys, all tiles together.
double steps_of_row(const Partition& plan, const AxisGroup& axis, int begin, int end) {
  double steps = 0;
  for (int x = begin; x < end; x += kMatrixTile) {
    if (key_layout(axis) == KeyLayout::shifted) {
      // Where tiles of one row are computed together, a window begins anywhere in a step.
      steps += plan.lanes == kMatrixTile
                   ? matrix_columns(axis, kMatrixTile) / kMatrixStep
                   : 0.5 + 1.0 * (kMatrixTile - 1 + axis.window.kernel_size) / kMatrixStep;
    } else {
      const int last = axis.window.is_causal ? axis.position(x) + kMatrixTile : INT_MAX;
      steps += (std::min(last, axis.window.extent) + kMatrixStep - 1) / kMatrixStep;
    }
  }
  return steps;
}

// Of the matrix form, whose tiles of queries take `products` multiply-adds for each query and key
// of a step and `exponentials` for each query of one.
Work matrix_work(const Partition& plan, double products, double exponentials, double packed) {
  Work work;
  work.tensor_bytes = static_cast<double>(plan.tensor_bytes);
  const double heads_kv = static_cast<double>(plan.batch) * plan.heads_kv;
  const double heads = heads_kv * plan.head_group;
  const double additional =
      static_cast<double>(round_up<int64_t>(plan.additional_tokens, kMatrixStep) / kMatrixStep);
  for (size_t b = 0; b < plan.boxes.size(); ++b) {
    const Box& box = plan.boxes[b];
    const BoxWork of_box = box_work(plan, box);
    const AxisGroup& row = plan.groups[2][static_cast<size_t>(box.group[2])];
    const int count = box.end[2] - box.begin[2];
    const double tiles = round_up(count, kMatrixTile) / kMatrixTile;
    const double steps =
        heads * (of_box.key_rows * steps_of_row(plan, row, box.begin[2], box.end[2]) +
                 of_box.query_rows * tiles * additional);
    work.multiply_adds += steps * kMatrixTile * kMatrixStep * products;
    work.exponentials += steps * kMatrixTile * exponentials;
    work.queries += heads * of_box.query_rows * count * (plan.head_dim + plan.head_dim_value);
    work.packed += heads_kv * static_cast<double>(plan.packed[b].rows()) *
                   plan.packed[b].ranges[2].size() * packed;
  }
  return work;
}

// Factors of the time that each part of the work would take at the machine's rates.
struct Factors {
  double multiply_adds, exponentials;
  double packed, queries, gathered;  // of reads from L1
  double far;                        // of tensors beyond L2
};
// Fitted to the best of two runs of 45 problems on Zen 4 (docs/performance.md), with vectors of 512
// bits and without; those of the matrix form to 40 each on Sapphire Rapids. The direct form's
// exponentials stand for all that it does once a key.
struct Fits {
  Factors tiles, direct, backward;
  Factors matrix = {}, matrix_backward = {};  // AVX-512
};
constexpr Fits kWide = {{1.17, 0.0, 11.1, 11.1, 0.0, 1.1},
                        {0.8, 5.8, 0.0, 0.0, 0.0, 1.5},
                        {1.27, 0.0, 13.1, 2.7, 25.0, 0.6},
                        {4.4, 2.2, 8.5, 4.0, 0.0, 0.3},
                        {4.0, 2.0, 36.0, 3.0, 0.0, 2.4}};
constexpr Fits kNarrow = {{1.27, 1.1, 3.1, 3.1, 0.0, 3.8},
                          {0.37, 8.6, 0.0, 0.0, 0.0, 1.9},
                          {1.26, 0.0, 15.7, 0.0, 39.0, 4.0}};
const Fits& fits(int lanes, int element_bytes) {
  return lanes * element_bytes == 64 ? kWide : kNarrow;
}

double predict_ms(const Work& work, const Factors& factors, int element_bytes, const Peak& peak,
                  double gflops) {
  const double floats = element_bytes / static_cast<double>(sizeof(float));  // lanes get fewer
  double nanoseconds = floats * (factors.multiply_adds * 2.0 * work.multiply_adds / gflops +
                                 factors.exponentials * work.exponentials / peak.exp_gops);
  nanoseconds += element_bytes / peak.l1_gbs *
                 (factors.packed * work.packed + factors.queries * work.queries +
                  factors.gathered * work.gathered);
  if (work.tensor_bytes > kFarBytes) {
    const double rate = work.tensor_bytes > kNearBytes ? peak.memory_gbs : peak.l3_gbs;
    nanoseconds += factors.far * work.tensor_bytes / rate;
  }
  return nanoseconds * 1e-6;
}

}  // namespace

Work work_of(const ForwardPlan& plan) {
  if (plan.matrix.is_used()) {
    const int keys = plan.groups[2].front().window.kernel_size;
    const bool has_windows = keys <= kMatrixTile;  // taken out of steps
    return matrix_work(plan, 2 * plan.key_words + plan.value_pitch,
                       !has_windows              ? kMatrixStep
                       : keys <= kMatrixTile / 2 ? kMatrixTile / 2
                                                 : kMatrixTile,
                       2 * plan.key_words + plan.value_pitch);
  }
  Work work;
  work.tensor_bytes = static_cast<double>(plan.tensor_bytes);
  const auto additional = static_cast<double>(plan.additional_tokens);
  const double heads_kv = static_cast<double>(plan.batch) * plan.heads_kv;
  const double heads = heads_kv * plan.head_group;
  const double value_rows = plan.has_value_pairs ? 0.5 : 1.0;
  for (size_t b = 0; b < plan.boxes.size(); ++b) {
    const BoxWork box = box_work(plan, plan.boxes[b]);
    const double queries = heads * box.query_rows * box.queries;
    work.queries += queries * (plan.head_dim + plan.head_dim_value);
    if (plan.direct.is_used) {
      const double slots = static_cast<double>(plan.direct.weights_pitch) + additional;
      work.multiply_adds += queries * slots * (plan.key_pitch + plan.value_pitch);
      work.exponentials += queries * slots;
      continue;
    }
    const double keys = box.key_rows * box.row_keys + box.query_rows * additional;
    const double lanes = heads * box.vectors * plan.lanes;
    work.multiply_adds +=
        lanes * keys * plan.key_words + heads * box.summed * keys * plan.value_pitch * value_rows;
    work.exponentials += lanes * keys;
    const PackedBox& packed = plan.packed[b];
    const double rows = heads_kv * static_cast<double>(packed.rows());
    const double tokens = packed.ranges[2].size();
    if (packed.runs.num_runs > 0) {
      work.packed += rows * static_cast<double>(packed.runs.row(plan.key_words));
    } else if (!plan.keys_in_place) {
      work.packed += rows * tokens * plan.key_pitch;
    }
    if (!plan.values_in_place && !plan.shared_values_in_place) {
      work.packed += rows * tokens * plan.value_pitch * value_rows;
    }
  }
  return work;
}

Work work_of(const BackwardPlan& plan) {
  if (plan.matrix.is_used()) {
    // Logits and dP are computed twice for a rough delta; of causal axes that is not counted.
    const int times = is_delta_rough(plan) ? 2 : 1;
    return matrix_work(plan, (times + 2) * plan.key_pitch + (times + 1) * plan.value_pitch,
                       times * kMatrixStep, plan.key_pitch + plan.value_pitch);
  }
  Work work;
  work.tensor_bytes = static_cast<double>(plan.tensor_bytes);
  const auto additional = static_cast<double>(plan.additional_tokens);
  const double heads_kv = static_cast<double>(plan.batch) * plan.heads_kv;
  const double heads = heads_kv * plan.head_group;
  const int pitches = plan.key_pitch + plan.value_pitch;
  for (size_t b = 0; b < plan.boxes.size(); ++b) {
    const BoxWork box = box_work(plan, plan.boxes[b]);
    const double keys = box.key_rows * box.row_keys + box.query_rows * additional;
    const double lanes = heads * box.vectors * plan.lanes;
    // Logits, gradients of probabilities, and the sums of three gradients.
    work.multiply_adds += lanes * keys * (plan.head_dim + plan.head_dim_value) +
                          heads * box.queries * keys * (pitches + plan.key_pitch);
    work.exponentials += lanes * keys;
    work.queries +=
        heads * box.query_rows * box.queries * 2.0 * (plan.head_dim + plan.head_dim_value);
    const PackedBox& packed = plan.packed[b];
    const double rows = heads_kv * static_cast<double>(packed.rows());
    const double tokens = packed.ranges[2].size();
    if (packed.runs.num_runs > 0) {
      work.packed += rows * (static_cast<double>(packed.runs.row(plan.head_dim)) +
                             static_cast<double>(packed.runs.row(plan.head_dim_value)) +
                             tokens * plan.key_pitch);
    } else {
      work.packed += rows * tokens * pitches;
    }
    work.packed += rows * tokens * pitches;  // gradients
    if (plan.keeps_sums_apart) {
      work.gathered += rows * static_cast<double>(BackwardPlan::sums_tokens(packed)) * pitches;
    }
  }
  return work;
}

double predict_ms(const ForwardPlan& plan, const ForwardKernel& kernel, const Peak& peak) {
  const Fits& fitted = fits(kernel.lanes, kernel.element_bytes);
  const bool is_matrix = plan.matrix.is_used();
  const Factors& factors = is_matrix             ? fitted.matrix
                           : plan.direct.is_used ? fitted.direct
                                                 : fitted.tiles;
  return predict_ms(work_of(plan), factors, kernel.element_bytes, peak,
                    is_matrix ? peak.tile_gflops : peak.fma_gflops);
}

double predict_ms(const BackwardPlan& plan, const BackwardKernel& kernel, const Peak& peak) {
  const Fits& fitted = fits(kernel.lanes, kernel.element_bytes);
  const bool is_matrix = plan.matrix.is_used();
  return predict_ms(work_of(plan), is_matrix ? fitted.matrix_backward : fitted.backward,
                    kernel.element_bytes, peak, is_matrix ? peak.tile_gflops : peak.fma_gflops);
}

}  // namespace vecina::internal::cpu
