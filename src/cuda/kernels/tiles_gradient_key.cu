// SPDX-License-Identifier: MIT
// Gradients of key and value with tensor cores for large windows (tiles.cuh): queries, gradients of
// outputs and facts of the queries that see a box of keys pass through shared memory, for one
// query head of the group after the other. The formulas stand in gradient_pairs.cuh. Sums of many
// columns do not fit a thread's registers; each gradient then has a launch of its own.
//
// Where the block adds to the queries' gradients too (adds_queries), its warps leave gradients of
// logits in shared memory, and each warp multiplies some of them by all of the block's keys while
// the next tile is under way. Queries of a tile are then added to in groups of 32, each by
// kWarpsOfGroup warps, which share its columns.
// What is not finite: alone.cuh. Such a sum of a query stays so; tiles_gradient_round finds it.
#include "gradient_alone.cuh"
#include "owners_samples.cuh"
#include "tiles_additions.cuh"

namespace vecina::cuda {
namespace {

static_assert(kConfig.of_keys && kAdditional == 0 && kRows == 16, "owners are keys");

constexpr int kGradientsAt = kRowsEnd;
constexpr int kGradientRowBytes = 2 * kPartners + 16;  // of a key
constexpr int kGradientBytes = kRows * kBoxes * kGradientRowBytes;  // of a tile, of two
static_assert(kRowsEnd + (kConfig.adds_queries ? 2 * kGradientBytes : 0) == kConfig.shared_bytes,
              "what the launch asks for");
constexpr int kGroups = na_max(kPartners / 32, 1);
constexpr int kWarpsOfGroup = kBoxes / kGroups;
static_assert(!kConfig.adds_queries || (kPartners % 32 == 0 && kBoxes % kGroups == 0), "");

static_assert((!kHasLongKeys || kConfig.shares_key) && (!kHasLongValues || kConfig.shares_value),
              "");

// What a warp holds of its rows.
struct KeyWork {
  unsigned key[kHasLongKeys ? 1 : KeySide::kSteps][4];
  unsigned value[kHasLongValues ? 1 : ValueSide::kSteps][4];
  float scale;  // of logits
  float grad_key[kConfig.adds_key ? 2 * kStepsOfSums : 1][4];
  float grad_value[kConfig.adds_value ? 2 * ValueSide::kSteps : 1][4];
  unsigned query_place, output_place, query_rows, output_rows, facts_place, key_rows, value_rows;
  unsigned gradients;  // where the thread leaves those of logits
  bool is_adding;   // to the queries' gradients
  RowBias<kConfig.has_bias> bias;

