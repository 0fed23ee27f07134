// SPDX-License-Identifier: MIT
// One thread of a warp copies boxes into shared memory: keys, values and queries have a warp each,
// so that none waits for another.
#ifndef VECINA_CUDA_KERNELS_HOPPER_COPY_CUH_
#define VECINA_CUDA_KERNELS_HOPPER_COPY_CUH_

#include "hopper_ptx.h"
#include "hopper_tiles.cuh"

namespace vecina::cuda {

// Where the rows of a head begin, `head_stride` elements apart where tokens hold all heads.
VECINA_DEVICE BoxOrigin box_origin(int head, int head_stride, int token0, int token1, int token2,
                                   int batch) {
  if constexpr (kConfig.rank < 3) return {0, {head, token1, token2}, batch};
  if constexpr (kConfig.has_heads_for_batch) return {0, {token0, token1, token2}, head};
  return {head * head_stride, {token0, token1, token2}, batch};
}
VECINA_DEVICE void to_next_head(int head_stride, BoxOrigin* at) {
  if constexpr (kConfig.rank < 3) {
    ++at->token[0];
  } else if constexpr (kConfig.has_heads_for_batch) {
    ++at->batch;
  } else {
    at->column += head_stride;
  }
}

// All columns: one copy for each box of them, kRows rows apart in shared memory.
template <int kHeadDim, int kElementBytes, int kRows>
VECINA_DEVICE void load_rows(unsigned to, const HopperMap& map, unsigned barrier, BoxOrigin at) {
  constexpr int kRowBytes = kHeadDim * kElementBytes, kBoxBytes = hopper_box_bytes(kRowBytes);
#pragma unroll
  for (int box = 0; box < kRowBytes / kBoxBytes; ++box) {
    load_box(to, map, barrier, at);
    to += kRows * kBoxBytes;
    at.column += kBoxBytes / kElementBytes;
  }
}

// Keys (is_key) or values of every tile.
template <bool is_key>
VECINA_DEVICE void load_tiles(const HopperParams& params, unsigned shared) {
  constexpr int kHeadDim = is_key ? kConfig.head_dim : kConfig.head_dim_value;
  constexpr int kElementBytes = is_key ? hopper_key_bytes(kConfig) : kHopperValueBytes;
  constexpr unsigned kTileBytes = is_key ? kLayout.key_bytes : kLayout.value_bytes;
  const unsigned tiles = shared + (is_key ? kLayout.key : kLayout.value);
  const unsigned full = shared + (is_key ? kLayout.key_full : kLayout.value_full);
  const unsigned empty = shared + (is_key ? kLayout.key_empty : kLayout.value_empty);
  Stage stage;
  for_each_block(params, [&](const Block& block) {
    const HopperMaps& maps = maps_of(params, block.batch);
    const HopperMap& map = is_key ? maps.key : maps.value;
    const int head_stride = is_key ? params.key_head : params.value_head;
    const auto load = [&](const HopperMap& from, BoxOrigin at) {
      const unsigned barrier = full + stage.index * 8;
      wait(empty + stage.index * 8, stage.parity ^ 1);
      arrive_and_expect(barrier, kLayout.key_rows * kHeadDim * kElementBytes);
      load_rows<kHeadDim, kElementBytes, kLayout.tile_keys>(tiles + stage.index * kTileBytes, from,
                                                            barrier, at);
      stage.advance();
    };
    for_each_tile(block, [&](int pair, int outer, int inner) {
      int key[3];
      key[kPair] = block.first_key[kPair] + pair * kConfig.key_box[kPair];
      key[kOuter] = block.first_key[kOuter] + outer * kConfig.key_box[kOuter];
      key[kInner] = block.first_key[kInner] + inner * kConfig.key_box[kInner];
      load(map, box_origin(block.head_kv, head_stride, block.token(params, 0, key[0]),
                           block.token(params, 1, key[1]), block.token(params, 2, key[2]),
                           batch_in_maps(block.batch)));
    });
    if constexpr (kConfig.has_additional) {
      const HopperMap& more = is_key ? params.additional_key : params.additional_value;
      const int more_stride = is_key ? params.additional_key_head : params.additional_value_head;
      for (int tile = 0; tile < params.additional_tiles; ++tile) {
        load(more,
             box_origin(block.head_kv, more_stride, 0, 0, tile * kLayout.key_rows, block.batch));
      }
    }
  });
}

VECINA_DEVICE int query_token(const HopperParams& params, const Block& block, int axis,
                              int warpgroup) {
  return na_query_to_axis(block.token(params, axis, block.query(axis, warpgroup)),
                          params.axes[axis].output_stride);
}

// Queries of every warpgroup, and what it is to know of its work: sixteen words.
//   0 batch, head, tiles to compute (kNoMore: all work is done), tiles to pass over before them
//   4 tiles to pass over after them; how many of those to compute are short, the last
//   8 first query along each axis; 12 dilation group along each axis
inline constexpr int kNoMore = -1;

VECINA_DEVICE void load_queries(const HopperParams& params, unsigned shared) {
  unsigned parity = 0;
  for_each_block(params, [&](const Block& block) {
#pragma unroll
    for (int w = 0; w < kWarpgroups; ++w) {
      const unsigned barrier = shared + kLayout.query_full + w * 8;
      wait(shared + kLayout.query_empty + w * 8, parity ^ 1);
      const int inner = block.inner_tiles();
      const int tiles = (block.last_tile[w] - block.first_tile[w] + 1) * inner;
      const int before = tiles > 0 ? block.first_tile[w] * inner : block.window_tiles();
      const int after = block.window_tiles() - before - tiles;
      const unsigned words = shared + kLayout.tiles + w * 64;
      set_shared_quad(words, make_uint4(block.batch, block.head, tiles, before));
      set_shared_quad(words + 16, make_uint4(after, block.has_short[w] ? inner : 0, 0, 0));
      set_shared_quad(words + 32,
                      make_uint4(block.query(0, w), block.query(1, w), block.query(2, w), 0));
      if constexpr (kConfig.is_dilated) {
        set_shared_quad(words + 48, make_uint4(block.group[0], block.group[1], block.group[2], 0));
      }
      constexpr int kElementBytes = hopper_key_bytes(kConfig);
      constexpr int kRowBytes = kConfig.head_dim * kElementBytes;
      arrive_and_expect(barrier, kLayout.query_rows * kRowBytes);
      BoxOrigin at = box_origin(block.head, params.query_head, query_token(params, block, 0, w),
                                query_token(params, block, 1, w), query_token(params, block, 2, w),
                                batch_in_maps(block.batch));
      const HopperMap& map = maps_of(params, block.batch).query;
      unsigned to = shared + kLayout.query + w * kLayout.query_bytes;
#pragma unroll
      for (int h = 0; h < kConfig.packed_heads; ++h) {
        load_rows<kConfig.head_dim, kElementBytes, kHopperRows>(to, map, barrier, at);
        to += kLayout.query_tokens * hopper_box_bytes(kRowBytes);
        to_next_head(params.query_head, &at);
      }
    }
    parity ^= 1;
  });
#pragma unroll
  for (int w = 0; w < kWarpgroups; ++w) {
    wait(shared + kLayout.query_empty + w * 8, parity ^ 1);
    set_shared_quad(shared + kLayout.tiles + w * 64, make_uint4(0, 0, kNoMore, 0));
    arrive(shared + kLayout.query_full + w * 8);
  }
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_COPY_CUH_
