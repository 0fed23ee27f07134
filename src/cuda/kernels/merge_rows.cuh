// SPDX-License-Identifier: MIT
// What merging and its gradient share: a few threads have a row; where it lies in each tensor, and
// the weights of the attentions, a softmax of their lses.
#ifndef VECINA_CUDA_KERNELS_MERGE_ROWS_CUH_
#define VECINA_CUDA_KERNELS_MERGE_ROWS_CUH_

#include "config.h"
#include "small_geometry.cuh"
#include "small_merge_params.h"
#include "types.h"

namespace vecina::cuda {

using Element = Types<kConfig.dtype>::Element;
using Real = Types<kConfig.dtype>::Real;

inline constexpr int kThreads = 128;
inline constexpr int kCount = kConfig.count;
inline constexpr int kVectors = kConfig.head_dim / kConfig.vector;
inline constexpr int kVectorBytes = kConfig.vector * static_cast<int>(sizeof(Element));

struct MergeIndex {
  long long at[kMaxMergeDims];

  VECINA_DEVICE MergeIndex(const MergeShape& shape, long long row) {
#pragma unroll
    for (int d = 0; d < kConfig.num_dims; ++d) {
      if (d + 1 == kConfig.num_dims) {
        at[d] = row;
      } else if constexpr (kConfig.is_large) {
        at[d] = row % shape.size[d];
        row /= shape.size[d];
      } else {
        int rest = static_cast<int>(row);
        at[d] = divide_off(rest, shape.sizes[d], static_cast<int>(shape.size[d]));
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

// The thread's row; may lie beyond the last.
VECINA_DEVICE long long merge_row() {
  return static_cast<long long>(blockIdx.x) * (kThreads / kConfig.lanes) +
         static_cast<int>(threadIdx.x) / kConfig.lanes;
}

// In which type they are computed is up to the kernel.
template <class Sum>
struct MergeWeights {
  Sum of[kCount];  // not divided by their sum
  Sum shift, sum;  // lse = shift + log(sum)
  Sum inverse;     // of the sum; 0 if no attention saw anything

  VECINA_DEVICE MergeWeights(const MergeRows (&lses)[kMaxMerge], const MergeIndex& index) {
    Sum maximum = Sum(-infinity());
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      of[i] = *reinterpret_cast<const Real*>(index.in(lses[i]));
      maximum = larger(maximum, of[i]);
    }
    let_next_start();
    shift = maximum == Sum(-infinity()) ? Sum(0) : maximum;
    sum = Sum(0);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      of[i] = power_of_two((of[i] - shift) * Sum(1.0 / kLn2));
      sum += of[i];
    }
    inverse = sum == Sum(0) ? Sum(0) : Sum(1) / sum;
  }
  // Adds up a vector of the outputs' rows, which begins at `offset`; one of weight 0 is not read.
  VECINA_DEVICE void merge(const MergeRows (&outputs)[kMaxMerge], const MergeIndex& index,
                           int offset, Sum (&merged)[kConfig.vector]) const {
#pragma unroll
    for (int c = 0; c < kConfig.vector; ++c) merged[c] = Sum(0);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (of[i] == Sum(0)) continue;
      Real columns[kConfig.vector];
      load<Element, kConfig.vector>(index.in(outputs[i]) + offset, columns);
#pragma unroll
      for (int c = 0; c < kConfig.vector; ++c) {
        merged[c] = multiply_add(of[i] * inverse, Sum(columns[c]), merged[c]);
      }
    }
  }
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_MERGE_ROWS_CUH_
