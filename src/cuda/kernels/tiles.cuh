// SPDX-License-Identifier: MIT
// What the kernels of large windows share: a block owns a box of tokens, a warp 16 of them (of the
// forward, also 32). Boxes of the partners that they meet (tiles) pass through shared memory, the
// next one's copies under way. A warp takes as many partners at a time as it has rows and skips
// those that none of its rows sees; pairs outside of a row's own window are masked.
//
// Partners have rows of two tensors: of head_dim columns (key; of keys, query) and of
// head_dim_value columns (value; of keys, grad_output). Rows in shared memory are an odd number of
// 16 bytes apart, so that ldmatrix meets no bank twice.
#ifndef VECINA_CUDA_KERNELS_TILES_CUH_
#define VECINA_CUDA_KERNELS_TILES_CUH_

#include "owners.cuh"

namespace vecina::cuda {

inline constexpr int kPartners = kConfig.partners;
inline constexpr int kPartnersOfBox =
    kConfig.partner_box[0] * kConfig.partner_box[1] * kConfig.partner_box[2];
static_assert(kPartners % 16 == 0 && kPartners <= 64 && kPartnersOfBox <= kPartners, "");
static_assert(kConfig.heads == 1 && kConfig.items_of_block == 1, "");
inline constexpr int kStages = 2;
inline constexpr int kRowsOfThread = kRows / 8;
inline constexpr int kStep = kRows;  // partners that a warp takes at once
static_assert((kRows <= 32 || kRows == 64) && kPartners % kStep == 0, "");

// Each tile leaves something that the block's warps add up together while the next is under way.
inline constexpr bool kHasTileSums = kConfig.adds_queries || kConfig.of_bias;

// Products of warpgroups want 64 columns beside each other, 16 bytes of a row at places that depend
// on the row ("swizzled" over 128 bytes).
inline constexpr bool kIsSwizzled = kRows == 64;

// Rows of one tensor.
template <int kColumns>
struct Side {
  static_assert(kColumns % (kIsSwizzled ? 64 : 8) == 0);
  static constexpr int kChunks = kColumns / 8;         // of 16 bytes, in memory
  static constexpr int kSteps = (kColumns + 15) / 16;  // of a product over columns
  static constexpr int kRowBytes = kIsSwizzled ? 2 * kColumns : (2 * kSteps + 1) * 16;
  static constexpr int kBytes = kPartners * kRowBytes;

  static VECINA_DEVICE unsigned place(int row, int chunk) {
    if constexpr (!kIsSwizzled) return static_cast<unsigned>(row * kRowBytes + chunk * 16);
    return static_cast<unsigned>(chunk / 8 * kPartners * 128 + row * 128 +
                                 (chunk % 8 ^ row % 8) * 16);
  }
};
using KeySide = Side<kKeyColumns>;
using ValueSide = Side<kValueColumns>;
inline constexpr int kFactBytes =
    kConfig.of_keys ? kPartners * static_cast<int>(sizeof(HaloFacts)) : 0;
inline constexpr int kRowsBytes = KeySide::kBytes + ValueSide::kBytes;
inline constexpr int kStageBytes = kRowsBytes + kFactBytes;
inline constexpr bool kIsPadded = kKeyColumns % 16 != 0 || kValueColumns % 16 != 0;

// A partner's place in its tile.
struct alignas(16) Partner {
  int offset, value_offset;  // of its rows, from the tile's first
  unsigned next;             // its coordinates plus 1, a byte each; 128: it pads the tile
  int number;                // of its facts, from the tile's first
};
using Mask = unsigned long long;  // a bit for each partner of a tile
// Where the bias of a row and a partner lies, in bytes: the sum of one entry for the row, one for
// the partner, and where the tile begins.
template <bool kHasBias>
struct BiasTables {
  VECINA_DEVICE void set_row(int, int) {}
  VECINA_DEVICE void set_partner(int, int) {}
};
template <>
struct BiasTables<true> {
  int rows[kRows * kBoxes];  // with the block's first partner
  int partners[kPartners];   // from a tile's first on

