// SPDX-License-Identifier: MIT
// What kernels share whose rows have one owner each, a warp or a block, that walks all that adds to
// its row, in a fixed order: no atomics, the same bits in every run. Numbers of owners, rows of
// tensors, the keys of a query and the queries of a key. kConfig is a config that says which rows.
#ifndef VECINA_CUDA_KERNELS_GATHER_CUH_
#define VECINA_CUDA_KERNELS_GATHER_CUH_

#include "config.h"
#include "gather_params.h"
#include "row_part.cuh"
#include "samples.cuh"
#include "small_geometry.cuh"
#include "types.h"

namespace vecina::cuda {

using Element = Types<kConfig.dtype>::Element;
using Real = Types<kConfig.dtype>::Real;

inline constexpr int kWarps = kConfig.warps;
inline constexpr int kLanes = kConfig.lanes;
inline constexpr int kGroups = 32 / kLanes;  // of a warp: rows at the same time
inline constexpr int kFirstAxis = 3 - kConfig.rank;
inline constexpr bool kHasLengths = kConfig.lengths != kEqualLengths;
inline constexpr bool kIsPacked = kConfig.lengths == kPackedLengths;

template <bool is_wide>
struct NumberType {
  using Type = unsigned;
};
template <>
struct NumberType<true> {
  using Type = unsigned long long;
};
using Number = NumberType<kConfig.has_wide_number>::Type;

// number becomes number / size; returns number % size.
VECINA_DEVICE int take_off(Number& number, int size) {
  const Number quotient = number / static_cast<Number>(size);
  const auto remainder = static_cast<int>(number - quotient * static_cast<Number>(size));
  number = quotient;
  return remainder;
}

// By whole warps, each for one sample, after wait_for_previous().
VECINA_DEVICE Sample sample_at(const GatherGeometry& geometry, int index) {
  if constexpr (kHasLengths) {
    return sample_at<kConfig.lengths, kFirstAxis>(geometry.lengths, index);
  } else {
    Sample sample = {{index, {1, 1, 1}, 0}, {index, {1, 1, 1}, 0}, {index, {1, 1, 1}, 0}, true};
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      sample.key.extent[a] = geometry.axes[a].extent;
      sample.query.extent[a] = geometry.query_extent[a];
      sample.output.extent[a] = geometry.axes[a].num_queries;
    }
    return sample;
  }
}

// A row of a tensor without tokens of samples: additional tokens (token[2]), a bias.
VECINA_DEVICE char* row_at(const SmallRows& rows, int batch, int head, const int (&token)[3]) {
  char* row = rows.data + batch * rows.batch + head * rows.head;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) row += token[a] * rows.token[a];
  return row;
}
// A token's row.
VECINA_DEVICE char* row_at(const SmallRows& rows, const Tokens& tokens, int head,
                           const int (&token)[3]) {
  if constexpr (kIsPacked) {
    return rows.data + head * rows.head + tokens.number(token) * rows.token[2];
  } else {
    return row_at(rows, tokens.sample, head, token);
  }
}

// Walks a box of tokens, the innermost axis fastest, several at a time.
struct BoxWalk {
  int at[3] = {0, 0, 0};

  // From token `number` of a box that is not empty on.
  VECINA_DEVICE void begin(long long number, const int (&count)[3]) {
#pragma unroll
    for (int a = 2; a > kFirstAxis; --a) {
      at[a] = static_cast<int>(number % count[a]);
      number /= count[a];
    }
    at[kFirstAxis] = static_cast<int>(number);
  }
  // Leaves the box, which must not be empty, at the far end of the outermost axis.
  VECINA_DEVICE void advance(int steps, const int (&count)[3]) {
    at[2] += steps;
    if constexpr (kFirstAxis < 2) {
      while (at[2] >= count[2]) {
        at[2] -= count[2];
        ++at[1];
      }
    }
    if constexpr (kFirstAxis < 1) {
      while (at[1] >= count[1]) {
        at[1] -= count[1];
        ++at[0];
      }
    }
  }
  VECINA_DEVICE bool is_inside(const int (&count)[3]) const {
    return at[kFirstAxis] < count[kFirstAxis];
  }
};

