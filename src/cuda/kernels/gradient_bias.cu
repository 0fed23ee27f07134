// SPDX-License-Identifier: MIT
// Gradient of the relative position bias: a block owns one relative position of one head and walks
// the queries of all samples; those that see a key there add the gradient of its logit. The
// formulas stand in gradient_pairs.cuh.
#include "gradient_pairs.cuh"

namespace vecina::cuda {
namespace {

// The key at a relative position of a query, if the query sees it.
struct Place {
  int position[3], key[3];
  bool is_visible;
};

VECINA_DEVICE Place place_of(const GatherGeometry& geometry, const Sample& sample,
                             const int (&relative)[3], const int (&token)[3], bool is_inside) {
  Place place = {{0, 0, 0}, {0, 0, 0}, is_inside};
  if (!is_inside) return place;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    const AxisWindow window = window_along(geometry, sample, a, token[a]);
    const int index = relative[a] - window.bias_first;
    place.is_visible = place.is_visible && index >= 0 && index < window.count;
    place.position[a] = window.position;
    place.key[a] = window.first + index * geometry.axes[a].dilation;
  }
  return place;
}

VECINA_DEVICE Real gradient_of_logit(const GradientParams& params, const Sample& sample, int head,
                                     int head_kv, const int (&token)[3], const Place& place,
                                     Real bias, int lane) {
  const bool exists = place.is_visible;
  KeyPart query, key;
  ValuePart grad_output, output, value;
  query.load(row_at(params.query, sample.query, head, place.position), lane, exists);
  key.load(row_at(params.key, sample.key, head_kv, place.key), lane, exists);
  value.load(row_at(params.value, sample.key, head_kv, place.key), lane, exists);
  grad_output.load(row_at(params.grad_output, sample.output, head, token), lane, exists);
  output.load(row_at(params.output, sample.output, head, token), lane, exists);
  QueryFacts facts = {};
  if (exists) facts = facts_at(params, sample.query.sample, head, token);
  const Real dot = sum_over_lanes<kLanes>(query.dot(key));
  const Real difference = sum_over_lanes<kLanes>(grad_output.dot_difference(value, output));
  return pair_of(logit_of(dot, bias, params), difference, facts, exists).gradient;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    gradient_bias(const __grid_constant__ GradientParams params) {
  constexpr int kAtOnce = kWarps * kGroups;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int place_in_block = static_cast<int>(threadIdx.x) / kLanes;
  Number number = static_cast<Number>(blockIdx.x);
  const GatherGeometry& geometry = params.geometry;
  int relative[3] = {0, 0, 0};
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    relative[a] = take_off(number, 2 * geometry.axes[a].kernel_size - 1);
  }
  const int head = static_cast<int>(number);
  const int head_kv = head / (geometry.heads / geometry.heads_kv);

  wait_for_previous();
  const Real bias = bias_at(params, head, relative);
  Real sum = Real(0);
  for (int batch = 0; batch < geometry.samples; ++batch) {
    const Sample sample = sample_at(geometry, batch);
    const int(&count)[3] = sample.output.extent;
    const long long num_queries = sample.has_windows ? sample.output.count() : 0;
    if (num_queries == 0) continue;
    BoxWalk walk;
    walk.advance(place_in_block, count);
    for (long long first = 0; first < num_queries; first += kAtOnce) {
      const bool is_inside = walk.is_inside(count);
      int token[3] = {0, 0, 0};
#pragma unroll
      for (int a = kFirstAxis; a < 3; ++a) token[a] = is_inside ? walk.at[a] : 0;
      const Place place = place_of(geometry, sample, relative, token, is_inside);
      sum += gradient_of_logit(params, sample, head, head_kv, token, place, bias, lane);
      walk.advance(kAtOnce, count);
    }
  }
  let_next_start();
  const Real total = sum_over_block(sum);
  if (threadIdx.x != 0) return;
  *reinterpret_cast<Real*>(row_at(params.grad_bias, 0, head, relative)) = total;
}

}  // namespace vecina::cuda
