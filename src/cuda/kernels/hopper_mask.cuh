// SPDX-License-Identifier: MIT
// Which keys of a tile a query sees, as bits: made by a warp that has nothing else to do, for tiles
// that some query of a warpgroup sees in part.
//
// A thread of a warpgroup holds, of a query's row, columns 8 * j + 2 * q + e (q its place among
// four); bit 2 * j + e of its words is for that column. For each axis and t, a table in shared
// memory has the words of the columns whose key lies before t, so that the keys from b to e are
// table[e] & ~table[b], whatever the box. They are made for each place of a query along an axis:
// what a query sees is what it sees along every axis, which its warpgroup puts together. So there
// are some 24 words to make for a tile, not 128.
#ifndef VECINA_CUDA_KERNELS_HOPPER_MASK_CUH_
#define VECINA_CUDA_KERNELS_HOPPER_MASK_CUH_

#include "hopper_ptx.h"
#include "hopper_tiles.cuh"

namespace vecina::cuda {

inline constexpr int kMaskWords = kLayout.mask_words;  // of one thread and query
inline constexpr int kMaskBytes = 16 * kMaskWords;     // of a query, along one axis
inline constexpr int kMaskStageBytes = kLayout.places * kMaskBytes;
inline constexpr bool kIsPadded = kLayout.key_rows < kLayout.score_keys;

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

VECINA_DEVICE uint4 without(uint4 a, uint4 b) {
  return make_uint4(a.x & ~b.x, a.y & ~b.y, a.z & ~b.z, a.w & ~b.w);
}

// Words of the first `count` columns.
VECINA_DEVICE unsigned first_columns(int count, int q, int word) {
  const int mine = count - 2 * q;
  const int bits = mine <= 0 ? 0 : 2 * (mine >> 3) + na_min(mine & 7, 2);
  const int here = na_min(na_max(bits - 32 * word, 0), 32);
  return here == 32 ? ~0u : (1u << here) - 1;
}

// By one warp: for every tile a bit for each warpgroup that sees all of it, and, if others compute
// it, the words of all places.
VECINA_DEVICE void write_masks(const HopperParams& params, unsigned shared) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  Stage stage;
  for_each_block(params, [&](const Block& block) {
    // Windows along each axis, from the block's first key on.
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      const int end = a == 2 ? kLayout.places : kLayout.place[a + 1];
      for (int i = kLayout.place[a] + lane; i < end; i += 32) {
        const Range seen = keys_along(params.axes[a], block.extent[a], block.num_queries[a],
                                      block.first_query[a] + i - kLayout.place[a]);
        set_shared_pair(shared + kLayout.bounds + i * 8, seen.begin - block.first_key[a],
                        seen.end - block.first_key[a]);
      }
    }
    __syncwarp();
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
      unsigned interior = 0;
      bool is_partial = false;  // for some warpgroup that computes it
#pragma unroll
      for (int w = 0; w < kWarpgroups; ++w) {
        const bool sees_all = sees_others && first[kPair] >= block.pair_whole[w].begin &&
                              first[kPair] + kConfig.key_box[kPair] <= block.pair_whole[w].end;
        interior |= sees_all ? 1u << w : 0u;
        is_partial = is_partial ||
                     (!sees_all && pair >= block.first_tile[w] && pair <= block.last_tile[w]);
      }
      wait(shared + kLayout.key_empty + stage.index * 8, stage.parity ^ 1);
      if (lane == 0) set_shared_word(shared + kLayout.interior + stage.index * 4, interior);
      const unsigned masks = shared + kLayout.masks + stage.index * kMaskStageBytes;
      for (int i = lane; is_partial && i < kLayout.places; i += 32) {
        const int a = i < kLayout.place[1] ? 0 : i < kLayout.place[2] ? 1 : 2;
        const auto of_axis = [&](const int (&values)[3]) {
          return a == 0 ? values[0] : a == 1 ? values[1] : values[2];
        };
        const int box = of_axis(kConfig.key_box), from = of_axis(first);
        const uint2 seen = shared_pair(shared + kLayout.bounds + i * 8);
        const int begin = static_cast<int>(seen.x) - from, end = static_cast<int>(seen.y) - from;
        const unsigned table = shared + kLayout.tables + of_axis(kLayout.table) * 4;
        const unsigned low = table + na_min(na_max(begin, 0), box) * kMaskBytes;
        const unsigned high = table + na_min(na_max(end, 0), box) * kMaskBytes;
#pragma unroll
        for (int x = 0; x < kMaskBytes; x += 16) {
          set_shared_quad(masks + i * kMaskBytes + x,
                          without(shared_quad(high + x), shared_quad(low + x)));
        }
      }
      publish();
    });
    if constexpr (kConfig.has_additional) {
      for (int tile = 0; tile < params.additional_tiles; ++tile) {
        const int count =
            na_min(params.additional_tokens - tile * kLayout.key_rows, kLayout.key_rows);
        wait(shared + kLayout.key_empty + stage.index * 8, stage.parity ^ 1);
        const bool is_whole = count == kLayout.score_keys;
        if (lane == 0) {
          set_shared_word(shared + kLayout.interior + stage.index * 4, is_whole ? ~0u : 0u);
        }
        if (!is_whole) {
          // The same for every query: a lane writes the words that it holds in place i.
          const unsigned to = shared + kLayout.masks + stage.index * kMaskStageBytes;
          const int place = lane % (4 * kMaskWords);
          const unsigned bits = first_columns(count, place / kMaskWords, place % kMaskWords);
          for (int i = lane; i < kLayout.places * 4 * kMaskWords; i += 32) {
            set_shared_word(to + i * 4, bits);
          }
        }
        publish();
      }
    }
  });
}