  template <bool kAdds, bool kStarts>
  VECINA_DEVICE void multiply(unsigned stage, int step, const Factors& factors, int next,
                              Pairs& pairs) {
    const unsigned queries = stage + query_rows + step * 16 * KeySide::kRowBytes;
    const unsigned outputs = stage + output_rows + step * 16 * ValueSide::kRowBytes;
    const unsigned next_queries = stage + query_place + next * 16 * KeySide::kRowBytes;
    const unsigned next_outputs = stage + output_place + next * 16 * ValueSide::kRowBytes;
    if constexpr (kStarts) {
      clear(pairs.logits);
      clear(pairs.differences);
    }
    // Products with 16 columns of one tensor, in turn: those that start, then those that add. What
    // one needs is loaded kAhead of them before. Without the barrier the compiler puts each load
    // right before its use, and nothing covers its 30 cycles.
    constexpr int kLogits = 0, kDifferences = 1, kValueSums = 2, kKeySums = 3;
    constexpr int kFirstKind = kStarts ? kLogits : kValueSums;
    constexpr int kKinds = (kAdds ? kKeySums + 1 : kValueSums) - kFirstKind;
    constexpr int kCount = kKinds * na_max(KeySide::kSteps, ValueSide::kSteps), kAhead = 3;
    unsigned words[kAhead + 1][4], own[kAhead + 1][4];
    const auto load = [&](int number) {
      const int c = number / kKinds, kind = number % kKinds + kFirstKind;
      unsigned(&to)[4] = words[number % (kAhead + 1)];
      unsigned(&rows)[4] = own[number % (kAhead + 1)];
      if (kind == kLogits && c < KeySide::kSteps) {
        load_matrices(to, next_queries + 32 * c);
        if constexpr (kConfig.shares_key) load_matrices(rows, key_rows + 32 * c);
      }
      if (kind == kDifferences && kConfig.adds_key && c < ValueSide::kSteps) {
        load_matrices(to, next_outputs + 32 * c);
        if constexpr (kConfig.shares_value) load_matrices(rows, value_rows + 32 * c);
      }
      if (kind == kValueSums && kConfig.adds_value && c < ValueSide::kSteps) {
        load_transposed(to, outputs + 32 * c);
      }
      if (kind == kKeySums && kConfig.adds_key && has_sums(c)) {
        load_transposed(to, queries + 32 * c);
      }
    };
#pragma unroll
    for (int number = 0; number < na_min(kAhead, kCount); ++number) load(number);
#pragma unroll
    for (int number = 0; number < kCount; ++number) {
      if (number + kAhead < kCount) load(number + kAhead);
      __syncwarp();
      const int c = number / kKinds, kind = number % kKinds + kFirstKind;
      const unsigned(&now)[4] = words[number % (kAhead + 1)];
      const unsigned(&rows)[4] = own[number % (kAhead + 1)];
      if (kind == kLogits && c < KeySide::kSteps) {
        add_columns(columns_of<kConfig.shares_key>(rows, key[kHasLongKeys ? 0 : c]), now,
                    pairs.logits);
      }
      if (kind == kDifferences && kConfig.adds_key && c < ValueSide::kSteps) {
        add_columns(columns_of<kConfig.shares_value>(rows, value[kHasLongValues ? 0 : c]), now,
                    pairs.differences);
      }
      if (kind == kValueSums && kConfig.adds_value && c < ValueSide::kSteps) {
        add_rows(factors.weights, now, c, grad_value);
      }
      if (kind == kKeySums && kConfig.adds_key && has_sums(c)) {
        add_rows(factors.gradients, now, c - kFirstStep, grad_key);
      }
    }
  }

