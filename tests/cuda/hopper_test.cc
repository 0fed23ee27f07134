// SPDX-License-Identifier: MIT
// What Hopper's kernels take and how problems are cut for them. No GPU is needed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "cases.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "core/tensor.h"
#include "cuda/families.h"
#include "cuda/hopper_cases.h"
#include "cuda/hopper_map.h"
#include "cuda/hopper_plan.h"
#include "cuda/hopper_tiling.h"
#include "cuda/kernels/hopper_params.h"
#include "cuda/launch_sequence.h"
#include "cuda/parsed_problem.h"
#include "definition.h"

namespace vecina::internal::cuda {
namespace {

// ---- Counting, against the same by enumeration of the definition's keys.

struct Interval {
  int64_t begin, end;  // in tokens of the dilation group
};

// What the queries [first, first + box) of a dilation group see along an axis.
struct BoxKeys {
  Interval seen, seen_by_all;
  bool has_queries;
};
BoxKeys keys_of_box(const tests::AxisRule& rule, const std::vector<int64_t>& queries, int64_t first,
                    int64_t box) {
  BoxKeys keys = {{INT64_MAX, 0}, {0, INT64_MAX}, false};
  for (int64_t i = first; i < std::min<int64_t>(first + box, static_cast<int64_t>(queries.size()));
       ++i) {
    const std::vector<int64_t> visible = tests::visible_keys(rule, queries[static_cast<size_t>(i)]);
    const int64_t begin = visible.front() / rule.dilation, end = visible.back() / rule.dilation + 1;
    keys.seen = {std::min(keys.seen.begin, begin), std::max(keys.seen.end, end)};
    keys.seen_by_all = {std::max(keys.seen_by_all.begin, begin),
                        std::min(keys.seen_by_all.end, end)};
    keys.has_queries = true;
  }
  return keys;
}

struct AxisCount {
  double blocks = 0, tiles = 0, whole = 0, loaded = 0, short_tiles = 0;
};
AxisCount count_axis(const tests::AxisRule& rule, int box, int warpgroups, int key_box,
                     int short_rows) {
  AxisCount count;
  for (int64_t group = 0; group < rule.dilation; ++group) {
    std::vector<int64_t> queries;
    for (const int64_t token : tests::query_tokens(rule)) {
      if (token % rule.dilation == group) queries.push_back(token);
    }
    for (int64_t first = 0; first < static_cast<int64_t>(queries.size());
         first += box * warpgroups) {
      ++count.blocks;
      const int64_t origin = keys_of_box(rule, queries, first, box).seen.begin;
      int64_t last_loaded = 0;
      for (int w = 0; w < warpgroups; ++w) {
        const BoxKeys keys = keys_of_box(rule, queries, first + w * box, box);
        if (!keys.has_queries) continue;
        int tiles = 0;
        bool is_short = false;
        for (int64_t tile = origin; tile < keys.seen.end; tile += key_box) {
          if (tile + key_box <= keys.seen.begin) continue;
          ++count.tiles;
          ++tiles;
          is_short = keys.seen.end - tile <= short_rows;
          const bool sees_all =
              tile >= keys.seen_by_all.begin && tile + key_box <= keys.seen_by_all.end;
          if (sees_all) ++count.whole;
          last_loaded = std::max(last_loaded, (tile - origin) / key_box + 1);
        }
        if (is_short && tiles > 1) ++count.short_tiles;
      }
      count.loaded += static_cast<double>(last_loaded);
    }
  }
  return count;
}

void expect_counts(const std::string& line, HopperConfig config) {
  const Problem problem = parsed(line);
  config.rank = problem.rank();
  config.head_dim = problem.head_dim();
  config.head_dim_value = problem.head_dim_value();
  config.has_additional = problem.additional_tokens() > 0;
  const vecina_problem c = problem.to_c();
  AxisCount product = {1, 1, 1, 1, 1};
  for (int a = 0; a < problem.rank(); ++a) {
    const int axis = a + 3 - problem.rank();
    const AxisCount count = count_axis(tests::axis_rule(c, a), config.query_box[axis],
                                       axis == config.pair_axis ? config.warpgroups : 1,
                                       config.key_box[axis], config.short_rows);
    product.blocks *= count.blocks;
    product.tiles *= count.tiles;
    product.whole *= count.whole;
    product.loaded *= count.loaded;
    product.short_tiles *= axis == config.pair_axis ? count.short_tiles : count.tiles;
  }
  const double packs = static_cast<double>(problem.batch()) * problem.heads() / config.packed_heads;
  const HopperWork work = count_hopper_work(problem, config);
  const auto layout = vecina::cuda::hopper_layout(config);
  EXPECT_EQ(work.blocks, packs * product.blocks) << line;
  EXPECT_EQ(work.tiles, packs * product.tiles) << line;
  EXPECT_EQ(work.whole_tiles,
            layout.key_rows % (config.rank == 3 ? 16 : 8) == 0 ? packs * product.whole : 0.0)
      << line;
  EXPECT_EQ(work.loaded_tiles, packs * product.loaded) << line;
  if (config.short_rows > 0) {
    EXPECT_EQ(work.short_tiles, packs * product.short_tiles) << line;
    EXPECT_GT(work.short_tiles, 0) << line;
  } else {
    EXPECT_EQ(work.short_tiles, 0) << line;
  }
  const auto flops = [&](int keys) {
    const int step = config.rank == 3 ? 16 : 8;
    const int scores = std::max(16, (keys + step - 1) / step * step);
    const int values = (keys + 15) / 16 * 16;
    return 2.0 * 64 * (scores * config.head_dim + values * config.head_dim_value);
  };
  EXPECT_EQ(work.flops, (work.tiles - work.short_tiles) * flops(layout.key_rows) +
                            work.short_tiles * flops(layout.short_keys))
      << line;
}

HopperConfig cut(int warpgroups, int pair_axis, const std::array<int, 3>& query_box,
                 const std::array<int, 3>& key_box, int packed_heads = 1) {
  HopperConfig config = {};
  config.warpgroups = warpgroups;
  config.pair_axis = pair_axis;
  config.packed_heads = packed_heads;
  config.stages = 2;
  std::copy(query_box.begin(), query_box.end(), config.query_box);
  std::copy(key_box.begin(), key_box.end(), config.key_box);
  return config;
}

TEST(HopperTiling, CountsWhatTheDefinitionSays) {
  expect_counts("1d 700 kernel_size 200 heads 2 head_dim 64 dtype bf16",
                cut(2, 2, {1, 1, 64}, {1, 1, 128}));
  expect_counts("1d 513 kernel_size 129 stride 7 head_dim 64 dtype bf16",
                cut(3, 2, {1, 1, 64}, {1, 1, 48}));
  expect_counts("1d 300 kernel_size 60 causal head_dim 64 dtype bf16",
                cut(2, 2, {1, 1, 64}, {1, 1, 32}));
  // Many blocks alike: in the middle, at the borders, and where windows are shared.
  for (const std::string more : {"", "causal", "stride 16", "stride 128 causal", "stride 48",
                                 "output_stride 4", "dilation 3"}) {
    expect_counts("1d 2003 kernel_size 500 head_dim 64 dtype bf16 " + more,
                  cut(2, 2, {1, 1, 24}, {1, 1, 80}));
  }
  expect_counts("1d 1503 kernel_size 1503 head_dim 64 dtype bf16",
                cut(3, 2, {1, 1, 64}, {1, 1, 128}));
  expect_counts("1d 300 kernel_size 40 dilation 7 head_dim 64 dtype bf16",
                cut(2, 2, {1, 1, 16}, {1, 1, 32}));
  expect_counts("1d 300 kernel_size 40 output_stride 3 head_dim 64 dtype bf16",
                cut(2, 2, {1, 1, 16}, {1, 1, 32}));
  expect_counts("2d 61x45 kernel_size 24x30 stride 5x3 batch 2 head_dim 64 dtype bf16",
                cut(2, 1, {1, 8, 8}, {1, 4, 16}));
  expect_counts("2d 40x52 kernel_size 13x17 causal 1x0 heads 4 heads_kv 2 head_dim 64 dtype bf16",
                cut(2, 2, {1, 4, 8}, {1, 3, 20}, 2));
  expect_counts("3d 10x17x22 kernel_size 5x7x9 dilation 2x1x2 head_dim 64 dtype bf16",
                cut(3, 0, {2, 4, 8}, {1, 4, 7}));
  expect_counts("attention 77x1024 causal heads 2 head_dim 64 dtype bf16",
                cut(2, 2, {1, 1, 64}, {1, 1, 64}));
}

TEST(HopperTiling, CountsShortTilesAsTheDefinitionDoes) {
  const auto expect_short = [](const std::string& line, HopperConfig config, int short_rows) {
    config.short_rows = short_rows;
    expect_counts(line, config);
  };
  for (const int rows : {6, 7}) {
    expect_short("2d 128x128 kernel_size 31 heads 2 head_dim 128 dtype bf16",
                 cut(2, 1, {1, 8, 8}, {1, 8, 20}), rows);
  }
  expect_short("1d 700 kernel_size 200 heads 2 head_dim 64 dtype bf16",
               cut(2, 2, {1, 1, 64}, {1, 1, 128}), 80);
  expect_short("1d 300 kernel_size 60 causal head_dim 64 dtype bf16",
               cut(3, 2, {1, 1, 64}, {1, 1, 48}), 31);
  expect_short("2d 61x45 kernel_size 24x30 stride 5x3 batch 2 head_dim 64 dtype bf16",
               cut(2, 1, {1, 8, 8}, {1, 4, 16}), 2);
  expect_short("3d 10x17x22 kernel_size 5x7x9 dilation 2x1x2 head_dim 64 dtype bf16",
               cut(3, 0, {1, 4, 8}, {4, 2, 8}), 1);
  expect_short("attention 77x1024 causal heads 2 head_dim 64 dtype bf16",
               cut(2, 2, {1, 1, 64}, {1, 1, 64}), 63);
}

// Short tiles are taken where they save something.
TEST(HopperTiling, TakesShortTilesWhereTheySave) {
  const auto choose = [](const std::string& line) {
    return choose_hopper_tiling(parsed(line), DeviceFacts());
  };
  for (const char* line : {"2d 128x128 kernel_size 31 batch 4 heads 8 head_dim 128 dtype bf16",
                           "3d 30x48x80 kernel_size 18x24x24 heads 24 head_dim 128 dtype bf16"}) {
    const HopperChoice choice = choose(line);
    HopperConfig whole = choice.config;
    whole.short_rows = 0;
    const HopperChoice without = hopper_choice(parsed(line), DeviceFacts(), whole);
    EXPECT_GT(choice.config.short_rows, 0) << line;
    EXPECT_LT(choice.work.flops, without.work.flops * 0.995) << line;
    EXPECT_LT(choice.predicted_ms, without.predicted_ms) << line;
    EXPECT_EQ(choice.work.tiles, without.work.tiles) << line;
  }
  // They took longer in 1-D and for few tiles, where they also made larger tiles look better.
  EXPECT_EQ(choose("1d 32768 kernel_size 2048 heads 24 head_dim 128 dtype bf16").config.short_rows,
            0);
  const HopperChoice few =
      choose("2d 128x128 kernel_size 13 batch 4 heads 8 head_dim 128 dtype bf16");
  EXPECT_EQ(few.config.short_rows, 0);
  EXPECT_EQ(few.config.key_box[1] * few.config.key_box[2], 80);
  // Every tile is seen to its end.
  EXPECT_EQ(choose("2d 256x256 kernel_size 80 stride 16 heads 24 head_dim 128 dtype bf16")
                .config.short_rows,
            0);
}

TEST(HopperTiling, AdditionalTokensAreTilesOfEveryWarpgroup) {
  const HopperConfig config = cut(2, 2, {1, 1, 64}, {1, 1, 64});
  HopperConfig with = config;
  with.has_additional = true;
  const std::string line = "1d 640 kernel_size 64 heads 3 head_dim 64 dtype bf16";
  const HopperWork none = count_hopper_work(parsed(line), config);
  const HopperWork some = count_hopper_work(parsed(line + " additional 65"), with);
  EXPECT_EQ(some.tiles, none.tiles + 3 * 10 * 2);               // two tiles for each of ten boxes
  EXPECT_EQ(some.loaded_tiles, none.loaded_tiles + 3 * 5 * 2);  // and for each of five blocks
}

// ---- The cut that is chosen.

TEST(HopperTiling, ChoosesCutsThatFitAndWasteLittle) {
  const DeviceFacts facts;
  for (const Chosen& row : kChosen) {
    const Problem problem = parsed(row.line);
    const HopperChoice choice = choose_hopper_tiling(problem, facts);
    const HopperConfig& config = choice.config;
    const auto layout = vecina::cuda::hopper_layout(config);
    EXPECT_GE(choice.work.useful_share, row.useful_share) << row.line << "\n" << print(config);
    EXPECT_LE(layout.bytes, facts.shared_bytes_per_block) << row.line;
    EXPECT_LE(layout.query_rows, vecina::cuda::kHopperRows) << row.line;
    EXPECT_LE(layout.tile_keys, 256) << row.line;
    EXPECT_GE(config.stages, 2) << row.line;
    EXPECT_EQ(problem.head_group() % config.packed_heads, 0) << row.line;
    EXPECT_TRUE(config.packed_heads == 1 || layout.query_tokens % 8 == 0) << row.line;
    // What the search added up on its way is what counting anew gives.
    const HopperWork again = count_hopper_work(problem, config);
    EXPECT_EQ(choice.work.tiles, again.tiles) << row.line;
    EXPECT_EQ(choice.work.useful_share, again.useful_share) << row.line;
    EXPECT_EQ(choice.predicted_ms, predict_hopper_ms(config, again, facts)) << row.line;
  }
}

TEST(HopperTiling, HeadsOfAGroupShareTheirKeys) {
  const DeviceFacts facts;
  const std::string line = "3d 30x48x80 kernel_size 18x24x24 heads 24 head_dim 128 dtype bf16";
  const HopperChoice full = choose_hopper_tiling(parsed(line), facts);
  const HopperChoice grouped = choose_hopper_tiling(parsed(line + " heads_kv 3"), facts);
  EXPECT_EQ(full.config.packed_heads, 1);
  EXPECT_EQ(grouped.config.packed_heads, 8);
  EXPECT_LT(grouped.predicted_ms * 1.1, full.predicted_ms);
}

// In the maps of fewer than three axes heads stand where the missing ones would.
TEST(HopperTiling, BoxesEndWithTheAxesThatThereAre) {
  for (const char* line : {
           "2d 44x31 kernel_size 10x9 heads 4 heads_kv 2 head_dim 128 dtype bf16",
           "2d 44x31 kernel_size 10x9 stride 4x1 heads 4 heads_kv 2 head_dim 128 dtype bf16",
           "2d 30x40 kernel_size 9 heads 8 heads_kv 1 head_dim 64 dtype f16",
           "1d 700 kernel_size 30 heads 4 heads_kv 2 head_dim 128 dtype bf16",
       }) {
    const Problem problem = parsed(line);
    for (const HopperChoice& choice : rank_hopper_tilings(problem, DeviceFacts(), 8)) {
      for (int a = 0; a < 3 - problem.rank(); ++a) {
        EXPECT_EQ(choice.config.query_box[a], 1) << line << ": " << print(choice.config);
        EXPECT_EQ(choice.config.key_box[a], 1) << line << ": " << print(choice.config);
      }
    }
  }
}

TEST(HopperTiling, KeepsShiftsWhereThatIsFaster) {
  const auto keeps = [](const std::string& line) {
    return choose_hopper_tiling(parsed(line), DeviceFacts()).config.keeps_shift;
  };
  EXPECT_TRUE(keeps("2d 128x128 kernel_size 20 heads 8 head_dim 128 dtype bf16"));
  EXPECT_FALSE(keeps("2d 128x128 kernel_size 20 heads 8 head_dim 192 dtype bf16"));
  EXPECT_FALSE(
      keeps("2d 128x128 kernel_size 20 heads 8 head_dim 64 dtype f16 query_key_dtype e4m3"));
  const std::string video = "3d 16x32x32 kernel_size 8 heads 8 dtype bf16 ";
  EXPECT_TRUE(keeps(video + "head_dim 64"));
  EXPECT_FALSE(keeps(video + "head_dim 128"));
  EXPECT_TRUE(keeps(video + "head_dim 128 stride 1x4x4"));
  EXPECT_TRUE(keeps(video + "head_dim 128 heads_kv 2"));
}

// Bytes of queries and keys: half as long, so that more of them fit, and each in its swizzled
// place.
TEST(HopperTiling, E4m3HalvesQueriesAndKeys) {
  const std::string line = "2d 256x256 kernel_size 80 heads 24 head_dim 128 dtype bf16";
  const Problem wide = parsed(line), narrow = parsed(line + " query_key_dtype e4m3");
  const HopperChoice chosen = choose_hopper_tiling(wide, DeviceFacts());
  const auto before = vecina::cuda::hopper_layout(chosen.config);
  HopperConfig config;
  ASSERT_TRUE(apply_cut(narrow, DeviceFacts(), chosen.config, &config));
  const auto after = vecina::cuda::hopper_layout(config);
  EXPECT_EQ(after.key_bytes * 2, before.key_bytes);
  EXPECT_EQ(after.value_bytes, before.value_bytes);
  EXPECT_LT(after.bytes, before.bytes);
  EXPECT_LT(hopper_choice(narrow, DeviceFacts(), config).predicted_ms, chosen.predicted_ms);
  for (const int head_dim : {16, 32, 48, 64, 80, 96, 112, 128, 256}) {
    const Problem problem = parsed(
        "2d 64x64 kernel_size 20 heads 8 head_dim_value 128 dtype f16 query_key_dtype e4m3 "
        "head_dim " +
        std::to_string(head_dim));
    const std::vector<HopperChoice> choices = rank_hopper_tilings(problem, DeviceFacts(), 8);
    ASSERT_FALSE(choices.empty());
    for (const HopperChoice& choice : choices) {
      const auto layout = vecina::cuda::hopper_layout(choice.config);
      EXPECT_EQ(choice.config.head_dim, (head_dim + 31) / 32 * 32);
      EXPECT_EQ(layout.query % 1024, 0);
      EXPECT_EQ(layout.output % 1024, 0);
      EXPECT_EQ(layout.key % 1024, 0);
      EXPECT_EQ(layout.value % 1024, 0) << print(choice.config);
      EXPECT_GE(layout.query_bytes, 64 * choice.config.head_dim);
      if (choice.config.has_output_buffer || !choice.config.is_chained) {  // else from registers
        EXPECT_GE(layout.output_bytes, 64 * 128 * 2);
      }
    }
  }
}

// Launches one after another each have a start and a last round of blocks that is not full.
TEST(HopperTiling, PredictsALaunchForEachSample) {
  const DeviceFacts facts;
  const std::string line = "3d 16x32x32 kernel_size 9 heads 11 dtype bf16 head_dim ";
  const HopperChoice one = choose_hopper_tiling(parsed(line + "72"), facts);
  const HopperChoice three = choose_hopper_tiling(parsed(line + "72 batch 3"), facts);
  EXPECT_EQ(print(three.config), print(one.config));
  EXPECT_EQ(three.work.launches, 3);
  EXPECT_EQ(three.work.blocks, 3 * one.work.blocks);
  // Of one launch there would be fewer rounds.
  ASSERT_LT(std::ceil(three.work.blocks / facts.multiprocessors),
            3 * std::ceil(one.work.blocks / facts.multiprocessors));
  EXPECT_DOUBLE_EQ(three.predicted_ms, 3 * one.predicted_ms);
  const HopperChoice even = choose_hopper_tiling(parsed(line + "80"), facts);
  const HopperChoice evens = choose_hopper_tiling(parsed(line + "80 batch 3"), facts);
  EXPECT_EQ(evens.work.launches, 1);
  EXPECT_LT(evens.predicted_ms, 2.99 * even.predicted_ms);
}

TEST(HopperTiling, RanksTheChosenFirst) {
  const DeviceFacts facts;
  for (const Chosen& row : kChosen) {
    const Problem problem = parsed(row.line);
    const std::vector<HopperChoice> ranked = rank_hopper_tilings(problem, facts, 12);
    ASSERT_FALSE(ranked.empty()) << row.line;
    EXPECT_LE(ranked.size(), 12u);
    EXPECT_EQ(print(ranked[0].config), print(choose_hopper_tiling(problem, facts).config));
    for (size_t i = 1; i < ranked.size(); ++i) {
      EXPECT_LE(ranked[i - 1].predicted_ms, ranked[i].predicted_ms) << row.line;
      EXPECT_EQ(ranked[i].work.tiles, count_hopper_work(problem, ranked[i].config).tiles);
      for (size_t j = 0; j < i; ++j) {
        EXPECT_NE(print(ranked[i].config), print(ranked[j].config)) << row.line;
      }
    }
  }
}

TEST(HopperTiling, VariantsDifferInWhatIsNoBox) {
  const DeviceFacts facts;
  for (const Chosen& row : kChosen) {
    const Problem problem = parsed(row.line);
    const HopperConfig config = choose_hopper_tiling(problem, facts).config;
    std::vector<std::string> seen = {print(config)};
    for (const HopperConfig& variant : hopper_variants(config, facts)) {
      EXPECT_EQ(std::count(seen.begin(), seen.end(), print(variant)), 0) << print(variant);
      seen.push_back(print(variant));
      HopperConfig back = variant;
      back.stages = config.stages;
      back.is_ping_pong = config.is_ping_pong;
      back.is_chained = config.is_chained;
      back.has_output_buffer = config.has_output_buffer;
      EXPECT_EQ(print(back), print(config));
      HopperConfig applied;
      EXPECT_TRUE(apply_cut(problem, facts, variant, &applied)) << print(variant);
      EXPECT_EQ(print(applied), print(variant));
    }
    EXPECT_GE(seen.size(), 2u) << row.line;
  }
}

// ---- What is taken.

// Of each multiprocessor, the turns one after another.
std::vector<std::vector<vecina::cuda::HopperTurn>> deal_turns(int grid, int blocks,
                                                              int warpgroups) {
  std::vector<std::vector<vecina::cuda::HopperTurn>> dealt(static_cast<size_t>(grid));
  for (int i = 0; i < grid; ++i) {
    vecina::cuda::HopperTurns turns(i, grid, blocks, warpgroups);
    vecina::cuda::HopperTurn turn = {};
    while (turns.next(&turn)) dealt[static_cast<size_t>(i)].push_back(turn);
  }
  return dealt;
}

TEST(HopperTurns, ComputeEachBoxOnce) {
  for (const int grid : {1, 7, 132}) {
    for (const int blocks : {0, 1, 5, 7, 8, 131, 132, 133, 198, 199, 396, 4096}) {
      for (const int warpgroups : {2, 3}) {
        std::vector<int> times(static_cast<size_t>(blocks * warpgroups));
        for (const auto& turns : deal_turns(grid, blocks, warpgroups)) {
          for (const vecina::cuda::HopperTurn& turn : turns) {
            for (int box = 0; box < warpgroups; ++box) {
              if (turn.box != vecina::cuda::kHopperAllBoxes && turn.box != box) continue;
              ++times[static_cast<size_t>(turn.block * warpgroups + box)];
            }
          }
        }
        EXPECT_EQ(std::ranges::count(times, 1), static_cast<int64_t>(times.size()))
            << grid << ' ' << blocks << ' ' << warpgroups;
      }
    }
  }
}

TEST(HopperTurns, MeetEveryPlaceAlongAnAxis) {
  // 132 multiprocessors, 11 blocks along the axis.
  for (const auto& turns : deal_turns(132, 8448, 3)) {
    std::vector<int> times(11);
    for (const vecina::cuda::HopperTurn& turn : turns)
      ++times[static_cast<size_t>(turn.block % 11)];
    EXPECT_GE(std::ranges::min(times), 5);
    EXPECT_LE(std::ranges::max(times), 6);
  }
}

TEST(HopperTurns, FewBlocksOfTheLastRoundAreDealtByBox) {
  // 31 rounds and four blocks.
  const auto dealt = deal_turns(132, 4096, 2);
  int single = 0;
  for (const auto& turns : dealt) {
    EXPECT_LE(turns.size(), 32U);
    for (size_t i = 0; i < turns.size(); ++i) {
      const bool is_single = turns[i].box != vecina::cuda::kHopperAllBoxes;
      EXPECT_EQ(is_single, i == 31);
      single += is_single ? 1 : 0;
    }
  }
  EXPECT_EQ(single, 8);
  // More than half a round: whole blocks.
  for (const auto& turns : deal_turns(132, 132 + 67, 2)) {
    for (const vecina::cuda::HopperTurn& turn : turns) {
      EXPECT_EQ(turn.box, vecina::cuda::kHopperAllBoxes);
    }
  }
}

TEST(HopperPlan, SaysWhatItDoesNotTake) {
  const auto why = [](const std::string& rest, Pass pass = Pass::forward, int capability = 90) {
    DeviceFacts facts;
    facts.compute_capability = capability;
    return hopper_why_not(parsed("2d 256x256 kernel_size 32 heads 8 " + rest), pass, facts);
  };
  EXPECT_EQ(why("head_dim 64 dtype bf16"), "");
  EXPECT_EQ(why("head_dim 64 dtype f16"), "");
  EXPECT_EQ(why("head_dim 16 head_dim_value 256 dtype f16 additional 3 causal dilation 8"), "");
  EXPECT_EQ(why("head_dim 64 dtype bf16", Pass::forward, 80),
            "a GPU of compute capability 9.0 only");
  EXPECT_EQ(why("head_dim 64 dtype bf16", Pass::forward, 100),
            "a GPU of compute capability 9.0 only");
  EXPECT_EQ(why("head_dim 64 dtype bf16", Pass::backward), "computes outputs alone");
  EXPECT_EQ(why("head_dim 64 dtype f32"), "dtypes f16 and bf16 only");
  EXPECT_EQ(why("head_dim 72 head_dim_value 40 dtype bf16"), "");
  EXPECT_EQ(why("head_dim 76 dtype bf16"), "head_dim 76: multiples of 8 up to 256 only");
  EXPECT_EQ(why("head_dim 64 head_dim_value 320 dtype bf16"),
            "head_dim_value 320: multiples of 8 up to 256 only");
  EXPECT_EQ(hopper_why_not(parsed("3d 16x32x32 kernel_size 9 heads 8 head_dim 72 dtype bf16"),
                           Pass::forward, {}),
            "");
  EXPECT_EQ(hopper_why_not(
                parsed("3d 16x32x32 kernel_size 9 heads 8 head_dim 72 lengths packed:2 dtype bf16"),
                Pass::forward, {}),
            "head_dim 72: multiples of 16 up to 256 only");
  EXPECT_EQ(why("head_dim 80 dtype bf16 query_key_dtype e4m3"), "");
  EXPECT_EQ(why("head_dim 72 dtype bf16 query_key_dtype e4m3"),
            "head_dim 72: multiples of 16 up to 256 only");
  EXPECT_EQ(why("head_dim 64 head_dim_value 36 dtype f16 query_key_dtype e4m3"),
            "head_dim_value 36: multiples of 8 up to 256 only");
  EXPECT_EQ(why("head_dim 64 query_key_dtype e4m3"), "dtypes f16 and bf16 only");
  EXPECT_EQ(why("head_dim 64 dtype bf16 query_key_dtype e4m3", Pass::forward, 80),
            "a GPU of compute capability 9.0 only");
  EXPECT_EQ(hopper_why_not(
                parsed("3d 16x32x32 kernel_size 9 heads 8 head_dim 80 lengths packed:2 dtype bf16 "
                       "query_key_dtype e4m3"),
                Pass::forward, {}),
            "head_dim 80: multiples of 32 up to 256 only");
  // Small ones too: no other kernel takes them.
  EXPECT_EQ(
      hopper_why_not(parsed("2d 16x16 kernel_size 7 head_dim 32 dtype bf16 query_key_dtype e4m3"),
                     Pass::forward, {}),
      "");
  EXPECT_EQ(why("head_dim 64 dtype bf16 bias"), "bias: not yet");
  EXPECT_EQ(why("head_dim 64 dtype bf16 scale 0"), "a scale above 0 only");
  EXPECT_EQ(why("head_dim 64 dtype bf16 scale -1"), "a scale above 0 only");
  EXPECT_EQ(hopper_why_not(parsed("1d 32768 kernel_size 2048 dilation 9 head_dim 64 dtype bf16"),
                           Pass::forward, {}),
            "dilation 9: up to 8 only");
  EXPECT_EQ(
      hopper_why_not(parsed("1d 32768 kernel_size 2048 output_stride 9 head_dim 64 dtype f16"),
                     Pass::forward, {}),
      "output_stride 9: up to 8 only");
  EXPECT_EQ(
      hopper_why_not(parsed("2d 256x256 kernel_size 32 dilation 2x1 output_stride 1x2 heads 8 "
                            "head_dim 64 dtype bf16"),
                     Pass::forward, {}),
      "dilation with output_stride: not yet");
  EXPECT_EQ(
      hopper_why_not(parsed("2d 16x16 kernel_size 7 head_dim 32 dtype bf16"), Pass::forward, {}),
      "at least 67 million multiply-adds only");
  const auto why_deep = [](const std::string& line) {
    return hopper_why_not(parsed("3d " + line + " dtype bf16"), Pass::forward, {});
  };
  EXPECT_EQ(why_deep("8x16x16 kernel_size 3 batch 64 heads 8 head_dim 72"),
            "at least 67 million multiply-adds for each sample only");
  EXPECT_EQ(why_deep("8x16x16 kernel_size 3 heads 8 head_dim 72"),
            "at least 67 million multiply-adds only");
  EXPECT_EQ(why_deep("8x8x8 kernel_size 5 batch 2 heads 32 head_dim 72"),
            "three axes and a head dim that is no multiple of 16, so a launch for each sample: at "
            "least 16896 queries of all heads in each only");
  EXPECT_EQ(why_deep("8x8x8 kernel_size 5 batch 2 heads 33 head_dim 72"), "");
  EXPECT_EQ(why_deep("8x8x8 kernel_size 5 heads 32 head_dim 72"), "");
  EXPECT_EQ(why_deep("8x8x8 kernel_size 5 batch 2 heads 32 head_dim 80"), "");
  EXPECT_EQ(hopper_why_not(parsed("2d 56x56 kernel_size 7 batch 64 heads 4 head_dim 32 dtype bf16"),
                           Pass::forward, {}),
            "small windows of short rows: others are faster");
  EXPECT_EQ(hopper_why_not(parsed("2d 56x56 kernel_size 7 batch 64 heads 4 head_dim 64 dtype bf16"),
                           Pass::forward, {}),
            "");
}

Status plan(const Problem& problem, const vecina_forward_args& example) {
  std::vector<ForwardLaunch> launches;
  return hopper_plan_forward(problem, example, {}, &launches);
}

// With three axes and heads of which no copy may take more columns, a map has no dimension for the
// batch.
TEST(HopperPlan, LaunchesForEachSampleWhereMapsHoldOne) {
  const Problem problem =
      parsed("3d 16x32x32 kernel_size 9 batch 3 heads 8 head_dim 72 additional 2 dtype bf16");
  vecina_forward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  std::vector<ForwardLaunch> launches;
  ASSERT_TRUE(hopper_plan_forward(problem, example, {}, &launches).ok());
  ASSERT_EQ(launches.size(), 3u);
  for (int64_t sample = 0; sample < 3; ++sample) {
    const ForwardLaunch& launch = launches[static_cast<size_t>(sample)];
    EXPECT_EQ(launch.source, launches[0].source);
    EXPECT_NE(launch.source.config.find(".has_heads_for_batch = true"), std::string::npos);
    // Fails where there is no driver to make maps, but what does not need one is there by then.
    vecina::cuda::HopperParams params = {};
    static_cast<void>(launch.fill(example, &params));
    EXPECT_EQ(params.output_data, address(example.output) + sample * 16 * 32 * 32 * 8 * 72 * 2);
    EXPECT_EQ(reinterpret_cast<char*>(params.lse),
              address(example.lse) + sample * 16 * 32 * 32 * 8 * 4);
  }
  const auto description = describe_launches(launches, std::vector<Kernel>(3));
  ASSERT_EQ(description.size(), 1u);
  EXPECT_EQ(description[0].at("launches"), 3);
  EXPECT_NEAR(description[0].at("predicted_ms").get<double>() * 3,
              choose_hopper_tiling(problem, {}).predicted_ms, 3e-4);
  const Problem even =
      parsed("3d 16x32x32 kernel_size 9 batch 3 heads 8 head_dim 80 additional 2 dtype bf16");
  imagine_arguments(even, VECINA_CUDA, &example);
  launches.clear();
  ASSERT_TRUE(hopper_plan_forward(even, example, {}, &launches).ok());
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_NE(launches[0].source.config.find(".has_heads_for_batch = false"), std::string::npos);
}

// As many packed samples, all as long as the longest, would need tensors beyond 2^60 bytes.
TEST(HopperPlan, CountsTheQueriesOfSamplesThatCannotAllBeLong) {
  const Problem problem = parsed(
      "1d 536870912 kernel_size 1000 heads 64 head_dim 256 lengths packed:100000 dtype bf16");
  const Problem longest = with_longest_samples(problem);
  EXPECT_EQ(longest.batch(), 100000);
  EXPECT_EQ(longest.axis(0), problem.axis(0));
  EXPECT_NE(hopper_why_not(problem, Pass::forward, {}).find("2^31 - 1 queries"), std::string::npos)
      << hopper_why_not(problem, Pass::forward, {});
}

TEST(HopperPlan, ASampleIsTheSameOfEveryTensor) {
  const Problem problem =
      parsed("3d 16x32x32 kernel_size 9 batch 3 heads 8 head_dim 72 additional 2 dtype bf16");
  vecina_forward_args args;
  imagine_arguments(problem, VECINA_CUDA, &args);
  args.key.strides[0] += 8;
  args.value.byte_offset = 48;
  args.additional_key.strides[0] = 0;
  PartOfCall<vecina_forward_args> sample;
  const vecina_forward_args one = args_of_sample(args, 2, &sample);
  NamedTensor all[kMaxTensors], parts[kMaxTensors];
  const int count = list_tensors(args, all);
  ASSERT_EQ(list_tensors(one, parts), count);
  int given_ones = 0;
  for (int i = 0; i < count; ++i) {
    const vecina_tensor &whole = *all[i].tensor, &part = *parts[i].tensor;
    ASSERT_EQ(given(part), given(whole)) << all[i].name;
    if (!given(whole)) continue;
    ++given_ones;
    EXPECT_EQ(address(part) - address(whole), 2 * whole.strides[0] * dtype_bytes(whole.dtype))
        << all[i].name;
    EXPECT_EQ(part.shape[0], 1) << all[i].name;
    EXPECT_EQ(part.shape[1], whole.shape[1]) << all[i].name;
  }
  EXPECT_EQ(given_ones, 7);
}

// The first sample's rows are aligned, the second's are not.
TEST(HopperPlan, LeavesSamplesThatAreNotAlignedToOthers) {
  const Problem problem =
      parsed("3d 16x32x32 kernel_size 9 batch 3 heads 8 head_dim 72 dtype bf16");
  vecina_forward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  const char* family = "";
  std::vector<ForwardLaunch> launches;
  ASSERT_TRUE(plan_launches(problem, example, {}, &family, &launches).ok());
  EXPECT_STREQ(family, "hopper");
  example.value.strides[0] += 4;
  EXPECT_EQ(plan(problem, example).code(), VECINA_UNSUPPORTED);
  ASSERT_TRUE(plan_launches(problem, example, {}, &family, &launches).ok());
  EXPECT_STREQ(family, "small");
  for (const ForwardLaunch& launch : launches) EXPECT_NE(launch.source.entry, "hopper_forward");
  EXPECT_NE(launches.at(0).description.find("value is not 16-byte aligned"), std::string::npos)
      << launches[0].description;
}

// Problems that check_cuda.sh runs on a GPU: all of them reach Hopper's kernels, which are told of
// the samples by a launch before theirs.
TEST(HopperPlan, TakesSamplesOfDifferentLength) {
  std::ifstream lines(tests::tests_path("lengths_problems.txt"));
  int num_padded = 0, num_packed = 0;
  for (std::string line; std::getline(lines, line);) {
    const Problem problem = parsed(line);
    ASSERT_EQ(hopper_why_not(problem, Pass::forward, {}), "") << line;
    vecina_forward_args example;
    imagine_arguments(problem, VECINA_CUDA, &example);
    std::vector<ForwardLaunch> launches;
    const Status status = hopper_plan_forward(problem, example, {}, &launches);
    ASSERT_TRUE(status.ok()) << line << ": " << status.message();
    ASSERT_EQ(launches.size(), 2u) << line;
    EXPECT_EQ(launches[0].source.file, "hopper_samples.cu") << line;
    EXPECT_EQ(launches[1].source.file, "hopper_forward.cu") << line;
    EXPECT_NE(launches[1].source.config.find(".has_lengths = true"), std::string::npos) << line;
    EXPECT_GT(hopper_workspace_bytes(problem), 0u) << line;
    for (const ForwardLaunch& launch : launches) {
      EXPECT_EQ(launch.workspace_bytes, hopper_workspace_bytes(problem)) << line;
      EXPECT_LE(launch.params_bytes, kMaxParamsBytes) << line;
    }
    (problem.lengths() == VECINA_LENGTHS_PACKED ? num_packed : num_padded) += 1;
  }
  EXPECT_GE(num_padded, 5);
  EXPECT_GE(num_packed, 5);

  const Problem equal = parsed("2d 70x61 kernel_size 21x17 batch 4 heads 2 head_dim 64 dtype bf16");
  vecina_forward_args example;
  imagine_arguments(equal, VECINA_CUDA, &example);
  std::vector<ForwardLaunch> launches;
  ASSERT_TRUE(hopper_plan_forward(equal, example, {}, &launches).ok());
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_EQ(launches[0].workspace_bytes, 0u);
  EXPECT_EQ(hopper_workspace_bytes(equal), 0u);
}

TEST(HopperPlan, SaysWhichStridesDoNotSuit) {
  const Problem problem =
      parsed("2d 256x256 kernel_size 32 batch 2 heads 8 head_dim 64 dtype bf16");
  vecina_forward_args good;
  imagine_arguments(problem, VECINA_CUDA, &good);
  EXPECT_TRUE(plan(problem, good).ok());

  vecina_forward_args args = good;
  args.key.byte_offset += 8;
  EXPECT_EQ(plan(problem, args).code(), VECINA_UNSUPPORTED);
  EXPECT_NE(plan(problem, args).message().find("key is not 16-byte aligned"), std::string::npos);
  args = good;
  args.value.strides[1] += 4;
  EXPECT_NE(plan(problem, args).message().find("value has stride"), std::string::npos);
  args = good;
  args.query.strides[0] = 0;  // one sample for the whole batch
  EXPECT_NE(plan(problem, args).message().find("query has stride 0 in dimension 0"),
            std::string::npos);
  args = good;  // [batch, heads, tokens, columns] behind the shape of heads last
  args.query.strides[2] = 64;
  args.query.strides[1] = 256 * 64;
  args.query.strides[3] = 256 * 256 * 64;
  EXPECT_TRUE(plan(problem, args).ok());
  args = good;
  args.query.strides[2] = 56;  // tokens that overlap
  EXPECT_NE(plan(problem, args).message().find("rows of query overlap"), std::string::npos);
  args = good;
  args.output.strides[3] = 0;
  EXPECT_NE(plan(problem, args).message().find("output has heads 0 elements apart"),
            std::string::npos);
}

TEST(HopperMap, HeadsAreColumnsAndDilationIsAStep) {
  const Problem problem =
      parsed("2d 100x90 kernel_size 32x8 dilation 3x1 batch 2 heads 8 head_dim 64 dtype bf16");
  vecina_forward_args args;
  imagine_arguments(problem, VECINA_CUDA, &args);
  HopperMapPlan map;
  ASSERT_TRUE(make_map("key", args.key, 2, HopperHeads::columns, {1, 4, 16}, {1, 3, 1}, &map).ok());
  EXPECT_EQ(map.extents, (std::array<uint64_t, 5>{512, 90, 100, 1, 2}));
  EXPECT_EQ(map.byte_strides, (std::array<uint64_t, 4>{1024, 92160, 92160, 9216000}));
  EXPECT_EQ(map.box, (std::array<uint32_t, 5>{64, 16, 12, 1, 1}));
  EXPECT_EQ(map.steps, (std::array<uint32_t, 5>{1, 1, 3, 1, 1}));
  EXPECT_EQ(map.head_stride, 64);
  EXPECT_EQ(make_map("key", args.key, 2, HopperHeads::columns, {1, 86, 1}, {1, 3, 1}, &map).code(),
            VECINA_UNSUPPORTED);
  // With a dimension for heads a box of 64 columns ends where a head does.
  ASSERT_TRUE(make_map("key", args.key, 2, HopperHeads::axis0, {1, 4, 16}, {1, 3, 1}, &map).ok());
  EXPECT_EQ(map.extents, (std::array<uint64_t, 5>{64, 90, 100, 8, 2}));
  EXPECT_EQ(map.byte_strides, (std::array<uint64_t, 4>{1024, 92160, 128, 9216000}));
  EXPECT_EQ(map.box, (std::array<uint32_t, 5>{64, 16, 12, 1, 1}));
  // With three axes they may stand in place of the batch.
  const Problem deep = parsed("3d 10x20x30 kernel_size 5 heads 8 head_dim 72 dtype bf16");
  imagine_arguments(deep, VECINA_CUDA, &args);
  ASSERT_TRUE(make_map("key", args.key, 3, HopperHeads::batch, {2, 4, 8}, {1, 1, 1}, &map).ok());
  EXPECT_EQ(map.extents, (std::array<uint64_t, 5>{72, 30, 20, 10, 8}));
  EXPECT_EQ(map.byte_strides, (std::array<uint64_t, 4>{1152, 34560, 691200, 144}));
  EXPECT_EQ(map.box, (std::array<uint32_t, 5>{16, 8, 4, 2, 1}));
}

}  // namespace
}  // namespace vecina::internal::cuda
