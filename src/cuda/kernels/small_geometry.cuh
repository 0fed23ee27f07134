// SPDX-License-Identifier: MIT
// Where a query's window lies, for the kernels of small problems.
#ifndef VECINA_CUDA_KERNELS_SMALL_GEOMETRY_CUH_
#define VECINA_CUDA_KERNELS_SMALL_GEOMETRY_CUH_

#include "core/window.h"
#include "small_params.h"
#include "types.h"

namespace vecina::cuda {

VECINA_DEVICE int divide(int n, Divider d) {
  return static_cast<int>(
      (static_cast<unsigned long long>(static_cast<unsigned>(n)) * d.multiplier) >> d.shift);
}
// n becomes n / d; returns n % d for d = `divisor`.
VECINA_DEVICE int divide_off(int& n, Divider d, int divisor) {
  const int quotient = divide(n, d);
  const int remainder = n - quotient * divisor;
  n = quotient;
  return remainder;
}

struct Range {
  int begin, end;
};

// What a block computes: a tile of queries, of columns of the output, and a few heads.
struct BlockPlace {
  int tile[3], column_tile, head_block, batch;
};

// The grid's first dimension counts tiles of the innermost axis, the second those of the axis
// before it (rank 1: tiles of columns and blocks of heads), the third the rest; a flat grid counts
// all along the first.
template <int kRank, int kColumnTiles, bool is_flat, class Params>
VECINA_DEVICE BlockPlace block_place(const Params& params) {
  BlockPlace place = {};
  int rest = static_cast<int>(blockIdx.x);
#pragma unroll
  for (int a = 2; a >= 3 - kRank; --a) {
    if (!is_flat && a > 0) {
      place.tile[a] = rest;
      rest = static_cast<int>(a == 2 ? blockIdx.y : blockIdx.z);
    } else {
      place.tile[a] = divide_off(rest, params.tiles[2 - a], params.axes[2 - a].query_tiles);
    }
  }
  if constexpr (kColumnTiles > 1) {
    place.column_tile = divide_off(rest, params.column_tiles, kColumnTiles);
  }
  if (!is_flat && kRank == 1) {
    place.batch = static_cast<int>(blockIdx.z);
  } else {
    place.batch = divide(rest, params.head_blocks);
    rest -= place.batch * params.num_head_blocks;
  }
  place.head_block = rest;
  return place;
}

// The keys of one query along one axis: tokens first, first + dilation, ..., count of them.
struct AxisWindow {
  int position;    // of the query, in tokens
  int first;       // token of the first key
  int count;       // visible keys
  int bias_first;  // relative position of the first key, from 0 on
};

// `query` counts tokens of the output. Attention is the window that covers its axis, with queries
// beyond it perhaps.
VECINA_DEVICE AxisWindow window_along(int extent, const SmallWindow& rule, int query) {
  AxisWindow window;
  window.position = na_query_to_axis(query, rule.output_stride);
  const int group = window.position % rule.dilation;
  const int i = window.position / rule.dilation;
  const NaAxis dense = {na_group_length(extent, rule.dilation, group), rule.kernel_size,
                        rule.stride, rule.is_causal != 0};
  const int begin = na_window_begin(dense, i);
  window.count = rule.is_causal != 0 ? na_min(na_window_end(dense, i), dense.extent) - begin
                                     : rule.kernel_size;
  window.first = na_group_to_axis(begin, rule.dilation, group);
  window.bias_first = begin - i + rule.kernel_size - 1;
  return window;
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_GEOMETRY_CUH_
