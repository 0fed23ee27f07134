// SPDX-License-Identifier: MIT
// Forward with tensor cores for small windows in a single wave of blocks: every warp loads the
// fragments of its products straight from global memory, 16 bytes a load, with no shared memory in
// between. A warp's 16 rows (queries of a box of positions, and heads of one key head) meet the
// keys of their union of windows, those outside of a row's own window masked.
//
// Any order of the summed index is right if both factors have it: query and key give a thread
// columns 8q to 8q + 7 of each 32 (q = lane % 4), so the sums of logits are the first factor of the
// second product as they lie; value gives it columns 4g to 4g + 3 (g = lane / 4) of two keys, so it
// ends with 8 neighbouring columns of the output.
//
// A tile of 8 keys is a piece of a row of the union where rows are whole tiles: its place is known
// when the kernel is compiled. Other unions are one list of keys, cut into tiles every 8 keys.
//
// f32 is computed in three TF32 products whose two small terms have sums of their own.
//
// Masked keys count 0 times their value, which is not 0 for a NaN or infinity. Where a result is
// not finite, the block computes again without such elements, and then each of its rows alone: the
// row keeps the first of the two unless it sees such an element.
#include "config.h"
#include "matrix.cuh"
#include "small_geometry.cuh"
#include "small_params.h"
#include "types.h"

