// SPDX-License-Identifier: MIT
// A warp owns the slots of one query and head and fills them a few at a time, one for each group of
// lanes.
#include "split.cuh"

namespace vecina::cuda {

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    split_weights(const __grid_constant__ SplitParams params) {
  const GatherGeometry& geometry = params.geometry;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % 32 / kLanes;
  Number number = static_cast<Number>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (number >= static_cast<Number>(geometry.num_rows)) return;
  int token[3] = {0, 0, 0}, position[3] = {0, 0, 0}, slots[3] = {1, 1, 1};
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    token[a] = take_off(number, geometry.axes[a].num_queries);
    position[a] =
        kConfig.of_qk ? na_query_to_axis(token[a], geometry.axes[a].output_stride) : token[a];
    slots[a] = geometry.axes[a].kernel_size;
  }
  const int head = take_off(number, geometry.heads);
  const int batch = static_cast<int>(number);
  const int head_kv = head_of_keys(geometry, head);
  const Sample sample = sample_at(geometry, batch);
  const QueryWindow window = query_window(geometry, sample, token);

  wait_for_previous();
  Part query;
  query.load(row_at(params.query, batch, head, position), lane, true);
  char* const weights = row_at(params.weights, batch, head, token);
  const auto fill = [&](long long slot, bool is_slot, const char* row, bool exists, Real bias) {
    Part key;
    key.load(row, lane, exists);
    const Real dot = sum_over_lanes<kLanes>(query.dot(key));
    const Real weight = exists ? multiply_add(dot, static_cast<Real>(params.scale), bias)
                               : static_cast<Real>(params.empty);
    if (!is_slot || lane != 0) return;
    store<Element, 1>(&weight, weights + slot * static_cast<long long>(sizeof(Element)));
  };

  BoxWalk walk;
  walk.advance(group, slots);
  for (long long first = 0; first < params.window_slots; first += kGroups) {
    const bool is_slot = walk.is_inside(slots);
    bool exists = is_slot;
    int at[3] = {0, 0, 0}, relative[3] = {0, 0, 0};
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      const int place = walk.at[a] - window.empty[a];
      exists = exists && place >= 0 && place < window.count[a];
      at[a] = window.axes[a].first + place * geometry.axes[a].dilation;
      relative[a] = window.axes[a].bias_first + place;
    }
    Real bias = Real(0);
    if constexpr (kConfig.has_bias) {
      if (exists) bias = *reinterpret_cast<const Real*>(row_at(params.bias, 0, head, relative));
    }
    fill(first + group, is_slot, row_at(params.key, batch, head_kv, at), exists, bias);
    walk.advance(kGroups, slots);
  }
  for (int first = 0; first < geometry.additional_tokens; first += kGroups) {
    const bool exists = first + group < geometry.additional_tokens;
    const int at[3] = {0, 0, first + group};
    fill(params.window_slots + first + group, exists, row_at(params.additional, batch, head_kv, at),
         exists, Real(0));
  }
  let_next_start();
}

}  // namespace vecina::cuda
