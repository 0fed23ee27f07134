// SPDX-License-Identifier: MIT
// Forward with tensor cores for large windows (tiles.cuh).
//
// Sums are relative to 2^maximum of each row, which follows the largest logit (in powers of two)
// only when one exceeds it by more than 8, a weight of more than 2^8: few steps look for a maximum
// at all. Where a warp has 32 rows, what it loads from shared memory feeds twice the products, and
// it takes 32 keys at a time.
// What is not finite: alone.cuh.
#include "forward_alone.cuh"
#include "owners_samples.cuh"
#include "tiles.cuh"

namespace vecina::cuda {
namespace {

static_assert(!kConfig.of_keys, "owners are queries");
constexpr int kHalves = kRows / 16;            // first factors of a product
constexpr int kParts = kStep / 16;             // second factors
constexpr int kTiles = 2 * ValueSide::kSteps;  // of 8 columns
constexpr float kSlack = 8.0f;                 // of logits above the maximum, in powers of two

// Queries of warps with 32 rows lie in shared memory: in registers they would leave no room for
// loads ahead.
constexpr bool kSharesQuery = kConfig.shares_key;
static_assert(kSharesQuery || kHalves == 1, "");

// A warp's rows with the keys of a step.
struct Logits {
  float logits[kHalves][kParts][2][4];
};
struct RowWeights {
  Weights weights[kHalves][kParts];
};

// visit(row of the thread, k, e, logit): of partner 8k + e among the thread's.
template <class Visit>
VECINA_DEVICE void for_logits(Logits& pairs, Visit visit) {
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
#pragma unroll
    for (int k = 0; k < 2 * kParts; ++k) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        visit(i, k, e, pairs.logits[i / 2][k / 2][k % 2][i % 2 * 2 + e]);
      }
    }
  }
}

// What a warp holds of its rows.
struct ForwardWork {
  unsigned query[kHalves][KeySide::kSteps][4];  // unless it is shared
  float scale;                                  // of logits
  float maximum[kRowsOfThread], total[kRowsOfThread];
  unsigned unset;  // a bit for each row that has no maximum yet
  float output[kHalves][kTiles][4];
  unsigned key_place, value_rows, query_rows;
  RowBias<kConfig.has_bias> bias;

  template <bool kAdds, bool kStarts>
  VECINA_DEVICE void multiply(unsigned stage, int step, const RowWeights& weights, int next,
                              Logits& pairs) {
    const unsigned next_keys = stage + key_place + next * kStep * KeySide::kRowBytes;
    const unsigned values = stage + value_rows + step * kStep * ValueSide::kRowBytes;
    if constexpr (kStarts) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
#pragma unroll
        for (int p = 0; p < kParts; ++p) clear(pairs.logits[h][p]);
      }
    }
    // Loaded a step ahead, behind barriers: see tiles_gradient_query.cu.
    struct Words {
      unsigned query[kHalves][4], next_keys[kParts][4], values[kParts][4];
    } words[2];
    const auto load = [&](int c, Words& to) {
      if constexpr (kStarts) {
        if (c < KeySide::kSteps) {
#pragma unroll
          for (int h = 0; kSharesQuery && h < kHalves; ++h) {
            load_matrices(to.query[h], query_rows + 16 * h * KeySide::kRowBytes + 32 * c);
          }
#pragma unroll
          for (int p = 0; p < kParts; ++p) {
            load_matrices(to.next_keys[p], next_keys + 16 * p * KeySide::kRowBytes + 32 * c);
          }
        }
      }
      if constexpr (kAdds) {
        if (c < ValueSide::kSteps) {
#pragma unroll
          for (int p = 0; p < kParts; ++p) {
            load_transposed(to.values[p], values + 16 * p * ValueSide::kRowBytes + 32 * c);
          }
        }
      }
    };
    constexpr int kSteps = na_max(kStarts ? KeySide::kSteps : 0, kAdds ? ValueSide::kSteps : 0);
    load(0, words[0]);
#pragma unroll
    for (int c = 0; c < kSteps; ++c) {
      const Words& now = words[c % 2];
      if (c + 1 < kSteps) load(c + 1, words[(c + 1) % 2]);
      __syncwarp();
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          if constexpr (kStarts) {
            if (c < KeySide::kSteps) {
              add_columns(columns_of<kSharesQuery>(now.query[h], query[h][c]), now.next_keys[p],
                          pairs.logits[h][p]);
            }
          }
          if constexpr (kAdds) {
            if (c < ValueSide::kSteps) add_rows(weights.weights[h][p], now.values[p], c, output[h]);
          }
        }
      }
    }
  }

  // Moves maxima up to the logits, which are relative to them; `highest` is the thread's.
  VECINA_DEVICE void raise(const float (&highest)[kRowsOfThread], Logits& pairs) {
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const float most = over_quad(highest[i], false);
      const bool is_first = ((unset >> i) & 1) != 0 && most > -infinity();
      const float by = is_first || most > kSlack ? most : 0.0f;  // whatever other rows see
      if (is_first) unset &= ~(1u << i);
      const float kept = is_first ? 1.0f : power_of_two(-by);  // nothing was added up before
      maximum[i] += by;
      total[i] *= kept;
      const int h = i / 2, e = i % 2 * 2;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        output[h][t][e] *= kept;
        output[h][t][e + 1] *= kept;
      }