namespace vecina::cuda {
namespace {

using Element = Types<kConfig.dtype>::Element;
using Params = SmallParams<int>;

constexpr bool kIsF32 = kConfig.dtype == kF32;
constexpr int kColumns = kConfig.head_dim;
static_assert(kColumns % 32 == 0, "a warp's loads cover 32 columns");
constexpr int kWords = kIsF32 ? kColumns / 4 : kColumns / 8;        // of a key row in a thread
constexpr int kValueWords = kIsF32 ? kColumns / 8 : kColumns / 16;  // of a value row
constexpr int kBytes = static_cast<int>(sizeof(Element));

constexpr int kRowHeads = kConfig.heads;
static_assert(kConfig.box[0] * kConfig.box[1] * kConfig.box[2] * kRowHeads == 16, "rows of a warp");
constexpr int kBoxes = kConfig.boxes[0] * kConfig.boxes[1] * kConfig.boxes[2];
constexpr int kSplit = kConfig.warps_per_box;
constexpr bool kIsPair = kSplit == 2;  // each warp finishes half of the rows
constexpr int kThreads = 32 * kBoxes * kSplit;
constexpr int kUnion = kConfig.union_size[0] * kConfig.union_size[1] * kConfig.union_size[2];
constexpr int kAdditional = kConfig.additional_tokens;
constexpr int kList = kUnion + kAdditional;
// The 8 keys of a tile are neighbours along the innermost axis.
constexpr bool kHasWholeTiles = kConfig.union_size[2] % 8 == 0;
// Tiles of 8 keys of a warp; 16-bit products take two at a time.
constexpr int kTilesOfSplit = ((kList + 7) / 8 + kSplit - 1) / kSplit;
constexpr int kTiles = kIsF32 ? kTilesOfSplit : (kTilesOfSplit + 1) / 2 * 2;
constexpr bool kHasMasks = kList != 8 * kTiles * kSplit || !kConfig.is_full[0] ||
                           !kConfig.is_full[1] || !kConfig.is_full[2];
constexpr int kPitch = kColumns + 4;  // of partial sums in shared memory
constexpr int kRowTiles = kHasWholeTiles ? kConfig.union_size[2] / 8 : 1;  // of the innermost axis
constexpr bool kHasOuterAxes = kUnion > kConfig.union_size[2];
// Tiles of a warp follow each other along one axis, or rows of tiles do.
constexpr bool kHasEvenSteps = kHasWholeTiles && kConfig.union_size[0] == 1 &&
                               (!kHasOuterAxes || kTiles % kRowTiles == 0) && !kConfig.is_cut[1] &&
                               !kConfig.is_cut[2];
// Rows of the union are tiles, few enough for the bits of a word, and each warp has as many.
constexpr bool kHasRowMasks = kHasEvenSteps && kHasOuterAxes && kRowTiles == 1 &&
                              kAdditional == 0 && 8 * kTiles * kSplit == kUnion &&
                              kTiles * kSplit < 32;
constexpr float kLowest = -3e38f;  // below every logit but -infinity

// Without a sign, what follows from a thread's number costs fewer instructions. Where heads are
// rows, the compiler then moves the loads of values down: 5.29 us where it was 5.13 (2-D GQA, on an
// H200).
template <bool has_sign>
struct ThreadNumberType {
  using Type = unsigned;
};
template <>
struct ThreadNumberType<true> {
  using Type = int;
};
using ThreadNumber = ThreadNumberType<(kRowHeads > 1)>::Type;

VECINA_DEVICE SmallWindow window_rule(int a) {
  return {kConfig.kernel_size[a], kConfig.stride[a], kConfig.dilation[a], 1, kConfig.is_causal[a]};
}

// The keys, or the values, that a warp's box sees.
struct Side {
  const char* sample;      // of the block
  unsigned origin;         // of the union's first key, in bytes
  int step[3];             // from key to key
  const char* additional;  // the first additional token
  int additional_step;
};

// A warp's box: where its queries are and which keys they see. Coordinates of a dilation group.
struct Box {
  int batch, head, head_kv;  // head: of the first row
  int split;                 // which part of the list of keys
  int residue[3], num_queries[3];
  int first[3];     // query
  int begin[3];     // of the union
  int last_key[3];  // of the group, counted from the union's first
  Side key, value;
};

// One of a thread's two rows.
struct Row {
  int head, token[3];
  bool is_query;           // not beyond the last
  int begin[3], count[3];  // of its window in the union
};

VECINA_DEVICE Box make_box(const Params& params) {
  Box box = {};
  const BlockPlace block = block_place<kConfig.rank, 1, kConfig.has_flat_grid>(params);
  const int warp = static_cast<int>(ThreadNumber(threadIdx.x) / 32);
  box.split = warp % kSplit;
  int place = warp / kSplit;
  int key_offset = 0, value_offset = 0;
#pragma unroll
  for (int a = 2; a >= 3 - kConfig.rank; --a) {
    const SmallAxis<int>& axis = params.axes[2 - a];
    const int tile = block.tile[a];
    const int dilation = kConfig.dilation[a];
    box.residue[a] = tile % dilation;
    box.first[a] = (tile / dilation) * (kConfig.box[a] * kConfig.boxes[a]) +
                   place % kConfig.boxes[a] * kConfig.box[a];
    place /= kConfig.boxes[a];
    box.num_queries[a] = na_group_length(axis.num_queries, dilation, box.residue[a]);
    const int extent = na_group_length(axis.extent, dilation, box.residue[a]);
    const NaAxis dense = {extent, kConfig.kernel_size[a], kConfig.stride[a], kConfig.is_causal[a]};
    // The union may begin before the first window, so that it ends within the group.
    int begin = 0;
    if (!kConfig.is_full[a]) {
      begin = na_min(na_window_begin(dense, na_min(box.first[a], box.num_queries[a] - 1)),
                     na_max(extent - kConfig.union_size[a], 0));
    }
    box.begin[a] = begin;
    box.last_key[a] = extent - 1 - begin;
    const int token = na_group_to_axis(begin, dilation, box.residue[a]);
    key_offset += token * axis.token.key;
    value_offset += token * axis.token.value;
    box.key.step[a] = dilation * axis.token.key;
    box.value.step[a] = dilation * axis.token.value;
  }
  box.batch = block.batch;
  box.head = block.head_block * kRowHeads;
  box.head_kv = divide(block.head_block, params.blocks_per_group);
  box.key.sample = params.key + static_cast<long long>(box.batch) * params.batch.key;
  box.key.origin = static_cast<unsigned>(box.head_kv * params.head.key + key_offset);
  box.value.sample = params.value + static_cast<long long>(box.batch) * params.batch.value;
  box.value.origin = static_cast<unsigned>(box.head_kv * params.head.value + value_offset);
  if constexpr (kAdditional > 0) {
    box.key.additional = params.additional_key +
                         static_cast<long long>(box.batch) * params.additional_key_batch +
                         box.head_kv * params.additional_key_head;
    box.value.additional = params.additional_value +
                           static_cast<long long>(box.batch) * params.additional_value_batch +
                           box.head_kv * params.additional_value_head;
    box.key.additional_step = params.additional_key_token;
    box.value.additional_step = params.additional_value_token;
  }
  return box;
}

// Row 0 to 15 of a box.
VECINA_DEVICE Row make_row(const Params& params, const Box& box, int number) {
  Row row = {};
  row.head = box.head + number % kRowHeads;
  int place = number / kRowHeads;
  row.is_query = true;
#pragma unroll
  for (int a = 2; a >= 3 - kConfig.rank; --a) {
    const int unclamped = box.first[a] + place % kConfig.box[a];
    place /= kConfig.box[a];
    row.is_query = row.is_query && unclamped < box.num_queries[a];
    const int i = na_min(unclamped, box.num_queries[a] - 1);
    row.token[a] = na_group_to_axis(i, kConfig.dilation[a], box.residue[a]);
    if (kConfig.is_full[a]) continue;
    const int extent =
        na_group_length(params.axes[2 - a].extent, kConfig.dilation[a], box.residue[a]);
    const NaAxis dense = {extent, kConfig.kernel_size[a], kConfig.stride[a], kConfig.is_causal[a]};
    const int begin = na_window_begin(dense, i);
    row.begin[a] = begin - box.begin[a];
    row.count[a] = kConfig.is_causal[a] ? na_min(na_window_end(dense, i), extent) - begin
                                        : kConfig.kernel_size[a];
  }
  return row;
}

// A place in the list of keys: coordinates in the union, or an additional token.
struct Key {
  unsigned number;
  int at[3];
};

// A part's tile may lie beyond `count` keys of the list.
VECINA_DEVICE constexpr bool may_exceed(int tile, int count) {
  return 8 * (kTiles * (kSplit - 1) + tile) + 7 >= count;
}

// Key `place`, below 8, of a tile of the part `split`. Places beyond the list are its last keys
// again, which is_visible leaves out.
VECINA_DEVICE Key list_key(int split, int tile, int place) {
  Key key = {};
  key.number = static_cast<unsigned>(8 * (kTiles * split + tile) + place);
  if constexpr (kHasWholeTiles) {
    constexpr bool is_even = kTiles % kRowTiles == 0;  // each part begins with a row of tiles
    int in_row = kTiles * split + tile, row = 0;
    if (kHasOuterAxes) {
      row = is_even ? kTiles / kRowTiles * split + tile / kRowTiles : in_row / kRowTiles;
      in_row = is_even ? tile % kRowTiles : in_row % kRowTiles;
      if (may_exceed(tile, kUnion)) row = na_min(row, kUnion / kConfig.union_size[2] - 1);
    } else if (may_exceed(tile, kUnion)) {
      in_row = na_min(in_row, kRowTiles - 1);
    }
    key.at[2] = 8 * in_row + place;
    key.at[1] = kConfig.rank < 3 ? row : row % kConfig.union_size[1];
    key.at[0] = kConfig.rank < 3 ? 0 : row / kConfig.union_size[1];
  } else {
    unsigned rest = key.number;
    if (may_exceed(tile, kList)) rest = min(rest, kList - 1u);
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      const auto size = static_cast<unsigned>(kConfig.union_size[a]);
      key.at[a] = static_cast<int>(a <= 3 - kConfig.rank ? rest : rest % size);
      rest = a <= 3 - kConfig.rank ? 0u : rest / size;
    }
  }
  return key;
}
// Beyond the union come the additional tokens.
VECINA_DEVICE bool may_be_additional(int tile) {
  return kAdditional > 0 && may_exceed(tile, kUnion);
}

// A thread's way along the rows of key, or of value: the one at `place` of each tile.
struct Rows {
  const Side* side;
  int split, place, column;  // column: in bytes
  const char* first;         // of the first tile, if steps are even

