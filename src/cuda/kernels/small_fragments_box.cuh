// SPDX-License-Identifier: MIT
// What small_fragments.cu is compiled for, and where a warp's rows, queries of a box of positions
// and heads of one key head, and the keys of their union of windows lie.
#ifndef VECINA_CUDA_KERNELS_SMALL_FRAGMENTS_BOX_CUH_
#define VECINA_CUDA_KERNELS_SMALL_FRAGMENTS_BOX_CUH_

#include "config.h"
#include "small_geometry.cuh"
#include "small_params.h"
#include "types.h"

namespace vecina::cuda {

using Element = Types<kConfig.dtype>::Element;
using Params = SmallParams<int, kConfig.rank>;

inline constexpr bool kIsF32 = kConfig.dtype == kF32;
inline constexpr int kColumns = kConfig.head_dim;
static_assert(kColumns % 32 == 0, "a warp's loads cover 32 columns");
inline constexpr int kWords = kIsF32 ? kColumns / 4 : kColumns / 8;  // of a key row in a thread
inline constexpr int kValueWords = kIsF32 ? kColumns / 8 : kColumns / 16;  // of a value row
inline constexpr int kBytes = static_cast<int>(sizeof(Element));

inline constexpr int kRowHeads = kConfig.heads;
static_assert(kConfig.box[0] * kConfig.box[1] * kConfig.box[2] * kRowHeads == 16, "rows of a warp");
inline constexpr int kBoxes = kConfig.boxes[0] * kConfig.boxes[1] * kConfig.boxes[2];
inline constexpr int kSplit = kConfig.warps_per_box;
inline constexpr bool kIsPair = kSplit == 2;  // each warp finishes half of the rows
inline constexpr int kThreads = 32 * kBoxes * kSplit;
inline constexpr int kUnion = kConfig.union_size[0] * kConfig.union_size[1] * kConfig.union_size[2];
inline constexpr int kAdditional = kConfig.additional_tokens;
inline constexpr int kList = kUnion + kAdditional;
// The 8 keys of a tile are neighbours along the innermost axis.
inline constexpr bool kHasWholeTiles = kConfig.union_size[2] % 8 == 0;
// Tiles of 8 keys of a warp; 16-bit products take two at a time.
inline constexpr int kTilesOfSplit = ((kList + 7) / 8 + kSplit - 1) / kSplit;
inline constexpr int kTiles = kIsF32 ? kTilesOfSplit : (kTilesOfSplit + 1) / 2 * 2;
inline constexpr bool kHasMasks = kList != 8 * kTiles * kSplit || !kConfig.is_full[0] ||
                                  !kConfig.is_full[1] || !kConfig.is_full[2];
// Of the innermost axis.
inline constexpr int kRowTiles = kHasWholeTiles ? kConfig.union_size[2] / 8 : 1;
inline constexpr bool kHasOuterAxes = kUnion > kConfig.union_size[2];
// Tiles of a warp follow each other along one axis, or rows of tiles do.
inline constexpr bool kHasEvenSteps = kHasWholeTiles && kConfig.union_size[0] == 1 &&
                                      (!kHasOuterAxes || kTiles % kRowTiles == 0) &&
                                      !kConfig.is_cut[1] && !kConfig.is_cut[2];
// Rows of the union are tiles, few enough for the bits of a word, and each warp has as many.
inline constexpr bool kHasRowMasks = kHasEvenSteps && kHasOuterAxes && kRowTiles == 1 &&
                                     kAdditional == 0 && 8 * kTiles * kSplit == kUnion &&
                                     kTiles * kSplit < 32;
inline constexpr float kLowest = -3e38f;  // below every logit but -infinity

// Of each 32 columns of a query or key row a thread has 8, in 16 bytes of 16-bit types and in two
// runs of 16 bytes of f32. Runs that are side by side with those of the other threads of a row are
// whole sectors of memory: half as many for each load. Of many tiles, though, ptxas moves the loads
// of second runs down between products; there they had better lie in sectors of the first, which
// are in L1 by then.
inline constexpr bool kHasRunsApart = !kIsF32 || kTiles <= 4;
inline constexpr int kRunOfThread = kHasRunsApart ? 16 : 32;  // bytes from thread to thread
inline constexpr int kSecondRun = kHasRunsApart ? 16 : 4;     // columns after the first

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

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_FRAGMENTS_BOX_CUH_
