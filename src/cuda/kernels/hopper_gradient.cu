// SPDX-License-Identifier: MIT
// Gradients of large windows with products of warpgroups (Hopper): those of tiles_gradient_query.cu
// or of tiles_gradient_key.cu, but a box of 64 owners is a warpgroup's. Its rows are in shared
// memory, too. The formulas stand in gradient_pairs.cuh; delta is given, and the facts of all
// queries are there (tiles_gradient_facts).
//
// Where keys add to the queries' gradients too (adds_queries), warpgroups leave gradients of logits
// in shared memory, and while the next tile is under way each adds to 64 of the columns, from all
// of the block's keys.
// What is not finite: alone.cuh. Such a sum of a query stays so; tiles_gradient_round finds it.
#include "gradient_alone.cuh"
#include "hopper_ptx.h"
#include "hopper_wgmma.h"
#include "tiles_additions.cuh"

namespace vecina::cuda {
namespace {

static_assert(kRows == 64 && kPartners == 64 && kAdditional == 0 && kIsSwizzled, "");
static_assert(kConfig.of_keys || kConfig.is_delta_given, "facts are given");
static_assert(!kConfig.adds_queries || kKeyColumns == 64 * kBoxes, "64 columns for a warpgroup");

// Shared memory after the stages: rows of each warpgroup's owners, as those of a tile; gradients of
// logits of two tiles, 64 queries for each of the block's keys.
constexpr int kOwnersAt = kStages * kStageBytes;
constexpr int kGradientsAt = kOwnersAt + kBoxes * kRowsBytes;
constexpr int kGradientBytes = kRows * 128;  // of a warpgroup
constexpr unsigned kColumnsBytes = kPartners * 128;  // from 64 columns to the next
static_assert(kStageBytes % 1024 == 0, "swizzled rows are aligned");

constexpr int kKeySums = kKeyColumns / 2;
constexpr int kValueSums = kValueColumns / 2;

// What a thread holds of its two rows.
struct Rows {
  float maximum[2], shift[2];  // of queries
  float key[kKeySums], value[kValueSums];  // sums; the latter of keys alone
};

// A box's partners along each axis, from the block's first on.
VECINA_DEVICE void visible_box(const Tile& tile, const Box& box, Range (&visible)[3]) {
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    visible[a] = {0, 1};
    if (a < kFirstAxis) continue;
    const int last = tile.groups.length[a] - 1;
    const bool exists = box.first[a] <= last;
    const int begin = partners_of(a, tile.groups.along(a), na_min(box.first[a], last)).begin;
    const int end =
        partners_of(a, tile.groups.along(a), na_min(box.first[a] + kConfig.box[a] - 1, last)).end;
    visible[a] = {begin - tile.halo[a].begin, exists ? end - tile.halo[a].begin : 0};
  }
}
VECINA_DEVICE bool sees_tile(const Range (&visible)[3], const Walk& walk) {
  bool does = true;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    does = does && visible[a].begin < walk.at[a] + kConfig.partner_box[a] &&
           visible[a].end > walk.at[a];
  }
  return does;
}

// Starts the copies of a warpgroup's own rows.
VECINA_DEVICE void load_owners(const HaloParams& params, const Tile& tile, const Box& box,
                               const Item& item, unsigned to) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const HaloRows& key_side = kConfig.of_keys ? params.key : params.query;
  const HaloRows& value_side = kConfig.of_keys ? params.value : params.grad_output;
  // Two threads for each row.
  const Row row = make_row(tile, box, thread / 2);
  const char* key = head_rows(key_side, item.batch, item.head) + row_offset(key_side, row);
  const char* value = head_rows(value_side, item.batch, item.head) + row_offset(value_side, row);
#pragma unroll
  for (int c = 0; c < KeySide::kChunks; c += 2) {
    const int chunk = c + thread % 2;
    copy_chunk(to + KeySide::place(thread / 2, chunk), key + 16 * chunk, true);
  }
