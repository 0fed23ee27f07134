// SPDX-License-Identifier: MIT
// Merges attentions of the same queries over disjoint keys: weights are a softmax of their lses.
// A few threads share a row; each output is read once, one of weight 0 not at all.
#include "config.h"
#include "small_geometry.cuh"
#include "small_merge_params.h"
#include "types.h"

namespace vecina::cuda {
namespace {

using Element = Types<kConfig.dtype>::Element;
using Real = Types<kConfig.dtype>::Real;

constexpr int kThreads = 128;
constexpr int kCount = kConfig.count;
constexpr int kVectors = kConfig.head_dim / kConfig.vector;

struct Index {
  long long at[kMaxMergeDims];

  VECINA_DEVICE explicit Index(const SmallMergeParams& params, long long row) {
#pragma unroll
    for (int d = 0; d < kConfig.num_dims; ++d) {
      if (d + 1 == kConfig.num_dims) {
        at[d] = row;
      } else if constexpr (kConfig.is_large) {
        at[d] = row % params.size[d];
        row /= params.size[d];
      } else {
        int rest = static_cast<int>(row);
        at[d] = divide_off(rest, params.sizes[d], static_cast<int>(params.size[d]));
        row = rest;
      }
    }
  }
  VECINA_DEVICE char* in(const MergeRows& rows) const {
    char* data = rows.data;
#pragma unroll
    for (int d = 0; d < kConfig.num_dims; ++d) data += at[d] * rows.stride[d];
    return data;
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    small_merge(const __grid_constant__ SmallMergeParams params) {
  const int lane = static_cast<int>(threadIdx.x) % kConfig.lanes;
  const long long row = static_cast<long long>(blockIdx.x) * (kThreads / kConfig.lanes) +
                        static_cast<int>(threadIdx.x) / kConfig.lanes;
  wait_for_previous();
  if (row >= params.rows) return;
  const Index index(params, row);

  Real weights[kCount];
  Real maximum = Real(-infinity());
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    weights[i] = *reinterpret_cast<const Real*>(index.in(params.lses[i]));
    maximum = larger(maximum, weights[i]);
  }
  let_next_start();
  const Real shift = maximum == Real(-infinity()) ? Real(0) : maximum;
  Real sum = Real(0);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    weights[i] = power_of_two((weights[i] - shift) * Real(1.0 / kLn2));
    sum += weights[i];
  }
  const Real inverse = sum == Real(0) ? Real(0) : Real(1) / sum;

  if (params.output.data != nullptr) {
    char* output = index.in(params.output);
#pragma unroll 1
    for (int vector = lane; vector < kVectors; vector += kConfig.lanes) {
      const int offset = vector * (kConfig.vector * static_cast<int>(sizeof(Element)));
      Real merged[kConfig.vector] = {};
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (weights[i] == Real(0)) continue;
        Real columns[kConfig.vector];
        load<Element, kConfig.vector>(index.in(params.outputs[i]) + offset, columns);
#pragma unroll
        for (int c = 0; c < kConfig.vector; ++c) {
          merged[c] = multiply_add(weights[i] * inverse, columns[c], merged[c]);
        }
      }
      store<Element, kConfig.vector>(merged, output + offset);
    }
  }
  if (params.lse.data != nullptr && lane == 0) {
    *reinterpret_cast<Real*>(index.in(params.lse)) = shift + logarithm_of_two(sum) * Real(kLn2);
  }
}

}  // namespace vecina::cuda
