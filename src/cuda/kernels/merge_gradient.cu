// SPDX-License-Identifier: MIT
// Gradients of merging. With w the weights (small_merge.cu):
//   grad_outputs_i = w_i * grad_output
//   grad_lses_i    = w_i * (grad_lse + grad_output . (output_i - output))
// The merged output is computed anew, as it is not given. An attention of weight 0 is not looked
// at. The gradients of lses are differences of nearly equal sums, so those are in f64 for every
// dtype: with f32, 3 rows of 8 columns had an error of 3e-6 of the largest.
#include "merge_rows.cuh"
#include "row_part.cuh"

namespace vecina::cuda {

extern "C" __global__ void __launch_bounds__(kThreads)
    merge_gradient(const __grid_constant__ MergeRow<MergeGradientTensors>::Params params) {
  using Tensors = MergeGradientTensors;
  const int lane = merge_lane();
  const long long number = merge_row();
  const bool is_row = number < params.rows;  // every thread takes part in the sums
  wait_for_previous();
  const MergeRow<Tensors> row(params, is_row ? number : 0);
  const MergeWeights<double> weights(row);

  double differences[kCount] = {};
#pragma unroll 1
  for (int vector = lane; vector < kVectors; vector += kConfig.lanes) {
    const int offset = vector * kVectorBytes;
    Real gradient[kConfig.vector], columns[kCount][kConfig.vector];
    double merged[kConfig.vector];
    load<Element, kConfig.vector>(row.of(Tensors::kOutput) + offset, gradient);
    load_outputs(row, offset, weights, columns);
    weights.merge(columns, merged);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool is_seen = weights.of[i] != 0.0;
      if (is_seen) {
#pragma unroll
        for (int c = 0; c < kConfig.vector; ++c) {
          differences[i] =
              multiply_add(static_cast<double>(gradient[c]),
                           static_cast<double>(columns[i][c]) - merged[c], differences[i]);
        }
      }
      const int grad_output = row.number(i, Tensors::kGradOutput);
      if (!row.has(grad_output) || !is_row) continue;
      Real found[kConfig.vector];
#pragma unroll
      for (int c = 0; c < kConfig.vector; ++c) {
        found[c] =
            is_seen ? static_cast<Real>(weights.of[i] * weights.inverse * gradient[c]) : Real(0);
      }
      store<Element, kConfig.vector>(found, row.of(grad_output) + offset);
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    double sum = sum_over_lanes<kConfig.lanes>(differences[i]);
    const int grad_lse = row.number(i, Tensors::kGradLse);
    if (!row.has(grad_lse) || !is_row || lane != 0) continue;
    if (row.has(Tensors::kLse)) sum += *reinterpret_cast<const Real*>(row.of(Tensors::kLse));
    *reinterpret_cast<Real*>(row.of(grad_lse)) =
        weights.of[i] == 0.0 ? Real(0) : static_cast<Real>(weights.of[i] * weights.inverse * sum);
  }
}

}  // namespace vecina::cuda