  VECINA_DEVICE void set_row(int row, int offset) { rows[row] = offset; }
  VECINA_DEVICE void set_partner(int partner, int offset) { partners[partner] = offset; }
};
struct Tables : BiasTables<kConfig.has_bias> {
  Partner partners[kPartners];
  Mask before[3][kPartners + 1];       // of axis a and t: partners with coordinates below t
  Tile tile;                           // where registers are needed for other things
  Range visible[kRows * kBoxes][3];    // of each row, from the block's first partner on
};

// Tensors of partners, and of their facts.
struct Sources {
  const HaloRows &rows, &value_rows;
};
VECINA_DEVICE Sources sources_of(const HaloParams& params) {
  if constexpr (kConfig.of_keys) return {params.query, params.grad_output};
  return {params.key, params.value};
}

// Of consecutive tokens of a plane, row and column; all tokens of a sample are numbered.
VECINA_DEVICE void steps_of_number(const HaloParams& params, int (&steps)[3]) {
  steps[2] = kGroupSteps.partners[2];
  steps[1] = kGroupSteps.partners[1] * facts_along(params, 2);
  steps[0] = kGroupSteps.partners[0] * facts_along(params, 1) * facts_along(params, 2);
}

// Along axis a, from one partner to the next.
VECINA_DEVICE int bias_step(const HaloParams& params, int a) {
  return (kConfig.of_keys ? -kGroupSteps.positions[a] : 1) * params.bias.token[a];
}
// Of owner i with the block's first partner along axis a.
VECINA_DEVICE int bias_of_owner(const HaloParams& params, const Tile& tile, int a, int i) {
  const Group group = tile.groups.along(a);
  const int query = kConfig.of_keys ? tile.halo[a].begin : i;
  const int key = kConfig.of_keys ? i : tile.halo[a].begin;
  const int position = group.first_position + query * kGroupSteps.positions[a];
  return (key - position + kConfig.kernel_size[a] - 1) * params.bias.token[a];
}

VECINA_DEVICE void fill_tables(const HaloParams& params, const Tile& tile, const Box& box,
                               Tables& tables) {
  const Sources sources = sources_of(params);
  int steps[3];
  steps_of_number(params, steps);
  for (int i = static_cast<int>(threadIdx.x); i < kPartners; i += kThreads) {
    Partner partner = {0, 0, 0x808080u, 0};
    int bias = 0;
    if (i < kPartnersOfBox) {
      partner.next = 0;
      int place = i;
#pragma unroll
      for (int a = 2; a >= 0; --a) {
        const int at = place % kConfig.partner_box[a];
        place /= kConfig.partner_box[a];
        partner.offset += at * kGroupSteps.partners[a] * sources.rows.token[a];
        partner.value_offset += at * kGroupSteps.partners[a] * sources.value_rows.token[a];
        partner.number += at * steps[a];
        if constexpr (kConfig.has_bias) bias += at * bias_step(params, a);
        partner.next |= static_cast<unsigned>(at + 1) << (8 * a);
      }
    }
    tables.partners[i] = partner;
    tables.set_partner(i, bias);
  }
  for (int i = static_cast<int>(threadIdx.x); i < 3 * (kPartners + 1); i += kThreads) {
    const int a = i / (kPartners + 1), t = i % (kPartners + 1);
    const int inner = a == 2 ? 1 : a == 1 ? kConfig.partner_box[2]
                                          : kConfig.partner_box[1] * kConfig.partner_box[2];
    const int size = a == 2 ? kConfig.partner_box[2] : a == 1 ? kConfig.partner_box[1]
                                                              : kConfig.partner_box[0];
    Mask mask = 0;
    for (int p = 0; p < kPartnersOfBox; ++p) {
      if (p / inner % size < t) mask |= Mask(1) << p;
    }
    tables.before[a][t] = mask;
  }
  if (threadIdx.x == 0) tables.tile = tile;
  const int place = static_cast<int>(threadIdx.x) % kThreadsOfBox;
  if (place < kRows) {
    const Row row = make_row(tile, box, place);
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      // A row without an owner repeats another's, which would be added to such sums twice.
      const bool is_blind = kHasTileSums && !row.is_owner;
      tables.visible[static_cast<int>(threadIdx.x) / kThreadsOfBox * kRows + place][a] =
          a < kFirstAxis ? Range{0, 1} : is_blind ? Range{0, 0} : row.visible[a];
    }
    if constexpr (kConfig.has_bias) {
      int bias = 0;
#pragma unroll
      for (int a = kFirstAxis; a < 3; ++a) {
        bias += bias_of_owner(params, tile, a, row.token[a] / kGroupSteps.owners[a]);
      }
      tables.set_row(static_cast<int>(threadIdx.x) / kThreadsOfBox * kRows + place, bias);
    }
  }
}