#pragma unroll
  for (int c = 0; c < ValueSide::kChunks; c += 2) {
    const int chunk = c + thread % 2;
    copy_chunk(to + KeySide::kBytes + ValueSide::place(thread / 2, chunk), value + 16 * chunk,
               true);
  }
}

// sums = a warpgroup's rows . the tile's, both of kColumns columns.
template <int kColumns>
VECINA_DEVICE void multiply_columns(float (&sums)[32], unsigned rows, unsigned partners) {
  const unsigned a = descriptor_low(rows, 16), b = descriptor_low(partners, 16);
#pragma unroll
  for (int c = 0; c < kColumns; c += 16) {
    const unsigned at = c / 64 * (kColumnsBytes / 16) + c % 64 / 8;
    Products<64>::template shared<kConfig.dtype>(sums, descriptor<128>(a + at),
                                                 descriptor<128>(b + at), c > 0);
  }
  close_products();
}
// sums += weights * the tile's rows.
template <int kColumns>
VECINA_DEVICE void multiply_rows(float (&sums)[kColumns / 2], const unsigned (&weights)[16],
                                 unsigned partners) {
  const unsigned b = descriptor_low(partners, kColumnsBytes);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    Products<kColumns>::template registers<kConfig.dtype>(
        sums, weights[4 * k], weights[4 * k + 1], weights[4 * k + 2], weights[4 * k + 3],
        descriptor<128>(b + k * 128));
  }
}

// Pairs of the thread's rows with columns 8j + 2q and the next become first factors of 16 partners
// each: weights and gradients of logits.
VECINA_DEVICE void weigh(const Rows& rows, unsigned facts, float scale, const unsigned (&bits)[2],
                         const float (&logits)[32], const float (&differences)[32],
                         unsigned (&weights)[16], unsigned (&gradients)[16]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    float weight[4], gradient[4];
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      float maximum = 0.0f, shift = 0.0f;
      if constexpr (kConfig.of_keys) {
        const uint4 all = load_shared(facts + static_cast<unsigned>((8 * j + column) * 16));
        maximum = __uint_as_float(all.x);
        shift = __uint_as_float(all.w);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (!kConfig.of_keys) {
          maximum = rows.maximum[i];
          shift = rows.shift[i];
        }
        const int e = 2 * i + column;
        const bool is_seen = is_visible(bits[i], j, column);
        weight[e] = is_seen ? power_of_two(fmaf(logits[4 * j + e], scale, -maximum)) : 0.0f;
        gradient[e] = is_seen ? weight[e] * (differences[4 * j + e] - shift) : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      weights[2 * j + i] = pack(Element{}, weight[2 * i], weight[2 * i + 1]);
      gradients[2 * j + i] = pack(Element{}, gradient[2 * i], gradient[2 * i + 1]);
    }
  }
}

// Leaves a thread's gradients of logits: rows of keys, columns of queries.
VECINA_DEVICE void share_gradients(const unsigned (&words)[16], unsigned to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const unsigned place =
        to + static_cast<unsigned>(row * 128 + (j ^ row % 8) * 16 + lane % 4 * 4);
    store_shared(place, words[2 * j]);
    store_shared(place + 8 * 128, words[2 * j + 1]);
  }
}

// What the block's keys add to 64 columns of the gradients of a tile's queries; of the tile before
// number, that is number + 1: there are two.
VECINA_DEVICE void multiply_queries(float (&sums)[32], unsigned shared, int warpgroup, int number) {
#pragma unroll
  for (int w = 0; w < kBoxes; ++w) {
    const unsigned a = descriptor_low(
        shared + static_cast<unsigned>(kGradientsAt + (number % 2 * kBoxes + w) * kGradientBytes),
        16);
    const unsigned b = descriptor_low(
        shared + static_cast<unsigned>(kOwnersAt + w * kRowsBytes) +
            static_cast<unsigned>(warpgroup) * kColumnsBytes,
        16);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Products<64>::template turned<kConfig.dtype>(sums, descriptor<128>(a + k * 128),
                                                   descriptor<128>(b + k * 128), w + k > 0);
    }
  }
  close_products();
}
VECINA_DEVICE void add_products(const float (&sums)[32], int warpgroup, int number) {
  const SharedTiles& tiles = shared_tiles();
  if (!tiles.is_added[number % 2]) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float* const to = tiles.sums[number % 2][row + 8 * i];
    if (to == nullptr) continue;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float part[4] = {sums[8 * c + 2 * i], sums[8 * c + 2 * i + 1], sums[8 * c + 4 + 2 * i],
                             sums[8 * c + 4 + 2 * i + 1]};
      add_to(to + 64 * warpgroup + 16 * c + lane % 4 * 4, part);
    }
  }
}

