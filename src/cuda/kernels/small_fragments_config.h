// SPDX-License-Identifier: MIT
// What small_fragments.cu is compiled for.
#ifndef VECINA_CUDA_KERNELS_SMALL_FRAGMENTS_CONFIG_H_
#define VECINA_CUDA_KERNELS_SMALL_FRAGMENTS_CONFIG_H_

namespace vecina::cuda {

// A warp computes 16 rows: a box of positions times heads of one key head. They meet the keys of
// the box's union of windows, then the additional tokens: the list of keys.
struct SmallFragmentsConfig {
  int dtype;  // vecina_dtype: f32, f16 or bf16
  int rank;
  int head_dim;       // of key and value; a multiple of 32
  int box[3];         // positions of a warp's rows along each axis, in a dilation group
  int heads;          // of a warp's rows; box times heads is 16
  int boxes[3];       // of a block along each axis
  int warps_per_box;  // among which the list of keys is split
  int kernel_size[3], stride[3], dilation[3];
  bool is_causal[3];
  int union_size[3];  // keys along each axis that a box may see, or more
  bool is_full[3];    // every query sees every key along the axis
  bool is_cut[3];     // a dilation group may be shorter than the union
  int additional_tokens;
  bool has_flat_grid;  // blocks are numbered along the grid's first dimension alone
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_FRAGMENTS_CONFIG_H_