// The tiles of partners, one after the other; of keys, those of each query head of the group.
// After those of the window come the additional tokens.
struct Walk {
  int at[3] = {0, 0, 0};  // first partner, from the block's first on; of additional tokens, at[2]
  int part = 0;           // query head of the group; of queries, 1 is the additional tokens

  VECINA_DEVICE bool is_additional() const { return kAdditional > 0 && part > 0; }

  VECINA_DEVICE void advance(const Tile& tile) {
    if (is_additional()) {
      at[2] += kPartners;
      return;
    }
#pragma unroll
    for (int a = 2; a >= kFirstAxis; --a) {
      at[a] += kConfig.partner_box[a];
      if (at[a] < tile.halo[a].end - tile.halo[a].begin) return;
      at[a] = 0;
    }
    ++part;
  }
};
VECINA_DEVICE int count_tiles(const Tile& tile) {
  int count = kConfig.of_keys ? kConfig.head_group : 1;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    const int size = tile.halo[a].end - tile.halo[a].begin;
    count *= (size + kConfig.partner_box[a] - 1) / kConfig.partner_box[a];
  }
  // None are a tile that nothing sees.
  if constexpr (kHasOwnQueries || kHasLengths) {
    count = na_max(count, kConfig.of_keys ? kConfig.head_group : 1);
  }
  return count + (kAdditional + kPartners - 1) / kPartners;
}

// Which partners of the tile a row sees, from bit 0 on those of the thread: 8j, 8j + 1.
VECINA_DEVICE Mask visible_partners(const Tables& tables, const Walk& walk, int row) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  Mask mask = ~Mask(0);
  if (walk.is_additional()) {
    const int left = kAdditional - walk.at[2];
    if (left < kPartners) mask = (Mask(1) << left) - 1;
    return mask >> (2 * q);
  }
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    const Range range = tables.visible[row][a];
    const int begin = na_min(na_max(range.begin - walk.at[a], 0), kConfig.partner_box[a]);
    const int end = na_min(na_max(range.end - walk.at[a], 0), kConfig.partner_box[a]);
    mask &= tables.before[a][end] & ~tables.before[a][begin];
  }
  return mask >> (2 * q);
}

// Of coordinates plus 1 (Partner::next): those within the halo.
VECINA_DEVICE unsigned limits_of(const Tile& tile, const Walk& walk) {
  unsigned limits = 0x808080u;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const int left = tile.halo[a].end - tile.halo[a].begin - walk.at[a];
    limits += static_cast<unsigned>(na_min(left, 127)) << (8 * a);
  }
  return limits;
}
VECINA_DEVICE bool is_within(unsigned limits, const Partner& partner) {
  return ((limits - partner.next) & 0x808080u) == 0x808080u;
}
// The token of a tile's first partner.
VECINA_DEVICE void first_token(const Tile& tile, const Walk& walk, int (&token)[3]) {
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    token[a] = 0;
    if (a < kFirstAxis) continue;
    token[a] = na_group_to_axis(tile.halo[a].begin + walk.at[a], kGroupSteps.partners[a],
                                tile.groups.first_partner(a));
  }
}

