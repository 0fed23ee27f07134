// SPDX-License-Identifier: MIT
// Merges attentions of the same queries over disjoint keys: weights are a softmax of their lses.
// A few threads share a row. Of few attentions the outputs are read beside the lses, so that memory
// is waited for once; of many, those of weight 0 are not read.
#include "merge_rows.cuh"

namespace vecina::cuda {

extern "C" __global__ void __launch_bounds__(kThreads)
    small_merge(const __grid_constant__ MergeRow<MergeTensors>::Params params) {
  constexpr bool kReadsAll = kCount <= 4;
  constexpr int kSteps = (kVectors + kConfig.lanes - 1) / kConfig.lanes;
  const int lane = merge_lane();
  const long long number = merge_row();
  wait_for_previous();
  if (number >= params.rows) return;
  const MergeRow<MergeTensors> row(params, number);
  const bool has_output = row.has(MergeTensors::kOutput);
  Real columns[kCount][kConfig.vector];
  if (kReadsAll && has_output && lane < kVectors) {
    load_outputs(row, lane * kVectorBytes, columns);
  }
  const MergeWeights<Real> weights(row);

  if (has_output) {
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
      const int vector = step * kConfig.lanes + lane;
      if (vector >= kVectors) break;
      if (!kReadsAll || step > 0) load_outputs(row, vector * kVectorBytes, weights, columns);
      Real merged[kConfig.vector];
      weights.merge(columns, merged);
      store<Element, kConfig.vector>(merged, row.of(MergeTensors::kOutput) + vector * kVectorBytes);
    }
  }
  if (row.has(MergeTensors::kLse) && lane == 0) {
    *reinterpret_cast<Real*>(row.of(MergeTensors::kLse)) =
        weights.shift + logarithm_of_two(weights.sum) * Real(kLn2);
  }
}

}  // namespace vecina::cuda
