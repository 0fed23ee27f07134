// SPDX-License-Identifier: MIT
// Gradient of one query of one head and its facts: its owner, kQueryGroups groups of lanes, walks
// the keys that it sees, one for each group at a time, with a running maximum (Milakov and
// Gimelshein, arXiv:1805.02867). The formulas stand in gradient_pairs.cuh.
#ifndef VECINA_CUDA_KERNELS_GRADIENT_QUERY_CUH_
#define VECINA_CUDA_KERNELS_GRADIENT_QUERY_CUH_

#include "gradient_pairs.cuh"

namespace vecina::cuda {

inline constexpr int kQueryGroups = kConfig.query_groups;

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

// Brings together what the groups of the owner have gathered.
VECINA_DEVICE void gather_groups(Query& query) {
  constexpr int kEnd = kLanes * kQueryGroups;
  Real most = query.maximum;
#pragma unroll
  for (int distance = kLanes; distance < kEnd; distance *= 2) {
    most = larger(most, __shfl_xor_sync(0xffffffffu, most, distance));
  }
  query.raise(most);
#pragma unroll
  for (int distance = kLanes; distance < kEnd; distance *= 2) {
    query.sum += __shfl_xor_sync(0xffffffffu, query.sum, distance);
    query.differences += __shfl_xor_sync(0xffffffffu, query.differences, distance);
  }
  query.keys.sum_over_groups<kEnd>();
  query.products.sum_over_groups<kEnd>();
}

VECINA_DEVICE void add_window(const GradientParams& params, const Sample& sample, int head,
                              int head_kv, const int (&token)[3], bool is_query, int group,
                              int lane, Query& query) {
  AxisWindow windows[3];
  int count[3] = {1, 1, 1};
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    windows[a] = window_along(params.geometry, sample, a, token[a]);
    count[a] = windows[a].count;
  }
  const int keys = most_of_owners<kQueryGroups>(is_query ? count[0] * count[1] * count[2] : 0);
  BoxWalk walk;
  if (is_query) walk.advance(group, count);
  for (int first = 0; first < keys; first += kQueryGroups) {
    const bool exists = is_query && walk.is_inside(count);
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
    if (is_query) walk.advance(kQueryGroups, count);
  }
}

VECINA_DEVICE void add_additional(const GradientParams& params, int batch, int head_kv,
                                  bool is_query, int group, int lane, Query& query) {
  const int num_tokens = params.geometry.additional_tokens;
  for (int first = 0; first < num_tokens; first += kQueryGroups) {
    const bool exists = is_query && first + group < num_tokens;
    const long long token = exists ? first + group : 0;
    const SmallRows &keys = params.additional_key, &values = params.additional_value;
    add_key(params, keys.data + batch * keys.batch + head_kv * keys.head + token * keys.token[2],
            values.data + batch * values.batch + head_kv * values.head + token * values.token[2],
            Real(0), exists, lane, query);
  }
}

// Where a query may be.
struct QueryToken {
  int position[3], token[3];
  bool is_query;  // with output_stride, few tokens are
};

// number becomes that of the head.
VECINA_DEVICE QueryToken take_off_query(const GatherGeometry& geometry, Number& number) {
  QueryToken query = {{0, 0, 0}, {0, 0, 0}, true};
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    query.position[a] = take_off(number, geometry.query_extent[a]);
    query.token[a] = query.position[a] / geometry.axes[a].output_stride;
    query.is_query =
        query.is_query && query.token[a] * geometry.axes[a].output_stride == query.position[a];
  }
  return query;
}

// By all owners of a warp, also of what is no query: then nothing is read, and all is 0.
VECINA_DEVICE QueryFacts differentiate_query(const GradientParams& params, const Sample& sample,
                                             int batch, int head, int head_kv,
                                             const QueryToken& place, int group, int lane,
                                             KeyPart& gradient) {
  const bool is_query = place.is_query;
  Query query;
  query.clear();
  query.row.load(row_at(params.query, sample.query, head, place.position), lane, is_query);
  query.grad_output.load(row_at(params.grad_output, sample.output, head, place.token), lane,
                         is_query);
  query.output.load(row_at(params.output, sample.output, head, place.token), lane, is_query);
  add_window(params, sample, head, head_kv, place.token, is_query, group, lane, query);
  add_additional(params, batch, head_kv, is_query, group, lane, query);
  gather_groups(query);

  QueryFacts facts = {};
  facts.maximum = query.maximum == Real(-infinity()) ? Real(0) : query.maximum;
  facts.inverse = query.sum == Real(0) ? Real(0) : Real(1) / query.sum;
  facts.delta = query.differences * facts.inverse;
  if constexpr (kConfig.has_grad_lse) {
    if (is_query) {
      facts.delta -=
          *reinterpret_cast<const Real*>(row_at(params.grad_lse, sample.output, head, place.token));
    }
  }
  const Real factor = static_cast<Real>(params.scale) * facts.inverse;
  gradient.add_scaled(factor, query.products);
  gradient.add_scaled(-facts.delta * factor, query.keys);
  return facts;
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GRADIENT_QUERY_CUH_
