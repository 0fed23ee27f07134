// SPDX-License-Identifier: MIT
// Gradient of the relative position bias with tensor cores for large windows (tiles.cuh), from the
// facts that gradient_query leaves of each query. The formulas stand in gradient_pairs.cuh.
//
// A block owns a part of the queries of one head, and sums of that part in global memory, which
// another kernel adds up (gradient_bias_sum.cu). Pairs of a warp's queries and a tile's keys with
// the same difference of positions lie at places of the products that do not depend on the tile:
// a thread of the warp adds up each difference, a thread of the block then those of all warps. What
// one tile adds to a sum has one owner, and tiles come one after the other: the same bits in every
// run.
// What is not finite reaches the pairs of its own row alone, and of those the ones that are seen.
#include "owners_samples.cuh"
#include "tiles_additions.cuh"

namespace vecina::cuda {
namespace {

static_assert(kConfig.of_bias && !kConfig.of_keys && kAdditional == 0 && kRows == 16,
              "owners are queries");

// Differences of positions, key - query, along each axis, from the least on, and all of them.
struct Differences {
  int along[3];
  int count;
};
constexpr __host__ __device__ Differences differences_of(bool of_block) {
  Differences differences = {{1, 1, 1}, 1};
  for (int a = kFirstAxis; a < 3; ++a) {
    const int queries = kConfig.box[a] * (of_block ? kConfig.boxes[a] : 1);
    differences.along[a] = (queries - 1) * kGroupSteps.positions[a] + kConfig.partner_box[a];
    differences.count *= differences.along[a];
  }
  return differences;
}
constexpr Differences kOfWarp = differences_of(false), kOfBlock = differences_of(true);

// From one partner of a tile to the next along axis a.
constexpr __host__ __device__ int step_of_partner(int a) {
  int step = 1;
  for (int inner = a + 1; inner < 3; ++inner) step *= kConfig.partner_box[inner];
  return step;
}

// Shared memory after the stages: of each warp gradients of logits of its rows with a tile's
// partners, and their sums of two tiles; where the pairs of each difference are.
constexpr int kRowFloats = kPartners + 8;
struct PairsOfDifference {
  unsigned rows;  // a bit each: those that have a partner at this difference
  int first;      // of row 0, were it one of them
};
struct Shared {
  float gradients[kBoxes][16 * kRowFloats];
  float sums[2][kBoxes][kOfWarp.count];
  PairsOfDifference pairs[kOfWarp.count];
};
static_assert(kStages * kStageBytes + static_cast<int>(sizeof(Shared)) == kConfig.shared_bytes,
              "what the launch asks for");
VECINA_DEVICE Shared& shared_sums() {
  extern __shared__ uint4 shared[];
  return *reinterpret_cast<Shared*>(reinterpret_cast<char*>(shared) + kStages * kStageBytes);
}
struct TileFacts {
  unsigned steps[2][kBoxes];  // that each warp took, a bit each
  int relative[2][3];         // position of the block's least difference
};
VECINA_DEVICE TileFacts& tile_facts() {
  __shared__ TileFacts facts;
  return facts;
}

// Of a row of a warp's box, from those of the first row on.
VECINA_DEVICE int position_of_row(int row, int a) {
#pragma unroll
  for (int inner = 2; inner > a; --inner) row /= kConfig.box[inner];
  return row % kConfig.box[a] * kGroupSteps.positions[a];
}
VECINA_DEVICE void find_pairs() {
  for (int d = static_cast<int>(threadIdx.x); d < kOfWarp.count; d += kThreads) {
    int least[3] = {0, 0, 0}, place = d;  // coordinate of the partner of row 0
    PairsOfDifference pairs = {0, 0};
#pragma unroll
    for (int a = 2; a >= kFirstAxis; --a) {
      least[a] = place % kOfWarp.along[a] - (kConfig.box[a] - 1) * kGroupSteps.positions[a];
      place /= kOfWarp.along[a];
      pairs.first += least[a] * step_of_partner(a);
    }
    for (int row = 0; row < 16; ++row) {
      bool exists = true;
#pragma unroll
      for (int a = kFirstAxis; a < 3; ++a) {
        const int at = least[a] + position_of_row(row, a);
        exists = exists && at >= 0 && at < kConfig.partner_box[a];
      }
      pairs.rows |= exists ? 1u << row : 0u;
    }
    shared_sums().pairs[d] = pairs;
  }
}

constexpr __host__ __device__ int relative_positions(int a) {
  return a < kFirstAxis ? 1 : 2 * kConfig.kernel_size[a] - 1;
}
constexpr int kRelativePositions =
    relative_positions(0) * relative_positions(1) * relative_positions(2);
// The block's own.
VECINA_DEVICE float* sums_of_block(const HaloParams& params) {
  return reinterpret_cast<float*>(params.facts + params.facts_bytes) +
         static_cast<long long>(blockIdx.x) * kRelativePositions;
}

struct Nothing {};

// What a warp holds of its rows.
struct BiasWork {
  unsigned query[KeySide::kSteps][4], grad_output[ValueSide::kSteps][4];
  float maximum[2], shift[2];  // of logits in powers of two; of differences
  float scale;                 // of logits
  unsigned key_place, value_place;
  float* sums;       // of the block
  float* gradients;  // where the thread leaves those of logits
  RowBias<kConfig.has_bias> bias;

