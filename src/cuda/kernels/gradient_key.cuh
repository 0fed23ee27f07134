// SPDX-License-Identifier: MIT
// What an owner of a key or additional token gathers, kKeyGroups groups of lanes with a query each
// at a time. The formulas stand in gradient_pairs.cuh.
#ifndef VECINA_CUDA_KERNELS_GRADIENT_KEY_CUH_
#define VECINA_CUDA_KERNELS_GRADIENT_KEY_CUH_

#include "gradient_pairs.cuh"

namespace vecina::cuda {

inline constexpr int kKeyGroups = kConfig.key_groups;

// A key's rows and what it has gathered.
struct Key {
  KeyPart row, gradient;
  ValuePart value, grad_value;
};

// facts_of(place): of a query.
template <class FactsOf>
VECINA_DEVICE void add_query(const GradientParams& params, const Sample& sample, int head,
                             const QueryPlace& place, int lane, FactsOf facts_of, Key& key) {
  const bool exists = place.is_query;
  KeyPart query;
  ValuePart grad_output, output;
  query.load(row_at(params.query, sample.query, head, place.position), lane, exists);
  grad_output.load(row_at(params.grad_output, sample.output, head, place.token), lane, exists);
  output.load(row_at(params.output, sample.output, head, place.token), lane, exists);
  QueryFacts facts = {};
  if (exists) facts = facts_of(place);
  Real bias = Real(0);
  if constexpr (kConfig.has_bias && !kConfig.of_additional) {
    if (exists) bias = bias_at(params, head, place.relative);
  }
  const Real dot = sum_over_lanes<kLanes>(key.row.dot(query));
  const Real difference = sum_over_lanes<kLanes>(grad_output.dot_difference(key.value, output));
  const Pair pair = pair_of(logit_of(dot, bias, params), difference, facts, exists);
  key.gradient.add_scaled(pair.gradient, query);
  key.grad_value.add_scaled(pair.probability, grad_output);
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GRADIENT_KEY_CUH_