  VECINA_DEVICE Factors weigh(unsigned stage, int step, const unsigned (&bits)[2], Pairs& pairs) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const uint4 facts = load_shared(
            stage + facts_place + static_cast<unsigned>((16 * step + 8 * k + column) * 16));
        const float maximum = __uint_as_float(facts.x), shift = __uint_as_float(facts.w);
#pragma unroll
        for (int e = column; e < 4; e += 2) {
          const bool is_seen = is_visible(bits[e / 2], k, e % 2);
          float& weight = pairs.logits[k][e];
          float& gradient = pairs.differences[k][e];
          float below = -maximum;
          if constexpr (kConfig.has_bias) {
            below += bias.at(e / 2, 16 * step + 8 * k + column, is_seen);
          }
          weight = weight_of(weight, scale, below, is_seen);
          if constexpr (kConfig.adds_key) {
            gradient = is_seen ? weight * (gradient - shift) : 0.0f;
          }
        }
      }
    }
    const Factors factors = {pack_weights(pairs.logits), pack_weights(pairs.differences)};
    if constexpr (kConfig.adds_queries) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        store_shared(gradients + static_cast<unsigned>(32 * step + w % 2 * 8 * kGradientRowBytes +
                                                       w / 2 * 16),
                     factors.gradients.words[w]);
      }
    }
    return factors;
  }

  // Once nothing reads what was shared of the tile before the last any more.
  VECINA_DEVICE void begin_tile(const HaloParams& params, const Tile& tile, const Tables& tables,
                                const Walk& walk, int batch, int head, int number,
                                unsigned steps) {
    extern __shared__ uint4 shared[];
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    gradients = shared_address(shared) +
                static_cast<unsigned>(kGradientsAt + number % 2 * kGradientBytes +
                                      (16 * warp + lane / 4) * kGradientRowBytes + lane % 4 * 4);
    if (lane == 0) shared_tiles().steps[number % 2][warp] = steps;
    share_sums(params, tile, tables, walk, batch, head, number);
  }

  VECINA_DEVICE void end_tile(int) {}

  // A warp's part of what the block's keys add to the gradients of a tile's queries.
  VECINA_DEVICE void add_tile(int number) {
    if (!is_adding) return;
    extern __shared__ uint4 shared[];
    const unsigned base = shared_address(shared);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int group = warp % kGroups;
    const SharedTiles& tiles = shared_tiles();
    const unsigned(&steps)[kBoxes] = tiles.steps[number % 2];
    float* const* rows = tiles.sums[number % 2] + 32 * group + lane / 4;
    const unsigned logits = base + static_cast<unsigned>(
        kGradientsAt + number % 2 * kGradientBytes + 64 * group +
        (lane % 8 + lane / 16 * 8) * kGradientRowBytes + lane / 8 % 2 * 16);
    const unsigned keys = base + kKeyRowsAt + place_by_rows<KeySide>();
    // Two steps of 16 columns at a time.
#pragma unroll 1
    for (int c = warp / kGroups; c < KeySide::kSteps; c += 2 * kWarpsOfGroup) {
      const bool has_second = c + kWarpsOfGroup < KeySide::kSteps;
      const unsigned columns[2] = {keys + 32 * static_cast<unsigned>(c),
                                   keys + 32 * static_cast<unsigned>(
                                              has_second ? c + kWarpsOfGroup : c)};
      float sums[2][4][4];
      clear(sums[0]);
      clear(sums[1]);
      unsigned seen = 0;
#pragma unroll
      for (int key_warp = 0; key_warp < kBoxes; ++key_warp) {
        const unsigned some = steps[key_warp] >> (2 * group) & 3u;
        if (some == 0) continue;
        seen |= some;
        Weights weights[2];
        unsigned words[2][4];
        load_transposed(weights[0].words, logits + 16 * key_warp * kGradientRowBytes);
        load_transposed(weights[1].words, logits + 16 * key_warp * kGradientRowBytes + 32);
        load_transposed(words[0], columns[0] + 16 * key_warp * KeySide::kRowBytes);
        load_transposed(words[1], columns[1] + 16 * key_warp * KeySide::kRowBytes);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          if ((some >> m & 1u) == 0) continue;  // nothing was left there
          add_rows(weights[m], words[0], 0, sums[m]);
          add_rows(weights[m], words[1], 1, sums[m]);
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if ((seen >> m & 1u) == 0) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float* const row = rows[16 * m + 8 * i];
          if (row == nullptr) continue;
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            if (n == 1 && !has_second) continue;
            const float(&s)[4] = sums[m][2 * n];
            const float(&t)[4] = sums[m][2 * n + 1];
            add_to(row + 16 * (c + n * kWarpsOfGroup) + lane % 4 * 4,
                   {s[2 * i], s[2 * i + 1], t[2 * i], t[2 * i + 1]});
          }
        }
      }
    }
  }
};

