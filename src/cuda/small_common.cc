// SPDX-License-Identifier: MIT
#include "cuda/small_common.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numbers>

#include "core/tensor.h"

namespace vecina::internal::cuda {

SmallRows token_rows(const vecina_tensor& tensor, int rank) {
  SmallRows rows = {};
  if (!given(tensor)) return rows;
  const int64_t bytes = dtype_bytes(tensor.dtype);
  rows.batch = tensor.strides[0] * bytes;
  for (int a = 0; a < rank; ++a) rows.token[3 - rank + a] = tensor.strides[1 + a] * bytes;
  rows.head = tensor.strides[1 + rank] * bytes;
  return rows;
}

SmallRows bias_rows(const vecina_tensor& tensor, int rank) {
  SmallRows rows = {};
  if (!given(tensor)) return rows;
  const int64_t bytes = dtype_bytes(tensor.dtype);
  rows.head = tensor.strides[0] * bytes;
  for (int a = 0; a < rank; ++a) rows.token[3 - rank + a] = tensor.strides[1 + a] * bytes;
  return rows;
}

char* pointer(const vecina_tensor& tensor) { return given(tensor) ? address(tensor) : nullptr; }

Divider divider(int64_t divisor) {
  uint32_t log = 0;
  while ((int64_t{1} << log) < divisor) ++log;
  const auto multiplier = (uint64_t{1} << (31 + log)) / static_cast<uint64_t>(divisor) + 1;
  return {static_cast<unsigned>(multiplier), 31 + log};
}

Axis small_axis(const Problem& problem, int a) {
  const int axis = a - (3 - problem.rank());
  return axis < 0 ? Axis() : problem.axis(axis);
}

double count_blocks(const Problem& problem, const SmallTiles& tiles) {
  double blocks = static_cast<double>(problem.batch()) * (problem.heads() / tiles.heads) *
                  static_cast<double>(tiles.column_tiles);
  for (int a = 0; a < 3; ++a) {
    blocks *= static_cast<double>(
        divide_up(small_axis(problem, a).num_queries(), tiles.tile[static_cast<size_t>(a)]));
  }
  return blocks;
}

std::array<int, 3> spread_queries(const Problem& problem, int queries) {
  std::array<int, 3> tile = {1, 1, 1};
  while (tile[0] * tile[1] * tile[2] < queries) {
    int best = 2;
    double best_room = 0.0;
    for (int a = 2; a >= 3 - problem.rank(); --a) {
      const auto length = static_cast<double>(small_axis(problem, a).num_queries());
      const int size = tile[static_cast<size_t>(a)];
      // The shortest side grows, unless it covers its axis.
      const double room = length > size ? 2.0 + 1.0 / size : length / size;
      if (room > best_room) {
        best = a;
        best_room = room;
      }
    }
    tile[static_cast<size_t>(best)] *= 2;
  }
  return tile;
}

SmallParams make_params(const Problem& problem, const vecina_forward_args& example,
                        const SmallTiles& tiles) {
  SmallParams params = {};
  const int rank = problem.rank();
  params.query = token_rows(example.query, rank);
  params.key = token_rows(example.key, rank);
  params.value = token_rows(example.value, rank);
  params.output = token_rows(example.output, rank);
  params.lse = token_rows(example.lse, rank);
  // [batch, additional_tokens, heads_kv, columns]: as tokens of a rank-1 tensor.
  params.additional_key = token_rows(example.additional_key, 1);
  params.additional_value = token_rows(example.additional_value, 1);
  params.bias = bias_rows(example.bias, rank);
  for (int a = 0; a < 3; ++a) {
    const Axis axis = small_axis(problem, a);
    params.axes[a] = {
        static_cast<int>(axis.extent),
        static_cast<int>(axis.num_queries()),
        static_cast<int>(axis.kernel_size),
        static_cast<int>(axis.stride),
        static_cast<int>(axis.dilation),
        static_cast<int>(axis.output_stride),
        axis.is_causal ? 1 : 0,
        static_cast<int>(divide_up(axis.num_queries(), tiles.tile[static_cast<size_t>(a)]))};
  }
  params.tiles0 = divider(params.axes[0].query_tiles);
  params.tiles1 = divider(params.axes[1].query_tiles);
  params.tiles2 = divider(params.axes[2].query_tiles);
  params.column_tiles = divider(tiles.column_tiles);
  params.num_head_blocks = problem.heads() / tiles.heads;
  params.head_blocks = divider(params.num_head_blocks);
  params.blocks_per_group = divider(problem.head_group() / tiles.heads);
  params.additional_tokens = static_cast<int>(problem.additional_tokens());
  params.scale = problem.scale() * std::numbers::log2e;
  params.scale_f32 = static_cast<float>(params.scale);
  return params;
}

void set_launch(const SmallParams& params, double blocks, uint32_t threads,
                const DeviceFacts& facts, ForwardLaunch* launch) {
  launch->grid[0] = static_cast<uint32_t>(blocks);
  launch->block[0] = threads;
  launch->is_programmatic = facts.compute_capability >= 90;
  launch->params_bytes = sizeof(SmallParams);
  launch->fill = [params](const vecina_forward_args& args, void* memory) -> Status {
    SmallParams filled = params;
    filled.query.data = pointer(args.query);
    filled.key.data = pointer(args.key);
    filled.value.data = pointer(args.value);
    filled.output.data = pointer(args.output);
    filled.lse.data = pointer(args.lse);
    filled.additional_key.data = pointer(args.additional_key);
    filled.additional_value.data = pointer(args.additional_value);
    filled.bias.data = pointer(args.bias);
    std::memcpy(memory, &filled, sizeof filled);
    return {};
  };
}

int row_vector(int32_t dtype, int64_t head_dim, int bytes) {
  int64_t elements = bytes / dtype_bytes(dtype);
  while (head_dim % elements != 0) elements /= 2;
  return static_cast<int>(elements);
}

int vector_elements(std::initializer_list<const vecina_tensor*> tensors, int64_t head_dim,
                    int bytes) {
  int64_t elements = 0;
  for (const vecina_tensor* tensor : tensors) {
    if (!given(*tensor)) continue;
    const int64_t size = dtype_bytes(tensor->dtype);
    if (elements == 0) elements = bytes / size;
    const bool is_aligned = reinterpret_cast<uintptr_t>(address(*tensor)) % 16 == 0;
    if (!is_aligned) return 1;
    for (int d = 0; d + 1 < tensor->ndim; ++d) {
      if (tensor->shape[d] <= 1) continue;
      while (tensor->strides[d] % elements != 0) elements /= 2;
    }
  }
  elements = std::max<int64_t>(elements, 1);
  while (head_dim % elements != 0) elements /= 2;
  return static_cast<int>(elements);
}

double window_span(const Problem& problem, const vecina_forward_args& example) {
  double most = 0.0;
  for (const vecina_tensor* tensor : {&example.key, &example.value}) {
    double span = 0.0;
    for (int a = 0; a < problem.rank(); ++a) {
      const Axis& axis = problem.axis(a);
      span += static_cast<double>(axis.kernel_size) * static_cast<double>(axis.dilation) *
              std::abs(static_cast<double>(tensor->strides[1 + a]));
    }
    most = std::max(most, span * static_cast<double>(dtype_bytes(tensor->dtype)));
  }
  return most;
}

std::string braces(const std::array<int, 3>& values) {
  return fmt::format("{{{}, {}, {}}}", values[0], values[1], values[2]);
}

}  // namespace vecina::internal::cuda
