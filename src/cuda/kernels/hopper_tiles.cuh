// SPDX-License-Identifier: MIT
// What a block computes: which queries, which tiles of keys, in which order. Every warp works this
// out for itself.
//
// A block's tiles of keys begin at the first key that any of its queries sees, not at multiples of
// their size. They are walked with the pair axis slowest, so that what one warpgroup needs is one
// run of them; what another alone needs, it passes over.
#ifndef VECINA_CUDA_KERNELS_HOPPER_TILES_CUH_
#define VECINA_CUDA_KERNELS_HOPPER_TILES_CUH_

#include "config.h"
#include "core/window.h"
#include "hopper_params.h"
#include "small_geometry.cuh"  // division
#include "types.h"

namespace vecina::cuda {

inline constexpr HopperLayout kLayout = hopper_layout(kConfig);
inline constexpr int kFirstAxis = 3 - kConfig.rank;
inline constexpr int kWarpgroups = kConfig.warpgroups;
inline constexpr int kPair = kConfig.pair_axis;
inline constexpr int kOuter = kPair == 0 ? 1 : 0, kInner = kPair == 2 ? 1 : 2;  // the other axes
inline constexpr int kThreads = 128 * (kWarpgroups + 1);
// Attention, which has one axis: its window is as long as the sample, perhaps empty.
inline constexpr bool kMayCoverSamples = kConfig.has_lengths && kConfig.rank == 1;

// Keys of a full window.
VECINA_DEVICE int window_size(const HopperAxis& axis, int extent) {
  return kMayCoverSamples ? na_min(axis.kernel_size, extent) : axis.kernel_size;
}

// Of an axis in one dilation group; a query beyond the last sees what the last sees.
VECINA_DEVICE Range keys_along(const HopperAxis& axis, int extent, int num_queries, int query) {
  const NaAxis dense = {extent, window_size(axis, extent), kConfig.is_strided ? axis.stride : 1,
                        kConfig.is_causal && axis.is_causal != 0};
  const int i = na_query_to_axis(na_min(query, num_queries - 1), axis.output_stride);
  return {na_window_begin(dense, i), na_min(na_window_end(dense, i), extent)};
}

struct Block {
  int batch, head, head_kv;  // the first of the packed heads
  bool is_empty;             // has no queries: its dilation group is shorter than others, say
  // Along each axis, in tokens of the dilation group:
  int group[3], extent[3], num_queries[3];
  int first_query[3];  // of the first warpgroup
  int first_key[3];
  int count[3];    // tiles of keys
  Range whole[3];  // keys that all queries see, from the first key on; not of the pair axis
  // Along the pair axis, of each warpgroup:
  bool is_idle[kWarpgroups];  // all its queries lie beyond the last
  int first_tile[kWarpgroups], last_tile[kWarpgroups];
  bool has_short[kWarpgroups];  // the last tiles
  Range pair_whole[kWarpgroups];

