// SPDX-License-Identifier: MIT
// Gradient of the query with tensor cores for large windows, and the facts of each query that the
// other gradients need (tiles.cuh). The formulas stand in gradient_pairs.cuh.
//
// Keys are walked once. Weights are relative to lse as it was given, which is near enough to
// their sum to need no running maximum; the sum itself and delta are found anew, so the rounding of
// lse and output cancels. Two sums over keys, with weights and with weights * difference, give the
// gradient when delta is known. Where delta is taken as given (is_delta_given), the first is not
// needed.
// What is not finite: alone.cuh.
#include "gradient_alone.cuh"
#include "owners_samples.cuh"
#include "tiles.cuh"

namespace vecina::cuda {
namespace {

static_assert(!kConfig.of_keys && kRows == 16, "owners are queries");
constexpr int kTiles = 2 * kStepsOfSums;  // of 8 columns

// The thread's part of a . b, of one of its rows.
VECINA_DEVICE void add_dot(const unsigned (&a)[4], const unsigned (&b)[4], int i, float& sum) {
#pragma unroll
  for (int w = i; w < 4; w += 2) {
    sum = fmaf(unpack_low(Element{}, a[w]), unpack_low(Element{}, b[w]), sum);
    sum = fmaf(unpack_high(Element{}, a[w]), unpack_high(Element{}, b[w]), sum);
  }
}

static_assert((!kHasLongKeys || kConfig.shares_key) && (!kHasLongValues || kConfig.shares_value),
              "");

// What a warp holds of its rows.
struct QueryWork {
  unsigned query[kHasLongKeys ? 1 : KeySide::kSteps][4];
  unsigned grad_output[kHasLongValues ? 1 : ValueSide::kSteps][4];
  float maximum[2], shift[2];  // of logits in powers of two; of differences
  float scale;                 // of logits
  float total[2], differences[2];  // for delta, unless it is given
  float keys[kConfig.is_delta_given ? 1 : kTiles][4], products[kTiles][4];
  unsigned key_place, value_place, key_rows, query_rows, grad_output_rows;
  RowBias<kConfig.has_bias> bias;

  template <bool kAdds, bool kStarts>
  VECINA_DEVICE void multiply(unsigned stage, int step, const Factors& factors, int next,
                              Pairs& pairs) {
    const unsigned rows = stage + key_rows + step * 16 * KeySide::kRowBytes;
    const unsigned next_keys = stage + key_place + next * 16 * KeySide::kRowBytes;
    const unsigned next_values = stage + value_place + next * 16 * ValueSide::kRowBytes;
    if constexpr (kStarts) {
      clear(pairs.logits);
      clear(pairs.differences);
    }
    // What 16 columns need, loaded while those before them are multiplied. Without the barrier
    // the compiler puts each load right before its use, and nothing covers its 30 cycles.
    struct Words {
      unsigned next_keys[4], next_values[4], query[4], grad_output[4], keys[4];
    } words[2];
    const auto load = [&](int c, Words& to) {
      if constexpr (kStarts) {
        if (c < KeySide::kSteps) {
          load_matrices(to.next_keys, next_keys + 32 * c);
          if constexpr (kConfig.shares_key) load_matrices(to.query, query_rows + 32 * c);
        }
        if (c < ValueSide::kSteps) {
          load_matrices(to.next_values, next_values + 32 * c);
          if constexpr (kConfig.shares_value)
            load_matrices(to.grad_output, grad_output_rows + 32 * c);
        }
      }
      if constexpr (kAdds) {
        if (has_sums(c)) load_transposed(to.keys, rows + 32 * c);
      }
    };
    constexpr int kSteps = na_max(KeySide::kSteps, ValueSide::kSteps);
    load(0, words[0]);
#pragma unroll
    for (int c = 0; c < kSteps; ++c) {
      const Words& now = words[c % 2];
      if (c + 1 < kSteps) load(c + 1, words[(c + 1) % 2]);
      __syncwarp();
      if constexpr (kStarts) {
        if (c < KeySide::kSteps) {
          add_columns(columns_of<kConfig.shares_key>(now.query, query[kHasLongKeys ? 0 : c]),
                      now.next_keys, pairs.logits);
        }
        if (c < ValueSide::kSteps) {
          add_columns(columns_of<kConfig.shares_value>(now.grad_output,
                                                       grad_output[kHasLongValues ? 0 : c]),
                      now.next_values, pairs.differences);
        }
      }
      if constexpr (kAdds) {
        if (has_sums(c)) {
          const int sum = c - kFirstStep;
          if constexpr (!kConfig.is_delta_given) add_rows(factors.weights, now.keys, sum, keys);
          add_rows(factors.gradients, now.keys, sum, products);
        }
      }
    }
  }

  VECINA_DEVICE Factors weigh(unsigned, int step, const unsigned (&bits)[2], Pairs& pairs) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = e / 2;
        const bool is_seen = is_visible(bits[i], k, e % 2);
        float& weight = pairs.logits[k][e];
        float& gradient = pairs.differences[k][e];
        float below = -maximum[i];
        if constexpr (kConfig.has_bias) {
          below += bias.at(i, 16 * step + 8 * k + e % 2, is_seen);
        }
        weight = weight_of(weight, scale, below, is_seen);
        gradient = is_seen ? weight * (gradient - shift[i]) : 0.0f;
        if constexpr (!kConfig.is_delta_given) {
          total[i] += weight;
          differences[i] += gradient;
        }
      }
    }
    return {pack_weights(pairs.logits), pack_weights(pairs.differences)};
  }
};