// Starts the copies of a tile. `head` is of the first part.
VECINA_DEVICE void load_tile(const HaloParams& params, const Tile& tile, const Walk& walk,
                             const Tables& tables, int batch, int head, unsigned stage) {
  constexpr int kChunks = na_max(KeySide::kChunks, ValueSide::kChunks);
  constexpr int kCopies = kPartners * kChunks;
  constexpr int kCopiesOfThread = (kCopies + kThreads - 1) / kThreads;
  // Where an owner's rows left their registers to sums, the addresses of all copies would be
  // spilled: two at a time. Four warps in one or two dimensions were 1 to 2 % slower with that.
  constexpr bool kHasFewRegisters = kConfig.adds_queries && kConfig.shares_value && !kIsSwizzled &&
                                    (kThreads == 8 * 32 || kFirstAxis == 0);
  constexpr int kCopiesAtOnce = kHasFewRegisters ? 2 : kCopiesOfThread;
  const Sources sources = sources_of(params);
  if constexpr (kConfig.of_keys) head += walk.part;
  const char* rows = head_rows(sources.rows, batch, head);
  const char* value_rows = head_rows(sources.value_rows, batch, head);
  unsigned limits = 0;
  int token[3] = {0, 0, 0};
  if (walk.is_additional()) {
    rows = head_rows(params.additional_key, batch, head) +
           static_cast<long long>(walk.at[2]) * params.additional_key.token[2];
    value_rows = head_rows(params.additional_value, batch, head) +
                 static_cast<long long>(walk.at[2]) * params.additional_value.token[2];
  } else {
    limits = limits_of(tile, walk);
    first_token(tile, walk, token);
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      rows += token[a] * sources.rows.token[a];
      value_rows += token[a] * sources.value_rows.token[a];
    }
  }
#pragma unroll kCopiesAtOnce
  for (int n = 0; n < kCopiesOfThread; ++n) {
    const int i = n * kThreads + static_cast<int>(threadIdx.x);
    if (kCopies % kThreads != 0 && i >= kCopies) break;
    const int row = i / kChunks, chunk = i % kChunks;
    const Partner partner = tables.partners[row];
    int offset = partner.offset, value_offset = partner.value_offset;
    bool is_there = is_within(limits, partner);
    if (walk.is_additional()) {
      is_there = row < kAdditional - walk.at[2];
      offset = row * params.additional_key.token[2];
      value_offset = row * params.additional_value.token[2];
    }
    if (!is_there) offset = value_offset = 0;
    if (KeySide::kChunks == kChunks || chunk < KeySide::kChunks) {
      copy_chunk(stage + KeySide::place(row, chunk),
                 rows + offset + chunk * 16, is_there);
    }
    if (ValueSide::kChunks == kChunks || chunk < ValueSide::kChunks) {
      copy_chunk(
          stage + KeySide::kBytes + ValueSide::place(row, chunk),
          value_rows + value_offset + chunk * 16, is_there);
    }
  }
  if constexpr (kConfig.of_keys) {
    const HaloFacts* facts = head_facts(params, batch, head) + token_number(params, token);
    for (int row = static_cast<int>(threadIdx.x); row < kPartners; row += kThreads) {
      const Partner partner = tables.partners[row];
      const bool is_there = is_within(limits, partner);
      copy_chunk(stage + static_cast<unsigned>(kRowsBytes + row * 16),
                 reinterpret_cast<const char*>(facts + (is_there ? partner.number : 0)), is_there);
    }
  }
}

// Sums of the gradients of a head's queries, after the facts of all: rows of padded columns. Those
// of 16 columns lie in the order in which the threads of sums of products have them, four
// each: thread q has columns 2q, 2q + 1, 2q + 8, 2q + 9.
inline constexpr int kColumnsOfSums = 16 * KeySide::kSteps;
VECINA_DEVICE float* query_sums(const HaloParams& params, int batch, int head) {
  long long number = static_cast<long long>(batch) * params.heads + head;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) number *= params.axes[a].extent;
  return reinterpret_cast<float*>(params.facts + params.facts_bytes) + number * kColumnsOfSums;
}

// Columns that copies leave out shall be zero.
VECINA_DEVICE void clear_shared(uint4* shared, int bytes) {
  if constexpr (kIsPadded) {
    for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += kThreads) {
      shared[i] = make_uint4(0, 0, 0, 0);
    }
  }
}

// A thread's part of two rows in global memory, as first factor of products over columns: of step
// k, or of all.
template <int kColumns>
VECINA_DEVICE void load_step(const char* row, const char* next_row, int k, unsigned (&words)[4]) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  load_words<4>(row + 32 * k + 4 * q, &words[0]);
  load_words<4>(next_row + 32 * k + 4 * q, &words[1]);
  words[2] = words[3] = 0;
  if (16 * k + 8 < kColumns) {
    load_words<4>(row + 32 * k + 16 + 4 * q, &words[2]);
    load_words<4>(next_row + 32 * k + 16 + 4 * q, &words[3]);
  }
}
template <int kColumns, int kSteps>
VECINA_DEVICE void load_rows(const char* row, const char* next_row, unsigned (&words)[kSteps][4]) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) load_step<kColumns>(row, next_row, k, words[k]);
}

