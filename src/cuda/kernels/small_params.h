// SPDX-License-Identifier: MIT
// What the kernels for small problems are given at run time. Included by the host and by NVRTC.
// Three axes always, outermost first; those before the problem's first have one token.
#ifndef VECINA_CUDA_KERNELS_SMALL_PARAMS_H_
#define VECINA_CUDA_KERNELS_SMALL_PARAMS_H_

namespace vecina::cuda {

// n / d for n < 2^31 as (n * multiplier) >> shift.
struct Divider {
  unsigned multiplier, shift;
};

// Rows of a tensor [batch, tokens..., heads, columns]; strides in bytes.
struct SmallRows {
  char* data;  // null: not given
  long long batch, head;
  long long token[3];
};

struct SmallAxis {
  int extent;       // tokens of key and value
  int num_queries;  // tokens of output
  int kernel_size, stride, dilation, output_stride;
  int is_causal;
  int query_tiles;
};

struct SmallParams {
  SmallRows query, key, value, output, lse;
  SmallRows additional_key, additional_value;  // tokens along axis 2
  SmallRows bias;                              // relative positions instead of tokens; no batch
  SmallAxis axes[3];
  int additional_tokens;
  int num_head_blocks;
  // Blocks are numbered batch, block of heads, tile of columns, tiles of axes 0, 1 and 2.
  Divider tiles2, tiles1, tiles0, column_tiles, head_blocks;
  Divider blocks_per_group;  // blocks of heads that share a key head
  // scale * log2(e): softmax is computed in powers of two.
  double scale;
  float scale_f32;
  int reserved;
};
static_assert(sizeof(SmallRows) == 48 && sizeof(SmallParams) == 8 * 48 + 3 * 32 + 8 + 48 + 16,
              "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_PARAMS_H_
