// SPDX-License-Identifier: MIT
// Plans of the kernels for small problems: which form takes what, and the arithmetic that their
// kernels rely on. No GPU and no compiler is needed.
#include "cuda/small_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cli/random.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "core/tensor.h"
#include "core/window.h"
#include "cuda/folded_axes.h"
#include "cuda/parsed_problem.h"
#include "cuda/small_common.h"
#include "cuda/small_fragments_plan.h"
#include "cuda/small_lanes_plan.h"

namespace vecina::internal::cuda {
namespace {

vecina_forward_args example_of(const Problem& problem) {
  vecina_forward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  return example;
}

// The file of the kernel that computes the problem.
std::string file_for(const Problem& problem, const vecina_forward_args& example) {
  std::vector<ForwardLaunch> launches;
  EXPECT_TRUE(small_plan_forward(problem, example, {}, &launches).ok());
  return launches.empty() ? "" : launches.front().source.file;
}
std::string file_for(const std::string& line) {
  const Problem problem = parsed(line);
  return file_for(problem, example_of(problem));
}

TEST(SmallPlan, TensorCoresForWindowsOfManyKeys) {
  for (const char* line : {
           "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32",
           "2d 32x32 kernel_size 7 batch 2 heads 8 heads_kv 2 head_dim 32 dtype bf16",
           "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32 additional 1",
           "2d 16x16 kernel_size 16 batch 2 heads 4 head_dim 32",
           "1d 64 kernel_size 64 batch 4 heads 8 head_dim 32 dtype f16",
           "3d 6x7x8 kernel_size 3 heads 2 head_dim 64 dilation 2x1x1",
           "attention 19x37 causal heads 2 head_dim 32",
       }) {
    EXPECT_EQ(file_for(line), "small_fragments.cu") << line;
  }
}

TEST(SmallPlan, LanesForTheRest) {
  for (const char* line : {
           "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32",              // few keys
           "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32 dtype f64",  // f64
           "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32 bias",       // bias
           "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 30",            // odd columns
           "2d 32x32 kernel_size 7 heads 4 head_dim 32 head_dim_value 64",  // two widths
           "2d 32x32 kernel_size 7 heads 4 head_dim 32 output_stride 2",    // fewer queries
           "attention 40x4000 heads 1 head_dim 32",                         // many keys
       }) {
    EXPECT_EQ(file_for(line), "small_lanes.cu") << line;
  }
}

TEST(SmallPlan, LanesForRowsThatAreNotAligned) {
  const Problem problem = parsed("2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32");
  vecina_forward_args shifted = example_of(problem);
  shifted.key.byte_offset = 4;
  EXPECT_EQ(file_for(problem, shifted), "small_lanes.cu");
  vecina_forward_args spaced = example_of(problem);
  for (int d = 0; d < 4; ++d) spaced.value.strides[d] += 1;
  EXPECT_EQ(file_for(problem, spaced), "small_lanes.cu");
}

TEST(SmallPlan, NothingIsLaunchedForAnEmptyBatch) {
  EXPECT_EQ(file_for("2d 8x8 kernel_size 3 batch 0 heads 2 head_dim 16"), "");
}

// Where the samples were equal, these would be fragments, halo and tiles.
TEST(SmallPlan, LanesOrTilesForSamplesOfDifferentLength) {
  struct Row {
    std::string line, file;
  };
  for (const Row& row : {
           Row{"2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32", "small_lanes.cu"},
           {"2d 256x256 kernel_size 7 batch 2 heads 4 head_dim 32 dtype bf16", "tiles_forward.cu"},
           {"1d 4096 kernel_size 300 batch 20 heads 4 head_dim 64 dtype f16", "tiles_forward.cu"},
       }) {
    EXPECT_NE(file_for(row.line), "small_lanes.cu") << row.line;
    EXPECT_EQ(file_for(row.line + " lengths padded"), row.file) << row.line;
  }
  EXPECT_EQ(file_for("2d 32x32 kernel_size 7 heads 4 head_dim 32 lengths packed:3"),
            "small_lanes.cu");
}

// A window that is as long as its sample cannot be compiled in.
TEST(SmallPlan, GeometryOfAttentionWithLengthsComesWithTheRun) {
  const auto config_of = [](const std::string& line) {
    const Problem problem = parsed(line);
    return plan_lanes(problem, example_of(problem), {}).source.config;
  };
  const std::string line = "attention 9x7 batch 3 heads 2 head_dim 8";
  EXPECT_NE(config_of(line).find(".is_unrolled = true"), std::string::npos);
  EXPECT_NE(config_of(line + " lengths padded").find(".is_unrolled = false"), std::string::npos);
}

ForwardLaunch launch_for(const std::string& line) {
  const Problem problem = parsed(line);
  std::vector<ForwardLaunch> launches;
  EXPECT_TRUE(small_plan_forward(problem, example_of(problem), {}, &launches).ok());
  return launches.empty() ? ForwardLaunch() : launches.front();
}

// Beside the grid: whether the kernel was told that it is flat.
void expect_grid(const std::string& line, std::array<uint32_t, 3> grid, bool is_flat) {
  const ForwardLaunch launch = launch_for(line);
  EXPECT_EQ(std::to_array(launch.grid), grid) << line;
  EXPECT_NE(launch.source.config.find(is_flat ? ".has_flat_grid = true" : ".has_flat_grid = false"),
            std::string::npos)
      << line << ": " << launch.source.config;
}

TEST(SmallPlan, TheGridCountsTilesInItsFirstDimensions) {
  expect_grid("1d 256 kernel_size 7 batch 2 heads 7 head_dim 32", {16, 7, 2}, false);
  expect_grid("1d 256 kernel_size 7 batch 2 heads 8 head_dim 32", {32, 8 / 2, 2}, false);
  expect_grid("1d 5 kernel_size 5 batch 3 heads 2 head_dim 12 head_dim_value 600 dtype f64",
              {3, 2 * 2, 3}, false);  // two tiles of columns
  expect_grid("2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32", {16, 4, 2 * 4}, false);
  expect_grid("3d 8x9x10 kernel_size 2 batch 3 heads 2 head_dim 8 dtype f64", {3, 3, 4 * 3 * 2},
              false);
}

// Of neighbouring queries where lse is wanted, of 16 bits in any case.
TEST(SmallPlan, TwoHeadsABlockWhereTheirLsesShareASector) {
  const auto has_two = [](const std::string& line, bool has_lse) {
    const Problem problem = parsed(line);
    vecina_forward_args example = example_of(problem);
    if (!has_lse) example.lse = {};
    const std::string config = plan_lanes(problem, example, {}).source.config;
    return config.find(".heads_beside = 2") != std::string::npos;
  };
  const std::string line = "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32";
  EXPECT_TRUE(has_two(line, true));
  EXPECT_FALSE(has_two(line, false));
  EXPECT_TRUE(has_two(line + " dtype bf16", true));
  EXPECT_TRUE(has_two(line + " dtype bf16", false));
  for (const std::string& other : std::vector<std::string>{
           line + " heads_kv 2",
           "1d 256 kernel_size 7 batch 2 heads 7 head_dim 32",
           "1d 256 kernel_size 7 batch 2 heads 8 head_dim 64",
           "1d 4096 kernel_size 7 batch 2 heads 8 head_dim 32",  // many blocks
           "1d 16 kernel_size 16 batch 4 heads 8 head_dim 32 dtype bf16",
           "2d 16x16 kernel_size 3 batch 2 heads 4 head_dim 32 dtype bf16",
       }) {
    EXPECT_FALSE(has_two(other, true)) << other;
  }
}

TEST(SmallPlan, AGridIsFlatWhereItsDimensionsAreTooShort) {
  expect_grid("1d 3 kernel_size 3 batch 65535 heads 1 head_dim 8", {1, 1, 65535}, false);
  expect_grid("1d 3 kernel_size 3 batch 65536 heads 1 head_dim 8", {65536, 1, 1}, true);
  expect_grid("1d 17 kernel_size 17 batch 70000 heads 2 head_dim 32", {2 * 2 * 70000, 1, 1}, true);
  expect_grid("2d 2x3 kernel_size 2 batch 7000 heads 10 head_dim 8", {70000, 1, 1}, true);
}

TEST(SmallPlan, BoxesWhoseKeysFillTilesAreCheaper) {
  const auto config = [](const std::string& line) { return launch_for(line).source.config; };
  const std::string line = "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32";
  EXPECT_NE(config(line).find(".union_size = {1, 14, 8}"), std::string::npos) << config(line);
  // One more key would need a 15th tile; 10 x 10 and it are 13 tiles.
  const std::string with_token = config(line + " additional 1");
  EXPECT_NE(with_token.find(".union_size = {1, 10, 10}"), std::string::npos) << with_token;
  // Filled up beyond the axis: not every key of a tile is there.
  const std::string filled = config("1d 37 kernel_size 37 batch 2 heads 4 head_dim 32");
  EXPECT_NE(filled.find(".union_size = {1, 1, 40}, .is_full = {true, true, false}, "
                        ".is_cut = {false, false, true}"),
            std::string::npos)
      << filled;
}

TEST(SmallPlan, AxesThatEveryQuerySeesAreOne) {
  const auto shape_of = [](const FoldedAxes& folded) {
    const Problem& problem = folded.problem;
    std::vector<int64_t> shape;
    for (int a = 0; a < problem.rank(); ++a) shape.push_back(problem.axis(a).extent);
    for (const vecina_tensor* tensor : {&folded.example.query, &folded.example.value}) {
      EXPECT_EQ(tensor->ndim, problem.rank() + 3);
      for (int a = 0; a < problem.rank(); ++a) {
        EXPECT_EQ(tensor->shape[1 + a], problem.axis(a).extent);
      }
      EXPECT_EQ(tensor->shape[1 + problem.rank()], problem.heads());
    }
    EXPECT_EQ(folded.example.lse.ndim, problem.rank() + 2);
    return shape;
  };
  const auto folded = [&](const std::string& line) {
    const Problem problem = parsed(line);
    return shape_of(fold_axes(problem, example_of(problem)));
  };
  using Shape = std::vector<int64_t>;
  EXPECT_EQ(folded("2d 5x7 kernel_size 5x7 stride 2x3 heads 3 head_dim 32"), Shape({35}));
  EXPECT_EQ(folded("3d 2x5x7 kernel_size 2x5x7 heads 3 head_dim 32 additional 2"), Shape({70}));
  EXPECT_EQ(folded("3d 9x5x7 kernel_size 3x5x7 heads 3 head_dim 32"), Shape({9, 35}));
  EXPECT_EQ(folded("3d 5x7x9 kernel_size 5x7x3 dilation 1x1x2 heads 3 head_dim 32"),
            Shape({35, 9}));
  EXPECT_EQ(folded("3d 5x9x7 kernel_size 5x3x7 heads 3 head_dim 32"), Shape({5, 9, 7}));
  EXPECT_EQ(folded("2d 5x7 kernel_size 5x7 causal 1x0 heads 3 head_dim 32"), Shape({5, 7}));
  EXPECT_EQ(folded("2d 5x7 kernel_size 5x7 output_stride 2x1 heads 3 head_dim 32"), Shape({5, 7}));
  EXPECT_EQ(folded("2d 5x7 kernel_size 5x7 bias heads 3 head_dim 32"), Shape({5, 7}));
  EXPECT_EQ(folded("2d 5x7 kernel_size 5x7 lengths padded heads 3 head_dim 32"), Shape({5, 7}));

  const Problem problem = parsed("2d 5x7 kernel_size 5x7 batch 2 heads 3 head_dim 32");
  const vecina_forward_args example = example_of(problem);
  const FoldedAxes one = fold_axes(problem, example);
  EXPECT_EQ(one.example.key.strides[0], example.key.strides[0]);
  EXPECT_EQ(one.example.key.strides[1], example.key.strides[2]);
  EXPECT_EQ(one.example.key.strides[2], example.key.strides[3]);
  vecina_forward_args spaced = example;
  spaced.key.strides[1] += 32;  // rows of tokens lie apart
  EXPECT_EQ(shape_of(fold_axes(problem, spaced)), Shape({5, 7}));
}

TEST(SmallPlan, FewBlocksAreSmaller) {
  EXPECT_EQ(launch_for("1d 256 kernel_size 7 batch 2 heads 16 head_dim 32").block[0], 128u);
  EXPECT_EQ(launch_for("1d 16 kernel_size 16 batch 4 heads 8 head_dim 32").block[0], 64u);
}

TEST(SmallPlan, NeighborsShareKeysWhereTheirWindowsDiffByOne) {
  const auto has_neighbors = [](const std::string& line) {
    return launch_for(line).source.config.find(".neighbors = 2") != std::string::npos;
  };
  const std::string line = "1d 256 kernel_size 7 batch 4 heads 8 head_dim 32";
  for (const std::string& shared :
       {line, line + " additional 4", line + " dtype f16",
        std::string("1d 256 kernel_size 13 batch 4 heads 8 head_dim 64"),
        std::string(
            "2d 64x64 kernel_size 3 dilation 2x1 stride 2x1 causal 1x0 heads 8 head_dim 8")}) {
    EXPECT_TRUE(has_neighbors(shared)) << shared;
  }
  for (const std::string& apart :
       {line + " stride 2", line + " dilation 2", line + " output_stride 2", line + " causal",
        line + " bias", line + " lengths padded", line + " heads_kv 2",
        line + " additional 26",                                                 // many logits
        std::string("1d 256 kernel_size 7 batch 4 heads 8 head_dim 128"),        // many columns
        std::string("1d 256 kernel_size 7 batch 1 heads 8 head_dim 32"),         // few blocks
        std::string("1d 256 kernel_size 7 batch 4 heads 8 head_dim 4"),          // one lane
        std::string("1d 16 kernel_size 16 batch 40 heads 8 head_dim 32"),        // few queries
        std::string("2d 64x64 kernel_size 7x1 batch 2 heads 8 head_dim 32"),     // no common key
        std::string("2d 512x1 kernel_size 7x1 batch 4 heads 8 head_dim 32")}) {  // nobody beside
    EXPECT_FALSE(has_neighbors(apart)) << apart;
  }
}

TEST(SmallPlan, SaysWhatItDoesNotTake) {
  EXPECT_NE(small_why_not(parsed("1d 500000000 kernel_size 5 batch 2000 heads 64 head_dim 8"),
                          Pass::forward, {}),
            "");
  EXPECT_EQ(small_why_not(parsed("1d 4000000 kernel_size 5 batch 20 heads 64 head_dim 8"),
                          Pass::forward, {}),
            "");
}

// A box's warp loads union_size keys from the first window's first on, or from further left where
// the group ends: every window of the box must lie within.
TEST(SmallPlan, TheUnionHoldsEveryWindowOfABox) {
  cli::Random random(1);
  for (int i = 0; i < 4000; ++i) {
    Axis axis;
    axis.dilation = random.integer(1, 3);
    axis.kernel_size = random.integer(1, 9);
    axis.stride = random.integer(1, axis.kernel_size);
    axis.is_causal = random.chance(0.3);
    axis.extent = axis.query_extent = random.integer(axis.kernel_size * axis.dilation, 50);
    const int box = 1 << random.integer(0, 4);
    auto size = static_cast<int>(union_size(axis, box));
    if (random.chance(0.5)) size = (size + 7) / 8 * 8;  // filled up to whole tiles
    for (int group = 0; group < axis.dilation; ++group) {
      const int length =
          na_group_length(static_cast<int>(axis.extent), static_cast<int>(axis.dilation), group);
      const NaAxis dense = {length, static_cast<int>(axis.kernel_size),
                            static_cast<int>(axis.stride), axis.is_causal};
      for (int first = 0; first < length; first += box) {
        const int begin = std::min(na_window_begin(dense, first), std::max(length - size, 0));
        for (int query = first; query < std::min(first + box, length); ++query) {
          ASSERT_GE(na_window_begin(dense, query), begin);
          ASSERT_LE(na_window_end(dense, query), begin + size)
              << "extent " << axis.extent << " kernel_size " << axis.kernel_size << " stride "
              << axis.stride << " dilation " << axis.dilation << " causal " << axis.is_causal
              << " box " << box << " query " << query;
        }
      }
    }
  }
}

TEST(SmallPlan, DividersAreExact) {
  cli::Random random(2);
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  for (int i = 0; i < 20000; ++i) {
    const int64_t divisor =
        i < 100 ? i + 1 : std::min(kMost, random.integer(1, int64_t{1} << random.integer(1, 31)));
    const Divider d = divider(divisor);
    for (int64_t n : {int64_t{0}, divisor - 1, divisor, kMost, kMost / divisor * divisor,
                      kMost / divisor * divisor - 1, random.integer(0, kMost)}) {
      if (n < 0) continue;
      const auto quotient =
          static_cast<int64_t>((static_cast<uint64_t>(n) * d.multiplier) >> d.shift);
      ASSERT_EQ(quotient, n / divisor) << n << " / " << divisor;
    }
  }
}

TEST(SmallPlan, QueriesOfABlockFillShortAxesFirst) {
  const auto product = [](const std::array<int, 3>& tile) { return tile[0] * tile[1] * tile[2]; };
  for (const char* line :
       {"1d 9 kernel_size 3 heads 1 head_dim 8", "2d 1x20 kernel_size 1x5 heads 1 head_dim 8",
        "3d 2x2x2 kernel_size 2 heads 1 head_dim 8"}) {
    EXPECT_EQ(product(spread_queries(parsed(line), 32)), 32) << line;
  }
  EXPECT_EQ(spread_queries(parsed("2d 1x20 kernel_size 1x5 heads 1 head_dim 8"), 16),
            (std::array<int, 3>{1, 1, 16}));
  EXPECT_EQ(spread_queries(parsed("2d 20x20 kernel_size 5 heads 1 head_dim 8"), 16),
            (std::array<int, 3>{1, 4, 4}));
}

TEST(SmallPlan, MergesUpToSixteenInOneLaunch) {
  vecina_tensor output = {}, lse = {};
  output.data = lse.data = &output;
  output.ndim = 4;
  lse.ndim = 3;
  const int64_t shape[] = {2, 5, 3, 8}, strides[] = {120, 24, 8, 1};
  for (int d = 0; d < 4; ++d) {
    output.shape[d] = shape[d];
    output.strides[d] = strides[d];
  }
  for (int d = 0; d < 3; ++d) {
    lse.shape[d] = shape[d];
    lse.strides[d] = strides[d] / 8;
  }
  const std::vector<vecina_tensor> outputs(17, output), lses(17, lse);
  const auto plan = [&](int count, std::vector<KernelLaunch<MergeArgs>>* launches) {
    return small_plan_merge({count, outputs.data(), lses.data(), &output, &lse}, {}, launches);
  };
  std::vector<KernelLaunch<MergeArgs>> launches;
  ASSERT_TRUE(plan(16, &launches).ok());
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_NE(launches.front().source.config.find(".num_dims = 1,"), std::string::npos)
      << "contiguous dimensions are one: " << launches.front().source.config;
  EXPECT_EQ(plan(17, &launches).code(), VECINA_UNSUPPORTED);
  const std::vector<vecina_tensor> none(16);
  std::vector<KernelLaunch<MergeBackwardArgs>> gradients;
  ASSERT_TRUE(small_plan_merge({16, outputs.data(), lses.data(), &output, none.data(),
                                outputs.data(), none.data()},
                               {}, &gradients)
                  .ok());
  ASSERT_EQ(gradients.size(), 1u);
  EXPECT_EQ(gradients.front().source.file, "merge_gradient.cu");
  EXPECT_LE(gradients.front().params_bytes, kMaxParamsBytes);
}

TEST(SmallPlan, MergesNoRowsThatThirtyTwoBitsCannotNumber) {
  struct Row {
    int32_t dtype;
    int64_t columns;
    bool is_merged;
  };
  constexpr int64_t kBytes = int64_t{1} << 31;
  for (const Row& row :
       {Row{VECINA_F32, kBytes / 4 - 1, true}, Row{VECINA_F32, kBytes / 4, false},
        Row{VECINA_F16, kBytes / 2 - 8, true}, Row{VECINA_F64, kBytes / 8, false},
        Row{VECINA_F32, (int64_t{1} << 32) + 8, false}, Row{VECINA_F32, int64_t{1} << 61, false}}) {
    vecina_tensor output = {}, lse = {};
    output.data = lse.data = &output;
    output.dtype = row.dtype;
    lse.dtype = lse_dtype(row.dtype);
    output.ndim = 2;
    lse.ndim = 1;
    output.shape[0] = lse.shape[0] = 1;
    output.shape[1] = output.strides[0] = row.columns;
    output.strides[1] = lse.strides[0] = 1;
    const vecina_tensor outputs[] = {output, output}, lses[] = {lse, lse};
    std::vector<KernelLaunch<MergeArgs>> launches;
    std::vector<KernelLaunch<MergeBackwardArgs>> gradients;
    const vecina_status expected = row.is_merged ? VECINA_OK : VECINA_UNSUPPORTED;
    EXPECT_EQ(small_plan_merge({2, outputs, lses, &output, &lse}, {}, &launches).code(), expected)
        << row.columns;
    EXPECT_EQ(
        small_plan_merge({2, outputs, lses, &output, &lse, outputs, lses}, {}, &gradients).code(),
        expected)
        << row.columns;
    EXPECT_EQ(launches.size(), row.is_merged ? 1u : 0u);
    EXPECT_EQ(gradients.size(), row.is_merged ? 1u : 0u);
  }
}

}  // namespace
}  // namespace vecina::internal::cuda