// Of head_dim: whose sums the launch has, in steps of 16.
inline constexpr int kFirstStep = kConfig.first_column / 16;
inline constexpr int kStepsOfSums = (kConfig.end_column - kConfig.first_column + 15) / 16;
VECINA_DEVICE constexpr bool has_sums(int step) {
  return step >= kFirstStep && step < kFirstStep + kStepsOfSums;
}

// What a thread names of a side for load_matrices (products over columns) and load_transposed
// (over partners).
template <class Side>
VECINA_DEVICE unsigned place_by_columns() {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return static_cast<unsigned>((lane % 8 + lane / 16 * 8) * Side::kRowBytes + lane / 8 % 2 * 16);
}
template <class Side>
VECINA_DEVICE unsigned place_by_rows() {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return static_cast<unsigned>(lane % 16 * Side::kRowBytes + lane / 16 * 16);
}

// Owners' rows in shared memory after the stages, where registers are needed for other things or
// all warps want them.
inline constexpr bool kHasKeyRows = kConfig.shares_key || kConfig.adds_queries;
inline constexpr int kValueRowsAt = kStages * kStageBytes;
inline constexpr int kKeyRowsAt =
    kValueRowsAt + (kConfig.shares_value ? kRows * kBoxes * ValueSide::kRowBytes : 0);
inline constexpr int kRowsEnd =
    kKeyRowsAt + (kHasKeyRows ? kRows * kBoxes * KeySide::kRowBytes : 0);
template <class Side>
VECINA_DEVICE void share_step(const unsigned (&words)[4], int k, int place) {
  extern __shared__ uint4 shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  char* rows = reinterpret_cast<char*>(shared) + place +
               (16 * warp + lane / 4) * Side::kRowBytes + lane % 4 * 4;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    store_words<4>(rows + w % 2 * 8 * Side::kRowBytes + w / 2 * 16 + 32 * k, &words[w]);
  }
}
template <class Side, int kSteps>
VECINA_DEVICE void share_rows(const unsigned (&words)[kSteps][4], int place) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) share_step<Side>(words[k], k, place);
  __syncwarp();
}
// Of gradients: owners' rows that are never in registers as a whole.
inline constexpr int kLongColumns = 256;
inline constexpr bool kHasLongKeys = kKeyColumns > kLongColumns;
inline constexpr bool kHasLongValues = kValueColumns > kLongColumns;
// From global memory, a few steps at a time.
inline constexpr int kStepsAtOnce = 2;
template <int kColumns>
VECINA_DEVICE void copy_rows(const char* row, const char* next_row, int place) {
#pragma unroll kStepsAtOnce
  for (int k = 0; k < Side<kColumns>::kSteps; ++k) {
    unsigned words[4];
    load_step<kColumns>(row, next_row, k, words);
    share_step<Side<kColumns>>(words, k, place);
  }
  __syncwarp();
}
// What a thread names of its warp's for load_matrices.
template <class Side>
VECINA_DEVICE unsigned place_of_shared_rows(int place) {
  extern __shared__ uint4 shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  return shared_address(shared) + static_cast<unsigned>(place + kRows * warp * Side::kRowBytes) +
         place_by_rows<Side>();
}

// 16 columns of a warp's rows: as loaded from shared memory, or those in registers.
template <bool kIsShared>
VECINA_DEVICE auto columns_of(const unsigned (&shared)[4], const unsigned (&own)[4])
    -> const unsigned (&)[4] {
  if constexpr (kIsShared) {
    return shared;
  } else {
    return own;
  }
}
// sums += 16 columns of rows . 16 partners (words: those of load_matrices).
VECINA_DEVICE void add_columns(const unsigned (&rows)[4], const unsigned (&words)[4],
                               float (&sums)[2][4]) {
  multiply(Element{}, sums[0], rows[0], rows[1], rows[2], rows[3], words[0], words[1]);
  multiply(Element{}, sums[1], rows[0], rows[1], rows[2], rows[3], words[2], words[3]);
}