// The block's work; false if a thread's results are not finite. is_cleaned: queries and gradients
// of outputs that are not finite count as 0.
VECINA_DEVICE bool differentiate_block(const HaloParams& params, const Tables& tables,
                                       bool is_cleaned) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Read from shared memory whenever it is needed: sums leave no registers for it.
  const Tile& tile = tables.tile;
  const auto row_of_thread = [&](int i) {
    return make_row(tile, first_owners(tile), lane / 4 + 8 * i);
  };
  const auto at_row = [&](const HaloRows& tensor, const Row& row) {
    const Item item = make_item(params, tile.first_item);
    return head_rows(tensor, item.batch, item.head) + row_offset(tensor, row);
  };
  KeyWork work;
  {
    const Row rows[2] = {row_of_thread(0), row_of_thread(1)};
    const auto at = [&](const HaloRows& tensor, int i) { return at_row(tensor, rows[i]); };
    if constexpr (kHasLongKeys) {
      copy_rows<kKeyColumns>(at(params.key, 0), at(params.key, 1), kKeyRowsAt);
    } else {
      load_rows<kKeyColumns>(at(params.key, 0), at(params.key, 1), work.key);
    }
    if constexpr (kConfig.adds_key && kHasLongValues) {
      copy_rows<kValueColumns>(at(params.value, 0), at(params.value, 1), kValueRowsAt);
    } else if constexpr (kConfig.adds_key) {
      load_rows<kValueColumns>(at(params.value, 0), at(params.value, 1), work.value);
    }
  }
  if constexpr (kConfig.shares_value && !kHasLongValues) {
    share_rows<ValueSide>(work.value, kValueRowsAt);
  }
  if constexpr (kHasKeyRows && !kHasLongKeys) share_rows<KeySide>(work.key, kKeyRowsAt);
  work.is_adding = !is_cleaned;  // once
  work.key_rows = place_of_shared_rows<KeySide>(kKeyRowsAt);
  work.value_rows = place_of_shared_rows<ValueSide>(kValueRowsAt);
  work.scale = params.scale_to_powers;
  const Item item = make_item(params, tile.first_item);
  work.bias.begin(params, item.head * kConfig.head_group);
  clear(work.grad_key);
  clear(work.grad_value);
  work.query_place = place_by_columns<KeySide>();
  work.output_place = place_by_columns<ValueSide>() + KeySide::kBytes;
  work.query_rows = place_by_rows<KeySide>();
  work.output_rows = place_by_rows<ValueSide>() + KeySide::kBytes;
  work.facts_place = static_cast<unsigned>(kRowsBytes + lane % 4 * 32);
  walk_partners<Pairs, Factors>(params, tile, tables, item.batch,
                                item.head * kConfig.head_group, is_cleaned, work);
  bool is_good = true;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Row row = row_of_thread(i);
    if constexpr (kConfig.adds_key) {
      if (params.grad_key.data != nullptr) {
        is_good = store_row<(kConfig.end_column - kConfig.first_column) / 8>(
                      work.grad_key, i, params.scale,
                      at_row(params.grad_key, row) + 2 * kConfig.first_column, row.is_owner) &&
                  is_good;
      }
    }
    if constexpr (kConfig.adds_value) {
      if (params.grad_value.data != nullptr) {
        is_good = store_row<kValueColumns / 8>(work.grad_value, i, 1.0f,
                                               at_row(params.grad_value, row), row.is_owner) &&
                  is_good;
      }
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
  clear_shared(shared, kStages * kStageBytes);
  __syncthreads();
  wait_for_previous();
  compute_block<differentiate_key_alone<kConfig.first_column, kConfig.end_column>>(
      params, [&](bool is_cleaned) { return differentiate_block(params, tables, is_cleaned); });
}

VECINA_DEVICE void clear_gradients(const HaloParams& params, const Tile& tile,
                                   const int (&exists)[3]) {
  const Item item = make_item(params, tile.first_item);
  clear_others(tile, exists, [&](const int(&token)[3]) {
    if (params.grad_key.data != nullptr) {
      clear_row<kKeyColumns>(row_at(params.grad_key, item.batch, item.head, token));
    }
    if (params.grad_value.data != nullptr) {
      clear_row<kValueColumns>(row_at(params.grad_value, item.batch, item.head, token));
    }
  });
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kConfig.blocks)
    tiles_gradient_key(const __grid_constant__ HaloParams params) {
  compute_sample(params, clear_gradients, compute_tile);
}

}  // namespace vecina::cuda
