// SPDX-License-Identifier: MIT
// What a warpgroup does with its queries: products with one tile of keys after another, softmax,
// products with the values of the tile before, which run while the softmax does.
#ifndef VECINA_CUDA_KERNELS_HOPPER_ATTEND_CUH_
#define VECINA_CUDA_KERNELS_HOPPER_ATTEND_CUH_

#include "hopper_copy.cuh"
#include "hopper_epilogue.cuh"
#include "hopper_mask.cuh"
#include "hopper_ptx.h"
#include "hopper_softmax.cuh"
#include "hopper_tiles.cuh"
#include "hopper_wgmma.h"

namespace vecina::cuda {

using Element = Types<kConfig.dtype>::Element;

// A warpgroup's turn to issue its products; they go round.
struct Turns {
  int mine, next;
  static constexpr int kBoth = 256;

  VECINA_DEVICE explicit Turns(int warpgroup)
      : mine(1 + warpgroup), next(warpgroup == kWarpgroups - 1 ? 1 : 2 + warpgroup) {
    if (kConfig.is_ping_pong && warpgroup == kWarpgroups - 1) arrive_threads(1, kBoth);
  }
  VECINA_DEVICE void take() const {
    if constexpr (kConfig.is_ping_pong) sync_threads(mine, kBoth);
  }
  VECINA_DEVICE void pass() const {
    if constexpr (kConfig.is_ping_pong) arrive_threads(next, kBoth);
  }
  // The first has one turn left when all work is done.
  VECINA_DEVICE void close() const {
    if (kConfig.is_ping_pong && mine == 1) sync_threads(1, kBoth);
  }
};

// Of a thread's two rows: what their logits are multiplied with.
VECINA_DEVICE void find_scales(const HopperParams& params, const Work& work, int thread,
                               float (&scales)[2]) {
  scales[0] = scales[1] = params.scale;
  if constexpr (kConfig.query_key_dtype == kE4m3) {
    if (params.head_scale == nullptr) return;
    // Not 0, also where the product has no such number: infinite logits times 0 would be NaN.
    constexpr float kLeast = 1.17549435e-38f;
    const auto of_head = [&](int head) {
      const float scale = params.scale * params.head_scale[head];
      return fabsf(scale) < kLeast ? kLeast : scale;
    };
    if constexpr (kConfig.packed_heads == 1) {
      scales[0] = scales[1] = of_head(work.head);
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = (thread >> 5) * 16 + ((thread & 31) >> 2) + 8 * h;
        const int packed = na_min(row / kLayout.query_tokens, kConfig.packed_heads - 1);
        scales[h] = of_head(work.head + packed);
      }
    }
  }
}

// How many of a tile's keys are multiplied: a type, so that a lambda may take it.
template <int n>
struct Keys {
  static constexpr int kColumns = hopper_columns(kConfig, n);
  static constexpr int kSteps = hopper_round_up(n, kHopperDepth) / kHopperDepth;
  static constexpr bool kIsLastHalf = kColumns < kSteps * kHopperDepth;
};