  VECINA_DEVICE Rows(const Side& of, const Box& box, int in_tile, int column_bytes)
      : side(&of), split(box.split), place(in_tile), column(column_bytes) {
    unsigned offset = of.origin + static_cast<unsigned>(column_bytes + in_tile * of.step[2]);
    if (kSplit > 1) {
      offset += static_cast<unsigned>(
          split * (kHasOuterAxes ? kTiles / kRowTiles * of.step[1] : 8 * kTiles * of.step[2]));
    }
    first = of.sample + offset;
  }

  VECINA_DEVICE const char* at(const Box& box, int tile) const {
    if (kHasEvenSteps && !may_exceed(tile, kUnion)) {
      if (!kHasOuterAxes) return first + static_cast<long long>(8 * tile) * side->step[2];
      return first + static_cast<long long>(tile / kRowTiles) * side->step[1] +
             static_cast<long long>(tile % kRowTiles * 8) * side->step[2];
    }
    const Key key = list_key(split, tile, place);
    unsigned offset = side->origin + static_cast<unsigned>(column);
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      if (kConfig.union_size[a] == 1) continue;
      const int clamped = kConfig.is_cut[a] ? na_min(key.at[a], box.last_key[a]) : key.at[a];
      offset += static_cast<unsigned>(clamped * side->step[a]);
    }
    if (may_be_additional(tile) && key.number >= kUnion) {
      const int token = na_min(static_cast<int>(key.number) - kUnion, kAdditional - 1);
      return side->additional + (token * side->additional_step + column);
    }
    return side->sample + offset;
  }
};

VECINA_DEVICE bool is_visible(const Row& row, const Key& key, int tile) {
  bool is_inside = true;
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    if (kConfig.is_full[a]) continue;
    is_inside = is_inside && static_cast<unsigned>(key.at[a] - row.begin[a]) <
                                 static_cast<unsigned>(row.count[a]);
  }
  if (may_exceed(tile, kUnion)) {
    is_inside = key.number < kUnion ? is_inside : key.number < kList;
  }
  return is_inside;
}

