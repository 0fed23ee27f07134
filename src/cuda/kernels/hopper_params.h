// SPDX-License-Identifier: MIT
// What hopper_forward.cu is given at run time. Included by the host and by NVRTC. Three axes
// always, outermost first; those before the problem's first have one token.
#ifndef VECINA_CUDA_KERNELS_HOPPER_PARAMS_H_
#define VECINA_CUDA_KERNELS_HOPPER_PARAMS_H_

#include "small_params.h"  // Divider

namespace vecina::cuda {

// A tensor as the copy engine sees it, written by the driver, read by the hardware. Of three axes:
// [batch, axis 0, axis 1, axis 2, heads and columns]. Of fewer: [batch, heads, axis 1, axis 2,
// columns], so that what a box takes beyond a head's columns is zeros.
struct alignas(64) HopperMap {
  unsigned long long words[16];
};

struct HopperAxis {
  int extent;       // tokens of key and value
  int num_queries;  // tokens of output
  int kernel_size, stride, dilation, output_stride;
  int is_causal;
  int tiles;  // of a block's queries, all dilation groups
};

struct HopperParams {
  HopperMap query, key, value, output;
  HopperMap additional_key, additional_value;  // tokens along axis 2
  HopperAxis axes[3];
  char* output_data;
  long long output_batch, output_token[3];            // strides in elements
  float* lse;                                         // null: not wanted
  long long lse_batch, lse_token[3], lse_head;        // strides in elements
  int query_head, key_head, value_head, output_head;  // from head to head, in elements
  int additional_key_head, additional_value_head;
  int additional_tokens, additional_tiles;
  int num_blocks;
  // Blocks are numbered batch, packed heads, tiles of axes 0, 1 and 2.
  int num_packs;  // of heads
  Divider tiles2, tiles1, tiles0, packs, packs_per_group, dilations[3];
  float scale;  // times log2(e): softmax is computed in powers of two; above 0
};
static_assert(sizeof(HopperParams) == 6 * 128 + 3 * 32 + 40 + 48 + 112 + 24,
              "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_PARAMS_H_
