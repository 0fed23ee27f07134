// SPDX-License-Identifier: MIT
// Gradients of key and value with tensor cores for many small windows: queries, gradients of
// outputs and facts of all queries that see a tile of keys lie in shared memory (halo.cuh), one
// query head and plane after the other. The formulas stand in gradient_pairs.cuh. What is not
// finite: alone.cuh.
#include "gradient_alone.cuh"
#include "halo.cuh"

namespace vecina::cuda {
namespace {

static_assert(kConfig.of_keys && kAdditional == 0, "owners are keys");
constexpr int kStageBytes = 2 * kSideBytes + kStageRows * static_cast<int>(sizeof(HaloFacts));
static_assert(kConfig.stages > 1, "a stage is not overwritten while it is read");

// Where the facts of a thread's partners lie among a stage's, two numbers a word.
struct FactPlaces {
  unsigned words[kTiles];
};
VECINA_DEVICE FactPlaces make_fact_places(const Box& box) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  FactPlaces places;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    places.words[j] = static_cast<unsigned>(row_of(box, 8 * j + 2 * q)) |
                      static_cast<unsigned>(row_of(box, 8 * j + 2 * q + 1)) << 16;
  }
  return places;
}

VECINA_DEVICE void load_facts(const HaloFacts* facts, const int (&numbers)[kStageRows],
                              unsigned to) {
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x); row < kStageRows; row += kThreads) {
    const int number = numbers[row];
    copy_chunk(to + static_cast<unsigned>(row * 16),
               reinterpret_cast<const char*>(facts + na_max(number, 0)), number >= 0);
  }
}

