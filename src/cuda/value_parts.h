// SPDX-License-Identifier: MIT
// Columns of rows in parts, with a launch for each: a kernel has registers for the sums of so many.
#ifndef VECINA_CUDA_VALUE_PARTS_H_
#define VECINA_CUDA_VALUE_PARTS_H_

#include <algorithm>
#include <utility>

#include "core/problem.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

// Columns of each part but the last, where all have at most `most`.
int part_of(int columns, int most);

// The problem with so many columns of values.
Problem with_value_columns(const Problem& problem, int columns);
// The arguments of the columns of values from `first` on. Lse is of the first part.
vecina_forward_args of_value_columns(vecina_forward_args args, int first, int columns);
// Of the gradient of value, which needs no others.
vecina_backward_args of_value_columns(vecina_backward_args args, int first, int columns);

// visit(the problem and the arguments of a part of values, its first column)
template <typename Args, typename Visit>
void for_value_parts(const Problem& problem, const Args& args, int most, Visit visit) {
  const int part = part_of(problem.head_dim_value(), most);
  for (int first = 0; first < problem.head_dim_value(); first += part) {
    const int columns = std::min(part, problem.head_dim_value() - first);
    visit(with_value_columns(problem, columns), of_value_columns(args, first, columns), first);
  }
}
// The launch of a part is given the arguments of the whole.
template <typename Args>
void fill_of_value_columns(const Problem& part, int first, KernelLaunch<Args>* launch) {
  launch->fill = [fill = std::move(launch->fill), first, columns = part.head_dim_value()](
                     const Args& args, void* memory) {
    return fill(of_value_columns(args, first, columns), memory);
  };
}

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_VALUE_PARTS_H_
