// SPDX-License-Identifier: MIT
// A warp owns the row of one query and head and walks the keys that it sees, a few at a time, one
// for each group of lanes.
#include "split.cuh"

namespace vecina::cuda {

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    split_rows(const __grid_constant__ SplitParams params) {
  const GatherGeometry& geometry = params.geometry;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % 32 / kLanes;
  Number number = static_cast<Number>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (number >= static_cast<Number>(geometry.num_rows)) return;
  int row[3] = {0, 0, 0}, token[3] = {0, 0, 0};
  bool is_query = true;  // with output_stride, few tokens of query are
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    const GatherAxis& axis = geometry.axes[a];
    row[a] = take_off(number, kConfig.of_qk ? geometry.query_extent[a] : axis.num_queries);
    token[a] = kConfig.of_qk ? row[a] / axis.output_stride : row[a];
    if (kConfig.of_qk) is_query = is_query && token[a] * axis.output_stride == row[a];
  }
  const int head = take_off(number, geometry.heads);
  const int batch = static_cast<int>(number);
  const int head_kv = head_of_keys(geometry, head);

  wait_for_previous();
  Part sum;
  sum.clear();
  if (is_query) {
    const QueryWindow window = query_window(geometry, sample_at(geometry, batch), token);
    const char* const weights = row_at(params.weights, batch, head, token);
    const auto add = [&](long long slot, const char* key_row, bool exists) {
      if (!exists) return;
      Part key;
      key.load(key_row, lane, true);
      sum.add_scaled(weight_at(weights, slot), key);
    };
    const int(&count)[3] = window.count;
    const long long keys = static_cast<long long>(count[0]) * count[1] * count[2];
    BoxWalk walk;
    walk.advance(group, count);
    for (long long first = 0; first < keys; first += kGroups) {
      int at[3] = {0, 0, 0};
#pragma unroll
      for (int a = kFirstAxis; a < 3; ++a) {
        at[a] = window.axes[a].first + walk.at[a] * geometry.axes[a].dilation;
      }
      add(slot_of(geometry, window, walk.at), row_at(params.key, batch, head_kv, at),
          walk.is_inside(count));
      walk.advance(kGroups, count);
    }
    for (int first = 0; first < geometry.additional_tokens; first += kGroups) {
      const int at[3] = {0, 0, first + group};
      add(params.window_slots + at[2], row_at(params.additional, batch, head_kv, at),
          at[2] < geometry.additional_tokens);
    }
    sum.sum_over_groups();
    sum.scale(static_cast<Real>(params.scale));
  }
  let_next_start();
  if (group == 0) sum.store(row_at(params.result, batch, head, row), lane);
}

}  // namespace vecina::cuda