// The masks of a thread's row where rows of the union are tiles: which tiles it sees, a bit each,
// and where the sums of its two keys of a seen tile begin.
struct RowMask {
  unsigned tiles;
  float start[2];  // 0 or -infinity

  VECINA_DEVICE RowMask(const Box& box, const Row& row, int place) {
    if constexpr (!kHasRowMasks) return;
    tiles = kConfig.is_full[1] ? ~0u : ((1u << row.count[1]) - 1u) << row.begin[1];
    if (kSplit > 1) tiles >>= box.split * kTiles;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const bool is_inside =
          kConfig.is_full[2] || static_cast<unsigned>(place + e - row.begin[2]) <
                                    static_cast<unsigned>(row.count[2]);
      start[e] = is_inside ? 0.0f : -infinity();
    }
  }
  VECINA_DEVICE float of(int tile, int e) const {
    return (tiles >> tile & 1u) != 0u ? start[e] : -infinity();
  }
};

// A thread's columns of a query or key row, from its first on: 8 of each 32.
VECINA_DEVICE void load_key_row(const char* row, unsigned (&words)[kWords]) {
#pragma unroll
  for (int w = 0; w < kWords; w += 4) {
    const int column = kIsF32 ? w / 8 * 32 + w % 8 : w / 4 * 32;
    load_words<16>(row + column * kBytes, words + w);
  }
}
// Of a value row: 4 of each 32.
VECINA_DEVICE void load_value_row(const char* row, unsigned (&words)[kValueWords]) {
#pragma unroll
  for (int m = 0; m < kColumns / 32; ++m) {
    load_words<4 * kBytes>(row + 32 * m * kBytes, words + m * (kValueWords * 32 / kColumns));
  }
}

// Sums of a warp: its part of the keys, for the thread's two rows.
struct Sums {
  float maximum[2], total[2];  // of logits in powers of two; of their exponentials
  float output[kColumns / 8][4];
};

VECINA_DEVICE float over_quad(float x, bool is_sum) {
  const float other = __shfl_xor_sync(0xffffffffu, x, 1);
  x = is_sum ? x + other : larger(x, other);
  const float last = __shfl_xor_sync(0xffffffffu, x, 2);
  return is_sum ? x + last : larger(x, last);
}

// logits += query . key for all the warp's keys.
template <class E>
VECINA_DEVICE void multiply_keys(const unsigned (&query)[2][kWords],
                                 const unsigned (&key)[kTiles][kWords], float scale,
                                 float (&logits)[kTiles][4]) {
  if constexpr (kIsF32) {
    Split rows[2][kWords];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        rows[i][w] = split_rounded(__uint_as_float(query[i][w]) * scale);
      }
    }
    float small[kTiles][4];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) small[j][0] = small[j][1] = small[j][2] = small[j][3] = 0.0f;
    constexpr int kAtOnce = kTiles < 4 ? kTiles : 4;  // dependent products stay apart
#pragma unroll
    for (int first = 0; first < kTiles; first += kAtOnce) {
#pragma unroll
      for (int w = 0; w < kWords; w += 2) {
        Split columns[kAtOnce][2];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          if (first + j >= kTiles) continue;
          columns[j][0] = split_cut(__uint_as_float(key[first + j][w]));
          columns[j][1] = split_cut(__uint_as_float(key[first + j][w + 1]));
          multiply_tf32(small[first + j], rows[0][w].low, rows[1][w].low, rows[0][w + 1].low,
                        rows[1][w + 1].low, columns[j][0].high, columns[j][1].high);
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          if (first + j >= kTiles) continue;
          multiply_tf32(logits[first + j], rows[0][w].high, rows[1][w].high, rows[0][w + 1].high,
                        rows[1][w + 1].high, columns[j][0].high, columns[j][1].high);
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          if (first + j >= kTiles) continue;
          multiply_tf32(small[first + j], rows[0][w].high, rows[1][w].high, rows[0][w + 1].high,
                        rows[1][w + 1].high, columns[j][0].low, columns[j][1].low);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) logits[j][e] += small[j][e];
    }
  } else {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int w = 0; w < kWords; w += 2) {
        multiply(E{}, logits[j], query[0][w], query[1][w], query[0][w + 1], query[1][w + 1],
                 key[j][w], key[j][w + 1]);
      }
    }
  }
}

