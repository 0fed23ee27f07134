// SPDX-License-Identifier: MIT
// A block owns one relative position of one head and walks the queries of all samples; those that
// see a key there add its weight.
#include "split.cuh"

namespace vecina::cuda {

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    split_bias(const __grid_constant__ SplitParams params) {
  const GatherGeometry& geometry = params.geometry;
  constexpr int kAtOnce = kWarps * kGroups;
  Number number = static_cast<Number>(blockIdx.x);
  int relative[3] = {0, 0, 0};
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    relative[a] = take_off(number, 2 * geometry.axes[a].kernel_size - 1);
  }
  const int head = static_cast<int>(number);

  wait_for_previous();
  Real sum = Real(0);
  for (int batch = 0; batch < geometry.samples; ++batch) {
    const Sample sample = sample_at(geometry, batch);
    const int(&count)[3] = sample.output.extent;
    BoxWalk walk;
    walk.advance(static_cast<int>(threadIdx.x) / kLanes, count);
    for (; walk.is_inside(count); walk.advance(kAtOnce, count)) {
      const QueryWindow window = query_window(geometry, sample, walk.at);
      bool is_seen = true;
      int place[3] = {0, 0, 0};
#pragma unroll
      for (int a = kFirstAxis; a < 3; ++a) {
        place[a] = relative[a] - window.axes[a].bias_first;
        is_seen = is_seen && place[a] >= 0 && place[a] < window.count[a];
      }
      if (!is_seen) continue;
      sum +=
          weight_at(row_at(params.weights, batch, head, walk.at), slot_of(geometry, window, place));
    }
  }
  let_next_start();
  const Real total = sum_over_block(sum);
  if (threadIdx.x != 0) return;
  *reinterpret_cast<Real*>(row_at(params.result, 0, head, relative)) = total;
}

}  // namespace vecina::cuda
