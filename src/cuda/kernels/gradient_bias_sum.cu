// SPDX-License-Identifier: MIT
// Gradient of the relative position bias from sums of parts of the queries
// (tiles_gradient_bias.cu): a thread adds up those of one relative position of one head, in their
// order.
#include "gradient_pairs.cuh"

namespace vecina::cuda {

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    gradient_bias_sum(const __grid_constant__ GradientParams params) {
  wait_for_previous();
  Number number = static_cast<Number>(blockIdx.x) * (32 * kWarps) + threadIdx.x;
  if (number >= static_cast<Number>(params.geometry.num_rows)) return;
  const Real* sums = reinterpret_cast<const Real*>(params.sums) + number;
  Real total = Real(0);
#pragma unroll 8
  for (int part = 0; part < params.parts; ++part) total += sums[part * params.geometry.num_rows];
  int relative[3] = {0, 0, 0};
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    relative[a] = take_off(number, 2 * params.geometry.axes[a].kernel_size - 1);
  }
  *reinterpret_cast<Real*>(row_at(params.grad_bias, 0, static_cast<int>(number), relative)) = total;
}

}  // namespace vecina::cuda
