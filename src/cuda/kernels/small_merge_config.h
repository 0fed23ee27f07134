// SPDX-License-Identifier: MIT
// What small_merge.cu and merge_gradient.cu are compiled for.
#ifndef VECINA_CUDA_KERNELS_SMALL_MERGE_CONFIG_H_
#define VECINA_CUDA_KERNELS_SMALL_MERGE_CONFIG_H_

namespace vecina::cuda {

struct SmallMergeConfig {
  int dtype;  // vecina_dtype
  int count;  // attentions to merge
  int num_dims;
  int head_dim;
  int vector;     // elements of one load; divides head_dim
  int lanes;      // threads of a row, a power of two up to 32
  bool is_large;  // 2^31 rows or more
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_MERGE_CONFIG_H_
