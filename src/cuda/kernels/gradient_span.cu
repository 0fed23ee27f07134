// SPDX-License-Identifier: MIT
// Gradients of query, key and value in one launch, for few keys a query: a block owns a span of
// keys of one key head, and one of queries. First it walks the keys of all queries that see its
// keys, with every query head of the group, and leaves their facts in shared memory; those of the
// neighbouring blocks' queries are found by these blocks too, which costs less than leaving them in
// memory. Then it walks the queries of its keys. An owner is a few groups of lanes
// (gradient_query.cuh, gradient_key.cuh).
//
// Spans are numbers of tokens of the largest sample, the innermost axis fastest.
#include "gradient_key.cuh"
#include "gradient_query.cuh"

namespace vecina::cuda {
namespace {

VECINA_DEVICE int number_of(const int (&extent)[3], const int (&token)[3]) {
  int number = token[kFirstAxis];
#pragma unroll
  for (int a = kFirstAxis + 1; a < 3; ++a) number = number * extent[a] + token[a];
  return number;
}

// Positions that hold the block's own queries and those that see its keys: all between the first
// and the last along the outermost axis. By whole warps.
VECINA_DEVICE Range seeing_queries(const GatherGeometry& geometry, const Sample& sample,
                                   const Range& keys, const Range& own) {
  constexpr int kAxis = kFirstAxis;
  int keys_inside = 1, queries_inside = 1;  // of one token along it
#pragma unroll
  for (int a = kAxis + 1; a < 3; ++a) {
    keys_inside *= geometry.axes[a].extent;
    queries_inside *= geometry.query_extent[a];
  }
  Range range = {own.begin / queries_inside, (own.end + queries_inside - 1) / queries_inside};
  if (sample.has_windows) {
    const int dilation = geometry.axes[kAxis].dilation;
    const int end = na_min((keys.end - 1) / keys_inside + 1, sample.key.extent[kAxis]);
    for (int token = keys.begin / keys_inside + static_cast<int>(threadIdx.x) % 32; token < end;
         token += 32) {
      const AxisQueries queries = queries_along<false>(geometry, sample, kAxis, token);
      if (queries.count == 0) continue;
      const int last = queries.first + queries.count - 1;
      range.begin = na_min(range.begin, na_group_to_axis(queries.first, dilation, queries.group));
      range.end = na_max(range.end, na_group_to_axis(last, dilation, queries.group) + 1);
    }
  }
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    range.begin = na_min(range.begin, __shfl_xor_sync(0xffffffffu, range.begin, distance));
    range.end = na_max(range.end, __shfl_xor_sync(0xffffffffu, range.end, distance));
  }
  return {range.begin * queries_inside, range.end * queries_inside};
}

// What a block works on.
struct Work {
  Sample sample;
  int batch, head_kv, head_group;
  Range keys, own, queries;  // own: of the queries, among those whose facts the block finds
};

VECINA_DEVICE void differentiate_queries(const GradientParams& params, const Work& work,
                                         QueryFacts* facts) {
  constexpr int kOwnerLanes = kLanes * kQueryGroups, kOwners = 32 * kWarps / kOwnerLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % kOwnerLanes / kLanes;
  const int owner = static_cast<int>(threadIdx.x) / kOwnerLanes;
  const int count = work.queries.end - work.queries.begin, total = count * work.head_group;
#pragma unroll 1
  for (int i = owner; most_of_owners<kQueryGroups>(i < total) != 0; i += kOwners) {
    const int of_group = i / count, position = work.queries.begin + i - of_group * count;
    const int head = work.head_kv * work.head_group + of_group;
    Number number = static_cast<Number>(position);
    QueryToken place = take_off_query(params.geometry, number);
    const bool is_token = i < total && work.sample.query.has(place.position);
    place.is_query = place.is_query && is_token && work.sample.has_windows;
    KeyPart gradient;
    gradient.clear();
    const QueryFacts found = differentiate_query(params, work.sample, work.batch, head,
                                                 work.head_kv, place, group, lane, gradient);
    const bool is_own = i < total && work.own.begin <= position && position < work.own.end;
    if (static_cast<int>(threadIdx.x) % kOwnerLanes == 0 && place.is_query) {
      facts[i] = found;
      if constexpr (kConfig.keeps_facts) {
        if (is_own) facts_at(params, work.batch, head, place.token) = found;
      }
    }
    if constexpr (kConfig.is_stored) {
      if (group == 0 && is_own && (is_token || !kIsPacked)) {
        gradient.store(row_at(params.grad_query, work.sample.query, head, place.position), lane);
      }
    }
  }
}

VECINA_DEVICE void differentiate_keys(const GradientParams& params, const Work& work,
                                      const QueryFacts* facts) {
  constexpr int kOwnerLanes = kLanes * kKeyGroups, kOwners = 32 * kWarps / kOwnerLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % kOwnerLanes / kLanes;
  const int owner = static_cast<int>(threadIdx.x) / kOwnerLanes;
  const GatherGeometry& geometry = params.geometry;
#pragma unroll 1
  for (int i = work.keys.begin + owner; most_of_owners<kKeyGroups>(i < work.keys.end) != 0;
       i += kOwners) {
    Number number = static_cast<Number>(i);
    int token[3] = {0, 0, 0};
#pragma unroll
    for (int a = 2; a >= kFirstAxis; --a) token[a] = take_off(number, geometry.axes[a].extent);
    const bool is_token = i < work.keys.end && work.sample.key.has(token);
    AxisQueries queries[3] = {};
    int count[3] = {1, 1, 1};
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      queries[a] = queries_along<false>(geometry, work.sample, a, token[a]);
      count[a] = queries[a].count;
    }
    int num_queries = count[0] * count[1] * count[2];
    if (!is_token || !work.sample.has_windows) num_queries = 0;
    Key key;
    key.row.load(row_at(params.key, work.sample.key, work.head_kv, token), lane, is_token);
    key.value.load(row_at(params.value, work.sample.key, work.head_kv, token), lane, is_token);
    key.gradient.clear();
    key.grad_value.clear();
    const int most = most_of_owners<kKeyGroups>(num_queries);
#pragma unroll 1
    for (int of_group = 0; of_group < work.head_group; ++of_group) {
      const QueryFacts* of_head =
          facts + of_group * (work.queries.end - work.queries.begin) - work.queries.begin;
      const int head = work.head_kv * work.head_group + of_group;
      const auto facts_of = [&](const QueryPlace& place) {
        return of_head[number_of(geometry.query_extent, place.position)];
      };
      BoxWalk walk;
      if (num_queries > 0) walk.advance(group, count);
      for (int first = 0; first < most; first += kKeyGroups) {
        const QueryPlace place =
            query_place<false>(geometry, queries, walk, num_queries > 0 && walk.is_inside(count));
        add_query(params, work.sample, head, place, lane, facts_of, key);
        if (num_queries > 0) walk.advance(kKeyGroups, count);
      }
    }
    let_next_start();
    key.gradient.sum_over_groups<kOwnerLanes>();
    key.grad_value.sum_over_groups<kOwnerLanes>();
    if (group != 0 || i >= work.keys.end || (kIsPacked && !is_token)) continue;
    key.gradient.scale(static_cast<Real>(params.scale));
    if (params.grad_key.data != nullptr) {
      key.gradient.store(row_at(params.grad_key, work.sample.key, work.head_kv, token), lane);
    }
    if (params.grad_value.data != nullptr) {
      key.grad_value.store(row_at(params.grad_value, work.sample.key, work.head_kv, token), lane);
    }
  }
}