// A first factor of 16 partners made of sums.
struct Weights {
  unsigned words[4];
};
VECINA_DEVICE Weights pack_weights(const float (&sums)[2][4]) {
  return {{pack(Element{}, sums[0][0], sums[0][1]), pack(Element{}, sums[0][2], sums[0][3]),
           pack(Element{}, sums[1][0], sums[1][1]), pack(Element{}, sums[1][2], sums[1][3])}};
}
// sums += weights * columns 16c to 16c + 15 of 16 partners.
template <int kTiles>
VECINA_DEVICE void add_rows(const Weights& weights, const unsigned (&words)[4], int c,
                            float (&sums)[kTiles][4]) {
  const unsigned(&w)[4] = weights.words;
  multiply(Element{}, sums[2 * c], w[0], w[1], w[2], w[3], words[0], words[1]);
  multiply(Element{}, sums[2 * c + 1], w[0], w[1], w[2], w[3], words[2], words[3]);
}

template <int kTiles>
VECINA_DEVICE void clear(float (&sums)[kTiles][4]) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = 0.0f;
}

// Of gradients: a warp's 16 rows with 16 partners: products over columns (logits, grad_output .
// value), from which come weights and gradients of logits, first factors of what is added to the
// sums.
struct Pairs {
  float logits[2][4], differences[2][4];
};
struct Factors {
  Weights weights, gradients;
};

// A row's bits of the thread's partners alone: 8k + e at 2k + e.
VECINA_DEVICE unsigned pack_bits(Mask mask) {
  const auto pack = [](unsigned bits) {  // of two steps
    bits &= 0x03030303u;
    bits |= bits >> 6;
    return (bits & 0xfu) | (bits >> 12 & 0xf0u);
  };
  return pack(static_cast<unsigned>(mask)) | pack(static_cast<unsigned>(mask >> 32)) << 8;
}
// The weight of a pair. The product is volatile: else the compiler would compute it of pairs that
// are seen alone, each with a load of the scale.
VECINA_DEVICE float weight_of(float dot, float scale, float below, bool is_seen) {
  float logit;
  asm volatile("fma.rn.f32 %0, %1, %2, %3;" : "=f"(logit) : "f"(dot), "f"(scale), "f"(below));
  return power_of_two(is_seen ? logit : -infinity());
}

inline constexpr int kBits = kStep / 4;  // of a step
inline constexpr unsigned kBitsOfStep = (1u << kBits) - 1;
VECINA_DEVICE bool is_visible(unsigned bits, int k, int e) { return (bits >> (2 * k + e)) & 1; }

// The bias of a thread's rows with the partners of a tile, in powers of two.
template <bool kHasBias>
struct RowBias {
  VECINA_DEVICE void begin(const HaloParams&, int) {}
  VECINA_DEVICE float at(int, int, bool) const { return 0.0f; }
};
template <>
struct RowBias<true> {
  const char* head;  // of the first part
  const char* rows[kRowsOfThread];
  unsigned partners;  // in shared memory, from the thread's first on
  bool is_given;

  VECINA_DEVICE void begin(const HaloParams& params, int number) {
    head = head_rows(params.bias, 0, number);
  }
  VECINA_DEVICE void begin_tile(const HaloParams& params, const BiasTables<true>& tables,
                                const Walk& walk, int first_row) {
    is_given = !walk.is_additional();
    const char* tile = head;
    if constexpr (kConfig.of_keys) tile += static_cast<long long>(walk.part) * params.bias.head;
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) tile += walk.at[a] * bias_step(params, a);
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) rows[i] = tile + tables.rows[first_row + 8 * i];
    partners = shared_address(tables.partners) + threadIdx.x % 4 * 8;
  }
  // Of row i of the thread and a partner of the tile, among those of the first thread.
  VECINA_DEVICE float at(int i, int partner, bool is_seen) const {
    if (!is_seen || !is_given) return 0.0f;
    int offset;
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(offset) : "r"(partners + 4 * partner));
    return *reinterpret_cast<const float*>(rows[i] + offset) * static_cast<float>(1.0 / kLn2);
  }
};