#pragma unroll
      for (int k = 0; k < 2 * kParts; ++k) {
        pairs.logits[h][k / 2][k % 2][e] -= by;
        pairs.logits[h][k / 2][k % 2][e + 1] -= by;
      }
    }
  }

  VECINA_DEVICE RowWeights weigh(unsigned, int step, const unsigned (&bits)[kRowsOfThread],
                                 Logits& pairs) {
    unsigned common = kBitsOfStep;
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) common &= bits[i];
    const bool is_whole = __all_sync(0xffffffffu, common == kBitsOfStep) != 0;
    for_logits(pairs, [&](int i, int k, int e, float& logit) {
      float shift = -maximum[i];
      if constexpr (kConfig.has_bias) {
        shift += bias.at(i, kStep * step + 8 * k + e, is_visible(bits[i], k, e));
      }
      logit = fmaf(logit, scale, shift);
    });
    if (!is_whole) {
      for_logits(pairs, [&](int i, int k, int e, float& logit) {
        if (!is_visible(bits[i], k, e)) logit = -infinity();
      });
    }
    float highest[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) highest[i] = -infinity();
    for_logits(pairs, [&](int i, int, int, float& logit) {
      highest[i] = larger(highest[i], logit);
    });
    bool is_high = unset != 0;
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) is_high = is_high || highest[i] > kSlack;
    if (__any_sync(0xffffffffu, is_high) != 0) raise(highest, pairs);
    for_logits(pairs, [&](int i, int, int, float& logit) {
      logit = power_of_two(logit);
      total[i] += logit;
    });
    RowWeights made;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int p = 0; p < kParts; ++p) made.weights[h][p] = pack_weights(pairs.logits[h][p]);
    }
    return made;
  }
};

// The block's work; false if a thread's results are not finite. is_cleaned: keys and values that
// are not finite count as 0.
VECINA_DEVICE bool attend(const HaloParams& params, const Tile& tile, const Box& box,
                          const Tables& tables, bool is_cleaned) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Item item = make_item(params, tile.first_item);
  ForwardWork work;
  const char* queries = head_rows(params.query, item.batch, item.head);
  const auto query_at = [&](int number) {
    return queries + row_offset(params.query, make_row(tile, box, number));
  };
  if constexpr (kSharesQuery) {  // copied with the first tile
    extern __shared__ uint4 shared[];
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int row = lane % kRows;
    const unsigned to =
        shared_address(shared) +
        static_cast<unsigned>(kKeyRowsAt + (warp * kRows + row) * KeySide::kRowBytes);
    const char* query = query_at(row);
#pragma unroll
    for (int chunk = lane / kRows; chunk < KeySide::kChunks; chunk += 32 / kRows) {
      copy_chunk(to + static_cast<unsigned>(16 * chunk), query + 16 * chunk, true);
    }
    work.query_rows = place_of_shared_rows<KeySide>(kKeyRowsAt);
  } else {
    load_rows<kKeyColumns>(query_at(lane / 4), query_at(lane / 4 + 8), work.query[0]);
  }
#pragma unroll
  for (int h = 0; h < kHalves; ++h) clear(work.output[h]);
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) work.maximum[i] = work.total[i] = 0.0f;
  work.unset = (1u << kRowsOfThread) - 1;
  work.scale = params.scale_to_powers;
  work.bias.begin(params, item.head);
  work.key_place = place_by_columns<KeySide>();
  work.value_rows = place_by_rows<ValueSide>() + KeySide::kBytes;
  walk_partners<Logits, RowWeights>(params, tile, tables, item.batch,
                                    item.head / kConfig.head_group, is_cleaned, work);
  bool is_good = true;
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    const float total = over_quad(work.total[i], true);
    const Row row = make_row(tile, first_owners(tile), lane / 4 + 8 * i);
    is_good = store_row<kValueColumns / 8>(
                  work.output[i / 2], i % 2, total == 0.0f ? 0.0f : 1.0f / total,
                  head_rows(params.output, item.batch, item.head) + row_offset(params.output, row),
                  row.is_owner) &&
              is_good;
    if (params.lse.data != nullptr && row.is_owner && lane % 4 == 0) {
      *reinterpret_cast<float*>(head_rows(params.lse, item.batch, item.head) +
                                row_offset(params.lse, row)) =
          (work.maximum[i] + logarithm_of_two(total)) * static_cast<float>(kLn2);
    }
  }
  return is_good;
}

VECINA_DEVICE void compute_tile(const HaloParams& params) {
  extern __shared__ uint4 shared[];
  __shared__ Tables tables;
  const Tile tile = make_tile(params);
  const Box box = first_owners(tile);
  fill_tables(params, tile, box, tables);
  clear_shared(shared, kRowsEnd);
  __syncthreads();
  wait_for_previous();
  compute_block<attend_alone>(params, [&](bool is_cleaned) {
    return attend(params, tables.tile, first_owners(tables.tile), tables, is_cleaned);
  });
}

VECINA_DEVICE void clear_outputs(const HaloParams& params, const Tile& tile,
                                 const int (&exists)[3]) {
  const Item item = make_item(params, tile.first_item);
  clear_others(tile, exists, [&](const int(&token)[3]) {
    clear_row<kValueColumns>(row_at(params.output, item.batch, item.head, token));
    if (params.lse.data == nullptr) return;
    *reinterpret_cast<float*>(row_at(params.lse, item.batch, item.head, token)) = -infinity();
  });
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kConfig.blocks)
    tiles_forward(const __grid_constant__ HaloParams params) {
  compute_sample(params, clear_outputs, compute_tile);
}

}  // namespace vecina::cuda
