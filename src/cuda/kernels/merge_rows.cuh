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

// A place along a dimension.
template <bool is_large>
struct MergePlace {
  using Type = unsigned;
};
template <>
struct MergePlace<true> {
  using Type = long long;
};

// A row of a call's tensors. Tensors is MergeTensors or MergeGradientTensors.
template <class Tensors>
struct MergeRow {
  using Params = MergeParams<Tensors::kFirst + kCount * Tensors::kEach, kConfig.num_dims>;
  using Place = MergePlace<kConfig.is_large>::Type;

  const Params& params;
  Place at[kConfig.num_dims];

  VECINA_DEVICE MergeRow(const Params& of, long long number) : params(of) {
#pragma unroll
    for (int d = 0; d < kConfig.num_dims; ++d) {
      if (d + 1 == kConfig.num_dims) {
        at[d] = static_cast<Place>(number);
      } else if constexpr (kConfig.is_large) {
        at[d] = number % params.size[d];
        number /= params.size[d];
      } else {
        int rest = static_cast<int>(number);
        at[d] = static_cast<Place>(
            divide_off(rest, params.sizes[d], static_cast<int>(params.size[d])));
        number = rest;
      }
    }
  }
  VECINA_DEVICE bool has(int tensor) const { return params.data[tensor] != nullptr; }
  VECINA_DEVICE char* of(int tensor) const {
    char* data = params.data[tensor];
#pragma unroll
    for (int d = 0; d < kConfig.num_dims; ++d) data += at[d] * params.stride[d][tensor];
    return data;
  }
  // Of attention i; its output, its lse and so on.
  VECINA_DEVICE static constexpr int number(int i, int tensor) {
    return Tensors::kFirst + i * Tensors::kEach + tensor;
  }
  VECINA_DEVICE char* output(int i) const { return of(number(i, Tensors::kOutput)); }
  VECINA_DEVICE char* lse(int i) const { return of(number(i, Tensors::kLse)); }
};

// The thread's row; may lie beyond the last.
VECINA_DEVICE long long merge_row() {
  return static_cast<long long>(blockIdx.x) * (kThreads / kConfig.lanes) +
         threadIdx.x / kConfig.lanes;
}
VECINA_DEVICE int merge_lane() { return static_cast<int>(threadIdx.x % kConfig.lanes); }

// In which type they are computed is up to the kernel.
template <class Sum>
struct MergeWeights {
  Sum of[kCount];  // not divided by their sum
  Sum shift, sum;  // lse = shift + log(sum)
  Sum inverse;     // of the sum; 0 if no attention saw anything

  template <class Row>
  VECINA_DEVICE explicit MergeWeights(const Row& row) {
    Sum maximum = Sum(-infinity());
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      of[i] = *reinterpret_cast<const Real*>(row.lse(i));
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
    inverse = sum == Sum(0) ? Sum(0) : reciprocal(sum);
  }
  // Adds up a vector of the outputs' rows; what those of weight 0 hold is not looked at.
  VECINA_DEVICE void merge(const Real (&columns)[kCount][kConfig.vector],
                           Sum (&sums)[kConfig.vector]) const {
#pragma unroll
    for (int c = 0; c < kConfig.vector; ++c) sums[c] = Sum(0);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (of[i] == Sum(0)) continue;
#pragma unroll
      for (int c = 0; c < kConfig.vector; ++c) {
        sums[c] = multiply_add(of[i] * inverse, Sum(columns[i][c]), sums[c]);
      }
    }
  }
};

// A vector of each output's row, which begins at `offset`. With weights: of those not 0.
template <class Row>
VECINA_DEVICE void load_outputs(const Row& row, int offset,
                                Real (&columns)[kCount][kConfig.vector]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    load<Element, kConfig.vector>(row.output(i) + offset, columns[i]);
  }
}
template <class Row, class Sum>
VECINA_DEVICE void load_outputs(const Row& row, int offset, const MergeWeights<Sum>& weights,
                                Real (&columns)[kCount][kConfig.vector]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (weights.of[i] == Sum(0)) continue;
    load<Element, kConfig.vector>(row.output(i) + offset, columns[i]);
  }
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_MERGE_ROWS_CUH_
