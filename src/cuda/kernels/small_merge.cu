// SPDX-License-Identifier: MIT
// Merges attentions of the same queries over disjoint keys: weights are a softmax of their lses.
// A few threads share a row; each output is read once, one of weight 0 not at all.
#include "merge_rows.cuh"

namespace vecina::cuda {

extern "C" __global__ void __launch_bounds__(kThreads)
    small_merge(const __grid_constant__ SmallMergeParams params) {
  const int lane = static_cast<int>(threadIdx.x) % kConfig.lanes;
  const long long row = merge_row();
  wait_for_previous();
  if (row >= params.shape.rows) return;
  const MergeIndex index(params.shape, row);
  const MergeWeights<Real> weights(params.lses, index);

  if (params.output.data != nullptr) {
    char* output = index.in(params.output);
#pragma unroll 1
    for (int vector = lane; vector < kVectors; vector += kConfig.lanes) {
      Real merged[kConfig.vector];
      weights.merge(params.outputs, index, vector * kVectorBytes, merged);
      store<Element, kConfig.vector>(merged, output + vector * kVectorBytes);
    }
  }
  if (params.lse.data != nullptr && lane == 0) {
    *reinterpret_cast<Real*>(index.in(params.lse)) =
        weights.shift + logarithm_of_two(weights.sum) * Real(kLn2);
  }
}

}  // namespace vecina::cuda