// Walks the tiles of partners, in steps of kStep that some row of the warp sees:
//   work.multiply<false, true>(stage, -, -, step, pairs)  products over columns
//   work.weigh(stage, step, bits, pairs)                  makes factors of them (bits: is_visible)
//   work.multiply<true, true>(stage, step, factors, next step, pairs)
//                                  adds to sums, while the next step's products fill the waits;
//                                  one after the other where registers do not suffice for that
// Where tiles leave sums (kHasTileSums), also, by all warps:
//   work.begin_tile(..., tile's number, steps)  before the first product, after a barrier
//   work.end_tile(number)          after the last
//   work.add_tile(number)          what warps share of a tile, a barrier later: of the tile before
template <class Pairs, class Factors, class Work>
VECINA_DEVICE void walk_partners(const HaloParams& params, const Tile& tile, const Tables& tables,
                                 int batch, int head, bool is_cleaned, Work& work) {
  extern __shared__ uint4 shared[];
  const unsigned stages = shared_address(shared);
  const int first_row =
      static_cast<int>(threadIdx.x) / 32 * kRows + static_cast<int>(threadIdx.x) % 32 / 4;
  const int tiles = count_tiles(tile);
  Walk walk, next;
  load_tile(params, tile, next, tables, batch, head, stages);
  end_copies();
  next.advance(tile);
#pragma unroll 1
  for (int number = 0; number < tiles; ++number) {
    // Of two rows in a word.
    unsigned masks[kRowsOfThread / 2], any = 0;
#pragma unroll
    for (int i = 0; i < kRowsOfThread / 2; ++i) {
      masks[i] = pack_bits(visible_partners(tables, walk, first_row + 16 * i)) |
                 pack_bits(visible_partners(tables, walk, first_row + 16 * i + 8)) << 16;
      any |= masks[i] | masks[i] >> 16;
    }
    unsigned steps = 0;  // that the warp takes, a bit each
#pragma unroll
    for (int step = 0; step < kPartners / kStep; ++step) {
      if ((any >> (kBits * step) & kBitsOfStep) != 0) steps |= 1u << step;
    }
    steps = __reduce_or_sync(0xffffffffu, steps);

    wait_for_copies<0>();
    __syncthreads();
    if constexpr (kHasTileSums) {
      work.begin_tile(params, tile, tables, walk, batch, head, number, steps);
    }
    if constexpr (kConfig.has_bias) work.bias.begin_tile(params, tables, walk, first_row);
    walk = next;
    const int offset = number % kStages * kStageBytes;
    const unsigned stage = stages + static_cast<unsigned>(offset);
    if (is_cleaned) {
      clean_shared(reinterpret_cast<char*>(shared) + offset, kRowsBytes);
      __syncthreads();
    }
    Pairs pairs;
    Factors factors = {};
    int step = __ffs(static_cast<int>(steps)) - 1;
    if (steps != 0) work.template multiply<false, true>(stage, 0, factors, step, pairs);
    if (number + 1 < tiles) {  // while those products are under way
      load_tile(params, tile, next, tables, batch, head,
                stages + static_cast<unsigned>((number + 1) % kStages * kStageBytes));
    }
    end_copies();
    next.advance(tile);
#pragma unroll 1
    while (steps != 0) {
      unsigned bits[kRowsOfThread];
#pragma unroll
      for (int i = 0; i < kRowsOfThread; ++i) {
        bits[i] = masks[i / 2] >> (16 * (i % 2) + kBits * step) & kBitsOfStep;
      }
      factors = work.weigh(stage, step, bits, pairs);
      const int now = step;
      steps &= steps - 1;
      if (steps == 0) {
        work.template multiply<true, false>(stage, now, factors, 0, pairs);
      } else {
        step = __ffs(static_cast<int>(steps)) - 1;
        if constexpr (kRows == 16) {
          work.template multiply<true, true>(stage, now, factors, step, pairs);
        } else {
          work.template multiply<true, false>(stage, now, factors, 0, pairs);
          work.template multiply<false, true>(stage, 0, factors, step, pairs);
        }
      }
    }
    // What warps share of the tile before is complete.
    if constexpr (kHasTileSums) {
      work.end_tile(number);
      if (number > 0) work.add_tile(number - 1);
    }
  }
  if constexpr (kHasTileSums) {
    __syncthreads();
    work.add_tile(tiles - 1);
  }
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_TILES_CUH_