VECINA_DEVICE void attend(const HopperParams& params, unsigned shared, int warpgroup) {
  constexpr int kKeys = kLayout.tile_keys;
  constexpr int kHeadDimValue = kConfig.head_dim_value;
  constexpr int kRowBytes = kConfig.head_dim * hopper_key_bytes(kConfig);
  constexpr int kBoxBytes = hopper_box_bytes(kRowBytes);
  constexpr int kBoxBytesValue = hopper_box_bytes(kHeadDimValue * kHopperValueBytes);
  const int thread = static_cast<int>(threadIdx.x) & 127, lane = thread & 31;
  const bool is_first_lane = lane == 0;
  const Turns turns(warpgroup);

  const unsigned query_full = shared + kLayout.query_full + warpgroup * 8;
  const unsigned query_empty = shared + kLayout.query_empty + warpgroup * 8;
  const unsigned key_full = shared + kLayout.key_full, value_full = shared + kLayout.value_full;
  const unsigned key_empty = shared + kLayout.key_empty, value_empty = shared + kLayout.value_empty;
  const unsigned interior = shared + kLayout.interior;
  const unsigned output = shared + kLayout.output + warpgroup * kLayout.output_bytes;
  const MaskedRows masked_rows(warpgroup, thread);
  const unsigned query =
      descriptor_low(shared + kLayout.query + warpgroup * kLayout.query_bytes, 16);
  const unsigned keys = descriptor_low(shared + kLayout.key, 16);
  const unsigned values = descriptor_low(shared + kLayout.value, kKeys * kBoxBytesValue);

  const unsigned work_words = shared + kLayout.tiles + warpgroup * 64;

  Stage stage;
  unsigned query_parity = 0;

  // Every phase of every barrier has to be seen in order, and a value be waited for before it is
  // given back.
  const auto pass_over = [&](int tiles) {
#pragma unroll 1
    for (; tiles > 0; --tiles) {
      turns.take();
      turns.pass();
      wait(key_full + stage.index * 8, stage.parity);
      __syncwarp();
      if (is_first_lane) arrive(key_empty + stage.index * 8);
      wait(value_full + stage.index * 8, stage.parity);
      __syncwarp();
      if (is_first_lane) arrive(value_empty + stage.index * 8);
      stage.advance();
    }
  };

  constexpr int kLogits = kLayout.score_keys / 2;
  // With kept shifts logits become weights half at a time, where registers are short.
  constexpr int kMostSums = kWarpgroups == 3 ? 110 : 150;
  constexpr int kHalf =
      kKeys * 3 / 4 + kHeadDimValue / 2 > kMostSums ? kLogits / 16 * 8 : kLogits;
  float sums[kHeadDimValue / 2], first_logits[kLogits];
  unsigned weights[kLogits / 2];
  RunningSum rows[2];
  float scales[2];  // of their logits
  Stage before;  // of the tile whose values are due
  unsigned words[2][kMaskWords];
  bool is_partial = false;
  const auto wait_for_keys = [&] {
    wait(key_full + stage.index * 8, stage.parity);
    is_partial = (shared_word(interior + stage.index * 4) >> warpgroup & 1) == 0;
  };
  const auto multiply_keys = [&](auto of, auto& logits) {
    const unsigned tile = keys + stage.index * (kLayout.key_bytes >> 4);
#pragma unroll
    for (int byte = 0; byte < kRowBytes; byte += kHopperDepthBytes) {
      const int box = byte / kBoxBytes, within = byte % kBoxBytes / 16;
      Products<decltype(of)::kColumns>::template shared<kConfig.query_key_dtype>(
          logits, descriptor<kBoxBytes>(query + box * (kHopperRows * kBoxBytes / 16) + within),
          descriptor<kBoxBytes>(tile + box * (kKeys * kBoxBytes / 16) + within), byte > 0);
    }
    close_products();
  };
  const auto multiply_values = [&](auto of) {
    const unsigned tile = values + before.index * (kLayout.value_bytes >> 4);
#pragma unroll
    for (int k = 0; k < decltype(of)::kSteps; ++k) {
      const bool is_half = decltype(of)::kIsLastHalf && k == decltype(of)::kSteps - 1;
      Products<kHeadDimValue>::template registers<kConfig.dtype>(
          sums, weights[4 * k], weights[4 * k + 1], is_half ? 0u : weights[4 * k + 2],
          is_half ? 0u : weights[4 * k + 3],
          descriptor<kBoxBytesValue>(tile + k * kBoxBytesValue));
    }
    close_products();
  };
  const auto load_words = [&] {
    if (is_partial) {
      masked_rows.load(shared + kLayout.masks + stage.index * kMaskStageBytes, words);
    }
  };
  const auto give_keys_back = [&](bool is_last) {
    if (is_first_lane) {
      arrive(key_empty + stage.index * 8);
      if (hopper_frees_query_early(kConfig) && is_last) arrive(query_empty);
    }
  };
  const auto clear = [&] {
#pragma unroll
    for (int i = 0; i < kHeadDimValue / 2; ++i) sums[i] = 0.0f;
    rows[0] = rows[1] = RunningSum();
  };
  const auto give_values_back = [&] {
    if (is_first_lane) arrive(value_empty + before.index * 8);
    if constexpr (kConfig.is_chained) before.advance();  // else it follows `stage`
  };
  const auto end_values = [&] {
    wait_for_products<0>();
    pin(sums);
    give_values_back();
  };
  // The first tile's weights, once its keys' products have been issued.
  const auto weigh_first = [&](bool is_last) {
    load_words();
    wait_for_products<0>();
    pin(first_logits);
    give_keys_back(is_last);
    if (is_partial) hide(words, first_logits);
    weigh<Element, 0, kLogits>(first_logits, scales, rows, weights);
  };
  // A tile's weights, beside the products with the values of the tile before it.
  const auto weigh_next = [&](auto of, auto of_before, bool is_last) {
    // Not those of the first tile: else ptxas may run short of registers for products in flight.
    constexpr int kEnd = decltype(of)::kColumns / 2;
    float logits[kEnd];
    wait_for_keys();
    turns.take();
    pin(logits);
    pin(sums);
    open_products();
    multiply_keys(of, logits);
    wait(value_full + before.index * 8, before.parity);
    open_products();
    multiply_values(of_before);
    turns.pass();
    load_words();
    wait_for_products<1>();
    pin(logits);
    give_keys_back(is_last);
    if (is_partial) hide(words, logits);
    if constexpr (kConfig.keeps_shift) {
      constexpr int kMiddle = na_min(kHalf, kEnd);
      end_values();
      weigh_next_to<Element, 0, kMiddle>(logits, scales, rows, weights, sums);
      if constexpr (kMiddle < kEnd) {
        weigh_next_to<Element, kMiddle, kEnd>(logits, scales, rows, weights, sums);
      }
    } else {
      exponentiate<0, kEnd>(logits, scales, {kLag, kLag}, rows);
      end_values();
      pack_rows<Element, 0, kEnd>(logits, weights);
      if (is_any_raised(rows)) scale_rows(sums, rows);
    }
    if constexpr (!kConfig.is_chained) before = stage;
    stage.advance();
  };
  const auto issue_last_values = [&](auto of) {
    wait(value_full + before.index * 8, before.parity);
    pin(sums);
    open_products();
    multiply_values(of);
  };
  constexpr Keys<kLayout.key_rows> all;
  constexpr Keys<kLayout.short_keys == 0 ? kLayout.key_rows : kLayout.short_keys> few;
  // Tiles after the first, the last of them short.
  const auto weigh_rest = [&](int tiles, int short_tiles, bool is_last) {
#pragma unroll 1
    for (; tiles > short_tiles; --tiles) weigh_next(all, all, is_last && tiles == 1);
    if constexpr (kLayout.short_keys > 0) {
      if (tiles == 0) return;
      weigh_next(few, all, is_last && tiles == 1);
#pragma unroll 1
      while (--tiles > 0) weigh_next(few, few, is_last && tiles == 1);
    }
  };

  if constexpr (kConfig.is_chained) {
    // The next queries' first products run beside the last values' and while output leaves. Their
    // keys are wanted before the last values are given back, so `stage` is of the next keys and
    // `before` of the next values. Keys can be passed over meanwhile as far as no other warpgroup
    // comes to wait for those values.
    constexpr int kMostAhead = kConfig.is_ping_pong ? kConfig.stages - 1 : 2 * kConfig.stages - 1;
    int owed = 0;  // values to pass over
    const auto pass_over_keys = [&](int count) {
      owed += count;
#pragma unroll 1
      for (; count > 0; --count) {
        turns.take();
        turns.pass();
        wait(key_full + stage.index * 8, stage.parity);
        __syncwarp();
        if (is_first_lane) arrive(key_empty + stage.index * 8);
        stage.advance();
      }
    };
    const auto pass_over_values = [&] {
#pragma unroll 1
      for (; owed > 0; --owed) {
        wait(value_full + before.index * 8, before.parity);
        __syncwarp();
        give_values_back();
      }
    };
    int found = 0, skipped = 0;  // tiles of the next queries, and to pass over before them
    const auto look = [&] {
      wait(query_full, query_parity);
      query_parity ^= 1;
      const uint4 next = shared_quad(work_words);
      found = static_cast<int>(next.z);
      if (found != kNoMore) skipped += static_cast<int>(next.w);
    };
    const auto pass_over_both = [&](int count) {
#pragma unroll 1
      for (; count > 0; --count) {
        pass_over_keys(1);
        pass_over_values();
      }
    };
    const auto pass_over_idle = [&] {
      pass_over_both(skipped);
      while (found == 0) {  // these queries lie beyond the last
        __syncwarp();
        if (is_first_lane) arrive(query_empty);
        skipped = 0;
        look();
        pass_over_both(skipped);
      }
    };
    const auto begin = [&] {  // products of nothing, where there is no more
      if (found != kNoMore) {
        wait_for_keys();
        turns.take();
      }
      pin(first_logits);
      open_products();
      multiply_keys(all, first_logits);
      if (found != kNoMore) turns.pass();
    };
    look();
    pass_over_idle();
    begin();
    while (found != kNoMore) {
      const Work work(work_words);
      clear();
      find_scales(params, work, thread, scales);
      weigh_first(work.tiles == 1);
      stage.advance();
      pass_over_values();
      weigh_rest(work.tiles - 1, work.short_tiles, true);
      if (kLayout.short_keys > 0 && work.short_tiles > 0) {
        issue_last_values(few);
      } else {
        issue_last_values(all);
      }
      skipped = work.after;
      look();
      const bool is_far = skipped > kMostAhead || found == 0;
      if (is_far) {
        wait_for_products<0>();
        give_values_back();
        pass_over_idle();
      } else {
        pass_over_keys(skipped);
      }
      begin();
      wait_for_products<1>();
      pin(sums);
      if (!is_far) give_values_back();
      rows[0].close();
      rows[1].close();
      store_output<Element>(params, work, output, warpgroup, thread, sums, rows, scales);
    }
    wait_for_products<0>();
    pin(first_logits);
    pass_over_values();
    turns.close();
  } else {
    while (true) {
      wait(query_full, query_parity);
      query_parity ^= 1;
      const Work work(work_words);
      if (work.tiles == kNoMore) break;
      clear();
      pass_over(work.before);
      if (work.tiles == 0) {  // all queries lie beyond the last: no warp may miss the phase
        if constexpr (kConfig.has_additional) pass_over(params.additional_tiles);
        if constexpr (kConfig.has_output_buffer) {
          if (is_first_lane) arrive(query_empty);
        } else {
          sync_threads(4 + warpgroup, 128);
          if (thread == 0) arrive(query_empty);
        }
        continue;
      }

      find_scales(params, work, thread, scales);
      // Tiles that follow one another. The first's keys and the last's values have no partner.
      const auto attend_run = [&](int tiles, int short_tiles, bool is_first_run, bool is_last_run) {
        wait_for_keys();
        turns.take();
        pin(first_logits);
        open_products();
        multiply_keys(all, first_logits);
        turns.pass();
        weigh_first(is_last_run && tiles == 1);
        if (!is_first_run && is_any_raised(rows)) scale_rows(sums, rows);
        before = stage;
        stage.advance();
        weigh_rest(tiles - 1, short_tiles, is_last_run);
        if (kLayout.short_keys > 0 && short_tiles > 0) {
          issue_last_values(few);
        } else {
          issue_last_values(all);
        }
        wait_for_products<0>();
        pin(sums);
        give_values_back();
      };

      if constexpr (kConfig.has_additional) {
#pragma unroll 1
        for (int run = 0; run < 2; ++run) {
          attend_run(run == 0 ? work.tiles : params.additional_tiles,
                     run == 0 ? work.short_tiles : 0, run == 0, run == 1);
          if (run == 0) pass_over(work.after);
        }
      } else {
        attend_run(work.tiles, work.short_tiles, true, true);
      }
      rows[0].close();
      rows[1].close();
      store_output<Element>(params, work, output, warpgroup, thread, sums, rows, scales);
      if (!kConfig.has_output_buffer && thread == 0) {
        wait_until_stores_have_read();
        arrive(query_empty);
      }
      if constexpr (!kConfig.has_additional) pass_over(work.after);
    }
    turns.close();
  }
  if (thread == 0) wait_for_stores();
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_ATTEND_CUH_
