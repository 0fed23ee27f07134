// SPDX-License-Identifier: MIT
// What hopper_forward.cu is given at run time. Included by the host and by NVRTC. Three axes
// always, outermost first; those before the problem's first have one token.
#ifndef VECINA_CUDA_KERNELS_HOPPER_PARAMS_H_
#define VECINA_CUDA_KERNELS_HOPPER_PARAMS_H_

#include "small_params.h"  // Divider

namespace vecina::cuda {

// A tensor as the copy engine sees it, written by the driver, read by the hardware. Of three axes:
// [batch, axis 0, axis 1, axis 2, heads and columns]. Of fewer: [batch, heads, axis 1, axis 2,
// columns], so that what a box takes beyond a head's columns is zeros; so it is with three axes and
// one sample of [heads, axis 0, axis 1, axis 2, columns].
struct alignas(64) HopperMap {
  unsigned long long words[16];
};

struct HopperMaps {
  HopperMap query, key, value, output;
};

struct HopperAxis {
  int extent;       // tokens of key and value
  int num_queries;  // tokens of output
  int kernel_size, stride, dilation, output_stride;
  int is_causal;
  int tiles;  // of a block's queries, all dilation groups
};

// Rows of a tensor, in elements where nothing else is said.
struct HopperRows {
  long long batch;     // from sample to sample; of one sample: where its rows begin
  long long token[3];  // from token to token along each axis; of packed samples the innermost's
};

// One sample of those that have lengths of their own: what differs from the longest. Written by
// hopper_samples.cu.
struct alignas(128) HopperSample {
  HopperMaps maps;  // they end where the sample does
  HopperRows output, lse;
  int extent[3], num_queries[3], tiles[3];  // as of an axis
};

struct HopperParams {
  HopperMaps maps;                             // not with lengths
  HopperMap additional_key, additional_value;  // tokens along axis 2
  HopperAxis axes[3];
  char* output_data;
  HopperRows output;
  float* lse;  // null: not wanted
  HopperRows lse_rows;
  long long lse_head;                                 // in elements
  int query_head, key_head, value_head, output_head;  // from head to head, in elements
  int additional_key_head, additional_value_head;
  int additional_tokens, additional_tiles;
  int num_blocks;
  // Blocks are numbered batch, packed heads, tiles of axes 0, 1 and 2.
  int num_packs;  // of heads
  Divider tiles2, tiles1, tiles0, packs, packs_per_group, dilations[3];
  float scale;  // times log2(e): softmax is computed in powers of two; above 0
  // With lengths, else null: the samples, and the number of each one's first block; behind the last
  // sample's that of all blocks.
  const HopperSample* samples;
  const int* first_blocks;
  int num_samples;
  const float* head_scale;  // e4m3: by head, besides `scale`; null: 1
};
static_assert(sizeof(HopperParams) == 6 * 128 + 3 * 32 + 40 + 48 + 112 + 32 + 56,
              "the host and the kernel must agree");

// What the samples have in one tensor.
struct HopperTokens {
  HopperMap map;  // of the longest sample
  char* data;
  HopperRows rows;  // in bytes
};

// What hopper_samples.cu is given.
struct HopperSamplesParams {
  HopperTokens query, key, value, output;
  SampleLengths lengths;
  int num_queries[3];         // of the longest sample
  int dilation[3], block[3];  // queries of a block along each axis
  int num_packs, heads;
  int has_additional;
  float* lse;  // null: not wanted
  HopperRows lse_rows, output_rows;
  long long lse_head;     // in elements
  long long output_head;  // in bytes
  HopperSample* samples;
  int* first_blocks;
};
static_assert(sizeof(HopperSample) == 640 && sizeof(HopperSamplesParams) == 4 * 192 + 136 + 184,
              "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_PARAMS_H_
