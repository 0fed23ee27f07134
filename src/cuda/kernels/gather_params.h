// SPDX-License-Identifier: MIT
// The geometry that kernels are given at run time whose warps gather one row each (gather.cuh).
// Included by the host and by NVRTC. Three axes always, outermost first; those before the problem's
// first have one token.
#ifndef VECINA_CUDA_KERNELS_GATHER_PARAMS_H_
#define VECINA_CUDA_KERNELS_GATHER_PARAMS_H_

#include "small_params.h"

namespace vecina::cuda {

struct GatherAxis {
  int extent;       // tokens of key and value
  int num_queries;  // tokens of output
  int kernel_size, stride, dilation, output_stride;
  int is_causal;
};

struct GatherGeometry {
  GatherAxis axes[3];
  int query_extent[3];  // tokens of query
  int samples, heads, heads_kv, additional_tokens;
  int is_attention;    // every query may see every key, also beyond the keys' extent
  long long num_rows;  // that are gathered
  SampleLengths lengths;
};
static_assert(sizeof(GatherGeometry) == 3 * 28 + 32 + 4 + 8 + 136,
              "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GATHER_PARAMS_H_
