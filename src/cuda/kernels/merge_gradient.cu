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
    merge_gradient(const __grid_constant__ MergeGradientParams params) {
  const int lane = static_cast<int>(threadIdx.x) % kConfig.lanes;
  const long long row = merge_row();
  const bool is_row = row < params.shape.rows;  // every thread takes part in the sums
  wait_for_previous();
  const MergeIndex index(params.shape, is_row ? row : 0);
  const MergeWeights<double> weights(params.lses, index);

  double differences[kCount] = {};
#pragma unroll 1
  for (int vector = lane; vector < kVectors; vector += kConfig.lanes) {
    const int offset = vector * kVectorBytes;
    Real gradient[kConfig.vector];
    double merged[kConfig.vector];
    load<Element, kConfig.vector>(index.in(params.grad_output) + offset, gradient);
    weights.merge(params.outputs, index, offset, merged);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool is_seen = weights.of[i] != 0.0;
      Real columns[kConfig.vector];
      if (is_seen) {
        load<Element, kConfig.vector>(index.in(params.outputs[i]) + offset, columns);
#pragma unroll
        for (int c = 0; c < kConfig.vector; ++c) {
          differences[i] =
              multiply_add(static_cast<double>(gradient[c]),
                           static_cast<double>(columns[c]) - merged[c], differences[i]);
        }
      }
      if (params.grad_outputs[i].data == nullptr || !is_row) continue;
#pragma unroll
      for (int c = 0; c < kConfig.vector; ++c) {
        columns[c] =
            is_seen ? static_cast<Real>(weights.of[i] * weights.inverse * gradient[c]) : Real(0);
      }
      store<Element, kConfig.vector>(columns, index.in(params.grad_outputs[i]) + offset);
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    double sum = sum_over_lanes<kConfig.lanes>(differences[i]);
    if (params.grad_lses[i].data == nullptr || !is_row || lane != 0) continue;
    if (params.grad_lse.data != nullptr) {
      sum += *reinterpret_cast<const Real*>(index.in(params.grad_lse));
    }
    *reinterpret_cast<Real*>(index.in(params.grad_lses[i])) =
        weights.of[i] == 0.0 ? Real(0) : static_cast<Real>(weights.of[i] * weights.inverse * sum);
  }
}

}  // namespace vecina::cuda