  template <bool, bool kStarts>
  VECINA_DEVICE void multiply(unsigned stage, int, const Nothing&, int next, Pairs& pairs) {
    if constexpr (kStarts) {
      const unsigned keys = stage + key_place + next * 16 * KeySide::kRowBytes;
      const unsigned values = stage + value_place + next * 16 * ValueSide::kRowBytes;
      clear(pairs.logits);
      clear(pairs.differences);
      // Loaded a step ahead, behind barriers: see tiles_gradient_query.cu.
      struct Words {
        unsigned keys[4], values[4];
      } words[2];
      const auto load = [&](int c, Words& to) {
        if (c < KeySide::kSteps) load_matrices(to.keys, keys + 32 * c);
        if (c < ValueSide::kSteps) load_matrices(to.values, values + 32 * c);
      };
      constexpr int kSteps = na_max(KeySide::kSteps, ValueSide::kSteps);
      load(0, words[0]);
#pragma unroll
      for (int c = 0; c < kSteps; ++c) {
        const Words& now = words[c % 2];
        if (c + 1 < kSteps) load(c + 1, words[(c + 1) % 2]);
        __syncwarp();
        if (c < KeySide::kSteps) add_columns(query[c], now.keys, pairs.logits);
        if (c < ValueSide::kSteps) add_columns(grad_output[c], now.values, pairs.differences);
      }
    }
  }

  // Where the thread leaves gradients: partners 16 * step + 8k and the next, row i.
  VECINA_DEVICE float2& pair_of_gradients(int step, int k, int i) const {
    return *reinterpret_cast<float2*>(gradients + 8 * i * kRowFloats + 16 * step + 8 * k);
  }

  VECINA_DEVICE Nothing weigh(unsigned, int step, const unsigned (&bits)[2], Pairs& pairs) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float gradient[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool is_seen = is_visible(bits[i], k, e);
          const float below = bias.at(i, 16 * step + 8 * k + e, is_seen) - maximum[i];
          const float weight = power_of_two(fmaf(pairs.logits[k][2 * i + e], scale, below));
          gradient[e] = is_seen ? weight * (pairs.differences[k][2 * i + e] - shift[i]) : 0.0f;
        }
        pair_of_gradients(step, k, i) = {gradient[0], gradient[1]};
      }
    }
    return {};
  }

  VECINA_DEVICE void begin_tile(const HaloParams&, const Tile& tile, const Tables&,
                                const Walk& walk, int, int, int number, unsigned steps) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    gradients = shared_sums().gradients[warp] + lane / 4 * kRowFloats + lane % 4 * 2;
    if (steps != 0) {
#pragma unroll
      for (int step = 0; step < kPartners / 16; ++step) {
        if ((steps >> step & 1) != 0) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) pair_of_gradients(step, i / 2, i % 2) = {0.0f, 0.0f};
      }
    }
    if (lane == 0) tile_facts().steps[number % 2][warp] = steps;
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      const int last_query = tile.first[a] + kConfig.box[a] * kConfig.boxes[a] - 1;
      const int position = tile.groups.along(a).first_position +
                           last_query * kGroupSteps.positions[a];
      tile_facts().relative[number % 2][a] =
          tile.halo[a].begin + walk.at[a] - position + kConfig.kernel_size[a] - 1;
    }
  }

  // Of the warp, by difference.
  VECINA_DEVICE void end_tile(int number) {
    __syncwarp();
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    if (tile_facts().steps[number % 2][warp] == 0) return;
    const Shared& shared = shared_sums();
    float* to = shared_sums().sums[number % 2][warp];
    for (int d = lane; d < kOfWarp.count; d += 32) {
      const PairsOfDifference pairs = shared.pairs[d];
      float sum = 0.0f;
#pragma unroll
      for (int row = 0; row < 16; ++row) {
        int offset = row * kRowFloats;
#pragma unroll
        for (int a = kFirstAxis; a < 3; ++a) offset += position_of_row(row, a) * step_of_partner(a);
        if ((pairs.rows >> row & 1) != 0) sum += shared.gradients[warp][pairs.first + offset];
      }
      to[d] = sum;
    }
  }

  // Of the block, by difference.
  VECINA_DEVICE void add_tile(int number) {
    const TileFacts& facts = tile_facts();
    for (int d = static_cast<int>(threadIdx.x); d < kOfBlock.count; d += kThreads) {
      int at[3] = {0, 0, 0}, place = d;
#pragma unroll
      for (int a = 2; a >= kFirstAxis; --a) {
        at[a] = place % kOfBlock.along[a];
        place /= kOfBlock.along[a];
      }
      int index = 0;
      bool exists = true;
#pragma unroll
      for (int a = kFirstAxis; a < 3; ++a) {
        const int relative = facts.relative[number % 2][a] + at[a];
        exists = exists && relative >= 0 && relative < relative_positions(a);
        index = index * relative_positions(a) + relative;
      }
      if (!exists) continue;
      float sum = 0.0f;
#pragma unroll
      for (int warp = 0; warp < kBoxes; ++warp) {
        if (facts.steps[number % 2][warp] == 0) continue;
        int box = warp, boxes_after[3] = {0, 0, 0};
#pragma unroll
        for (int a = 2; a >= kFirstAxis; --a) {
          boxes_after[a] = kConfig.boxes[a] - 1 - box % kConfig.boxes[a];
          box /= kConfig.boxes[a];
        }
        int difference = 0;
        bool is_of_warp = true;
#pragma unroll
        for (int a = kFirstAxis; a < 3; ++a) {
          const int own = at[a] - boxes_after[a] * kConfig.box[a] * kGroupSteps.positions[a];
          is_of_warp = is_of_warp && own >= 0 && own < kOfWarp.along[a];
          difference = difference * kOfWarp.along[a] + own;
        }
        if (is_of_warp) sum += shared_sums().sums[number % 2][warp][difference];
      }
      if (sum != 0.0f) add_to(sums + index, sum);
    }
  }
};

