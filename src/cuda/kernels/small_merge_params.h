// SPDX-License-Identifier: MIT
// What the kernels of merging and its gradient are given at run time. Included by the host and by
// NVRTC.
#ifndef VECINA_CUDA_KERNELS_SMALL_MERGE_PARAMS_H_
#define VECINA_CUDA_KERNELS_SMALL_MERGE_PARAMS_H_

#include "small_params.h"

namespace vecina::cuda {

inline constexpr int kMaxMerge = 16;
inline constexpr int kMaxMergeDims = 5;

struct MergeRows {
  char* data;                       // null: not wanted
  long long stride[kMaxMergeDims];  // bytes, innermost dimension first
};

// Dimensions that are one in memory for every tensor are one here.
struct MergeShape {
  long long rows;
  long long size[kMaxMergeDims];
  Divider sizes[kMaxMergeDims];  // unless is_large
};

struct SmallMergeParams {
  MergeRows outputs[kMaxMerge], lses[kMaxMerge];
  MergeRows output, lse;
  MergeShape shape;
};
static_assert(sizeof(SmallMergeParams) == (2 * kMaxMerge + 2) * 48 + 8 + 40 + 40,
              "the host and the kernel must agree");

struct MergeGradientParams {
  MergeRows outputs[kMaxMerge], lses[kMaxMerge], grad_outputs[kMaxMerge], grad_lses[kMaxMerge];
  MergeRows grad_output, grad_lse;
  MergeShape shape;
};
static_assert(sizeof(MergeGradientParams) == (4 * kMaxMerge + 2) * 48 + 8 + 40 + 40,
              "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_MERGE_PARAMS_H_
