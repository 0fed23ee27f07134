// SPDX-License-Identifier: MIT
// Which keys of a tile a query sees, as bits: made by a warp that has nothing else to do, for tiles
// that some query of a warpgroup sees in part.
//
// A thread of a warpgroup holds, of a query's row, columns 8 * j + 2 * q + e (q its place among
// four); bit 2 * j + e of its words is for that column. For each axis and t, a table in shared
// memory has the words of the columns whose key lies before t, so that the keys from b to e are
// table[e] & ~table[b], whatever the box.
#ifndef VECINA_CUDA_KERNELS_HOPPER_MASK_CUH_
#define VECINA_CUDA_KERNELS_HOPPER_MASK_CUH_

#include "hopper_ptx.h"
#include "hopper_tiles.cuh"

namespace vecina::cuda {

inline constexpr int kMaskWords = kLayout.mask_words;  // of one thread and query
inline constexpr int kMaskBytes = 16 * kMaskWords;     // of a query
inline constexpr bool kIsPadded = kLayout.key_rows < kLayout.tile_keys;

// By all threads, before anything else.
VECINA_DEVICE void write_mask_tables(unsigned shared) {
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    constexpr int kBox1 = kConfig.key_box[1], kBox2 = kConfig.key_box[2];
    const int box = a == 0 ? kConfig.key_box[0] : a == 1 ? kBox1 : kBox2;
    for (int i = static_cast<int>(threadIdx.x); i < (box + 1) * 4 * kMaskWords; i += kThreads) {
      const int word = i % kMaskWords, q = i / kMaskWords & 3, before = i / kMaskWords / 4;
      unsigned bits = 0;
      for (int bit = 0; bit < 32; ++bit) {
        const int entry = word * 32 + bit;
        const int column = (entry >> 1) * 8 + q * 2 + (entry & 1);
        const int key = a == 2   ? column % kBox2
                        : a == 1 ? column / kBox2 % kBox1
                                 : column / (kBox2 * kBox1);
        if (entry < kLayout.tile_keys / 4 && column < kLayout.key_rows && key < before) {
          bits |= 1u << bit;
        }
      }
      set_shared_word(shared + kLayout.tables + (kLayout.table[a] + i) * 4, bits);
    }
  }
}

VECINA_DEVICE uint4 both(uint4 a, uint4 b) {
  return make_uint4(a.x & b.x, a.y & b.y, a.z & b.z, a.w & b.w);
}
VECINA_DEVICE uint4 without(uint4 a, uint4 b) {
  return make_uint4(a.x & ~b.x, a.y & ~b.y, a.z & ~b.z, a.w & ~b.w);
}
VECINA_DEVICE uint4 all_of(unsigned bits) { return make_uint4(bits, bits, bits, bits); }

// Words of the keys from begin to end along one axis, counted from the tile's first.
template <int a>
VECINA_DEVICE void see_only(unsigned shared, int begin, int end, uint4 (&words)[kMaskWords]) {
  constexpr int kBox = kConfig.key_box[a];
  if constexpr (kBox == 1 && (!kIsPadded || a < 2)) {
    const uint4 bits = all_of(begin <= 0 && end > 0 ? ~0u : 0u);
#pragma unroll
    for (int x = 0; x < kMaskWords; ++x) words[x] = both(words[x], bits);
  } else {
    const unsigned table = shared + kLayout.tables + kLayout.table[a] * 4;
    const unsigned low = table + na_min(na_max(begin, 0), kBox) * kMaskBytes;
    const unsigned high = table + na_min(na_max(end, 0), kBox) * kMaskBytes;
#pragma unroll
    for (int x = 0; x < kMaskWords; ++x) {
      words[x] = both(words[x], without(shared_quad(high + x * 16), shared_quad(low + x * 16)));
    }
  }
}

// Words of the first `count` columns.
VECINA_DEVICE unsigned first_columns(int count, int q, int word) {
  const int mine = count - 2 * q;
  const int bits = mine <= 0 ? 0 : 2 * (mine >> 3) + na_min(mine & 7, 2);
  const int here = na_min(na_max(bits - 32 * word, 0), 32);
  return here == 32 ? ~0u : (1u << here) - 1;
}

