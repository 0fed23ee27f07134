// SPDX-License-Identifier: MIT
// From an output token to the key tokens it sees, through the one formula in window.h.
#include "core/window.h"

#include <algorithm>

#include "core/problem.h"

namespace vecina::internal {

Window window_of(const Problem& problem, int axis, int64_t index) {
  return window_of(problem, axis, index, problem.axis(axis).extent);
}

Window window_of(const Problem& problem, int axis, int64_t index, int64_t length) {
  const Axis& a = problem.axis(axis);
  if (problem.is_attention()) {
    return {0, 1, a.is_causal ? std::min(index * a.output_stride + 1, length) : length};
  }
  const int dilation = static_cast<int>(a.dilation);
  const int token = static_cast<int>(index * a.output_stride);
  const int group = token % dilation;
  const NaAxis dense = {na_group_length(static_cast<int>(length), dilation, group),
                        static_cast<int>(a.kernel_size), static_cast<int>(a.stride), a.is_causal};
  const int begin = na_window_begin(dense, token / dilation);
  const int end = na_window_end(dense, token / dilation);
  return {na_group_to_axis(begin, dilation, group), dilation, end - begin};
}

}  // namespace vecina::internal