// output = weights * value.
template <class E>
VECINA_DEVICE void multiply_values(const float (&weights)[kTiles][4],
                                   const unsigned (&value)[kTiles][2][kValueWords],
                                   float (&output)[kColumns / 8][4]) {
#pragma unroll
  for (int t = 0; t < kColumns / 8; ++t) {
    output[t][0] = output[t][1] = output[t][2] = output[t][3] = 0.0f;
  }
  if constexpr (kIsF32) {
    float small[kColumns / 8][4];
#pragma unroll
    for (int t = 0; t < kColumns / 8; ++t) {
      small[t][0] = small[t][1] = small[t][2] = small[t][3] = 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const Split a0 = split_rounded(weights[j][0]), a1 = split_rounded(weights[j][2]);
      const Split a2 = split_rounded(weights[j][1]), a3 = split_rounded(weights[j][3]);
      Split columns[kColumns / 8][2];
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        columns[t][0] = split_cut(__uint_as_float(value[j][0][t]));
        columns[t][1] = split_cut(__uint_as_float(value[j][1][t]));
        multiply_tf32(small[t], a0.low, a1.low, a2.low, a3.low, columns[t][0].high,
                      columns[t][1].high);
      }
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        multiply_tf32(output[t], a0.high, a1.high, a2.high, a3.high, columns[t][0].high,
                      columns[t][1].high);
      }
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        multiply_tf32(small[t], a0.high, a1.high, a2.high, a3.high, columns[t][0].low,
                      columns[t][1].low);
      }
    }
#pragma unroll
    for (int t = 0; t < kColumns / 8; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) output[t][e] += small[t][e];
    }
  } else {
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      const unsigned a0 = pack(E{}, weights[j][0], weights[j][1]);
      const unsigned a1 = pack(E{}, weights[j][2], weights[j][3]);
      const unsigned a2 = pack(E{}, weights[j + 1][0], weights[j + 1][1]);
      const unsigned a3 = pack(E{}, weights[j + 1][2], weights[j + 1][3]);
#pragma unroll
      for (int t = 0; t < kColumns / 8; ++t) {
        const unsigned halves = t % 2 == 0 ? 0x5410 : 0x7632;  // the same column of two keys
        multiply(E{}, output[t], a0, a1, a2, a3,
                 __byte_perm(value[j][0][t / 2], value[j][1][t / 2], halves),
                 __byte_perm(value[j + 1][0][t / 2], value[j + 1][1][t / 2], halves));
      }
    }
  }
}

// The whole of a warp's work. is_cleaned: elements that are not finite count as 0.
template <bool is_cleaned>
VECINA_DEVICE Sums attend(const Params& params, const Box& box, const Row (&rows)[2]) {
  const int lane = static_cast<int>(ThreadNumber(threadIdx.x) % 32), g = lane / 4, q = lane % 4;

  unsigned query[2][kWords], key[kTiles][kWords], value[kTiles][2][kValueWords];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int offset = rows[i].head * params.head.query + 8 * q * kBytes;
#pragma unroll
    for (int a = 3 - kConfig.rank; a < 3; ++a) {
      offset += rows[i].token[a] * params.axes[2 - a].token.query;
    }
    load_key_row(params.query + static_cast<long long>(box.batch) * params.batch.query +
                     static_cast<unsigned>(offset),
                 query[i]);
  }
  const Rows keys(box.key, box, g, 8 * q * kBytes);
  const Rows values[2] = {Rows(box.value, box, 2 * q, 4 * g * kBytes),
                          Rows(box.value, box, 2 * q + 1, 4 * g * kBytes)};
#pragma unroll
  for (int j = 0; j < kTiles; ++j) load_key_row(keys.at(box, j), key[j]);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) load_value_row(values[e].at(box, j), value[j][e]);
  }
  // Products of f32 last long enough for the values to arrive meanwhile, unless they are few.
  if constexpr (!kIsF32 || kTiles <= 2) keep_loads_above();

  // Masks, while the loads travel: the sums of masked logits begin at -infinity.
  float logits[kTiles][4];
  const RowMask masks[2] = {RowMask(box, rows[0], 2 * q), RowMask(box, rows[1], 2 * q)};
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if constexpr (kHasMasks && kHasRowMasks) {
        logits[j][e] = masks[0].of(j, e);
        logits[j][2 + e] = masks[1].of(j, e);
        continue;
      }
      const Key place = list_key(box.split, j, 2 * q + e);
      logits[j][e] = !kHasMasks || is_visible(rows[0], place, j) ? 0.0f : -infinity();
      logits[j][2 + e] = !kHasMasks || is_visible(rows[1], place, j) ? 0.0f : -infinity();
    }
  }
  if constexpr (is_cleaned) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) key[j][w] = without_infinities(Element{}, key[j][w]);
