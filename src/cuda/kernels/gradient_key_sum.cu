// SPDX-License-Identifier: MIT
// Gradients of additional tokens from sums of parts of the queries (gradient_key.cu): a thread adds
// up those of one element, in their order.
#include "gradient_pairs.cuh"

namespace vecina::cuda {

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    gradient_key_sum(const __grid_constant__ GradientParams params) {
  constexpr int kColumns = kConfig.head_dim + kConfig.head_dim_value;
  wait_for_previous();
  Number number = static_cast<Number>(blockIdx.x) * (32 * kWarps) + threadIdx.x;
  const long long elements = params.geometry.num_rows;
  if (number >= static_cast<Number>(elements)) return;
  const Real* sums = reinterpret_cast<const Real*>(params.sums) + number;
  Real total = Real(0);
#pragma unroll 8
  for (int part = 0; part < params.parts; ++part) total += sums[part * elements];
  int column = take_off(number, kColumns);
  const bool is_of_key = column < kConfig.head_dim;
  if (is_of_key) {
    total *= static_cast<Real>(params.scale);
  } else {
    column -= kConfig.head_dim;
  }
  const SmallRows& gradient = is_of_key ? params.grad_key : params.grad_value;
  if (gradient.data == nullptr) return;
  int token[3] = {0, 0, 0};
  token[2] = take_off(number, params.geometry.additional_tokens);
  const int head = take_off(number, params.geometry.heads_kv);
  char* row = row_at(gradient, static_cast<int>(number), head, token);
  store<Element, 1>(&total, row + column * static_cast<int>(sizeof(Element)));
}

}  // namespace vecina::cuda
