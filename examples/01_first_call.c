/* SPDX-License-Identifier: MIT
 *
 * The first call in C: 2-D neighborhood attention with grouped key heads and lse, then a mistake
 * and what the library says about it.
 *
 *   cc 01_first_call.c $(pkg-config --cflags --libs vecina) */
#include <stdio.h>
#include <stdlib.h>

#include "vecina/vecina.h"

/* A tensor of f32 in fresh memory, contiguous. */
static vecina_tensor make_tensor(int32_t ndim, const int64_t* shape) {
  vecina_tensor tensor = {.ndim = ndim, .dtype = VECINA_F32};
  int64_t size = 1;
  for (int32_t i = ndim - 1; i >= 0; --i) {
    tensor.shape[i] = shape[i];
    tensor.strides[i] = size; /* in elements */
    size *= shape[i];
  }
  tensor.data = calloc((size_t)size, sizeof(float));
  return tensor;
}

/* Any numbers will do. */
static void fill(vecina_tensor tensor, int seed) {
  float* data = tensor.data;
  const int64_t size = tensor.shape[0] * tensor.strides[0];
  for (int64_t i = 0; i < size; ++i) data[i] = (float)((i * 37 + seed) % 101) / 50.0f - 1.0f;
}

static int fail(void) {
  fprintf(stderr, "vecina: %s\n", vecina_last_error());
  return 1;
}

int main(void) {
  /* What is computed: 32 x 32 tokens, a window of 7 x 7. 8 query heads share 2 key heads. */
  vecina_problem problem;
  vecina_problem_init(&problem, sizeof(problem), 2);
  problem.extent[0] = problem.extent[1] = 32;
  problem.kernel_size[0] = problem.kernel_size[1] = 7;
  problem.heads = 8;
  problem.heads_kv = 2;
  problem.head_dim = 64;

  /* The caller owns all tensors: [batch, height, width, heads, head_dim]. */
  vecina_forward_args args = {.struct_size = sizeof(args)};
  args.query = make_tensor(5, (const int64_t[]){1, 32, 32, 8, 64});
  args.key = make_tensor(5, (const int64_t[]){1, 32, 32, 2, 64});
  args.value = make_tensor(5, (const int64_t[]){1, 32, 32, 2, 64});
  args.output = make_tensor(5, (const int64_t[]){1, 32, 32, 8, 64});
  args.lse = make_tensor(4, (const int64_t[]){1, 32, 32, 8}); /* optional */
  fill(args.query, 1);
  fill(args.key, 2);
  fill(args.value, 3);

  /* Make a context once and keep it; it holds threads and scratch. */
  vecina_context* context = NULL;
  if (vecina_context_create(NULL, &context) != VECINA_OK) return fail();
  if (vecina_forward(context, &problem, &args, NULL) != VECINA_OK) return fail();

  char line[256];
  vecina_problem_print(&problem, line, sizeof(line));
  printf("%s\n", line);
  printf("output[0] = %.5f, lse[0] = %.5f\n", (double)((float*)args.output.data)[0],
         (double)((float*)args.lse.data)[0]);

  /* A mistake writes nothing and says what to do. */
  problem.kernel_size[1] = 40;
  if (vecina_forward(context, &problem, &args, NULL) != VECINA_INVALID_ARGUMENT) return 1;
  printf("as expected: %s\n", vecina_last_error());

  vecina_context_destroy(context);
  free(args.query.data);
  free(args.key.data);
  free(args.value.data);
  free(args.output.data);
  free(args.lse.data);
  return 0;
}