#pragma unroll
      for (int w = 0; w < kValueWords; ++w) {
        value[j][0][w] = without_infinities(Element{}, value[j][0][w]);
        value[j][1][w] = without_infinities(Element{}, value[j][1][w]);
      }
    }
  }
  multiply_keys<Element>(query, key, params.scale, logits);

  Sums sums;
  const float scale = kIsF32 ? 1.0f : params.scale;  // f32: in the query already
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float maximum = kLowest;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      maximum = larger(maximum, larger(logits[j][2 * i], logits[j][2 * i + 1]));
    }
    sums.maximum[i] = larger(over_quad(maximum, false) * scale, kLowest);
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 2 * i; e < 2 * i + 2; ++e) {
        logits[j][e] = power_of_two(kIsF32 ? logits[j][e] - sums.maximum[i]
                                           : fmaf(logits[j][e], scale, -sums.maximum[i]));
        total += logits[j][e];
      }
    }
    sums.total[i] = total;
  }
  multiply_values<Element>(logits, value, sums.output);
  let_next_start();
#pragma unroll
  for (int i = 0; i < 2; ++i) sums.total[i] = over_quad(sums.total[i], true);
  return sums;
}

VECINA_DEVICE bool are_finite(const Sums& sums) {
  float all[4] = {sums.total[0], sums.total[1], 0.0f, 0.0f};  // four chains of additions
#pragma unroll
  for (int t = 0; t < kColumns / 8; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) all[e] += sums.output[t][e];
  }
  return is_finite((all[0] + all[1]) + (all[2] + all[3]));
}

VECINA_DEVICE char* output_row(const Params& params, const Box& box, const Row& row) {
  int offset = row.head * params.head.output;
#pragma unroll
  for (int a = 3 - kConfig.rank; a < 3; ++a) {
    offset += row.token[a] * params.axes[2 - a].token.output;
  }
  return params.output + static_cast<long long>(box.batch) * params.batch.output +
         static_cast<unsigned>(offset);
}

VECINA_DEVICE void store_lse(const Params& params, const Box& box, const Row& row, float lse) {
  int offset = row.head * params.head.lse;
#pragma unroll
  for (int a = 3 - kConfig.rank; a < 3; ++a) {
    offset += row.token[a] * params.axes[2 - a].token.lse;
  }
  *reinterpret_cast<float*>(params.lse + static_cast<long long>(box.batch) * params.batch.lse +
                            static_cast<unsigned>(offset)) = lse;
}

// A warp computes one row anew, key by key, and stores it if anything that it sees, or what was
// stored, is not finite.
VECINA_DEVICE void attend_alone(const Params& params, const Box& box, const Row& row) {
  constexpr int kMine = kColumns / 32;
  const int lane = static_cast<int>(ThreadNumber(threadIdx.x) % 32);
  int query_offset = row.head * params.head.query;
  int key_offset = box.head_kv * params.head.key, value_offset = box.head_kv * params.head.value;
  AxisWindow windows[3] = {{0, 0, 1, 0}, {0, 0, 1, 0}, {0, 0, 1, 0}};
#pragma unroll
  for (int a = 3 - kConfig.rank; a < 3; ++a) {
    const SmallAxis<int>& axis = params.axes[2 - a];
    windows[a] = window_along(axis.extent, window_rule(a), row.token[a]);
    query_offset += windows[a].position * axis.token.query;
    key_offset += windows[a].first * axis.token.key;
    value_offset += windows[a].first * axis.token.value;
  }
  const char* query_row =
      params.query + static_cast<long long>(box.batch) * params.batch.query + query_offset;
  const char* key = params.key + static_cast<long long>(box.batch) * params.batch.key + key_offset;
  const char* value =
      params.value + static_cast<long long>(box.batch) * params.batch.value + value_offset;
  float query[kMine], output[kMine], maximum = -infinity(), total = 0.0f;
  bool is_good = true;
#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    load<Element, 1>(query_row + (32 * m + lane) * kBytes, query + m);
    is_good = is_good && is_finite(query[m]);
    output[m] = 0.0f;
  }
  const auto add = [&](const char* key_row, const char* value_row) {
    float logit = 0.0f;
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      float column;
      load<Element, 1>(key_row + (32 * m + lane) * kBytes, &column);
      logit = fmaf(query[m], column, logit);
      is_good = is_good && is_finite(column);
    }
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      logit += __shfl_xor_sync(0xffffffffu, logit, distance);
    }
    logit *= params.scale;
    const float next = larger(maximum, logit);
    const float shift = next == -infinity() ? 0.0f : next;
    const float kept = power_of_two(maximum - shift), weight = power_of_two(logit - shift);
    maximum = next;
    total = total * kept + weight;
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      float column;
      load<Element, 1>(value_row + (32 * m + lane) * kBytes, &column);
      output[m] = fmaf(weight, column, output[m] * kept);
      is_good = is_good && is_finite(column);
    }
  };
#pragma unroll 1
  for (int x = 0; x < windows[0].count; ++x) {
#pragma unroll 1
    for (int y = 0; y < windows[1].count; ++y) {
#pragma unroll 1
      for (int z = 0; z < windows[2].count; ++z) {
        add(key + (x * box.key.step[0] + y * box.key.step[1] + z * box.key.step[2]),
            value + (x * box.value.step[0] + y * box.value.step[1] + z * box.value.step[2]));
      }
    }
  }
