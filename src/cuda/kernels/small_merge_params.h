// SPDX-License-Identifier: MIT
// What the merge kernel is given at run time. Included by the host and by NVRTC.
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
struct SmallMergeParams {
  MergeRows outputs[kMaxMerge], lses[kMaxMerge];
  MergeRows output, lse;
  long long rows;
  long long size[kMaxMergeDims];
  Divider sizes[kMaxMergeDims];  // unless is_large
};
static_assert(sizeof(SmallMergeParams) == (2 * kMaxMerge + 2) * 48 + 8 + 40 + 40,
              "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_MERGE_PARAMS_H_
