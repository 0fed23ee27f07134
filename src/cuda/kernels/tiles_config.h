// SPDX-License-Identifier: MIT
// What the kernels of large windows are compiled for. Owners and partners as in halo_config.h;
// three axes always, outermost first; those before the problem's first have one token.
#ifndef VECINA_CUDA_KERNELS_TILES_CONFIG_H_
#define VECINA_CUDA_KERNELS_TILES_CONFIG_H_

namespace vecina::cuda {

struct TilesConfig {
  int dtype;  // vecina_dtype: 16 bits
  int rank;
  int head_dim, head_dim_value;  // multiples of 8
  // Of head_dim, from the first to before the end: whose sums the launch has, of the gradient of
  // query or key. More than a thread has registers for have a launch for each part.
  int first_column, end_column;
  bool of_keys;        // owners are keys
  int heads;           // query heads among a warp's rows: 1
  int head_group;      // query heads of a key head
  int items_of_block;  // which a block walks: 1
  int box[3];          // owners among a warp's rows: 16; of the forward, also 32. Of a
                       // warpgroup's (hopper_gradient.cu): 64
  int boxes[3];        // of a block along each axis
  int partner_box[3];  // partners of a tile in shared memory
  int partners;        // of a tile with what pads it: a multiple of 16, at most 64
  int kernel_size[3], stride[3], dilation[3], output_stride[3];
  bool is_causal[3];
  int additional_tokens;
  // An owner's row of head_dim columns, of head_dim_value ones: in shared memory, not in registers.
  bool shares_key, shares_value;
  int shared_bytes;  // that a block of a launch has, beside tables
  int blocks;        // that a multiprocessor shall hold
  bool has_grad_lse;
  bool has_bias;
  int lengths;        // vecina_lengths
  bool is_attention;  // every query sees all keys, of which there may be more, or fewer
  // Of queries: delta is grad_output . output, not found anew.
  bool is_delta_given;
  // Of keys: whose gradients it adds up; and adds to sums of the queries' gradients, in any order.
  bool adds_key, adds_value;
  bool adds_queries;
  // Of queries: adds up gradients of logits by relative position, and nothing else.
  bool of_bias;
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_TILES_CONFIG_H_
