// SPDX-License-Identifier: MIT
#include "cuda/small_common.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numbers>

#include "core/tensor.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::LengthRows;
using vecina::cuda::SampleLengths;
using vecina::cuda::SmallParams;
using vecina::cuda::SmallStrides;

// Sets one tensor's strides: [batch, tokens..., heads, columns], or without columns.
void set_strides(const vecina_tensor& tensor, int rank, long long SmallStrides<long long>::*of,
                 WideParams* params) {
  if (!given(tensor)) return;
  const int64_t bytes = dtype_bytes(tensor.dtype);
  params->batch.*of = tensor.strides[0] * bytes;
  params->head.*of = tensor.strides[1 + rank] * bytes;
  for (int a = 0; a < rank; ++a) {
    params->axes[rank - 1 - a].token.*of = tensor.strides[1 + a] * bytes;
  }
}

template <class Offset>
SmallStrides<Offset> cut(const SmallStrides<long long>& wide) {
  return {static_cast<Offset>(wide.query), static_cast<Offset>(wide.key),
          static_cast<Offset>(wide.value), static_cast<Offset>(wide.output),
          static_cast<Offset>(wide.lse)};
}

// The parameters as the kernel of `rank` axes has them.
template <class Offset, int rank>
SmallParams<Offset, rank> cut(const WideParams& wide) {
  SmallParams<Offset, rank> params = {};
  params.batch = cut<Offset>(wide.batch);
  params.head = cut<Offset>(wide.head);
  params.scale = wide.scale;
  params.num_head_blocks = wide.num_head_blocks;
  params.head_blocks = wide.head_blocks;
  params.blocks_per_group = wide.blocks_per_group;
  for (int a = 0; a < rank; ++a) {
    params.axes[a] = {cut<Offset>(wide.axes[a].token), wide.axes[a].extent,
                      wide.axes[a].num_queries, wide.axes[a].query_tiles};
  }
  params.additional_key_batch = static_cast<Offset>(wide.additional_key_batch);
  params.additional_key_token = static_cast<Offset>(wide.additional_key_token);
  params.additional_key_head = static_cast<Offset>(wide.additional_key_head);
  params.additional_value_batch = static_cast<Offset>(wide.additional_value_batch);
  params.additional_value_token = static_cast<Offset>(wide.additional_value_token);
  params.additional_value_head = static_cast<Offset>(wide.additional_value_head);
  params.bias_head = static_cast<Offset>(wide.bias_head);
  for (int a = 0; a < 3; ++a) {
    params.bias_position[a] = static_cast<Offset>(wide.bias_position[a]);
    params.windows[a] = wide.windows[a];
    params.tiles[a] = wide.tiles[a];
  }
  params.additional_tokens = wide.additional_tokens;
  params.column_tiles = wide.column_tiles;
  params.scale_f64 = wide.scale_f64;
  params.lengths = wide.lengths;
  return params;
}

template <class Params>
FillParams<vecina_forward_args> filler(const Params& params) {
  return [params](const vecina_forward_args& args, void* memory) -> Status {
    Params filled = params;
    filled.query = pointer(args.query);
    filled.key = pointer(args.key);
    filled.value = pointer(args.value);
    filled.output = pointer(args.output);
    filled.lse = pointer(args.lse);
    filled.additional_key = pointer(args.additional_key);
    filled.additional_value = pointer(args.additional_value);
    filled.bias = pointer(args.bias);
    set_lengths(args, &filled.lengths);
    std::memcpy(memory, &filled, sizeof filled);
    return {};
  };
}

constexpr double kMaxOffset = 2147483647.0;
constexpr int64_t kMaxOuterBlocks = 65535;  // of a grid's second and third dimension

}  // namespace

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

