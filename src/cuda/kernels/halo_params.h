// SPDX-License-Identifier: MIT
// What the halo kernels are given at run time. Included by the host and by NVRTC.
#ifndef VECINA_CUDA_KERNELS_HALO_PARAMS_H_
#define VECINA_CUDA_KERNELS_HALO_PARAMS_H_

#include "small_params.h"

namespace vecina::cuda {

// Rows of a tensor [batch, tokens..., heads, columns]; strides in bytes, those of a sample narrow.
struct HaloRows {
  char* data;  // null: not given
  long long batch;
  int head;
  int token[3];  // outermost first
};

struct HaloAxis {
  int extent;
  int tiles;  // of all dilation groups
  Divider divide_tiles;
};

struct HaloParams {
  HaloRows query, key, value, additional_key, additional_value;
  HaloRows output, lse, grad_output, grad_lse, grad_query, grad_key, grad_value;
  char* facts;            // QueryFacts of every query: [batch, heads, tokens...]
  long long facts_bytes;  // after them: sums of gradients, of queries or of the bias
  HaloAxis axes[3];
  // Blocks are numbered by part of the items, tiles of axes 0, 1 and 2.
  Divider items_of_sample;
  int num_items_of_sample, num_items;
  int heads;
  float scale;            // of the logits
  float scale_to_powers;  // scale * log2(e): softmax is computed in powers of two
  // Where queries are not all tokens of keys: tokens of output. The strides of query and grad_query
  // are from one that has an output to the next.
  int num_outputs[3], query_extent[3];
  int facts_extent[3];    // tokens of output of the largest sample
  SampleLengths lengths;  // samples.cuh
  HaloRows bias;          // relative positions as tokens; no batch
};
static_assert(sizeof(HaloParams) == 13 * 32 + 2 * 8 + 3 * 16 + 8 + 14 * 4 + 136,
              "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HALO_PARAMS_H_
