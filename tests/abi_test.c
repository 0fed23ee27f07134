/* SPDX-License-Identifier: MIT
 *
 * vecina.h alone, as C11: it compiles with every warning, its structs have the layout that they
 * were released with, and every function can be called from C. Called by abi_test.cc.
 */
#include "abi_layout.h"
#include "vecina/vecina.h"

int vecina_test_from_c(void);

int vecina_test_from_c(void) {
  float query[5 * 2], key[5 * 2], value[5 * 2], output[5 * 2];
  vecina_problem problem;
  vecina_forward_args args = {0};
  vecina_context_options options = {0};
  vecina_context* context = NULL;
  vecina_tensor tensor = {0};
  vecina_status status = VECINA_OK;
  int i = 0;
  for (i = 0; i < 10; ++i) {
    query[i] = 0.0f; /* all logits 0: the output is the mean of the window's values */
    key[i] = (float)i;
    value[i] = (float)i;
    output[i] = -1.0f;
  }
  vecina_problem_init(&problem, sizeof(problem), 1);
  problem.extent[0] = 5;
  problem.kernel_size[0] = 3;
  problem.head_dim = 2;

  tensor.ndim = 4;
  tensor.shape[0] = 1;
  tensor.shape[1] = 5;
  tensor.shape[2] = 1;
  tensor.shape[3] = 2;
  tensor.strides[0] = 10;
  tensor.strides[1] = 2;
  tensor.strides[2] = 2;
  tensor.strides[3] = 1;
  args.struct_size = sizeof(args);
  args.query = args.key = args.value = args.output = tensor;
  args.query.data = query;
  args.key.data = key;
  args.value.data = value;
  args.output.data = output;

  options.struct_size = sizeof(options);
  options.threads = 1;
  if (vecina_context_create(&options, &context) != VECINA_OK) return 1;
  status = vecina_forward(context, &problem, &args, NULL);
  vecina_context_destroy(context);
  if (status != VECINA_OK) return 2;
  /* Windows 0-2, 0-2, 1-3, 2-4, 2-4; token t holds 2t and 2t + 1. */
  {
    const float expected[10] = {2, 3, 2, 3, 4, 5, 6, 7, 6, 7};
    for (i = 0; i < 10; ++i) {
      if (output[i] < expected[i] - 1e-5f || output[i] > expected[i] + 1e-5f) return 10 + i;
    }
  }
  return 0;
}
