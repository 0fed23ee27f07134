// SPDX-License-Identifier: MIT
// What the gradients' kernels are given at run time. Included by the host and by NVRTC.
// Three axes always, outermost first; those before the problem's first have one token.
#ifndef VECINA_CUDA_KERNELS_GRADIENT_PARAMS_H_
#define VECINA_CUDA_KERNELS_GRADIENT_PARAMS_H_

#include "small_params.h"

namespace vecina::cuda {

struct GradientAxis {
  int extent;       // tokens of key and value
  int num_queries;  // tokens of output
  int kernel_size, stride, dilation, output_stride;
  int is_causal;
};

struct GradientParams {
  SmallRows query, key, value, additional_key, additional_value, bias;
  SmallRows output, grad_output, grad_lse;
  SmallRows grad_query, grad_key, grad_value;  // of additional tokens where those are wanted
  SmallRows grad_bias;
  char* facts;  // QueryFacts of every query: [batch, heads, tokens of output...]
  GradientAxis axes[3];
  int query_extent[3];  // tokens of query
  int batch, heads, heads_kv, additional_tokens;
  int is_attention;        // every query may see every key, also beyond the keys' extent
  long long num_rows;      // of the gradient
  double scale;            // of the logits
  double scale_to_powers;  // scale * log2(e): probabilities are computed in powers of two
};
static_assert(sizeof(GradientParams) == 13 * 48 + 8 + 3 * 28 + 32 + 4 + 3 * 8,
              "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GRADIENT_PARAMS_H_
