// SPDX-License-Identifier: MIT
// Gradient of query, and the facts of each query that the other gradients need: a warp owns a query
// of one head and walks the keys that it sees, a few at a time, one for each group of lanes, with a
// running maximum (Milakov and Gimelshein, arXiv:1805.02867). The formulas stand in
// gradient_pairs.cuh.
#include "gradient_pairs.cuh"

namespace vecina::cuda {
namespace {

// A query's rows and what a group of lanes has gathered of the keys that it walked. Sums are
// relative to 2^maximum, of weights w = 2^(logit - maximum).
struct Query {
  KeyPart row;
  ValuePart grad_output, output;

  Real maximum, sum, differences;  // sum of w, sum of w * difference
  KeyPart keys, products;          // sums of w * key and of w * difference * key

  VECINA_DEVICE void clear() {
    maximum = Real(-infinity());
    sum = differences = Real(0);
    keys.clear();
    products.clear();
  }
  // Lets the sums be relative to a maximum that is no smaller.
  VECINA_DEVICE void raise(Real to) {
    const Real factor = maximum == to ? Real(1) : power_of_two(maximum - to);
    maximum = to;
    sum *= factor;
    differences *= factor;
    keys.scale(factor);
    products.scale(factor);
  }
};

VECINA_DEVICE void add_key(const GradientParams& params, const char* key_row, const char* value_row,
                           Real bias, bool exists, int lane, Query& query) {
  KeyPart key;
  ValuePart value;
  key.load(key_row, lane, exists);
  value.load(value_row, lane, exists);
  const Real dot = sum_over_lanes<kLanes>(query.row.dot(key));
  const Real difference =
      sum_over_lanes<kLanes>(query.grad_output.dot_difference(value, query.output));
  if (!exists) return;
  const Real logit = logit_of(dot, bias, params);
  if (logit > query.maximum) query.raise(logit);
  // Where nothing but -infinity was seen, weights are 0 and not NaN.
  const Real weight = query.maximum == Real(-infinity()) && logit == query.maximum
                          ? Real(0)
                          : power_of_two(logit - query.maximum);
  query.sum += weight;
  query.differences = multiply_add(weight, difference, query.differences);
  query.keys.add_scaled(weight, key);
  query.products.add_scaled(weight * difference, key);
}

// Brings together what the groups of the warp have gathered.
VECINA_DEVICE void gather_groups(Query& query) {
  Real most = query.maximum;
#pragma unroll
  for (int distance = kLanes; distance < 32; distance *= 2) {
    most = larger(most, __shfl_xor_sync(0xffffffffu, most, distance));
  }
  query.raise(most);
#pragma unroll
  for (int distance = kLanes; distance < 32; distance *= 2) {
    query.sum += __shfl_xor_sync(0xffffffffu, query.sum, distance);
    query.differences += __shfl_xor_sync(0xffffffffu, query.differences, distance);
  }
  query.keys.sum_over_groups();
  query.products.sum_over_groups();
}

VECINA_DEVICE void add_window(const GradientParams& params, const Sample& sample, int head,
                              int head_kv, const int (&token)[3], int group, int lane,
                              Query& query) {
  AxisWindow windows[3];
  int count[3] = {1, 1, 1};
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    windows[a] = window_along(params.geometry, sample, a, token[a]);
    count[a] = windows[a].count;
  }
  const int keys = count[0] * count[1] * count[2];
  BoxWalk walk;
  walk.advance(group, count);
  for (int first = 0; first < keys; first += kGroups) {
    const bool exists = walk.is_inside(count);
    int at[3] = {0, 0, 0}, relative[3] = {0, 0, 0};
    if (exists) {
#pragma unroll
      for (int a = kFirstAxis; a < 3; ++a) {
        at[a] = windows[a].first + walk.at[a] * params.geometry.axes[a].dilation;
        relative[a] = windows[a].bias_first + walk.at[a];
      }
    }
    Real bias = Real(0);
    if constexpr (kConfig.has_bias) {
      if (exists) bias = bias_at(params, head, relative);
    }
    add_key(params, row_at(params.key, sample.key, head_kv, at),
            row_at(params.value, sample.key, head_kv, at), bias, exists, lane, query);
    walk.advance(kGroups, count);
  }
}

VECINA_DEVICE void add_additional(const GradientParams& params, int batch, int head_kv, int group,
                                  int lane, Query& query) {
  const int num_tokens = params.geometry.additional_tokens;
  for (int first = 0; first < num_tokens; first += kGroups) {
    const bool exists = first + group < num_tokens;
    const long long token = exists ? first + group : 0;
    const SmallRows &keys = params.additional_key, &values = params.additional_value;
    add_key(params, keys.data + batch * keys.batch + head_kv * keys.head + token * keys.token[2],
            values.data + batch * values.batch + head_kv * values.head + token * values.token[2],
            Real(0), exists, lane, query);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    gradient_query(const __grid_constant__ GradientParams params) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % 32 / kLanes;
  Number number = static_cast<Number>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const GatherGeometry& geometry = params.geometry;
  if (number >= static_cast<Number>(geometry.num_rows)) return;
  int position[3] = {0, 0, 0}, token[3] = {0, 0, 0};
  bool is_query = true;  // with output_stride, few tokens are
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    position[a] = take_off(number, geometry.query_extent[a]);
    token[a] = position[a] / geometry.axes[a].output_stride;
    is_query = is_query && token[a] * geometry.axes[a].output_stride == position[a];
  }
  const int head = take_off(number, geometry.heads);
  const int batch = static_cast<int>(number);
  const int head_kv = head / (geometry.heads / geometry.heads_kv);

  wait_for_previous();
  const Sample sample = sample_at(geometry, batch);
  const bool is_token = !kHasLengths || sample.query.has(position);
  is_query = is_query && is_token && sample.has_windows;
  KeyPart gradient;
  gradient.clear();
  if (is_query) {
    Query query;
    query.clear();
    query.row.load(row_at(params.query, sample.query, head, position), lane, true);
    query.grad_output.load(row_at(params.grad_output, sample.output, head, token), lane, true);
    query.output.load(row_at(params.output, sample.output, head, token), lane, true);
    add_window(params, sample, head, head_kv, token, group, lane, query);
    add_additional(params, batch, head_kv, group, lane, query);
    gather_groups(query);

    QueryFacts facts = {};
    facts.maximum = query.maximum == Real(-infinity()) ? Real(0) : query.maximum;
    facts.inverse = query.sum == Real(0) ? Real(0) : Real(1) / query.sum;
    facts.delta = query.differences * facts.inverse;
    if constexpr (kConfig.has_grad_lse) {
      facts.delta -=
          *reinterpret_cast<const Real*>(row_at(params.grad_lse, sample.output, head, token));
    }
    if (static_cast<int>(threadIdx.x) % 32 == 0) facts_at(params, batch, head, token) = facts;
    const Real factor = static_cast<Real>(params.scale) * facts.inverse;
    gradient.add_scaled(factor, query.products);
    gradient.add_scaled(-facts.delta * factor, query.keys);
  }
  let_next_start();
  if constexpr (kConfig.is_stored) {
    if (group == 0 && (is_token || !kIsPacked)) {
      gradient.store(row_at(params.grad_query, sample.query, head, position), lane);
    }
  }
}

}  // namespace vecina::cuda
