// SPDX-License-Identifier: MIT
// Columns of rows in parts, with a launch for each: a kernel has registers for the sums of so many.
#ifndef VECINA_CUDA_VALUE_PARTS_H_
#define VECINA_CUDA_VALUE_PARTS_H_

#include <algorithm>

#include "core/problem.h"
#include "cuda/part_of_call.h"

namespace vecina::internal::cuda {

// Columns of each part but the last, where all have at most `most`.
int part_of(int columns, int most);

// The example of the columns of values from `first` on, and where they begin in a call's tensors.
// Lse is of the first part.
vecina_forward_args of_value_columns(const vecina_forward_args& example, int first, int columns,
                                     PartOfCall<vecina_forward_args>* part);
// Of the gradient of value, which needs no others.
vecina_backward_args of_value_columns(const vecina_backward_args& example, int first, int columns,
                                      PartOfCall<vecina_backward_args>* part);

// visit(the problem of a part of values, its example, where it begins); launches that are planned
// so are for fill_part.
template <typename Args, typename Visit>
void for_value_parts(const Problem& problem, const Args& example, int most, Visit visit) {
  const int step = part_of(problem.head_dim_value(), most);
  for (int first = 0; first < problem.head_dim_value(); first += step) {
    const int columns = std::min(step, problem.head_dim_value() - first);
    PartOfCall<Args> part;
    const Args own = of_value_columns(example, first, columns, &part);
    visit(problem.with_head_dim_value(columns), own, part);
  }
}

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_VALUE_PARTS_H_
