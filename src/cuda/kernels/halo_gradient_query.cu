// SPDX-License-Identifier: MIT
// Gradient of query with tensor cores for many small windows, and the facts of each query that the
// other gradients need: keys and values of a tile of queries lie in shared memory (halo.cuh). The
// formulas stand in gradient_pairs.cuh. Planes are walked twice: for maximum, sum and delta, then
// for the gradient. What is not finite: alone.cuh.
#include "gradient_alone.cuh"
#include "halo.cuh"

namespace vecina::cuda {
namespace {

constexpr int kStageBytes = 2 * kSideBytes;
constexpr int kPasses = kHasPlanes ? 2 : 1;
static_assert(kConfig.stages > 1 || (kConfig.items_of_block == 1 && !kHasPlanes),
              "a stage is not overwritten while it is read");

// What a warp has gathered of its rows. Sums are relative to 2^maximum and of a thread's partners.
struct Gathered {
  float maximum[2], total[2], differences[2];  // sums of weights and of weights * difference

  VECINA_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      maximum[i] = kLowest;
      total[i] = differences[i] = 0.0f;
    }
  }
};

// What the rows' gradients of logits need.
struct Facts {
  float maximum[2], total[2], inverse[2], delta[2];
};

// logits become weights relative to 2^maximum, grad_output . value becomes differences; nothing
// where a key is masked.
VECINA_DEVICE void make_weights(const unsigned (&bits)[2], float scale, const float (&maximum)[2],
                                const float (&dot)[2], float (&logits)[kTiles][4],
                                float (&differences)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = e / 2;
      const bool is_seen = is_visible(bits[i], j, e % 2);
      logits[j][e] = is_seen ? power_of_two(fmaf(logits[j][e], scale, -maximum[i])) : 0.0f;
      differences[j][e] = is_seen ? differences[j][e] - dot[i] : 0.0f;
    }
  }
}

VECINA_DEVICE void gather(const unsigned (&bits)[2], float scale, const float (&dot)[2],
                          float (&logits)[kTiles][4], float (&differences)[kTiles][4],
                          Gathered& sums) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float maximum = -infinity();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (is_visible(bits[i], j, e)) maximum = larger(maximum, logits[j][2 * i + e]);
      }
    }
    maximum = larger(over_quad(maximum, false) * scale, kLowest);
    if constexpr (kHasPlanes) {
      maximum = larger(maximum, sums.maximum[i]);
      const float kept = power_of_two(sums.maximum[i] - maximum);
      sums.total[i] *= kept;
      sums.differences[i] *= kept;
    }
    sums.maximum[i] = maximum;
  }
  make_weights(bits, scale, sums.maximum, dot, logits, differences);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sums.total[e / 2] += logits[j][e];
      sums.differences[e / 2] = fmaf(logits[j][e], differences[j][e], sums.differences[e / 2]);
    }
  }
}

VECINA_DEVICE Facts finish(const Gathered& sums, const float (&grad_lse)[2]) {
  Facts facts;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float total = over_quad(sums.total[i], true);
    facts.maximum[i] = sums.maximum[i];
    facts.total[i] = total;
    facts.inverse[i] = total == 0.0f ? 0.0f : 1.0f / total;
    facts.delta[i] = over_quad(sums.differences[i], true) * facts.inverse[i] - grad_lse[i];
  }
  return facts;
}

// Weights become gradients of the logits.
VECINA_DEVICE void differentiate(const Facts& facts, const float (&differences)[kTiles][4],
                                 float (&weights)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      weights[j][e] *=
          facts.inverse[e / 2] * (differences[j][e] - facts.delta[e / 2]);
    }
  }
}

// Of the first or the second row.
VECINA_DEVICE float dot_rows(const TwoRows& a, const TwoRows& b, int i) {
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kColumns / 8; ++w) {
    const unsigned x = a.words[i][w], y = b.words[i][w];
    sum = fmaf(unpack_low(Element{}, x), unpack_low(Element{}, y), sum);
    sum = fmaf(unpack_high(Element{}, x), unpack_high(Element{}, y), sum);
  }
  return over_quad(sum, true);
}

