/* SPDX-License-Identifier: MIT
 *
 * One number that can be checked by hand. Queries are 0, so every key of a window counts the same
 * and an output is the mean of its values: query 2 of 8 sees tokens 1, 2, 3 with values 1, 2, 3.
 * With 3 keys of logit 0, lse is log(3). */
#include <math.h>
#include <stdio.h>

#include "vecina/vecina.h"

enum { kTokens = 8, kHeadDim = 4 };

static vecina_tensor tensor(float* data, int32_t last) {
  vecina_tensor t = {0};
  t.data = data;
  t.dtype = VECINA_F32;
  t.ndim = last == 0 ? 3 : 4; /* [batch, tokens, heads, head_dim] or [batch, tokens, heads] */
  const int64_t width = last == 0 ? 1 : last;
  const int64_t shape[4] = {1, kTokens, 1, width};
  const int64_t strides[4] = {kTokens * width, width, width, 1};
  for (int i = 0; i < t.ndim; ++i) {
    t.shape[i] = shape[i];
    t.strides[i] = strides[i];
  }
  return t;
}

int main(void) {
  float query[kTokens * kHeadDim] = {0}, key[kTokens * kHeadDim], value[kTokens * kHeadDim];
  float output[kTokens * kHeadDim], lse[kTokens];
  for (int i = 0; i < kTokens * kHeadDim; ++i) {
    key[i] = 1.0f;
    value[i] = (float)(i / kHeadDim);
  }

  vecina_problem problem;
  vecina_problem_init(&problem, sizeof(problem), 1);
  problem.extent[0] = kTokens;
  problem.kernel_size[0] = 3;
  problem.head_dim = kHeadDim;

  vecina_forward_args args = {0};
  args.struct_size = sizeof(args);
  args.query = tensor(query, kHeadDim);
  args.key = tensor(key, kHeadDim);
  args.value = tensor(value, kHeadDim);
  args.output = tensor(output, kHeadDim);
  args.lse = tensor(lse, 0);

  vecina_context* context = NULL;
  if (vecina_context_create(NULL, &context) != VECINA_OK ||
      vecina_forward(context, &problem, &args, NULL) != VECINA_OK) {
    fprintf(stderr, "vecina: %s\n", vecina_last_error());
    vecina_context_destroy(context);
    return 1;
  }
  vecina_context_destroy(context);

  const float mean = output[2 * kHeadDim];
  printf("vecina %s from C: output %g, lse %g\n", vecina_version(), (double)mean, (double)lse[2]);
  return fabsf(mean - 2.0f) < 1e-6f && fabsf(lse[2] - logf(3.0f)) < 1e-6f ? 0 : 1;
}
