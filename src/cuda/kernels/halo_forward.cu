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
static_assert(kConfig.box[0] == 1 || kIsPadded, "");
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

// Long rows: a plane's keys in steps of 48. A step's values are added up while the next step's
// logits are multiplied. Queries and keys lie in the order of ldmatrix, so what is loaded at once
// serves two sums; where it served two products of one sum, ptxas put those of a sum one after the
// other, and each waited for the one before.
constexpr bool kHasSteps = kIsPadded;
constexpr int kPairs = kTiles / 2;  // of tiles
constexpr int kPairsOfStep = 3;
constexpr int kSteps = (kPairs + kPairsOfStep - 1) / kPairsOfStep;
constexpr float kSlack = 8.0f;  // of logits above the maximum, in powers of two

struct StepQuery {
  unsigned words[kColumns / 16][4];  // first factors

  VECINA_DEVICE void load(const char* row, const char* next_row) {
    const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int w = 0; w < kColumns / 8; ++w) {
      load_words<4>(row + 16 * w + 4 * q, &words[w / 2][w % 2 * 2]);
      load_words<4>(next_row + 16 * w + 4 * q, &words[w / 2][w % 2 * 2 + 1]);
    }
  }
};
// Where a thread's rows lie in a side: for load_matrices and load_transposed.
struct StepPlaces {
  unsigned keys[kPairs], values[kPairs];
};
VECINA_DEVICE StepPlaces make_step_places(const Box& box) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  StepPlaces places = {};
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    places.keys[j] = place_of(row_of(box, 16 * j + lane % 8 + lane / 16 * 8), lane / 8 % 2);
    places.values[j] = kSideBytes + place_of(row_of(box, 16 * j + lane % 16), lane / 16);
  }
  return places;
}

struct Step {
  float logits[2 * kPairsOfStep][4];
  unsigned weights[kPairsOfStep][4];  // first factors
};

// Adds `adds`' weights times its values to the output; sets the logits of `starts`. -1: not done.
template <int adds, int starts>
VECINA_DEVICE void multiply_step(const StepQuery& query, unsigned keys, const StepPlaces& places,
                                 Step& step, float (&output)[kColumns / 8][4]) {
  // What 16 columns need, loaded while those before them are multiplied. Without the barrier the
  // compiler puts each load right before its use.
  struct Words {
    unsigned keys[kPairsOfStep][4], values[kPairsOfStep][4];
  } words[2];
  const auto load = [&](int c, Words& to) {
#pragma unroll
    for (int p = 0; p < kPairsOfStep; ++p) {
      const int start = starts * kPairsOfStep + p, add = adds * kPairsOfStep + p;
      const auto column = static_cast<unsigned>(32 * c);
      if (starts >= 0 && start < kPairs) {
        load_matrices(to.keys[p], keys + places.keys[start] + column);
      }
      if (adds >= 0 && add < kPairs) {
        load_transposed(to.values[p], keys + places.values[add] + column);
      }
    }
  };
  load(0, words[0]);
#pragma unroll
  for (int c = 0; c < kColumns / 16; ++c) {
    const Words& now = words[c % 2];
    if (c + 1 < kColumns / 16) load(c + 1, words[(c + 1) % 2]);
    __syncwarp();
    const unsigned(&q)[4] = query.words[c];
#pragma unroll
    for (int p = 0; p < kPairsOfStep; ++p) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (starts >= 0 && starts * kPairsOfStep + p < kPairs) {
          float(&sum)[4] = step.logits[2 * p + half];
          if (c == 0) sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
          multiply(Element{}, sum, q[0], q[1], q[2], q[3], now.keys[p][2 * half],
                   now.keys[p][2 * half + 1]);
        }
        if (adds >= 0 && adds * kPairsOfStep + p < kPairs) {
          const unsigned(&w)[4] = step.weights[p];
          multiply(Element{}, output[2 * c + half], w[0], w[1], w[2], w[3],
                   now.values[p][2 * half], now.values[p][2 * half + 1]);
        }
      }
    }
  }
}