// The block's work; false if a thread's results are not finite. is_cleaned: queries and gradients
// of outputs that are not finite count as 0 in the last products.
VECINA_DEVICE bool differentiate_block(const HaloParams& params, const Tile& tile, const Box& box,
                                       const HaloTable& table, const int (&numbers)[kStageRows],
                                       bool is_cleaned) {
  extern __shared__ uint4 shared[];
  const unsigned stages = shared_address(shared);
  unsigned key_offset[2], value_offset[2], grad_key_offset[2], grad_value_offset[2];
  Rows rows = make_rows(tile, box, [&](int i, const Row& row) {
    key_offset[i] = row_offset(params.key, row);
    value_offset[i] = row_offset(params.value, row);
    grad_key_offset[i] = row_offset(params.grad_key, row);
    grad_value_offset[i] = row_offset(params.grad_value, row);
  });
  const Places places = make_places(box);
  const FactPlaces fact_places = make_fact_places(box);
  const int planes = kHasPlanes ? tile.halo[0].end - tile.halo[0].begin : 1;
  const int steps_of_item = planes * kConfig.head_group;
  const auto start = [&](int step) {
    const Item item = make_item(params, tile.first_item + step / steps_of_item);
    const int head = item.head * kConfig.head_group + step % steps_of_item / planes;
    const unsigned stage = stages + static_cast<unsigned>(step % kConfig.stages * kStageBytes);
    load_stage(plane_sources(params, tile, item.batch, head, params.query, params.grad_output,
                             step % planes),
               table, stage);
    const HaloFacts* facts = head_facts(params, item.batch, head);
    if constexpr (kConfig.rank == 3) {
      facts += static_cast<long long>(plane_token(tile, step % planes)) * params.axes[1].extent *
               params.axes[2].extent;
    }
    load_facts(facts, numbers, stage + 2 * kSideBytes);
  };

  const int steps = tile.num_items * steps_of_item;
  start(0);
  end_copies();
  TwoRows key_rows, value_rows;
  const auto load_owners = [&](const Item& item) {
    const char* keys = head_rows(params.key, item.batch, item.head);
    const char* values = head_rows(params.value, item.batch, item.head);
    key_rows.load(keys + key_offset[0], keys + key_offset[1]);
    value_rows.load(values + value_offset[0], values + value_offset[1]);
  };
  if (kLoadsAhead) load_owners(make_item(params, tile.first_item));
  Factors key, value;
  float grad_key[kColumns / 8][4], grad_value[kColumns / 8][4];
  bool is_good = true;
  int in_item = 0, plane = 0, number = tile.first_item;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const Item item = make_item(params, number);
    if (!kLoadsAhead && in_item == 0) load_owners(item);
    wait_for_copies<0>();
    __syncthreads();
    if (step + 1 < steps) start(step + 1);
    end_copies();
    if (in_item == 0) {
      key.make(key_rows);
      value.make(value_rows);
      // Those of the next item travel while this one is computed.
      if (kLoadsAhead && step + steps_of_item < steps) load_owners(make_item(params, number + 1));
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) grad_key[t][e] = grad_value[t][e] = 0.0f;
      }
    }
    const int offset = step % kConfig.stages * kStageBytes;
    if (is_cleaned) {
      clean_shared(reinterpret_cast<char*>(shared) + offset, 2 * kSideBytes);
      __syncthreads();
    }
    if (rows.sees_plane(plane)) {
      const unsigned queries = stages + static_cast<unsigned>(offset);
      const unsigned gradients = queries + kSideBytes, facts = gradients + kSideBytes;
      const float scale = params.scale_to_powers;
      keep_together(rows.bits);
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        float weights[2][4], differences[2][4];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          multiply_columns(key, queries, places, j + k, weights[k]);
          multiply_columns(value, gradients, places, j + k, differences[k]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const unsigned word = fact_places.words[j + k];
            const uint4 of_query = load_shared(facts + unpack_place(word, e));
            const float maximum = __uint_as_float(of_query.x);
            const float shift = __uint_as_float(of_query.w);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float& weight = weights[k][2 * i + e];
              float& difference = differences[k][2 * i + e];
              const bool is_seen = is_visible(rows.bits[i], j + k, e);
              weight = is_seen ? power_of_two(fmaf(weight, scale, -maximum)) : 0.0f;
              difference = is_seen ? weight * (difference - shift) : 0.0f;
            }
          }
        }
        multiply_rows(weights[0], weights[1], gradients, places, j / 2, grad_value);
        multiply_rows(differences[0], differences[1], queries, places, j / 2, grad_key);
      }
    }
    ++in_item;
    plane = plane + 1 == planes ? 0 : plane + 1;
    if (in_item < steps_of_item) continue;
    in_item = 0;
    ++number;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (params.grad_key.data != nullptr) {
        is_good = store_row<kColumns / 8>(grad_key, i, params.scale,
                            head_rows(params.grad_key, item.batch, item.head) + grad_key_offset[i],
                            rows.is_owner[i]) &&
                  is_good;
      }
      if (params.grad_value.data != nullptr) {
        is_good =
            store_row<kColumns / 8>(grad_value, i, 1.0f,
                      head_rows(params.grad_value, item.batch, item.head) + grad_value_offset[i],
                      rows.is_owner[i]) &&
            is_good;
      }
    }
  }
  return is_good;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kConfig.blocks)
    halo_gradient_key(const __grid_constant__ HaloParams params) {
  extern __shared__ uint4 shared[];
  __shared__ HaloTable table;
  __shared__ int numbers[kStageRows];  // of a plane's tokens among the facts; -1: not met
  const Tile tile = make_tile(params);
  const Box box = make_box(tile);
  fill_table(tile, params.query, params.grad_output, table);
  clear_missing<kStageBytes>(table, shared);
  for (int row = static_cast<int>(threadIdx.x); row < kStageRows; row += kThreads) {
    const int y = tile.halo[1].begin + row / kConfig.halo_size[2];
    const int z = tile.halo[2].begin + row % kConfig.halo_size[2];
    const bool is_there = y < tile.halo[1].end && z < tile.halo[2].end;
    numbers[row] = is_there ? na_group_to_axis(y, kConfig.dilation[1], tile.groups.residue[1]) *
                                      params.axes[2].extent +
                                  na_group_to_axis(z, kConfig.dilation[2], tile.groups.residue[2])
                            : -1;
  }
  __syncthreads();
  wait_for_previous();
  compute_block<differentiate_key_alone<>>(params, [&](bool is_cleaned) {
    return differentiate_block(params, tile, box, table, numbers, is_cleaned);
  });
}

}  // namespace vecina::cuda