#pragma unroll 1
  for (int token = 0; token < kAdditional; ++token) {
    add(box.key.additional + token * box.key.additional_step,
        box.value.additional + token * box.value.additional_step);
  }

  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  const float lse = ((maximum == -infinity() ? 0.0f : maximum) + logarithm_of_two(total)) *
                    static_cast<float>(kLn2);
  char* stored = output_row(params, box, row);
  is_good = is_good && is_finite(lse);
#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    output[m] *= inverse;
    float before;
    load<Element, 1>(stored + (32 * m + lane) * kBytes, &before);
    is_good = is_good && is_finite(output[m]) && is_finite(before);
  }
  if (__all_sync(0xffffffffu, is_good)) return;
#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    store<Element, 1>(output + m, stored + (32 * m + lane) * kBytes);
  }
  if (params.lse != nullptr && lane == 0) store_lse(params, box, row, lse);
}

// A sum of exponentials is 0, or 1 and more.
VECINA_DEVICE float inverse_of(float total) { return total == 0.0f ? 0.0f : reciprocal(total); }

// A thread's part of one row's sums: columns 8q to 8q + 7 of each 32.
struct RowSums {
  float maximum, total;
  float output[kColumns / 32][8];

  VECINA_DEVICE RowSums(const Sums& sums, int i) : maximum(sums.maximum[i]), total(sums.total[i]) {
#pragma unroll
    for (int m = 0; m < kColumns / 32; ++m) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        output[m][t] = sums.output[4 * m + t][2 * i];
        output[m][4 + t] = sums.output[4 * m + t][2 * i + 1];
      }
    }
  }

  VECINA_DEVICE void add(const RowSums& other) {
    const float both = larger(maximum, other.maximum);
    const float weight = power_of_two(maximum - both);
    const float other_weight = power_of_two(other.maximum - both);
    maximum = both;
    total = weight * total + other_weight * other.total;
#pragma unroll
    for (int m = 0; m < kColumns / 32; ++m) {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        output[m][c] = weight * output[m][c] + other_weight * other.output[m][c];
      }
    }
  }

  VECINA_DEVICE void store(const Params& params, const Box& box, const Row& row, int q) const {
    if (!row.is_query) return;
    const float inverse = inverse_of(total);
    char* to = output_row(params, box, row);
#pragma unroll
    for (int m = 0; m < kColumns / 32; ++m) {
      float columns[8];
#pragma unroll
      for (int c = 0; c < 8; ++c) columns[c] = output[m][c] * inverse;
      char* eight = to + (32 * m + 8 * q) * kBytes;
      if constexpr (kIsF32) {
        vecina::cuda::store<Element, 4>(columns, eight);
        vecina::cuda::store<Element, 4>(columns + 4, eight + 16);
      } else {
        vecina::cuda::store<Element, 8>(columns, eight);
      }
    }
    if (params.lse != nullptr && q == 0) {
      store_lse(params, box, row, (maximum + logarithm_of_two(total)) * static_cast<float>(kLn2));
    }
  }
};

// What the two warps of a box hand each other: each its second row, in pieces of a whole warp.
struct PairSlots {
  float4* pieces;
  float2* totals;

  VECINA_DEVICE explicit PairSlots(float4* shared)
      : pieces(shared), totals(reinterpret_cast<float2*>(shared + kBoxes * 2 * kColumns / 4 * 8)) {}

  VECINA_DEVICE static int slot(int warp, int piece) {
    return (warp * (kColumns / 16) + piece) * 32 + static_cast<int>(ThreadNumber(threadIdx.x) % 32);
  }
  VECINA_DEVICE void put(int warp, const RowSums& row) const {
#pragma unroll
    for (int p = 0; p < kColumns / 16; ++p) {
      const float* from = row.output[p / 2] + p % 2 * 4;
      pieces[slot(warp, p)] = make_float4(from[0], from[1], from[2], from[3]);
    }
    totals[warp * 32 + static_cast<int>(ThreadNumber(threadIdx.x) % 32)] =
        make_float2(row.maximum, row.total);
  }
  VECINA_DEVICE void get(int warp, RowSums* row) const {
#pragma unroll
    for (int p = 0; p < kColumns / 16; ++p) {
      const float4 four = pieces[slot(warp, p)];
      float* to = row->output[p / 2] + p % 2 * 4;
      to[0] = four.x;
      to[1] = four.y;
      to[2] = four.z;
      to[3] = four.w;
    }
    const float2 both = totals[warp * 32 + static_cast<int>(ThreadNumber(threadIdx.x) % 32)];
    row->maximum = both.x;
    row->total = both.y;
  }
};