// Makes weights of a step's logits. The maximum follows the largest logit only when that exceeds it
// by more than 2^kSlack, so that few steps look for it at all; whatever other rows see.
template <int number>
VECINA_DEVICE void weigh_step(const unsigned (&bits)[2], float scale, Step& step, Sums& sums) {
  constexpr int kTilesOfStep = 2 * kPairsOfStep;
  constexpr int kCount = na_min(kTilesOfStep, kTiles - number * kTilesOfStep);
  float highest[2] = {-infinity(), -infinity()};
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float& logit = step.logits[j][e];
      if (!is_visible(bits[e / 2], number * kTilesOfStep + j, e % 2)) logit = -infinity();
      highest[e / 2] = larger(highest[e / 2], logit);
    }
  }
  const auto is_high = [&](int i, float logit) {
    return logit * scale > sums.maximum[i] + kSlack;
  };
  if (__any_sync(0xffffffffu, is_high(0, highest[0]) || is_high(1, highest[1])) != 0) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float most = over_quad(highest[i], false);
      const float maximum = is_high(i, most) ? most * scale : sums.maximum[i];
      const float kept = power_of_two(sums.maximum[i] - maximum);
      sums.maximum[i] = maximum;
      sums.total[i] *= kept;
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        sums.output[t][2 * i] *= kept;
        sums.output[t][2 * i + 1] *= kept;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    float(&logits)[4] = step.logits[j];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      logits[e] = power_of_two(fmaf(logits[e], scale, -sums.maximum[e / 2]));
      sums.total[e / 2] += logits[e];
    }
    step.weights[j / 2][j % 2 * 2] = pack(Element{}, logits[0], logits[1]);
    step.weights[j / 2][j % 2 * 2 + 1] = pack(Element{}, logits[2], logits[3]);
  }
}

// The rest of a plane's keys, when the logits of step `number` were multiplied.
template <int number = 0>
VECINA_DEVICE void attend_steps(const StepQuery& query, unsigned keys, const StepPlaces& places,
                                const unsigned (&bits)[2], float scale, Step& step, Sums& sums) {
  constexpr int kNext = number + 1 < kSteps ? number + 1 : -1;
  weigh_step<number>(bits, scale, step, sums);
  multiply_step<number, kNext>(query, keys, places, step, sums.output);
  if constexpr (kNext > 0) attend_steps<kNext>(query, keys, places, bits, scale, step, sums);
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
  const StepPlaces step_places = make_step_places(box);

  const int planes = kHasPlanes ? tile.halo[0].end - tile.halo[0].begin : 1;
  const auto start = [&](int step) {
    const Item item = make_item(params, tile.first_item + step / planes);
    load_stage(plane_sources(params, tile, item.batch, item.head / kConfig.head_group,
                             params.key, params.value, step % planes),
               table, stages + static_cast<unsigned>(step % kConfig.stages * kStageBytes));
  };
  TwoRows query_rows;
  Factors query;
  StepQuery step_query;
  const auto load_query = [&](const Item& item) {
    const char* first = head_rows(params.query, item.batch, item.head);
    if constexpr (kHasSteps) {
      step_query.load(first + query_offset[0], first + query_offset[1]);
    } else {
      query_rows.load(first + query_offset[0], first + query_offset[1]);
    }
  };

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
    const auto start_next = [&] {
      if constexpr (kConfig.stages > 1) {
        if (step + kConfig.stages - 1 < steps) start(step + kConfig.stages - 1);
        end_copies();
      }
    };
    if constexpr (!kHasSteps) start_next();
    const int offset = step % kConfig.stages * kStageBytes;
    if (is_cleaned) {
      clean_shared(reinterpret_cast<char*>(shared) + offset + kSideBytes, kSideBytes);
      __syncthreads();
    }
    if (plane == 0) {
      if constexpr (!kHasSteps) query.make(query_rows);
      sums.clear();
    }
    const bool is_last = plane + 1 == planes;
    const unsigned keys = stages + static_cast<unsigned>(offset);
    if constexpr (kHasSteps) {
      Step of_keys;
      const bool sees_plane = rows.sees_plane(plane);
      if (sees_plane) multiply_step<-1, 0>(step_query, keys, step_places, of_keys, sums.output);
      start_next();  // while the first products are under way
      if (sees_plane) {
        keep_together(rows.bits);
        unsigned bits[2] = {rows.bits[0], rows.bits[1]};
        if constexpr (kConfig.box[0] > 1) {
#pragma unroll
          for (int i = 0; i < 2; ++i) bits[i] = rows.sees_plane(i, plane) ? bits[i] : 0;
        }
        attend_steps(step_query, keys, step_places, bits, params.scale_to_powers, of_keys, sums);
      }
    } else if (rows.sees_plane(plane)) {
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
      if ((kHasPlanes || kHasSteps) && step + 1 < steps) load_query(make_item(params, number));
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
