// SPDX-License-Identifier: MIT
#include "cuda/value_parts.h"

#include <array>

#include "core/tensor.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {
namespace {

template <typename Args>
constexpr auto tensors_of_values() {
  return std::to_array({&Args::value, &Args::additional_value, &Args::output});
}
template <>
constexpr auto tensors_of_values<vecina_backward_args>() {
  using Args = vecina_backward_args;
  return std::to_array({&Args::value, &Args::additional_value, &Args::output, &Args::grad_output,
                        &Args::grad_value});
}

template <typename Args>
Args take_columns(const Args& example, int first, int columns, PartOfCall<Args>* part) {
  for (const auto tensor : tensors_of_values<Args>()) {
    part->shift(tensor, first * dtype_bytes((example.*tensor).dtype));
  }
  Args own = part->of(example);
  for (const auto tensor : tensors_of_values<Args>()) {
    if (given(own.*tensor)) (own.*tensor).shape[(own.*tensor).ndim - 1] = columns;
  }
  return own;
}

}  // namespace

int part_of(int columns, int most) {
  constexpr int kStep = 32;  // of a warp that computes a row alone
  const int64_t parts = divide_up(columns, most);
  return parts == 1 ? columns : kStep * static_cast<int>(divide_up(columns, kStep * parts));
}

vecina_forward_args of_value_columns(const vecina_forward_args& example, int first, int columns,
                                     PartOfCall<vecina_forward_args>* part) {
  if (first > 0) part->leave_out(&vecina_forward_args::lse);
  return take_columns(example, first, columns, part);
}

vecina_backward_args of_value_columns(const vecina_backward_args& example, int first, int columns,
                                      PartOfCall<vecina_backward_args>* part) {
  return take_columns(example, first, columns, part);
}

}  // namespace vecina::internal::cuda
