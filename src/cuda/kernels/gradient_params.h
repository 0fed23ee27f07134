// SPDX-License-Identifier: MIT
// What the gradients' kernels are given at run time. Included by the host and by NVRTC.
#ifndef VECINA_CUDA_KERNELS_GRADIENT_PARAMS_H_
#define VECINA_CUDA_KERNELS_GRADIENT_PARAMS_H_

#include "gather_params.h"

namespace vecina::cuda {

struct GradientParams {
  SmallRows query, key, value, additional_key, additional_value, bias;
  SmallRows output, grad_output, grad_lse;
  SmallRows grad_query, grad_key, grad_value;  // of additional tokens where those are wanted
  SmallRows grad_bias;
  char* facts;  // QueryFacts of every query: [batch, heads, tokens of output...]
  long long facts_bytes;
  char* sums;  // after them, of parts of the queries: [parts, rows...]
  long long parts;
  // gradient_span.cu: blocks of a key head, the keys and queries that one owns.
  int spans, span_keys, span_queries, reserved;
  GatherGeometry geometry;
  double scale;            // of the logits
  double scale_to_powers;  // scale * log2(e): probabilities are computed in powers of two
};
static_assert(sizeof(GradientParams) == 13 * 48 + 4 * 8 + 4 * 4 + 264 + 2 * 8,
              "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GRADIENT_PARAMS_H_
