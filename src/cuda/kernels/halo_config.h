// SPDX-License-Identifier: MIT
// What the halo kernels are compiled for. An owner is a token that gets a result (a query; for the
// gradients of key and value, a key), a partner a token of the other kind that it meets. Three
// axes always, outermost first; those before the problem's first have one token.
#ifndef VECINA_CUDA_KERNELS_HALO_CONFIG_H_
#define VECINA_CUDA_KERNELS_HALO_CONFIG_H_

namespace vecina::cuda {

struct HaloConfig {
  int dtype;  // vecina_dtype: 16 bits
  int rank;
  int head_dim, head_dim_value;  // the same
  bool of_keys;                  // owners are keys
  int heads;                     // query heads among a warp's rows; divide head_group
  int head_group;                // query heads of a key head
  int items_of_block;  // which a block walks: an item is `heads` neighbouring heads of a sample
  int box[3];         // owners among a warp's rows; box times heads is 16. Rank 3: of one plane, or
                      // of two in the forward with head_dim 128
  int boxes[3];       // of a block along each axis
  int union_size[3];  // partners along each axis that a box may meet; of a warp, one plane
  int halo_size[3];   // partners along each axis that a block may meet
  int kernel_size[3], stride[3], dilation[3];
  int output_stride[3] = {1, 1, 1};  // no other
  bool is_causal[3];
  int additional_tokens;
  int stages;  // of planes in shared memory
  int blocks;  // that a multiprocessor shall hold
  bool has_grad_lse;
  bool has_bias;      // false
  int lengths;        // vecina_lengths: equal ones
  bool is_attention;  // false: as many queries as keys
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HALO_CONFIG_H_