// The keys that a query, a token of the output, sees along an axis.
VECINA_DEVICE AxisWindow window_along(const GatherGeometry& geometry, const Sample& sample, int a,
                                      int query) {
  const GatherAxis& axis = geometry.axes[a];
  SmallWindow rule = {axis.kernel_size, axis.stride, axis.dilation, axis.output_stride,
                      axis.is_causal};
  if (kHasLengths && geometry.is_attention != 0) rule.kernel_size = sample.key.extent[a];
  return window_along(sample.key.extent[a], rule, query);
}

// The queries that see a key along one axis.
struct AxisQueries {
  int first, count;  // positions in the key's dilation group; of an additional token, outputs
  int group, index;  // of the key: token = index * dilation + group
};

template <bool of_additional>
VECINA_DEVICE AxisQueries queries_along(const GatherGeometry& geometry, const Sample& sample, int a,
                                        int token) {
  const GatherAxis& axis = geometry.axes[a];
  if constexpr (of_additional) return {0, sample.output.extent[a], 0, 0};
  const int group = token % axis.dilation, index = token / axis.dilation;
  const bool is_whole = geometry.is_attention != 0;
  const int extent = sample.key.extent[a];
  const NaAxis dense = {na_group_length(extent, axis.dilation, group),
                        kHasLengths && is_whole ? extent : axis.kernel_size, axis.stride,
                        axis.is_causal != 0};
  const int begin = na_query_begin(dense, index);
  const int end = is_whole ? sample.query.extent[a] : na_query_end(dense, index);
  return {begin, na_max(end - begin, 0), group, index};
}

// Where a query is: token of query, token of output, relative position of the key.
struct QueryPlace {
  int position[3], token[3], relative[3];
  bool is_query;
};

template <bool of_additional>
VECINA_DEVICE QueryPlace query_place(const GatherGeometry& geometry,
                                     const AxisQueries (&queries)[3], const BoxWalk& walk,
                                     bool is_inside) {
  QueryPlace place = {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}, is_inside};
  if (!is_inside) return place;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    const GatherAxis& axis = geometry.axes[a];
    const int index = queries[a].first + walk.at[a];
    if constexpr (of_additional) {
      place.token[a] = index;
      place.position[a] = na_query_to_axis(index, axis.output_stride);
    } else {
      place.position[a] = na_group_to_axis(index, axis.dilation, queries[a].group);
      place.token[a] = place.position[a] / axis.output_stride;
      place.is_query = place.is_query &&
                       na_query_to_axis(place.token[a], axis.output_stride) == place.position[a];
      place.relative[a] = queries[a].index - index + axis.kernel_size - 1;
    }
  }
  return place;
}

// Sums what the warps of a block have gathered into the first warp's, in their order. How many fit
// shared memory says meeting_warps() in gather_common.h.
template <class Part>
VECINA_DEVICE void sum_over_warps(Part& part, int warp, int lane, int group) {
  if constexpr (kWarps > 1) {
    __shared__ Real gathered[kWarps][Part::kColumns * kLanes];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Part::kColumns; ++i) {
      if (group == 0) gathered[warp][i * kLanes + lane] = part.columns[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Part::kColumns; ++i) {
      part.columns[i] = Real(0);
      for (int w = 0; w < kWarps; ++w) part.columns[i] += gathered[w][i * kLanes + lane];
    }
  }
}

// The same with one number of each group of lanes; the first thread gets the sum.
VECINA_DEVICE Real sum_over_block(Real x) {
  __shared__ Real gathered[kWarps * kGroups];
  if (static_cast<int>(threadIdx.x) % kLanes == 0) gathered[threadIdx.x / kLanes] = x;
  __syncthreads();
  Real total = Real(0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWarps * kGroups; ++i) total += gathered[i];
  }
  return total;
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GATHER_CUH_
