// SPDX-License-Identifier: MIT
#include "cpu/samples.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/tensor.h"

namespace vecina::internal::cpu {
namespace {

bool is_packed(const Problem& problem) { return problem.lengths() == VECINA_LENGTHS_PACKED; }

const Tokens& tokens_of(const Sample& sample, TokensOf tokens) {
  return tokens == TokensOf::query ? sample.query
         : tokens == TokensOf::key ? sample.key
                                   : sample.output;
}

// A sample's part of a padded tensor or of one for each sample, all tokens of it.
vecina_tensor part_of_batch(const Sample& sample, vecina_tensor tensor) {
  tensor.byte_offset += sample.index * tensor.strides[0] * dtype_bytes(tensor.dtype);
  tensor.shape[0] = 1;
  return tensor;
}

// [1, total, ...] to [1, extents..., ...].
vecina_tensor part_of_packed(int rank, const Tokens& tokens, vecina_tensor tensor) {
  int64_t stride = tensor.strides[1];
  tensor.byte_offset += tokens.first * stride * dtype_bytes(tensor.dtype);
  for (int d = tensor.ndim - 1; d > 1; --d) {
    tensor.shape[d + rank - 1] = tensor.shape[d];
    tensor.strides[d + rank - 1] = tensor.strides[d];
  }
  tensor.ndim += rank - 1;
  for (int a = rank - 1; a >= 0; --a) {
    tensor.shape[1 + a] = tokens.extent[static_cast<size_t>(a)];
    tensor.strides[1 + a] = stride;
    stride *= tensor.shape[1 + a];
  }
  return tensor;
}

// Clears the rows of one token: [heads, D], or [heads].
void clear_token(const vecina_tensor& tensor, int heads_dim, Beyond beyond, char* token) {
  const int64_t bytes = dtype_bytes(tensor.dtype);
  const auto row_bytes = static_cast<size_t>(
      heads_dim + 1 < tensor.ndim ? tensor.shape[heads_dim + 1] * bytes : bytes);
  for (int64_t head = 0; head < tensor.shape[heads_dim]; ++head) {
    char* row = token + head * tensor.strides[heads_dim] * bytes;
    if (beyond == Beyond::is_zero) {
      std::memset(row, 0, row_bytes);
    } else if (tensor.dtype == VECINA_F64) {
      *reinterpret_cast<double*>(row) = -std::numeric_limits<double>::infinity();
    } else {
      *reinterpret_cast<float*>(row) = -std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace

std::vector<Sample> samples_of(const Problem& problem, const std::vector<int64_t>& lengths) {
  std::vector<Sample> samples;
  Sample sample;
  for (size_t i = 0; i < lengths.size(); ++sample.index) {
    sample.has_queries = true;
    for (int a = 0; a < problem.rank(); ++a) {
      const Axis& axis = problem.axis(a);
      const auto at = static_cast<size_t>(a);
      sample.key.extent[at] = lengths[i++];
      sample.query.extent[at] = lengths[i++];
      sample.output.extent[at] =
          (sample.query.extent[at] + axis.output_stride - 1) / axis.output_stride;
      const int64_t least = problem.is_attention() ? 0 : axis.kernel_size * axis.dilation;
      sample.has_queries &= sample.key.extent[at] >= least && sample.query.extent[at] > 0;
    }
    samples.push_back(sample);
    for (Tokens* tokens : {&sample.query, &sample.key, &sample.output}) {
      tokens->first += tokens->count();
    }
  }
  return samples;
}

vecina_tensor tensor_of_sample(const Problem& problem, const Sample& sample, TokensOf tokens,
                               const vecina_tensor& tensor) {
  if (!given(tensor) || tokens == TokensOf::all) return tensor;
  if (tokens == TokensOf::additional) return part_of_batch(sample, tensor);
  const Tokens& own = tokens_of(sample, tokens);
  if (is_packed(problem)) return part_of_packed(problem.rank(), own, tensor);
  vecina_tensor part = part_of_batch(sample, tensor);
  std::copy_n(own.extent.begin(), problem.rank(), part.shape + 1);
  return part;
}

void clear_beyond(const Problem& problem, const Sample& sample, TokensOf tokens, Beyond beyond,
                  const vecina_tensor& tensor) {
  if (!given(tensor) || beyond == Beyond::is_input) return;
  const bool is_additional = tokens == TokensOf::additional;
  const bool is_own = is_additional || is_packed(problem);  // no tokens beyond the sample's
  if (is_own && sample.has_queries) return;
  const int rank = is_additional ? 1 : problem.rank();
  const vecina_tensor part =
      is_own ? tensor_of_sample(problem, sample, tokens, tensor) : part_of_batch(sample, tensor);
  std::array<int64_t, 3> extent = {1, 1, 1}, written = {1, 1, 1}, strides = {};
  for (int a = 0; a < rank; ++a) {
    const auto axis = static_cast<size_t>(3 - rank + a);
    extent[axis] = part.shape[1 + a];
    strides[axis] = part.strides[1 + a] * dtype_bytes(part.dtype);
    written[axis] =
        sample.has_queries ? tokens_of(sample, tokens).extent[static_cast<size_t>(a)] : 0;
  }
  for (int64_t z = 0; z < extent[0]; ++z) {
    for (int64_t y = 0; y < extent[1]; ++y) {
      char* row = address(part) + z * strides[0] + y * strides[1];
      for (int64_t x = z < written[0] && y < written[1] ? written[2] : 0; x < extent[2]; ++x) {
        clear_token(part, rank + 1, beyond, row + x * strides[2]);
      }
    }
  }
}

}  // namespace vecina::internal::cpu