int token_rank(const Problem& problem) {
  return problem.lengths() == VECINA_LENGTHS_PACKED ? 1 : problem.rank();
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

double query_rows(const Problem& problem) {
  return static_cast<double>(problem.num_samples()) * problem.heads() *
         static_cast<double>(problem.num_queries());
}

double visible_keys(const Problem& problem) {
  double window = 1.0;
  for (int a = 0; a < problem.rank(); ++a) {
    window *= static_cast<double>(problem.axis(a).kernel_size);
  }
  return window + static_cast<double>(problem.additional_tokens());
}

SmallTiles make_tiles(const Problem& problem, const std::array<int, 3>& tile) {
  SmallTiles tiles;
  tiles.tile = tile;
  for (size_t a = 0; a < 3; ++a) {
    tiles.count[a] = divide_up(small_axis(problem, static_cast<int>(a)).num_queries(), tile[a]);
  }
  return tiles;
}

double count_blocks(const Problem& problem, const SmallTiles& tiles) {
  double blocks = static_cast<double>(problem.num_samples()) * (problem.heads() / tiles.heads) *
                  static_cast<double>(tiles.column_tiles);
  for (const int64_t count : tiles.count) blocks *= static_cast<double>(count);
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

namespace {

LengthRows length_rows(const vecina_tensor& lengths) {
  const int64_t bytes = dtype_bytes(lengths.dtype);
  return {nullptr, lengths.strides[0] * bytes, lengths.strides[1] * bytes, bytes};
}

// Lengths of the keys stand for those of the queries.
template <typename Args>
const vecina_tensor& query_lengths(const Args& args) {
  return given(args.query_lengths) ? args.query_lengths : args.lengths;
}

}  // namespace

template <typename Args>
SampleLengths sample_lengths(const Problem& problem, const Args& example) {
  SampleLengths lengths = {};
  if (problem.lengths() == VECINA_LENGTHS_EQUAL) return lengths;
  lengths.key = length_rows(example.lengths);
  lengths.query = length_rows(query_lengths(example));
  lengths.num_keys = example.key.shape[1];
  lengths.num_queries = example.query.shape[1];
  lengths.num_outputs = example.output.shape[1];
  for (int a = 0; a < 3; ++a) {
    const Axis axis = small_axis(problem, a);
    lengths.extent[a] = static_cast<int>(axis.extent);
    lengths.query_extent[a] = static_cast<int>(axis.query_extent);
    lengths.window_tokens[a] =
        problem.is_attention() ? 0 : static_cast<int>(axis.kernel_size * axis.dilation);
    lengths.output_stride[a] = static_cast<int>(axis.output_stride);
  }
  return lengths;
}
template SampleLengths sample_lengths(const Problem&, const vecina_forward_args&);
template SampleLengths sample_lengths(const Problem&, const vecina_backward_args&);

template <typename Args>
void set_lengths(const Args& args, SampleLengths* lengths) {
  lengths->key.data = pointer(args.lengths);
  lengths->query.data = pointer(query_lengths(args));
}
template void set_lengths(const vecina_forward_args&, SampleLengths*);
template void set_lengths(const vecina_backward_args&, SampleLengths*);

WideParams make_params(const Problem& problem, const vecina_forward_args& example,
                       const SmallTiles& tiles) {
  using Strides = SmallStrides<long long>;
  WideParams params = {};
  const int rank = token_rank(problem);
  set_strides(example.query, rank, &Strides::query, &params);
  set_strides(example.key, rank, &Strides::key, &params);
  set_strides(example.value, rank, &Strides::value, &params);
  set_strides(example.output, rank, &Strides::output, &params);
  set_strides(example.lse, rank, &Strides::lse, &params);
  if (given(example.additional_key)) {
    const int64_t bytes = dtype_bytes(problem.dtype());
    const int64_t *key = example.additional_key.strides, *value = example.additional_value.strides;
    params.additional_key_batch = key[0] * bytes;
    params.additional_key_token = key[1] * bytes;
    params.additional_key_head = key[2] * bytes;
    params.additional_value_batch = value[0] * bytes;
    params.additional_value_token = value[1] * bytes;
    params.additional_value_head = value[2] * bytes;
  }
  if (given(example.bias)) {
    const int64_t bytes = dtype_bytes(example.bias.dtype);
    params.bias_head = example.bias.strides[0] * bytes;
    for (int a = 0; a < problem.rank(); ++a) {
      params.bias_position[3 - problem.rank() + a] = example.bias.strides[1 + a] * bytes;
    }
  }
  for (int a = 0; a < 3; ++a) {
    const Axis axis = small_axis(problem, a);
    const int64_t count = tiles.count[static_cast<size_t>(a)];
    auto& inner_first = params.axes[2 - a];
    inner_first.extent = static_cast<int>(axis.extent);
    inner_first.num_queries = static_cast<int>(axis.num_queries());
    inner_first.query_tiles = static_cast<int>(count);
    params.tiles[2 - a] = divider(count);
    params.windows[a] = {static_cast<int>(axis.kernel_size), static_cast<int>(axis.stride),
                         static_cast<int>(axis.dilation), static_cast<int>(axis.output_stride),
                         axis.is_causal ? 1 : 0};
  }
  params.num_head_blocks = problem.heads() / tiles.heads;
  params.head_blocks = divider(params.num_head_blocks);
  params.blocks_per_group = divider(std::max(problem.head_group() / tiles.heads, 1));
  params.column_tiles = divider(tiles.column_tiles);
  params.additional_tokens = static_cast<int>(problem.additional_tokens());
  params.lengths = sample_lengths(problem, example);
  params.scale_f64 = problem.scale() * std::numbers::log2e;
  params.scale = static_cast<float>(params.scale_f64);
  if (params.scale == 0.0f && params.scale_f64 != 0.0) {  // infinity times it stays infinity
    params.scale =
        std::copysign(std::numeric_limits<float>::min(), static_cast<float>(params.scale_f64));
  }
  return params;
}

bool set_grid(const Problem& problem, const SmallTiles& tiles, ForwardLaunch* launch) {
  const int64_t head_blocks = (problem.heads() / tiles.heads) * tiles.column_tiles;
  int64_t grid[3] = {tiles.count[2], tiles.count[1], tiles.count[0]};
  if (problem.rank() == 1) {
    grid[1] = head_blocks;
    grid[2] = problem.num_samples();
  } else {
    grid[2] *= head_blocks * problem.num_samples();
  }
  const bool is_flat = grid[1] > kMaxOuterBlocks || grid[2] > kMaxOuterBlocks;
  if (is_flat) {
    grid[0] *= grid[1] * grid[2];
    grid[1] = grid[2] = 1;
  }
  for (int d = 0; d < 3; ++d) launch->grid[d] = static_cast<uint32_t>(grid[d]);
  return is_flat;
}

void set_launch(const WideParams& params, int rank, bool is_wide, uint32_t threads,
                const DeviceFacts& facts, ForwardLaunch* launch) {
  launch->block[0] = threads;
  launch->is_programmatic = facts.compute_capability >= 90;
  const auto set = [&](const auto& cut_params) {
    launch->params_bytes = sizeof cut_params;
    launch->fill = filler(cut_params);
  };
  const auto set_of_rank = [&]<int of_rank>() {
    is_wide ? set(cut<long long, of_rank>(params)) : set(cut<int, of_rank>(params));
  };
  switch (rank) {
    case 1:
      return set_of_rank.template operator()<1>();
    case 2:
      return set_of_rank.template operator()<2>();
    default:
      return set_of_rank.template operator()<3>();
  }
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

bool has_wide_offsets(const vecina_forward_args& example) {
  for (const vecina_tensor* tensor :
       {&example.query, &example.key, &example.value, &example.additional_key,
        &example.additional_value, &example.bias, &example.output, &example.lse}) {
    if (!given(*tensor)) continue;
    const auto bytes = static_cast<double>(dtype_bytes(tensor->dtype));
    double reach = bytes;  // of one sample
    for (int d = 0; d < tensor->ndim; ++d) {
      const double stride = bytes * std::abs(static_cast<double>(tensor->strides[d]));
      if (stride >= kMaxOffset) return true;
      if (d > 0) reach += stride * static_cast<double>(tensor->shape[d]);
    }
    if (reach >= kMaxOffset) return true;
  }
  return false;
}

std::string braces(std::span<const int, 3> values) {
  return fmt::format("{{{}, {}, {}}}", values[0], values[1], values[2]);
}

}  // namespace vecina::internal::cuda