// The block's work; false if a thread's results are not finite. is_cleaned: keys that are not
// finite count as 0 in the last product.
VECINA_DEVICE bool differentiate_block(const HaloParams& params, const Tile& tile, const Box& box,
                                       const HaloTable& table, bool is_cleaned) {
  extern __shared__ uint4 shared[];
  const unsigned stages = shared_address(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  unsigned query_offset[2], grad_offset[2], output_offset[2], result_offset[2];
  unsigned lse_offset[2];
  int number_of_token[2], head_of_row[2];
  Rows rows = make_rows(tile, box, [&](int i, const Row& row) {
    query_offset[i] = row_offset(params.query, row);
    grad_offset[i] = row_offset(params.grad_output, row);
    output_offset[i] = row_offset(params.output, row);
    result_offset[i] = row_offset(params.grad_query, row);
    lse_offset[i] = row_offset(params.grad_lse, row);
    number_of_token[i] = token_number(params, row.token);
    head_of_row[i] = row.head;
  });
  const Places places = make_places(box);
  const int planes = kHasPlanes ? tile.halo[0].end - tile.halo[0].begin : 1;
  const int steps_of_item = planes * kPasses;
  const auto start = [&](int step) {
    const Item item = make_item(params, tile.first_item + step / steps_of_item);
    load_stage(plane_sources(params, tile, item.batch, item.head / kConfig.head_group,
                             params.key, params.value, step % planes),
               table, stages + static_cast<unsigned>(step % kConfig.stages * kStageBytes));
  };

  const int steps = tile.num_items * steps_of_item;
  start(0);
  end_copies();
  TwoRows query_rows, grad_rows, output_rows;
  float grad_lse_of_rows[2];
  const auto load_owners = [&](const Item& item) {
    const char* queries = head_rows(params.query, item.batch, item.head);
    const char* grad_outputs = head_rows(params.grad_output, item.batch, item.head);
    const char* outputs = head_rows(params.output, item.batch, item.head);
    query_rows.load(queries + query_offset[0], queries + query_offset[1]);
    grad_rows.load(grad_outputs + grad_offset[0], grad_outputs + grad_offset[1]);
    output_rows.load(outputs + output_offset[0], outputs + output_offset[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      grad_lse_of_rows[i] = 0.0f;
      if constexpr (kConfig.has_grad_lse) {
        grad_lse_of_rows[i] = *reinterpret_cast<const float*>(
            head_rows(params.grad_lse, item.batch, item.head) + lse_offset[i]);
      }
    }
  };
  if (kLoadsAhead) load_owners(make_item(params, tile.first_item));
  Factors query, grad_output;
  float dot[2], grad_lse[2];
  Gathered sums;
  Facts facts;
  float gradient[kColumns / 8][4];
  bool is_good = true;
  int in_item = 0, number = tile.first_item;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const Item item = make_item(params, number);
    if (!kLoadsAhead && in_item == 0) load_owners(item);
    wait_for_copies<0>();
    __syncthreads();
    if constexpr (kConfig.stages > 1) {
      if (step + 1 < steps) start(step + 1);
      end_copies();
    }
    if (in_item == 0) {
      query.make(query_rows);
      grad_output.make(grad_rows);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        dot[i] = dot_rows(grad_rows, output_rows, i);
        grad_lse[i] = grad_lse_of_rows[i];
      }
      // Those of the next item travel while this one is computed.
      if (kLoadsAhead && step + steps_of_item < steps) load_owners(make_item(params, number + 1));
      sums.clear();
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        gradient[t][0] = gradient[t][1] = gradient[t][2] = gradient[t][3] = 0.0f;
      }
    }
    const int offset = step % kConfig.stages * kStageBytes;
    if (is_cleaned) {
      clean_shared(reinterpret_cast<char*>(shared) + offset, kSideBytes);
      __syncthreads();
    }
    const int plane = kHasPlanes && in_item >= planes ? in_item - planes : in_item;
    const bool is_last_pass = !kHasPlanes || in_item >= planes;
    if (rows.sees_plane(plane)) {
      const unsigned keys = stages + static_cast<unsigned>(offset);
      float logits[kTiles][4], differences[kTiles][4];
      keep_together(rows.bits);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        multiply_columns(query, keys, places, j, logits[j]);
        multiply_columns(grad_output, keys + kSideBytes, places, j, differences[j]);
      }
      if constexpr (kHasPlanes) {
        if (!is_last_pass) {
          gather(rows.bits, params.scale_to_powers, dot, logits, differences, sums);
        } else {
          make_weights(rows.bits, params.scale_to_powers, facts.maximum, dot, logits, differences);
        }
      } else {
        gather(rows.bits, params.scale_to_powers, dot, logits, differences, sums);
        facts = finish(sums, grad_lse);
      }
      if (is_last_pass) {
        differentiate(facts, differences, logits);
#pragma unroll
        for (int j = 0; j < kTiles; j += 2) {
          multiply_rows(logits[j], logits[j + 1], keys, places, j / 2, gradient);
        }
      }
    }
    if (kHasPlanes && in_item + 1 == planes) facts = finish(sums, grad_lse);
    ++in_item;
    if (in_item < steps_of_item) continue;
    in_item = 0;
    ++number;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (rows.is_owner[i] && lane % 4 == 0) {
        head_facts(params, item.batch, item.head + head_of_row[i])[number_of_token[i]] =
            make_facts(facts.maximum[i], facts.total[i], facts.delta[i], dot[i]);
      }
      if (params.grad_query.data == nullptr) continue;
      is_good = store_row<kColumns / 8>(gradient, i, params.scale,
                          head_rows(params.grad_query, item.batch, item.head) + result_offset[i],
                          rows.is_owner[i]) &&
                is_good;
    }
  }
  return is_good;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kConfig.blocks)
    halo_gradient_query(const __grid_constant__ HaloParams params) {
  extern __shared__ uint4 shared[];
  __shared__ HaloTable table;
  const Tile tile = make_tile(params);
  const Box box = make_box(tile);
  fill_table(tile, params.key, params.value, table);
  clear_missing<kStageBytes>(table, shared);
  __syncthreads();
  wait_for_previous();
  compute_block<differentiate_query_alone<>>(params, [&](bool is_cleaned) {
    return differentiate_block(params, tile, box, table, is_cleaned);
  });
}

}  // namespace vecina::cuda
