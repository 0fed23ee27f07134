// SPDX-License-Identifier: MIT
// A warp owns a token of one key head and walks the queries that see it, with every query head of
// its group. An additional token is seen by all queries; its owner is a block.
#include "split.cuh"

namespace vecina::cuda {
namespace {

constexpr int kOwnerWarps = kConfig.of_additional ? kWarps : 1;
constexpr int kAtOnce = kOwnerWarps * kGroups;  // queries

// The slot that a key, or an additional token, has at a query.
VECINA_DEVICE long long slot_at(const SplitParams& params, const Sample& sample,
                                const QueryPlace& query, const int (&token)[3]) {
  if constexpr (kConfig.of_additional) return params.window_slots + token[2];
  const GatherGeometry& geometry = params.geometry;
  const QueryWindow window = query_window(geometry, sample, query.token);
  int place[3] = {0, 0, 0};
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    place[a] = (token[a] - window.axes[a].first) / geometry.axes[a].dilation;
  }
  return slot_of(geometry, window, place);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    split_keys(const __grid_constant__ SplitParams params) {
  const GatherGeometry& geometry = params.geometry;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % 32 / kLanes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Number number = static_cast<Number>(blockIdx.x);
  if constexpr (!kConfig.of_additional) number = number * kWarps + static_cast<Number>(warp);
  if (number >= static_cast<Number>(geometry.num_rows)) return;
  int token[3] = {0, 0, 0};
  if constexpr (kConfig.of_additional) {
    token[2] = take_off(number, geometry.additional_tokens);
  } else {
#pragma unroll
    for (int a = 2; a >= kFirstAxis; --a) token[a] = take_off(number, geometry.axes[a].extent);
  }
  const int head_kv = take_off(number, geometry.heads_kv);
  const int batch = static_cast<int>(number);
  const int head_group = geometry.heads / geometry.heads_kv;
  const Sample sample = sample_at(geometry, batch);
  AxisQueries queries[3] = {};
  int count[3] = {1, 1, 1};
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    queries[a] = queries_along<kConfig.of_additional>(geometry, sample, a, token[a]);
    count[a] = queries[a].count;
  }

  wait_for_previous();
  Part sum;
  sum.clear();
  const long long num_queries = static_cast<long long>(count[0]) * count[1] * count[2];
  for (int head = head_kv * head_group; head < (head_kv + 1) * head_group; ++head) {
    BoxWalk walk;
    if (num_queries > 0) {
      walk.advance(kConfig.of_additional ? warp * kGroups + group : group, count);
    }
    for (long long first = 0; first < num_queries; first += kAtOnce) {
      const QueryPlace place =
          query_place<kConfig.of_additional>(geometry, queries, walk, walk.is_inside(count));
      if (place.is_query) {
        Part query;
        query.load(row_at(params.query, batch, head, kConfig.of_qk ? place.position : place.token),
                   lane, true);
        sum.add_scaled(weight_at(row_at(params.weights, batch, head, place.token),
                                 slot_at(params, sample, place, token)),
                       query);
      }
      walk.advance(kAtOnce, count);
    }
  }
  let_next_start();
  sum.sum_over_groups();
  if constexpr (kConfig.of_additional) {
    sum_over_warps(sum, warp, lane, group);
    if (warp != 0) return;
  }
  if (group != 0) return;
  sum.scale(static_cast<Real>(params.scale));
  sum.store(row_at(params.result, batch, head_kv, token), lane);
}

}  // namespace vecina::cuda