VECINA_DEVICE void add_block(const HaloParams& params, int number, float* sums) {
  extern __shared__ uint4 shared[];
  __shared__ Tables tables;
  const Tile tile = make_tile(params, number);
  const Box box = first_owners(tile);
  fill_tables(params, tile, box, tables);
  clear_shared(shared, kStages * kStageBytes);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Item item = make_item(params, tile.first_item);
  BiasWork work;
  {
    const Row rows[2] = {make_row(tile, box, lane / 4), make_row(tile, box, lane / 4 + 8)};
    const auto at = [&](const HaloRows& tensor, int i) {
      return head_rows(tensor, item.batch, item.head) + row_offset(tensor, rows[i]);
    };
    load_rows<kKeyColumns>(at(params.query, 0), at(params.query, 1), work.query);
    load_rows<kValueColumns>(at(params.grad_output, 0), at(params.grad_output, 1),
                             work.grad_output);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const HaloFacts facts =
          head_facts(params, item.batch, item.head)[token_number(params, rows[i].token)];
      work.maximum[i] = facts.maximum;
      work.shift[i] = facts.shift;
    }
  }
  work.scale = params.scale_to_powers;
  work.bias.begin(params, item.head);
  work.sums = sums;
  work.key_place = place_by_columns<KeySide>();
  work.value_place = place_by_columns<ValueSide>() + KeySide::kBytes;
  walk_partners<Pairs, Nothing>(params, tile, tables, item.batch, item.head / kConfig.head_group,
                                /*is_cleaned=*/false, work);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kConfig.blocks)
    tiles_gradient_bias(const __grid_constant__ HaloParams params) {
  find_pairs();
  wait_for_previous();
  float* sums = sums_of_block(params);
  for (int i = static_cast<int>(threadIdx.x); i < kRelativePositions; i += kThreads) sums[i] = 0.0f;
  int blocks_of_head = 1;  // were each to own one box of queries
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) blocks_of_head *= params.axes[a].tiles;
  const int head = static_cast<int>(blockIdx.x) % params.heads;
  const int samples = params.num_items / params.num_items_of_sample;
#pragma unroll 1
  for (int i = static_cast<int>(blockIdx.x) / params.heads; i < blocks_of_head * samples;
       i += static_cast<int>(gridDim.x) / params.heads) {
    __syncthreads();
    const int item = i / blocks_of_head * params.heads + head;
    const int number = item * blocks_of_head + i % blocks_of_head;
    compute_sample(
        params, [](const HaloParams&, const Tile&, const int(&)[3]) {},
        [&](const HaloParams& own) { add_block(own, number, sums); }, number);
  }
}

}  // namespace vecina::cuda
