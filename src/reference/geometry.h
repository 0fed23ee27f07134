// SPDX-License-Identifier: MIT
// Where things lie: tokens of a sample, rows of a strided tensor. Three axes always; those beyond
// the rank have one token.
#ifndef VECINA_REFERENCE_GEOMETRY_H_
#define VECINA_REFERENCE_GEOMETRY_H_

#include <array>
#include <cstdint>
#include <utility>

#include "core/problem.h"
#include "core/tensor.h"
#include "vecina/vecina.h"

namespace vecina::internal::reference {

using Position = std::array<int64_t, 3>;     // a token, by axis
using TensorIndex = std::array<int64_t, 6>;  // an element; 0 beyond ndim

// Calls visit(index) for every index within extent, the last dimension fastest.
template <size_t N, class Visit>
void for_each_index(const std::array<int64_t, N>& extent, Visit&& visit) {
  for (int64_t size : extent) {
    if (size < 1) return;
  }
  std::array<int64_t, N> index = {};
  for (;;) {
    visit(std::as_const(index));
    size_t d = N;
    while (d > 0 && ++index[d - 1] == extent[d - 1]) index[--d] = 0;
    if (d == 0) return;
  }
}

inline TensorIndex extent_of(const vecina_tensor& tensor) {
  TensorIndex extent;
  extent.fill(1);
  for (int d = 0; d < tensor.ndim; ++d) extent[static_cast<size_t>(d)] = tensor.shape[d];
  return extent;
}

// The element at index; dimensions of index beyond the tensor's are ignored.
template <class T>
T* at(const vecina_tensor& tensor, const TensorIndex& index) {
  T* element = reinterpret_cast<T*>(address(tensor));
  for (int d = 0; d < tensor.ndim; ++d)
    element += index[static_cast<size_t>(d)] * tensor.strides[d];
  return element;
}

// Does nothing if the tensor is not given.
template <class T>
void fill(const vecina_tensor& tensor, T value) {
  if (!given(tensor)) return;
  for_each_index(extent_of(tensor),
                 [&](const TensorIndex& index) { *at<T>(tensor, index) = value; });
}

// The tokens that one sample has in a tensor.
struct Tokens {
  Position extent = {1, 1, 1};
  int64_t first = 0;  // packed: tokens of the samples before it

  int64_t count() const { return extent[0] * extent[1] * extent[2]; }
};

struct Sample {
  int64_t index = 0;
  int rank = 1;
  bool is_packed = false;
  Tokens query, key, output;  // value has key's tokens, lse has output's
};

// The rows of one sample in a tensor: [tokens..., heads, D], or [tokens..., heads] with one number
// a row.
template <class T>
struct Rows {
  T* first = nullptr;
  Position strides = {};
  int64_t head_stride = 0;

  bool given() const { return first != nullptr; }
  T* at(const Position& token, int head) const {
    return first + token[0] * strides[0] + token[1] * strides[1] + token[2] * strides[2] +
           head * head_stride;
  }
};

// Of a tensor [batch, extents..., heads, ...], or [1, total, heads, ...] if packed.
template <class T>
Rows<T> token_rows(const vecina_tensor& tensor, const Sample& sample, const Tokens& tokens) {
  if (!given(tensor)) return {};
  Rows<T> rows;
  rows.first = reinterpret_cast<T*>(address(tensor));
  if (sample.is_packed) {
    const int64_t stride = tensor.strides[1];
    rows.first += tokens.first * stride;
    rows.strides = {tokens.extent[1] * tokens.extent[2] * stride, tokens.extent[2] * stride,
                    stride};
    rows.head_stride = tensor.strides[2];
  } else {
    rows.first += sample.index * tensor.strides[0];
    for (int a = 0; a < sample.rank; ++a) {
      rows.strides[static_cast<size_t>(a)] = tensor.strides[1 + a];
    }
    rows.head_stride = tensor.strides[1 + sample.rank];
  }
  return rows;
}

// Of a tensor [batch or samples, additional_tokens, heads_kv, D], as an axis of its own.
template <class T>
Rows<T> additional_rows(const vecina_tensor& tensor, const Sample& sample) {
  if (!given(tensor)) return {};
  return {reinterpret_cast<T*>(address(tensor)) + sample.index * tensor.strides[0],
          {tensor.strides[1], 0, 0},
          tensor.strides[2]};
}

// Of a tensor [heads, 2 * kernel_size - 1, ...]: one number for each relative position.
template <class T>
Rows<T> bias_rows(const vecina_tensor& tensor) {
  if (!given(tensor)) return {};
  Rows<T> rows;
  rows.first = reinterpret_cast<T*>(address(tensor));
  rows.head_stride = tensor.strides[0];
  for (int d = 1; d < tensor.ndim; ++d) {
    rows.strides[static_cast<size_t>(d - 1)] = tensor.strides[d];
  }
  return rows;
}

// A sample smaller than its window has no defined window; it sees nothing.
inline bool has_windows(const Problem& problem, const Sample& sample) {
  if (problem.is_attention()) return true;
  for (int a = 0; a < problem.rank(); ++a) {
    const Axis& axis = problem.axis(a);
    if (sample.key.extent[static_cast<size_t>(a)] < axis.kernel_size * axis.dilation) return false;
  }
  return true;
}

// Calls visit(sample) for each sample that has windows. query_lengths: lengths if not given.
template <class Visit>
void for_each_sample(const Problem& problem, const vecina_tensor& lengths,
                     const vecina_tensor& query_lengths, Visit&& visit) {
  Sample sample;
  sample.rank = problem.rank();
  sample.is_packed = problem.lengths() == VECINA_LENGTHS_PACKED;
  const bool is_equal = problem.lengths() == VECINA_LENGTHS_EQUAL;
  const int64_t num_samples = sample.is_packed ? problem.samples() : problem.batch();
  for (sample.index = 0; sample.index < num_samples; ++sample.index) {
    for (int a = 0; a < problem.rank(); ++a) {
      const Axis& axis = problem.axis(a);
      const auto i = static_cast<size_t>(a);
      sample.key.extent[i] = is_equal ? axis.extent : length_at(lengths, sample.index, a);
      sample.query.extent[i] =
          is_equal ? axis.query_extent
                   : length_at(given(query_lengths) ? query_lengths : lengths, sample.index, a);
      sample.output.extent[i] =
          (sample.query.extent[i] + axis.output_stride - 1) / axis.output_stride;
    }
    if (has_windows(problem, sample)) visit(std::as_const(sample));
    sample.query.first += sample.query.count();
    sample.key.first += sample.key.count();
    sample.output.first += sample.output.count();
  }
}

}  // namespace vecina::internal::reference
#endif  // VECINA_REFERENCE_GEOMETRY_H_