template <int kColumns>
VECINA_DEVICE bool store_sums(const float (&sums)[kColumns / 2], int i, float factor,
                              const HaloRows& tensor, const Item& item, const Row& row) {
  if (tensor.data == nullptr) return true;
  float tiles[kColumns / 8][4];
#pragma unroll
  for (int s = 0; s < kColumns / 2; ++s) tiles[s / 4][s % 4] = sums[s];
  return store_row<kColumns / 8>(tiles, i, factor,
                                 head_rows(tensor, item.batch, item.head) + row_offset(tensor, row),
                                 row.is_owner);
}

// The block's work; false if a thread's results are not finite. is_cleaned: partners that are not
// finite count as 0.
VECINA_DEVICE bool differentiate_block(const HaloParams& params, const Tables& tables, char* memory,
                                       bool is_cleaned) {
  const Tile& tile = tables.tile;
  const unsigned shared = shared_address(memory);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int warpgroup = __shfl_sync(0xffffffffu, thread / 128, 0);
  const int row_of_box = thread % 128 / 32 * 16 + lane / 4;
  const int number_of_row = warpgroup * kRows + row_of_box;
  const Item item = make_item(params, tile.first_item);
  const int batch = item.batch;
  const int head =
      kConfig.of_keys ? item.head * kConfig.head_group : item.head / kConfig.head_group;
  const unsigned owners = shared + static_cast<unsigned>(kOwnersAt + warpgroup * kRowsBytes);
  const Box box = first_owners(tile);
  load_owners(params, tile, box, item, owners);

  Rows rows;
#pragma unroll
  for (int s = 0; s < kKeySums; ++s) rows.key[s] = 0.0f;
#pragma unroll
  for (int s = 0; s < kValueSums; ++s) rows.value[s] = 0.0f;
  if constexpr (!kConfig.of_keys) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Row row = make_row(tile, box, row_of_box + 8 * i);
      const HaloFacts facts =
          head_facts(params, batch, item.head)[token_number(params, row.token)];
      rows.maximum[i] = facts.maximum;
      rows.shift[i] = facts.shift;
    }
  }
  Range visible[3];
  visible_box(tile, box, visible);
  if constexpr (kConfig.adds_queries) {  // there is no tile before the first
    if (thread == 0) shared_tiles().is_added[1] = false;
  }
  const int tiles = count_tiles(tile);
  Walk walk, next;
  load_tile(params, tile, next, tables, batch, head, shared);
  end_copies();
  next.advance(tile);
