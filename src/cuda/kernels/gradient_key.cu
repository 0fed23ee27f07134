// SPDX-License-Identifier: MIT
// Gradients of key and value: a warp owns a token of one key head and walks the queries that see
// it, with every query head of its group. An additional token is seen by all queries; its owner is
// a block. The formulas stand in gradient_pairs.cuh.
#include "gradient_pairs.cuh"

namespace vecina::cuda {
namespace {

constexpr int kOwnerWarps = kConfig.of_additional ? kWarps : 1;
constexpr int kAtOnce = kOwnerWarps * kGroups;  // queries

// A key's rows and what it has gathered.
struct Key {
  KeyPart row, gradient;
  ValuePart value, grad_value;
};

// The queries that see an owner along one axis.
struct AxisQueries {
  int first, count;  // positions in the owner's dilation group; of an additional token, outputs
  int group, index;  // of the owner: token = index * dilation + group
};

VECINA_DEVICE AxisQueries queries_along(const GradientParams& params, int a, int token) {
  const GradientAxis& axis = params.axes[a];
  if constexpr (kConfig.of_additional) return {0, axis.num_queries, 0, 0};
  const int group = token % axis.dilation, index = token / axis.dilation;
  const NaAxis dense = {na_group_length(axis.extent, axis.dilation, group), axis.kernel_size,
                        axis.stride, axis.is_causal != 0};
  const int begin = na_query_begin(dense, index);
  const int end = params.is_attention != 0 ? params.query_extent[a] : na_query_end(dense, index);
  return {begin, na_max(end - begin, 0), group, index};
}

// Where a query is: token of query, token of output, row of the bias.
struct Place {
  int position[3], token[3], relative[3];
  bool is_query;
};

VECINA_DEVICE Place place_of(const GradientParams& params, const AxisQueries (&queries)[3],
                             const BoxWalk& walk, bool is_inside) {
  Place place = {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}, is_inside};
  if (!is_inside) return place;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    const GradientAxis& axis = params.axes[a];
    const int index = queries[a].first + walk.at[a];
    if constexpr (kConfig.of_additional) {
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

VECINA_DEVICE void add_query(const GradientParams& params, int batch, int head, const Place& place,
                             int lane, Key& key) {
  const bool exists = place.is_query;
  KeyPart query;
  ValuePart grad_output, output;
  query.load(row_at(params.query, batch, head, place.position), lane, exists);
  grad_output.load(row_at(params.grad_output, batch, head, place.token), lane, exists);
  output.load(row_at(params.output, batch, head, place.token), lane, exists);
  QueryFacts facts = {};
  if (exists) facts = facts_at(params, batch, head, place.token);
  Real bias = Real(0);
  if constexpr (kConfig.has_bias && !kConfig.of_additional) {
    if (exists) bias = real_at(params.bias, 0, head, place.relative);
  }
  const Real dot = sum_over_lanes<kLanes>(key.row.dot(query));
  const Real difference = sum_over_lanes<kLanes>(grad_output.dot_difference(key.value, output));
  const Pair pair = pair_of(logit_of(dot, bias, params), difference, facts, exists);
  key.gradient.add_scaled(pair.gradient, query);
  key.grad_value.add_scaled(pair.probability, grad_output);
}

// Sums what the warps of a block have gathered into the first warp's, in their order.
template <class Part>
VECINA_DEVICE void sum_over_warps(Part& part, int warp, int lane, int group) {
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

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    gradient_key(const __grid_constant__ GradientParams params) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % 32 / kLanes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Number number = static_cast<Number>(blockIdx.x);
  if constexpr (!kConfig.of_additional) number = number * kWarps + static_cast<Number>(warp);
  if (number >= static_cast<Number>(params.num_rows)) return;
  int token[3] = {0, 0, 0};
  AxisQueries queries[3] = {};
  int count[3] = {1, 1, 1};
  if constexpr (kConfig.of_additional) token[2] = take_off(number, params.additional_tokens);
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    if constexpr (!kConfig.of_additional) token[a] = take_off(number, params.axes[a].extent);
    queries[a] = queries_along(params, a, token[a]);
    count[a] = queries[a].count;
  }
  const int head_kv = take_off(number, params.heads_kv);
  const int batch = static_cast<int>(number);
  const int head_group = params.heads / params.heads_kv;

  wait_for_previous();
  Key key;
  const SmallRows& keys = kConfig.of_additional ? params.additional_key : params.key;
  const SmallRows& values = kConfig.of_additional ? params.additional_value : params.value;
  key.row.load(row_at(keys, batch, head_kv, token), lane, true);
  key.value.load(row_at(values, batch, head_kv, token), lane, true);
  key.gradient.clear();
  key.grad_value.clear();
  const long long num_queries = static_cast<long long>(count[0]) * count[1] * count[2];
  for (int head = head_kv * head_group; head < (head_kv + 1) * head_group; ++head) {
    BoxWalk walk;
    if (num_queries > 0)
      walk.advance(kConfig.of_additional ? warp * kGroups + group : group, count);
    for (long long first = 0; first < num_queries; first += kAtOnce) {
      const Place place = place_of(params, queries, walk, walk.is_inside(count));
      add_query(params, batch, head, place, lane, key);
      walk.advance(kAtOnce, count);
    }
  }
  let_next_start();
  key.gradient.sum_over_groups();
  key.grad_value.sum_over_groups();
  if constexpr (kConfig.of_additional) {
    sum_over_warps(key.gradient, warp, lane, group);
    sum_over_warps(key.grad_value, warp, lane, group);
    if (warp != 0) return;
  }
  if (group != 0) return;
  key.gradient.scale(static_cast<Real>(params.scale));
  if (params.grad_key.data != nullptr) {
    key.gradient.store(row_at(params.grad_key, batch, head_kv, token), lane);
  }
  if (params.grad_value.data != nullptr) {
    key.grad_value.store(row_at(params.grad_value, batch, head_kv, token), lane);
  }
}

}  // namespace vecina::cuda