// By one warp: for every tile a bit for each warpgroup that sees all of it, and the words of the
// others' queries.
VECINA_DEVICE void write_masks(const HopperParams& params, unsigned shared) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  constexpr int kBox1 = kConfig.query_box[1], kBox2 = kConfig.query_box[2];
  Stage stage;
  for_each_block(params, [&](const Block& block) {
  // Every query's window, from the block's first key on.
#pragma unroll 1
    for (int i = 0; i < 2 * kWarpgroups; ++i) {
      const int row = (lane + 32 * i) & (kHopperRows - 1);
      const int query = kConfig.packed_heads > 1 ? row % kLayout.query_tokens : row;
      const int place[3] = {query / (kBox1 * kBox2), query / kBox2 % kBox1, query % kBox2};
      Range seen[3] = {{0, 1}, {0, 1}, {0, 1}};
#pragma unroll
      for (int a = kFirstAxis; a < 3; ++a) {
        seen[a] = keys_along(params.axes[a], block.extent[a], block.num_queries[a],
                             block.query(a, i >> 1) + place[a]);
        seen[a].begin -= block.first_key[a];
        seen[a].end -= block.first_key[a];
      }
      const unsigned bounds = shared + kLayout.bounds + (lane + 32 * i) * 32;
      set_shared_quad(bounds, make_uint4(seen[0].begin, seen[1].begin, seen[2].begin, 0));
      if constexpr (kConfig.is_causal) {
        set_shared_quad(bounds + 16, make_uint4(seen[0].end, seen[1].end, seen[2].end, 0));
      }
    }
    const auto publish = [&] {
      __syncwarp();
      if (lane == 0) arrive(shared + kLayout.key_full + stage.index * 8);
      stage.advance();
    };
    for_each_tile(block, [&](int pair, int outer, int inner) {
      int first[3];
      first[kPair] = pair * kConfig.key_box[kPair];
      first[kOuter] = outer * kConfig.key_box[kOuter];
      first[kInner] = inner * kConfig.key_box[kInner];
      bool sees_others = !kIsPadded;
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        if (a != kPair) {
          sees_others = sees_others && first[a] >= block.whole[a].begin &&
                        first[a] + kConfig.key_box[a] <= block.whole[a].end;
        }
      }
      bool sees_all[kWarpgroups];
      unsigned interior = 0;
#pragma unroll
      for (int w = 0; w < kWarpgroups; ++w) {
        sees_all[w] = sees_others && first[kPair] >= block.pair_whole[w].begin &&
                      first[kPair] + kConfig.key_box[kPair] <= block.pair_whole[w].end;
        interior |= sees_all[w] ? 1u << w : 0u;
      }
      wait(shared + kLayout.key_empty + stage.index * 8, stage.parity ^ 1);
      if (lane == 0) set_shared_word(shared + kLayout.interior + stage.index * 4, interior);
#pragma unroll
      for (int w = 0; w < kWarpgroups; ++w) {
        if (sees_all[w] || pair < block.first_tile[w] || pair > block.last_tile[w]) continue;
#pragma unroll
        for (int i = 2 * w; i < 2 * w + 2; ++i) {
          const int row = lane + 32 * i;
          const uint4 begin = shared_quad(shared + kLayout.bounds + row * 32);
          uint4 end;
          if constexpr (kConfig.is_causal) {
            end = shared_quad(shared + kLayout.bounds + row * 32 + 16);
          } else {
            end = make_uint4(begin.x + window_size(params.axes[0], block.extent[0]),
                             begin.y + window_size(params.axes[1], block.extent[1]),
                             begin.z + window_size(params.axes[2], block.extent[2]), 0);
          }
          uint4 words[kMaskWords];
#pragma unroll
          for (int x = 0; x < kMaskWords; ++x) words[x] = all_of(~0u);
          if constexpr (kFirstAxis == 0) {
            see_only<0>(shared, static_cast<int>(begin.x) - first[0],
                        static_cast<int>(end.x) - first[0], words);
          }
          if constexpr (kFirstAxis <= 1) {
            see_only<1>(shared, static_cast<int>(begin.y) - first[1],
                        static_cast<int>(end.y) - first[1], words);
          }
          see_only<2>(shared, static_cast<int>(begin.z) - first[2],
                      static_cast<int>(end.z) - first[2], words);
          const unsigned to =
              shared + kLayout.masks + (stage.index * kWarpgroups * kHopperRows + row) * kMaskBytes;
#pragma unroll
          for (int x = 0; x < kMaskWords; ++x) set_shared_quad(to + x * 16, words[x]);
        }
      }
      publish();
    });
    if constexpr (kConfig.has_additional) {
      for (int tile = 0; tile < params.additional_tiles; ++tile) {
        const int count =
            na_min(params.additional_tokens - tile * kLayout.key_rows, kLayout.key_rows);
        wait(shared + kLayout.key_empty + stage.index * 8, stage.parity ^ 1);
        const bool is_whole = count == kLayout.tile_keys;
        if (lane == 0) {
          set_shared_word(shared + kLayout.interior + stage.index * 4, is_whole ? ~0u : 0u);
        }
        if (!is_whole) {
          // The same for every query: a lane writes the words that it holds in place i.
          const unsigned to =
              shared + kLayout.masks + stage.index * kWarpgroups * kHopperRows * kMaskBytes;
          const int place = lane % (4 * kMaskWords);
          const unsigned bits = first_columns(count, place / kMaskWords, place % kMaskWords);
          for (int i = lane; i < kWarpgroups * kHopperRows * 4 * kMaskWords; i += 32) {
            set_shared_word(to + i * 4, bits);
          }
        }
        publish();
      }
    }
  });
}

// By a warpgroup: logits that are not to be seen become -infinity.
VECINA_DEVICE void hide(const unsigned (&words)[2][kMaskWords],
                        float (&logits)[kLayout.tile_keys / 2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int entry = 0; entry < kLayout.tile_keys / 4; ++entry) {
      const int i = (entry >> 1) * 4 + h * 2 + (entry & 1);
      logits[i] = words[h][entry >> 5] & 1u << (entry & 31) ? logits[i] : -infinity();
    }
  }
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_MASK_CUH_