  VECINA_DEVICE int inner_tiles() const { return count[kOuter] * count[kInner]; }
  VECINA_DEVICE int window_tiles() const { return count[kPair] * inner_tiles(); }
  VECINA_DEVICE int query(int axis, int warpgroup) const {
    return first_query[axis] + (axis == kPair ? warpgroup * kConfig.query_box[axis] : 0);
  }
  // From the dilation group to the whole axis.
  VECINA_DEVICE int token(const HopperParams& params, int axis, int i) const {
    return kConfig.is_dilated ? na_group_to_axis(i, params.axes[axis].dilation, group[axis]) : i;
  }
};

VECINA_DEVICE int num_blocks(const HopperParams& params) {
  return kConfig.has_lengths ? params.first_blocks[params.num_samples] : params.num_blocks;
}

VECINA_DEVICE int sample_of(const HopperParams& params, int number) {
  int sample = 0, beyond = params.num_samples;
  while (beyond - sample > 1) {
    const int middle = (sample + beyond) / 2;
    (number < params.first_blocks[middle] ? beyond : sample) = middle;
  }
  return sample;
}

// Where the turn is one box, the first warpgroup has it and others are idle.
VECINA_DEVICE Block block_of(const HopperParams& params, HopperTurn turn) {
  Block block;
  int tile[3], sample = 0, number = turn.block;
  if constexpr (kConfig.has_lengths) {
    sample = sample_of(params, number);
    number -= params.first_blocks[sample];
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      tile[a] = 0;
      if (a < kFirstAxis) continue;
      const int tiles = params.samples[sample].tiles[a];
      tile[a] = number % tiles;
      number /= tiles;
    }
  } else {
    tile[2] = divide_off(number, params.tiles2, params.axes[2].tiles);
    tile[1] = tile[0] = 0;
    if constexpr (kFirstAxis < 2) tile[1] = divide_off(number, params.tiles1, params.axes[1].tiles);
    if constexpr (kFirstAxis < 1) tile[0] = divide_off(number, params.tiles0, params.axes[0].tiles);
  }
  const int pack = divide_off(number, params.packs, params.num_packs);
  block.head = pack * kConfig.packed_heads;
  block.head_kv = divide(pack, params.packs_per_group);
  block.batch = kConfig.has_lengths ? sample : number;
  block.is_empty = false;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const HopperAxis& axis = params.axes[a];
    int extent = axis.extent, num_queries = axis.num_queries;
    if constexpr (kConfig.has_lengths) {
      extent = params.samples[sample].extent[a];
      num_queries = params.samples[sample].num_queries[a];
    }
    block.group[a] = 0;
    block.extent[a] = extent;
    block.num_queries[a] = num_queries;
    if constexpr (kConfig.is_dilated) {
      block.group[a] = divide_off(tile[a], params.dilations[a], axis.dilation);
      block.extent[a] = na_group_length(extent, axis.dilation, block.group[a]);
      block.num_queries[a] = block.extent[a];
    }
    const int box = kConfig.query_box[a];
    block.first_query[a] = tile[a] * box * (a == kPair ? kWarpgroups : 1);
    if (a == kPair) block.first_query[a] += na_max(turn.box, 0) * box;
    if (block.first_query[a] >= block.num_queries[a]) block.is_empty = true;
    if (a < kFirstAxis) {
      block.first_key[a] = 0;
      block.count[a] = 1;
      block.whole[a] = {0, 1};
      continue;
    }
    const Range first =
        keys_along(axis, block.extent[a], block.num_queries[a], block.first_query[a]);
    const Range last =
        keys_along(axis, block.extent[a], block.num_queries[a], block.first_query[a] + box - 1);
    block.first_key[a] = first.begin;
    // A sample without keys has one tile that lies beyond them.
    if (kMayCoverSamples && extent == 0) block.first_key[a] = 1;
    if (kConfig.has_lengths) block.count[a] = 0;  // if all of the block is idle
    if (a != kPair) {
      block.whole[a] = {last.begin - first.begin, first.end - first.begin};
      block.count[a] = (last.end - first.begin + kConfig.key_box[a] - 1) / kConfig.key_box[a];
      continue;
    }
#pragma unroll
    for (int w = 0; w < kWarpgroups; ++w) {
      const int query = block.first_query[a] + w * box;
      block.is_idle[w] = query >= block.num_queries[a] || (w > 0 && turn.box != kHopperAllBoxes);
      block.first_tile[w] = 0;
      block.last_tile[w] = -1;
      block.has_short[w] = false;
      block.pair_whole[w] = {0, 0};
      if (!block.is_idle[w]) {
        const Range low = keys_along(axis, block.extent[a], block.num_queries[a], query);
        const Range high = keys_along(axis, block.extent[a], block.num_queries[a], query + box - 1);
        block.first_tile[w] = (low.begin - first.begin) / kConfig.key_box[a];
        const int last = high.end - first.begin - 1;
        block.last_tile[w] = (kMayCoverSamples ? na_max(last, 0) : last) / kConfig.key_box[a];
        block.has_short[w] =
            block.last_tile[w] > block.first_tile[w] &&
            last - block.last_tile[w] * kConfig.key_box[a] < kConfig.short_rows;
        block.pair_whole[w] = {high.begin - first.begin, low.end - first.begin};
        block.count[a] = block.last_tile[w] + 1;
      }
    }
  }
  return block;
}

// What the copy engine sees of a block's tensors, and the number of its sample there.
VECINA_DEVICE const HopperMaps& maps_of(const HopperParams& params, int batch) {
  if constexpr (kConfig.has_lengths) return params.samples[batch].maps;
  return params.maps;
}
VECINA_DEVICE int batch_in_maps(int batch) { return kConfig.has_lengths ? 0 : batch; }

// The blocks of a multiprocessor, one after another: f(block).
template <class Function>
VECINA_DEVICE void for_each_block(const HopperParams& params, Function f) {
  HopperTurns turns(static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), num_blocks(params),
                    kWarpgroups);
  HopperTurn turn;
  while (turns.next(&turn)) {
    const Block block = block_of(params, turn);
    if (!block.is_empty) f(block);
  }
}

// The block's tiles of keys in the order in which they pass through shared memory: f(tile along the
// pair axis, the outer, the inner of the other axes).
template <class Function>
VECINA_DEVICE void for_each_tile(const Block& block, Function f) {
  for (int pair = 0; pair < block.count[kPair]; ++pair) {
    for (int outer = 0; outer < block.count[kOuter]; ++outer) {
#pragma unroll 1
      for (int inner = 0; inner < block.count[kInner]; ++inner) f(pair, outer, inner);
    }
  }
}

// A place in the ring of stages, and the parity of the barriers there.
struct Stage {
  int index = 0;
  unsigned parity = 0;

  VECINA_DEVICE void advance() {
    if (++index == kConfig.stages) {
      index = 0;
      parity ^= 1;
    }
  }
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_TILES_CUH_