// The block's work; false if a thread's results are not finite. is_cleaned: keys and values that
// are not finite count as 0.
VECINA_DEVICE bool differentiate_block(const HaloParams& params, const Tile& tile, const Box& box,
                                       const Tables& tables, bool is_cleaned) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Item item = make_item(params, tile.first_item);
  QueryWork work;
  float dot[2], grad_lse[2] = {0.0f, 0.0f};
  {
    const Row rows[2] = {make_row(tile, box, lane / 4), make_row(tile, box, lane / 4 + 8)};
    const auto at = [&](const HaloRows& tensor, int i) {
      return head_rows(tensor, item.batch, item.head) + row_offset(tensor, rows[i]);
    };
    dot[0] = dot[1] = 0.0f;
    if constexpr (kHasLongKeys) {
      copy_rows<kKeyColumns>(at(params.query, 0), at(params.query, 1), kKeyRowsAt);
    } else {
      load_rows<kKeyColumns>(at(params.query, 0), at(params.query, 1), work.query);
    }
    if constexpr (kHasLongValues) {
#pragma unroll kStepsAtOnce
      for (int k = 0; k < ValueSide::kSteps; ++k) {
        unsigned grad_output[4], output[4];
        load_step<kValueColumns>(at(params.grad_output, 0), at(params.grad_output, 1), k,
                                 grad_output);
        load_step<kValueColumns>(at(params.output, 0), at(params.output, 1), k, output);
        share_step<ValueSide>(grad_output, k, kValueRowsAt);
#pragma unroll
        for (int i = 0; i < 2; ++i) add_dot(grad_output, output, i, dot[i]);
      }
      __syncwarp();
    } else {
      constexpr int kSteps = kHasLongValues ? 1 : ValueSide::kSteps;
      unsigned output[kSteps][4];
      load_rows<kValueColumns>(at(params.grad_output, 0), at(params.grad_output, 1),
                               work.grad_output);
      load_rows<kValueColumns>(at(params.output, 0), at(params.output, 1), output);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          add_dot(work.grad_output[k], output[k], i, dot[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      dot[i] = over_quad(dot[i], true);
      const float lse = *reinterpret_cast<const float*>(at(params.lse, i));
      work.maximum[i] = lse == -infinity() ? 0.0f : lse * static_cast<float>(1.0 / kLn2);
      if constexpr (kConfig.has_grad_lse) {
        grad_lse[i] = *reinterpret_cast<const float*>(at(params.grad_lse, i));
      }
      work.shift[i] = dot[i] - grad_lse[i];
      work.total[i] = work.differences[i] = 0.0f;
    }
  }
  if constexpr (kConfig.shares_key && !kHasLongKeys) share_rows<KeySide>(work.query, kKeyRowsAt);
  if constexpr (kConfig.shares_value && !kHasLongValues) {
    share_rows<ValueSide>(work.grad_output, kValueRowsAt);
  }
  work.scale = params.scale_to_powers;
  work.bias.begin(params, item.head);
  clear(work.keys);
  clear(work.products);
  work.key_place = place_by_columns<KeySide>();
  work.value_place = place_by_columns<ValueSide>() + KeySide::kBytes;
  work.key_rows = place_by_rows<KeySide>();
  work.query_rows = place_of_shared_rows<KeySide>(kKeyRowsAt);
  work.grad_output_rows = place_of_shared_rows<ValueSide>(kValueRowsAt);
  walk_partners<Pairs, Factors>(params, tile, tables, item.batch,
                                item.head / kConfig.head_group, is_cleaned, work);
  bool is_good = true;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = 1.0f, inverse = 1.0f, correction = 0.0f;  // of delta as it was given
    if constexpr (!kConfig.is_delta_given) {
      sum = over_quad(work.total[i], true);
      inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
      correction = over_quad(work.differences[i], true) * inverse - grad_lse[i];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; ++e) {
          work.products[t][e] = fmaf(-correction, work.keys[t][e], work.products[t][e]);
        }
      }
    }
    const Row row = make_row(tile, box, lane / 4 + 8 * i);
    if (kFirstStep == 0 && row.is_owner && lane % 4 == 0) {
      head_facts(params, item.batch, item.head)[token_number(params, row.token)] =
          make_facts(work.maximum[i], sum, correction - grad_lse[i], dot[i]);
    }
    is_good = is_good && is_finite(correction + work.shift[i]);
    if (params.grad_query.data == nullptr) continue;
    is_good = store_row<(kConfig.end_column - kConfig.first_column) / 8>(
                  work.products, i, params.scale * inverse,
                  head_rows(params.grad_query, item.batch, item.head) +
                      row_offset(params.grad_query, row) + 2 * kConfig.first_column,
                  row.is_owner) &&
              is_good;
  }
  return is_good;
}

VECINA_DEVICE void clear_gradients(const HaloParams& params, const Tile& tile,
                                   const int (&exists)[3]) {
  const Item item = make_item(params, tile.first_item);
  clear_queries(params, tile, exists, item.batch, item.head);
}

VECINA_DEVICE void compute_tile(const HaloParams& params) {
  extern __shared__ uint4 shared[];
  __shared__ Tables tables;
  const Tile tile = make_tile(params);
  const Box box = first_owners(tile);
  fill_tables(params, tile, box, tables);
  clear_shared(shared, kStages * kStageBytes);
  __syncthreads();
  wait_for_previous();
  if constexpr (kHasOutputStride && !kHasLengths) {
    clear_gradients(params, tile, params.num_outputs);
  }
  compute_block<differentiate_query_alone<kConfig.first_column, kConfig.end_column>>(
      params, [&](bool is_cleaned) {
    return differentiate_block(params, tile, box, tables, is_cleaned);
  });
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kConfig.blocks)
    tiles_gradient_query(const __grid_constant__ HaloParams params) {
  compute_sample(params, clear_gradients, compute_tile);
}

}  // namespace vecina::cuda