// The block's work; false if a result is not finite, and some may not be written then.
template <bool is_cleaned>
VECINA_DEVICE bool attend_and_store(const Params& params) {
  extern __shared__ float4 shared[];  // kSplit > 1: partial outputs, then maxima and totals

  const int lane = static_cast<int>(ThreadNumber(threadIdx.x) % 32), g = lane / 4, q = lane % 4;
  const int warp = static_cast<int>(ThreadNumber(threadIdx.x) / 32);
  const int number = warp / kSplit;  // of the box in its block
  const Box box = make_box(params);
  Row rows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // The first of the two is the one that this warp of a pair finishes.
    rows[i] = make_row(params, box, g + 8 * (kIsPair ? i ^ box.split : i));
  }
  if constexpr (!is_cleaned) wait_for_previous();
  const Sums sums = attend<is_cleaned>(params, box, rows);
  const bool is_good = is_cleaned || are_finite(sums);

  if constexpr (kSplit == 1) {
    if (!__all_sync(0xffffffffu, is_good)) return false;
#pragma unroll
    for (int i = 0; i < 2; ++i) RowSums(sums, i).store(params, box, rows[i], q);
  } else if constexpr (kIsPair) {
    const PairSlots slots(shared);
    slots.put(warp, RowSums(sums, 1));
    if (__syncthreads_and(is_good) == 0) return false;
    RowSums mine(sums, 0), other = mine;
    slots.get(warp ^ 1, &other);
    mine.add(other);
    mine.store(params, box, rows[0], q);
  } else {
    float* partial = reinterpret_cast<float*>(shared);
    float2* totals = reinterpret_cast<float2*>(partial + kSplit * kBoxes * 16 * kPitch);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = (box.split * kBoxes + number) * 16 + g + 8 * i;
      const RowSums sum(sums, i);
      if (q == 0) totals[row] = make_float2(sum.maximum, sum.total);
#pragma unroll
      for (int m = 0; m < kColumns / 32; ++m) {
        float4* to = reinterpret_cast<float4*>(partial + row * kPitch + 32 * m + 8 * q);
        const float* from = sum.output[m];
        to[0] = make_float4(from[0], from[1], from[2], from[3]);
        to[1] = make_float4(from[4], from[5], from[6], from[7]);
      }
    }
    if (__syncthreads_and(is_good) == 0) return false;
    // Each warp merges rows of its own box: 4 columns a thread.
    constexpr int kThreadsOfRow = kColumns / 4;
    constexpr int kParts = 16 * kThreadsOfRow;  // of a box
#pragma unroll 1
    for (int part = box.split * 32 + lane; part < kParts; part += kSplit * 32) {
      const int in_box = part / kThreadsOfRow, column = part % kThreadsOfRow * 4;
      float maximum = kLowest;
      float2 each[kSplit];
      float4 columns[kSplit];
#pragma unroll
      for (int s = 0; s < kSplit; ++s) {
        const int row = (s * kBoxes + number) * 16 + in_box;
        each[s] = totals[row];
        columns[s] = *reinterpret_cast<const float4*>(partial + row * kPitch + column);
        maximum = larger(maximum, each[s].x);
      }
      float total = 0.0f, output[4] = {};
#pragma unroll
      for (int s = 0; s < kSplit; ++s) {
        const float weight = power_of_two(each[s].x - maximum);
        total += weight * each[s].y;
        output[0] += weight * columns[s].x;
        output[1] += weight * columns[s].y;
        output[2] += weight * columns[s].z;
        output[3] += weight * columns[s].w;
      }
      const Row row = make_row(params, box, in_box);
      if (!row.is_query) continue;
      const float inverse = inverse_of(total);
#pragma unroll
      for (int c = 0; c < 4; ++c) output[c] *= inverse;
      store<Element, 4>(output, output_row(params, box, row) + column * kBytes);
      if (params.lse != nullptr && column == 0) {
        store_lse(params, box, row, (maximum + logarithm_of_two(total)) * static_cast<float>(kLn2));
      }
    }
  }
  return true;
}

// For a block (with kSplit 1: a warp) whose results are not all finite.
__device__ __noinline__ void repair(const Params& params) {
  if constexpr (kSplit > 1) __syncthreads();  // what the first attempt left in shared memory
  attend_and_store<true>(params);
  if constexpr (kSplit > 1) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  const Box box = make_box(params);
#pragma unroll 1
  for (int r = box.split; r < 16; r += kSplit) {
    const Row row = make_row(params, box, r);
    if (row.is_query) attend_alone(params, box, row);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    small_fragments_forward(const __grid_constant__ Params params) {
  if (!attend_and_store<false>(params)) repair(params);
}

}  // namespace vecina::cuda
