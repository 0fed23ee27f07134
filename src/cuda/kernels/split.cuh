// SPDX-License-Identifier: MIT
// What the kernels of the split form share. With w the weights, or their gradient, of a query i in
// its slots, and s a scale:
// clang-format off
//   split_weights.cu  w_is = s * query_i . key_j + bias[j - i]    qk, and the gradient of av's weights
//   split_rows.cu     row_i = s * sum_j w_is * key_j              av, and the gradient of query
//   split_keys.cu     row_j = s * sum_i w_is * query_i            the gradients of key and value
//   split_bias.cu     bias[j - i] = sum over queries of w_is      the gradient of bias
// clang-format on
// The slot of a key is its place in the window of the query, row-major over the axes; additional
// tokens follow.
#ifndef VECINA_CUDA_KERNELS_SPLIT_CUH_
#define VECINA_CUDA_KERNELS_SPLIT_CUH_

#include "gather.cuh"
#include "split_params.h"

namespace vecina::cuda {

using Part = RowPart<Element, Real, kConfig.columns, kConfig.vector, kConfig.piece, kLanes>;

// The window of a query, a token of the output.
struct QueryWindow {
  AxisWindow axes[3];
  int count[3] = {1, 1, 1};  // of keys
  int empty[3] = {0, 0, 0};  // slots before the keys
};
VECINA_DEVICE QueryWindow query_window(const GatherGeometry& geometry, const Sample& sample,
                                       const int (&token)[3]) {
  QueryWindow window;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    window.axes[a] = window_along(geometry, sample, a, token[a]);
    window.count[a] = window.axes[a].count;
    if constexpr (kConfig.right_aligned) {
      window.empty[a] = geometry.axes[a].kernel_size - window.count[a];
    }
  }
  return window;
}

// Of the key that is the place[a]-th along each axis.
VECINA_DEVICE long long slot_of(const GatherGeometry& geometry, const QueryWindow& window,
                                const int (&place)[3]) {
  long long slot = 0;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    slot = slot * geometry.axes[a].kernel_size + window.empty[a] + place[a];
  }
  return slot;
}

VECINA_DEVICE Real weight_at(const char* slots, long long slot) {
  Real weight;
  load<Element, 1>(slots + slot * static_cast<long long>(sizeof(Element)), &weight);
  return weight;
}

VECINA_DEVICE int head_of_keys(const GatherGeometry& geometry, int head) {
  return head / (geometry.heads / geometry.heads_kv);
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SPLIT_CUH_
