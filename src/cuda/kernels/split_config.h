// SPDX-License-Identifier: MIT
// What the kernels of the split form (split.cuh) are compiled for.
#ifndef VECINA_CUDA_KERNELS_SPLIT_CONFIG_H_
#define VECINA_CUDA_KERNELS_SPLIT_CONFIG_H_

namespace vecina::cuda {

struct SplitConfig {
  int dtype;  // vecina_dtype
  int rank;
  int columns;         // of a row: head_dim for qk, head_dim_value for av
  int vector;          // neighbouring elements of a thread; divides the columns
  int piece;           // elements of one load or store, as alignment allows
  int warps;           // of a block
  int lanes;           // threads that share a row, a power of two up to 32
  bool of_qk;          // rows of queries are tokens of query; of av, tokens of output
  bool of_additional;  // split_keys.cu: rows of additional tokens, not of keys
  bool has_bias;
  bool right_aligned;                // empty slots come before the keys of their axis
  bool has_wide_number;              // more than 2^31 rows
  static constexpr int lengths = 0;  // vecina_lengths: equal
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SPLIT_CONFIG_H_
