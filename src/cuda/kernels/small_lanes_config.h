// SPDX-License-Identifier: MIT
// What small_lanes.cu is compiled for.
#ifndef VECINA_CUDA_KERNELS_SMALL_LANES_CONFIG_H_
#define VECINA_CUDA_KERNELS_SMALL_LANES_CONFIG_H_

namespace vecina::cuda {

struct SmallLanesConfig {
  int dtype;  // vecina_dtype
  int rank;
  int head_dim, head_dim_value;
  int key_vector, value_vector;  // neighbouring elements of a thread; divide the head dims
  int key_piece, value_piece;    // elements of one load or store, as alignment allows
  int lanes;                     // threads that share a query, a power of two up to 32
  int key_columns;               // vectors of a key row that a thread holds at a time
  int value_columns;             // vectors of a value row of a thread; the block's tile of columns
  int heads;                     // query heads of one key head that a thread computes
  int neighbors;                 // or queries beside each other along the last axis: 1 or 2
  int heads_beside;              // key heads, each with a query head, that a block has: 1 or 2
  int tile[3];                   // queries of a block along each axis
  int keys_at_once;              // keys between two updates of the running maximum
  // All keys of a query at once, with the window's geometry compiled in: the fields below.
  // Otherwise the geometry comes with the run.
  bool is_unrolled;
  int kernel_size[3], stride[3], dilation[3], output_stride[3];
  bool is_causal[3];
  int additional_tokens;
  bool has_bias;
  int lengths;            // vecina_lengths
  bool has_wide_offsets;  // 64-bit offsets within a sample
  bool has_flat_grid;     // blocks are numbered along the grid's first dimension alone
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_LANES_CONFIG_H_