#pragma unroll 1
  for (int number = 0; number < tiles; ++number) {
    // The same for all threads of a warp, and known to be.
    const bool is_seen = __shfl_sync(0xffffffffu, sees_tile(visible, walk), 0);
    unsigned bits[2] = {};
    if (is_seen) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        bits[i] = pack_bits(visible_partners(tables, walk, number_of_row + 8 * i));
      }
    }
    wait_for_copies<0>();
    publish_shared();
    __syncthreads();
    const int offset = number % kStages * kStageBytes;
    const unsigned stage = shared + static_cast<unsigned>(offset);
    if (is_cleaned) {
      clean_shared(memory + offset, kRowsBytes);
      publish_shared();
      __syncthreads();
    }
    if constexpr (kConfig.adds_queries) {
      if (thread == 0) shared_tiles().is_added[number % 2] = !is_cleaned;  // once
      share_sums(params, tile, tables, walk, batch, head, number);
    }
    if (number + 1 < tiles) {
      load_tile(params, tile, next, tables, batch, head,
                shared + static_cast<unsigned>((number + 1) % kStages * kStageBytes));
    }
    end_copies();
    walk = next;
    next.advance(tile);
    const unsigned gradients_of_warpgroup =
        shared + static_cast<unsigned>(kGradientsAt +
                                       (number % 2 * kBoxes + warpgroup) * kGradientBytes);
    float logits[32], gradients[32];
    if (is_seen) {
      open_products();
      multiply_columns<kKeyColumns>(logits, owners, stage);
      multiply_columns<kValueColumns>(gradients, owners + KeySide::kBytes,
                                      stage + KeySide::kBytes);
      const unsigned facts = stage + static_cast<unsigned>(kRowsBytes + lane % 4 * 32);
      unsigned weights[16], factors[16];
      wait_for_products<0>();
      pin(logits);
      pin(gradients);
      weigh(rows, facts, params.scale_to_powers, bits, logits, gradients, weights, factors);
      if constexpr (kConfig.adds_queries) {
        share_gradients(factors, gradients_of_warpgroup);
      }
      pin(rows.key);
      if constexpr (kConfig.of_keys) pin(rows.value);
      float sums[32];
      open_products();
      if constexpr (kConfig.adds_queries) {
        multiply_queries(sums, shared, warpgroup, number + 1);
        open_products();
      }
      if constexpr (kConfig.of_keys) {
        multiply_rows<kValueColumns>(rows.value, weights, stage + KeySide::kBytes);
      }
      multiply_rows<kKeyColumns>(rows.key, factors, stage);
      close_products();
      if constexpr (kConfig.adds_queries) {
        wait_for_products<1>();
        pin(sums);
        add_products(sums, warpgroup, number + 1);
      }
      wait_for_products<0>();
      pin(rows.key);
      if constexpr (kConfig.of_keys) pin(rows.value);
    } else if constexpr (kConfig.adds_queries) {
      constexpr unsigned kNone[16] = {};
      share_gradients(kNone, gradients_of_warpgroup);
      float sums[32];
      open_products();
      multiply_queries(sums, shared, warpgroup, number + 1);
      wait_for_products<0>();
      pin(sums);
      add_products(sums, warpgroup, number + 1);
    }
  }
  if constexpr (kConfig.adds_queries) {
    publish_shared();
    __syncthreads();
    float sums[32];
    open_products();
    multiply_queries(sums, shared, warpgroup, tiles - 1);
    wait_for_products<0>();
    pin(sums);
    add_products(sums, warpgroup, tiles - 1);
  }
  bool is_good = true;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Row row = make_row(tile, first_owners(tile), row_of_box + 8 * i);
    if constexpr (kConfig.of_keys) {
      is_good = store_sums<kKeyColumns>(rows.key, i, params.scale, params.grad_key, item, row) &&
                is_good;
      is_good = store_sums<kValueColumns>(rows.value, i, 1.0f, params.grad_value, item, row) &&
                is_good;
    } else {
      is_good = store_sums<kKeyColumns>(rows.key, i, params.scale, params.grad_query, item, row) &&
                is_finite(rows.shift[i]) && is_good;
    }
  }
  return is_good;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kConfig.blocks)
    hopper_gradient(const __grid_constant__ HaloParams params) {
  extern __shared__ __align__(1024) char memory[];
  __shared__ Tables tables;
  {
    const Tile tile = make_tile(params);
    fill_tables(params, tile, first_owners(tile), tables);
  }
  __syncthreads();
  wait_for_previous();
  const auto differentiate = [&](bool is_cleaned) {
    return differentiate_block(params, tables, memory, is_cleaned);
  };
  if constexpr (kConfig.of_keys) {
    compute_block<differentiate_key_alone<>>(params, differentiate);
  } else {
    compute_block<differentiate_query_alone<>>(params, differentiate);
  }
}

}  // namespace vecina::cuda
