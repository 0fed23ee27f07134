// SPDX-License-Identifier: MIT
// Forward with tensor cores for many small windows: keys and values of a tile of queries lie in
// shared memory (halo.cuh), one item and plane after the other, the next one's copies under way.
// Planes meet in a running maximum (Milakov and Gimelshein, arXiv:1805.02867). What is not finite:
// alone.cuh.
#include "forward_alone.cuh"
#include "halo.cuh"

namespace vecina::cuda {
namespace {

constexpr int kStageBytes = 2 * kSideBytes;
static_assert(kConfig.stages > 1 || (kConfig.items_of_block == 1 && !kHasPlanes),
              "a stage is not overwritten while it is read");

// What a warp has of its 16 rows: sums relative to 2^maximum.
struct Sums {
  float maximum[2], total[2];
  float output[kColumns / 8][4];

  VECINA_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      maximum[i] = kLowest;
      total[i] = 0.0f;
    }
#pragma unroll
    for (int t = 0; t < kColumns / 8; ++t) {
      output[t][0] = output[t][1] = output[t][2] = output[t][3] = 0.0f;
    }
  }
};

VECINA_DEVICE void softmax(const unsigned (&bits)[2], float scale, float (&logits)[kTiles][4],
                           Sums& sums) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float maximum = -infinity();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& logit = logits[j][2 * i + e];
        if (!is_visible(bits[i], j, e)) logit = -infinity();
        maximum = larger(maximum, logit);
      }
    }
    maximum = larger(over_quad(maximum, false) * scale, kLowest);
    if constexpr (kHasPlanes) {
      maximum = larger(maximum, sums.maximum[i]);
      const float kept = power_of_two(sums.maximum[i] - maximum);
      sums.total[i] *= kept;
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        sums.output[t][2 * i] *= kept;
        sums.output[t][2 * i + 1] *= kept;
      }
    }
    sums.maximum[i] = maximum;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 2 * i; e < 2 * i + 2; ++e) {
        logits[j][e] = power_of_two(fmaf(logits[j][e], scale, -maximum));
        sums.total[i] += logits[j][e];
      }
    }
  }
}

// Of a whole warp: stores the rows of one item; false if a result is not finite.
VECINA_DEVICE bool store_item(const HaloParams& params, const Item& item,
                              const unsigned (&output)[2], const unsigned (&lse)[2],
                              const bool (&is_owner)[2], const Sums& sums) {
  bool is_good = true;
  char* outputs = head_rows(params.output, item.batch, item.head);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float total = over_quad(sums.total[i], true);
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    is_good = store_row<kColumns / 8>(sums.output, i, inverse, outputs + output[i], is_owner[i]) &&
              is_good;
    if (params.lse.data != nullptr && is_owner[i] && threadIdx.x % 4 == 0) {
      *reinterpret_cast<float*>(head_rows(params.lse, item.batch, item.head) + lse[i]) =
          (sums.maximum[i] + logarithm_of_two(total)) * static_cast<float>(kLn2);
    }
  }
  return is_good;
}

// The block's work; false if a thread's results are not finite. is_cleaned: values that are not
// finite count as 0.
VECINA_DEVICE bool attend(const HaloParams& params, const Tile& tile, const Box& box,
                          const HaloTable& table, bool is_cleaned) {
  extern __shared__ uint4 shared[];
  const unsigned stages = shared_address(shared);
  unsigned query_offset[2], output_offset[2], lse_offset[2];
  Rows rows = make_rows(tile, box, [&](int i, const Row& row) {
    query_offset[i] = row_offset(params.query, row);
    output_offset[i] = row_offset(params.output, row);
    lse_offset[i] = row_offset(params.lse, row);
  });
  const Places places = make_places(box);

  const int planes = kHasPlanes ? tile.halo[0].end - tile.halo[0].begin : 1;
  const auto start = [&](int step) {
    const Item item = make_item(params, tile.first_item + step / planes);
    load_stage(plane_sources(params, tile, item.batch, item.head / kConfig.head_group,
                             params.key, params.value, step % planes),
               table, stages + static_cast<unsigned>(step % kConfig.stages * kStageBytes));
  };
  TwoRows query_rows;
  const auto load_query = [&](const Item& item) {
    const char* first = head_rows(params.query, item.batch, item.head);
    query_rows.load(first + query_offset[0], first + query_offset[1]);
  };
  Factors query;

  const int steps = tile.num_items * planes;
#pragma unroll
  for (int step = 0; step < na_max(kConfig.stages - 1, 1); ++step) {
    if (step < steps) start(step);
    end_copies();
  }
  int plane = 0, number = tile.first_item;
  load_query(make_item(params, number));
  Sums sums;
  bool is_good = true;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<na_max(kConfig.stages - 2, 0)>();
    __syncthreads();
    if constexpr (kConfig.stages > 1) {
      if (step + kConfig.stages - 1 < steps) start(step + kConfig.stages - 1);
      end_copies();
    }
    const int offset = step % kConfig.stages * kStageBytes;
    if (is_cleaned) {
      clean_shared(reinterpret_cast<char*>(shared) + offset + kSideBytes, kSideBytes);
      __syncthreads();
    }
    if (plane == 0) {
      query.make(query_rows);
      sums.clear();
    }
    const bool is_last = plane + 1 == planes;
    if (rows.sees_plane(plane)) {
      const unsigned keys = stages + static_cast<unsigned>(offset);
      float logits[kTiles][4];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) multiply_columns(query, keys, places, j, logits[j]);
      keep_together(rows.bits);
      // Those of the next item travel meanwhile; of long rows, while this one is stored.
      if (!kHasPlanes && step + 1 < steps) load_query(make_item(params, number + 1));
      softmax(rows.bits, params.scale_to_powers, logits, sums);
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        multiply_rows(logits[j], logits[j + 1], keys + kSideBytes, places, j / 2, sums.output);
      }
    }
    if (is_last) {
      const Item item = make_item(params, number++);
      if (kHasPlanes && step + 1 < steps) load_query(make_item(params, number));
      is_good =
          store_item(params, item, output_offset, lse_offset, rows.is_owner, sums) && is_good;
    }
    plane = is_last ? 0 : plane + 1;
  }
  return is_good;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kConfig.blocks)
    halo_forward(const __grid_constant__ HaloParams params) {
  extern __shared__ uint4 shared[];
  __shared__ HaloTable table;
  const Tile tile = make_tile(params);
  const Box box = make_box(tile);
  fill_table(tile, params.key, params.value, table);
  clear_missing<kStageBytes>(table, shared);
  __syncthreads();
  wait_for_previous();
  compute_block<attend_alone>(params, [&](bool is_cleaned) {
    return attend(params, tile, box, table, is_cleaned);
  });
}

}  // namespace vecina::cuda
