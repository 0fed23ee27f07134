// SPDX-License-Identifier: MIT
#include "cuda/folded_axes.h"

#include <algorithm>
#include <array>

#include "core/tensor.h"

namespace vecina::internal::cuda {
namespace {

std::array<vecina_tensor*, 5> tensors_with_tokens(vecina_forward_args* args) {
  return {&args->query, &args->key, &args->value, &args->output, &args->lse};
}

bool sees_all(const Axis& axis) {
  return axis.kernel_size == axis.extent && !axis.is_causal && axis.output_stride == 1;
}

// Dimensions d and d + 1 step through memory as one.
bool is_one(const vecina_tensor& tensor, int d) {
  return !given(tensor) || tensor.shape[d] <= 1 ||
         tensor.strides[d] == tensor.strides[d + 1] * tensor.shape[d + 1];
}

void fold(vecina_tensor* tensor, int d) {
  if (!given(*tensor)) return;
  tensor->shape[d + 1] *= tensor->shape[d];
  std::copy(tensor->shape + d + 1, tensor->shape + tensor->ndim, tensor->shape + d);
  std::copy(tensor->strides + d + 1, tensor->strides + tensor->ndim, tensor->strides + d);
  --tensor->ndim;
}

// Axes a and a + 1 of a problem become one.
void fold(vecina_problem* problem, int a) {
  problem->extent[a + 1] *= problem->extent[a];
  problem->kernel_size[a + 1] *= problem->kernel_size[a];
  problem->stride[a + 1] = 1;  // one window: no query has another
  --problem->rank;
  const auto move = [&](auto& of_axes) {
    std::copy(of_axes + a + 1, of_axes + problem->rank + 1, of_axes + a);
    of_axes[problem->rank] = 0;
  };
  move(problem->extent);
  move(problem->kernel_size);
  move(problem->stride);
  move(problem->output_stride);
  move(problem->dilation);
  move(problem->is_causal);
}

}  // namespace

FoldedAxes fold_axes(const Problem& problem, const vecina_forward_args& example) {
  FoldedAxes folded = {problem, example};
  if (problem.has_bias() || problem.lengths() != VECINA_LENGTHS_EQUAL) return folded;
  for (int a = problem.rank() - 2; a >= 0; --a) {
    if (!sees_all(folded.problem.axis(a)) || !sees_all(folded.problem.axis(a + 1))) continue;
    const auto tensors = tensors_with_tokens(&folded.example);
    if (!std::all_of(tensors.begin(), tensors.end(),
                     [&](const vecina_tensor* tensor) { return is_one(*tensor, 1 + a); })) {
      continue;
    }
    vecina_problem given_problem = folded.problem.to_c();
    fold(&given_problem, a);
    Problem made;
    if (!Problem::make(given_problem, &made).ok()) break;
    folded.problem = made;
    for (vecina_tensor* tensor : tensors) fold(tensor, 1 + a);
  }
  return folded;
}

}  // namespace vecina::internal::cuda
