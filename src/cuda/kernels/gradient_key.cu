// SPDX-License-Identifier: MIT
// Gradients of key and value: a warp owns a token of one key head and walks the queries that see
// it, with every query head of its group. An additional token is seen by all queries; its owner is
// a block, or several, each with a part of the queries, whose sums gradient_key_sum.cu adds up. The
// formulas stand in gradient_pairs.cuh.
#include "gradient_key.cuh"

namespace vecina::cuda {
namespace {

constexpr int kOwnerWarps = kConfig.of_additional ? kWarps : 1;
constexpr int kAtOnce = kOwnerWarps * kGroups;  // queries
static_assert(kKeyGroups == kGroups);

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    gradient_key(const __grid_constant__ GradientParams params) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % 32 / kLanes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Number number = static_cast<Number>(blockIdx.x);
  if constexpr (!kConfig.of_additional) number = number * kWarps + static_cast<Number>(warp);
  const GatherGeometry& geometry = params.geometry;
  if (number >= static_cast<Number>(geometry.num_rows)) return;
  int token[3] = {0, 0, 0};
  if constexpr (kConfig.of_additional) {
    token[2] = take_off(number, geometry.additional_tokens);
  } else {
#pragma unroll
    for (int a = 2; a >= kFirstAxis; --a) token[a] = take_off(number, geometry.axes[a].extent);
  }
  AxisQueries queries[3] = {};
  int count[3] = {1, 1, 1};
  bool is_token = true;
  const auto find_queries = [&](const Sample& sample) {
    is_token = !kHasLengths || kConfig.of_additional || sample.key.has(token);
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      queries[a] = queries_along<kConfig.of_additional>(geometry, sample, a, token[a]);
      count[a] = is_token && sample.has_windows ? queries[a].count : 0;
    }
  };
  // Of equal samples the first is as good. After the divisions below it would take 111 registers in
  // 1-D f32, not 96.
  if constexpr (!kHasLengths) find_queries(sample_at(geometry, 0));
  const int head_kv = take_off(number, geometry.heads_kv);
  const int batch = static_cast<int>(number);
  const int head_group = geometry.heads / geometry.heads_kv;

  wait_for_previous();
  const Sample sample = sample_at(geometry, batch);
  if constexpr (kHasLengths) find_queries(sample);
  const auto row_of = [&](const SmallRows& rows) {
    return kConfig.of_additional ? row_at(rows, batch, head_kv, token)
                                 : row_at(rows, sample.key, head_kv, token);
  };
  Key key;
  const SmallRows& keys = kConfig.of_additional ? params.additional_key : params.key;
  const SmallRows& values = kConfig.of_additional ? params.additional_value : params.value;
  key.row.load(row_of(keys), lane, is_token);
  key.value.load(row_of(values), lane, is_token);
  key.gradient.clear();
  key.grad_value.clear();
  const long long num_queries = static_cast<long long>(count[0]) * count[1] * count[2];
  long long begin = 0, end = num_queries;
  if constexpr (kConfig.of_part) {
    const int at_once = kAtOnce * static_cast<int>(gridDim.y);
    const long long size = (num_queries + at_once - 1) / at_once * kAtOnce;
    begin = size * blockIdx.y;
    end = begin + size < num_queries ? begin + size : num_queries;
  }
  for (int head = head_kv * head_group; head < (head_kv + 1) * head_group; ++head) {
    BoxWalk walk;
    if constexpr (kConfig.of_part) {
      if (begin < end) walk.begin(begin, count);
    }
    if (begin < end) walk.advance(kConfig.of_additional ? warp * kGroups + group : group, count);
    for (long long first = begin; first < end; first += kAtOnce) {
      const QueryPlace place =
          query_place<kConfig.of_additional>(geometry, queries, walk, walk.is_inside(count));
      add_query(
          params, sample, head, place, lane,
          [&](const QueryPlace& of) {
            return facts_at(params, sample.query.sample, head, of.token);
          },
          key);
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
  if (group != 0 || (kIsPacked && !is_token)) return;
  if constexpr (kConfig.of_part) {
    const long long row = static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x;
    Real* sums =
        reinterpret_cast<Real*>(params.sums) + row * (kConfig.head_dim + kConfig.head_dim_value);
    key.gradient.store_sums(sums, lane);
    key.grad_value.store_sums(sums + kConfig.head_dim, lane);
    return;
  }
  key.gradient.scale(static_cast<Real>(params.scale));
  if (params.grad_key.data != nullptr) {
    key.gradient.store(row_of(params.grad_key), lane);
  }
  if (params.grad_value.data != nullptr) {
    key.grad_value.store(row_of(params.grad_value), lane);
  }
}

}  // namespace vecina::cuda
