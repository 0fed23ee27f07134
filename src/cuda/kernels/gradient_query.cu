// SPDX-License-Identifier: MIT
// Gradient of query, and the facts of each query that the other gradients need: a warp owns a query
// of one head (gradient_query.cuh).
#include "gradient_query.cuh"

namespace vecina::cuda {

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    gradient_query(const __grid_constant__ GradientParams params) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % 32 / kLanes;
  Number number = static_cast<Number>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const GatherGeometry& geometry = params.geometry;
  if (number >= static_cast<Number>(geometry.num_rows)) return;
  QueryToken place = take_off_query(geometry, number);
  const int head = take_off(number, geometry.heads);
  const int batch = static_cast<int>(number);
  const int head_kv = head / (geometry.heads / geometry.heads_kv);

  wait_for_previous();
  const Sample sample = sample_at(geometry, batch);
  const bool is_token = !kHasLengths || sample.query.has(place.position);
  place.is_query = place.is_query && is_token && sample.has_windows;
  KeyPart gradient;
  gradient.clear();
  if (place.is_query) {
    const QueryFacts facts =
        differentiate_query(params, sample, batch, head, head_kv, place, group, lane, gradient);
    if (static_cast<int>(threadIdx.x) % 32 == 0) facts_at(params, batch, head, place.token) = facts;
  }
  let_next_start();
  if constexpr (kConfig.is_stored) {
    if (group == 0 && (is_token || !kIsPacked)) {
      gradient.store(row_at(params.grad_query, sample.query, head, place.position), lane);
    }
  }
}

}  // namespace vecina::cuda