// The part of `count` tokens that block `index` owns, `size` of them.
VECINA_DEVICE Range span_of(int index, int size, int count) {
  return {na_min(index * size, count), na_min((index + 1) * size, count)};
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    gradient_span(const __grid_constant__ GradientParams params) {
  extern __shared__ __align__(32) char shared[];
  QueryFacts* facts = reinterpret_cast<QueryFacts*>(shared);
  const GatherGeometry& geometry = params.geometry;
  Number number = static_cast<Number>(blockIdx.x);
  const int index = take_off(number, params.spans);
  Work work;
  work.head_kv = take_off(number, geometry.heads_kv);
  work.batch = static_cast<int>(number);
  work.head_group = geometry.heads / geometry.heads_kv;
  int num_keys = 1, num_queries = 1;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    num_keys *= geometry.axes[a].extent;
    num_queries *= geometry.query_extent[a];
  }
  work.keys = span_of(index, params.span_keys, num_keys);
  work.own = span_of(index, params.span_queries, num_queries);

  wait_for_previous();
  work.sample = sample_at(geometry, work.batch);
  const bool is_of_key = params.grad_key.data != nullptr || params.grad_value.data != nullptr;
  work.queries = is_of_key ? seeing_queries(geometry, work.sample, work.keys, work.own) : work.own;
  differentiate_queries(params, work, facts);
  if (!is_of_key) return;
  __syncthreads();
  differentiate_keys(params, work, facts);
}

}  // namespace vecina::cuda
