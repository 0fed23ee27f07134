// SPDX-License-Identifier: MIT
// What the kernels of merging and its gradient are given at run time. Included by the host and by
// NVRTC.
#ifndef VECINA_CUDA_KERNELS_SMALL_MERGE_PARAMS_H_
#define VECINA_CUDA_KERNELS_SMALL_MERGE_PARAMS_H_

#include "small_params.h"

namespace vecina::cuda {

inline constexpr int kMaxMerge = 16;
inline constexpr int kMaxMergeDims = 5;

// Where the rows of a call's tensors lie: dimensions that are one in memory for every tensor are
// one here, innermost first. No more than a kernel reads, in the order in which it does: every line
// of the constant cache that it touches costs it time.
template <int kTensors, int kDims>
struct MergeParams {
  long long rows;
  char* data[kTensors];               // null: not wanted
  long long stride[kDims][kTensors];  // bytes
  long long size[kDims];
  Divider sizes[kDims];  // unless there are 2^31 rows or more
};
static_assert(sizeof(MergeParams<6, 2>) == 8 * (1 + 6 + 2 * 6 + 2 + 2),
              "the host writes it word by word");

// The tensors by number: of the call, then of each attention.
struct MergeTensors {  // small_merge.cu
  static constexpr int kOutput = 0, kLse = 1, kFirst = 2, kEach = 2;
};
struct MergeGradientTensors {  // merge_gradient.cu: kOutput and kLse are the gradients of both
  static constexpr int kOutput = 0, kLse = 1, kFirst = 2, kEach = 4;
  static constexpr int kGradOutput = 2, kGradLse = 3;  // of an attention, after output and lse
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_MERGE_PARAMS_H_