// By a warpgroup: which words of a stage's masks are for a thread's two rows, ten bits for each
// axis, since with three axes no register is to spare.
struct MaskedRows {
  static_assert(kLayout.places * 4 <= 1 << 10);
  // Rows that lie side by side along the last axis have the same place there 8 rows on.
  static constexpr bool kIsSameAlong2 = 8 % kConfig.query_box[2] == 0;
  unsigned at[2] = {0, 0};

  VECINA_DEVICE MaskedRows(int warpgroup, int thread) {
    constexpr int kBox1 = kConfig.query_box[1], kBox2 = kConfig.query_box[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = (thread >> 5) * 16 + (thread >> 2 & 7) + 8 * h;
      const int query = kConfig.packed_heads > 1 ? row % kLayout.query_tokens : row;
      // Rows without a query see what others do.
      const int along[3] = {na_min(query / (kBox1 * kBox2), kConfig.query_box[0] - 1),
                            query / kBox2 % kBox1, query % kBox2};
#pragma unroll
      for (int a = kFirstAxis; a < 3; ++a) {
        const int place =
            kLayout.place[a] + along[a] + (a == kPair ? warpgroup * kConfig.query_box[a] : 0);
        at[h] |= static_cast<unsigned>(place * 4 + (thread & 3)) << 10 * a;
      }
    }
  }
  // `masks`: of the stage.
  VECINA_DEVICE void load(unsigned masks, unsigned (&words)[2][kMaskWords]) const {
    unsigned along[kMaskWords], along2[kMaskWords];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      unsigned all = at[h];
      asm volatile("" : "+r"(all));  // else it is taken apart ahead, into registers for each axis
      const auto address = [&](int a) { return masks + (all >> 10 * a & 0x3ffu) * kMaskWords * 4; };
      if (h == 0 || !kIsSameAlong2) shared_words(address(2), along2);
#pragma unroll
      for (int x = 0; x < kMaskWords; ++x) words[h][x] = along2[x];
#pragma unroll
      for (int a = kFirstAxis; a < 2; ++a) {
        shared_words(address(a), along);
#pragma unroll
        for (int x = 0; x < kMaskWords; ++x) words[h][x] &= along[x];
      }
    }
  }
};

// Logits that are not to be seen become -infinity.
template <int kCount>
VECINA_DEVICE void hide(const unsigned (&words)[2][kMaskWords], float (&logits)[kCount]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int entry = 0; entry < kCount / 2; ++entry) {
      const int i = (entry >> 1) * 4 + h * 2 + (entry & 1);
      logits[i] = words[h][entry >> 5] & 1u << (entry & 31) ? logits[i] : -infinity();
    }
  }
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_MASK_CUH_
