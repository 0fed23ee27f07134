// SPDX-License-Identifier: MIT
#include "cuda/value_parts.h"

#include "core/tensor.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {
namespace {

void take_columns(int first, int columns, vecina_tensor* tensor) {
  if (!given(*tensor)) return;
  tensor->byte_offset += first * dtype_bytes(tensor->dtype);
  tensor->shape[tensor->ndim - 1] = columns;
}

}  // namespace

int part_of(int columns, int most) {
  constexpr int kStep = 32;  // of a warp that computes a row alone
  const int64_t parts = divide_up(columns, most);
  return parts == 1 ? columns : kStep * static_cast<int>(divide_up(columns, kStep * parts));
}

Problem with_value_columns(const Problem& problem, int columns) {
  if (columns == problem.head_dim_value()) return problem;
  vecina_problem changed = problem.to_c();
  changed.head_dim_value = columns;
  Problem made;
  return Problem::make(changed, &made).ok() ? made : problem;
}

vecina_forward_args of_value_columns(vecina_forward_args args, int first, int columns) {
  for (vecina_tensor* tensor : {&args.value, &args.additional_value, &args.output}) {
    take_columns(first, columns, tensor);
  }
  if (first > 0) args.lse = {};
  return args;
}

vecina_backward_args of_value_columns(vecina_backward_args args, int first, int columns) {
  for (vecina_tensor* tensor :
       {&args.value, &args.additional_value, &args.output, &args.grad_output, &args.grad_value}) {
    take_columns(first, columns, tensor);
  }
  return args;
}

}  // namespace vecina::internal::cuda
