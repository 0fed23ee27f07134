// SPDX-License-Identifier: MIT
// Plans of the kernels of large windows: when they are taken, and that their boxes fit.
#include "cuda/tiles_plan.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cases.h"
#include "cli/random.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "cuda/device.h"
#include "cuda/families.h"
#include "cuda/gradient_plan.h"
#include "cuda/kernels/halo_params.h"
#include "cuda/owners.h"
#include "cuda/parsed_problem.h"
#include "cuda/small_common.h"
#include "cuda/value_parts.h"

namespace vecina::internal::cuda {
namespace {

DeviceFacts facts_of(int compute_capability) {
  DeviceFacts facts;
  set_target(compute_capability, &facts);
  return facts;
}

std::vector<std::string> files(const Problem& problem, const vecina_backward_args& example,
                               int compute_capability) {
  std::vector<BackwardLaunch> launches;
  EXPECT_TRUE(
      gradient_plan_backward(problem, example, facts_of(compute_capability), &launches).ok());
  std::vector<std::string> files;
  for (const BackwardLaunch& launch : launches) {
    files.push_back(launch.source.file);
    EXPECT_LE(launch.workspace_bytes, gradient_workspace_bytes(problem)) << problem.line();
  }
  return files;
}
std::vector<std::string> files(const std::string& line, int compute_capability) {
  const Problem problem = parsed(line);
  vecina_backward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  return files(problem, example, compute_capability);
}

TEST(TilesPlan, TakesLargeWindowsAndRowsThatHalosDoNot) {
  const std::vector<std::string> both = {"tiles_gradient_query.cu", "tiles_gradient_key.cu"};
  for (const char* line : {
           "2d 256x256 kernel_size 80 heads 2 head_dim 128 dtype bf16",
           "3d 30x48x80 kernel_size 18x24x24 heads 2 heads_kv 1 head_dim 128 dtype f16",
           "1d 4096 kernel_size 1024 heads 2 head_dim 64 dtype bf16",
           "attention 1000x1000 causal heads 2 head_dim 64 dtype f16",
           "2d 56x56 kernel_size 20 heads 2 head_dim 48 head_dim_value 104 dtype f16",
           "2d 56x56 kernel_size 20 heads 2 head_dim 64 dtype f16 scale -1",
       }) {
    for (const int capability : {80, 86, 120}) EXPECT_EQ(files(line, capability), both) << line;
  }
  EXPECT_EQ(files("2d 56x56 kernel_size 20 heads 2 head_dim 64 dtype f16 additional 70", 80),
            (std::vector<std::string>{"tiles_gradient_query.cu", "tiles_gradient_key.cu",
                                      "gradient_key.cu", "gradient_key_sum.cu"}));
}

TEST(TilesPlan, TakesWarpgroupsForGradientsOnHopper) {
  const std::vector<std::string> all = {"tiles_gradient_rows.cu", "hopper_gradient.cu",
                                        "hopper_gradient.cu"};
  for (const char* line : {
           "2d 256x256 kernel_size 80 heads 2 head_dim 128 dtype bf16",
           "3d 30x48x80 kernel_size 18x24x24 heads 2 heads_kv 1 head_dim 128 dtype f16",
           "1d 4096 kernel_size 1024 causal heads 2 head_dim 64 head_dim_value 128 dtype bf16",
       }) {
    EXPECT_EQ(files(line, 90), all) << line;
  }
  // Facts have a kernel of their own, so that of query runs for its gradient alone.
  const Problem problem = parsed("2d 256x256 kernel_size 80 heads 2 head_dim 128 dtype bf16");
  vecina_backward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  example.grad_query = {};
  EXPECT_EQ(files(problem, example, 90), (std::vector<std::string>{all[0], all[1]}));
  for (const char* line : {
           "2d 256x256 kernel_size 80 heads 2 head_dim 96 dtype bf16",                // columns
           "2d 256x256 kernel_size 80 heads 2 head_dim 128 additional 3 dtype bf16",  // tokens
           "2d 256x256 kernel_size 7x9 heads 2 head_dim 128 head_dim_value 64 dtype bf16",  // few
       }) {
    EXPECT_EQ(files(line, 90).front(), "tiles_gradient_query.cu") << line;
  }
}

TEST(TilesPlan, AddsUpAllGradientsAtOnceWhereTheProblemAllowsIt) {
  const std::string line =
      "2d 256x256 kernel_size 80 heads 2 head_dim 128 allow nondeterministic "
      "dtype bf16";
  const std::vector<std::string> all = {"tiles_gradient_rows.cu", "tiles_gradient_key.cu",
                                        "tiles_gradient_rows.cu"};
  EXPECT_EQ(files(line, 80), all);
  EXPECT_EQ(files(line, 90), (std::vector<std::string>{all[0], "hopper_gradient.cu", all[2]}));
  const Problem problem = parsed(line);
  const size_t queries = size_t{256} * 256 * 2;
  EXPECT_EQ(gradient_facts_bytes(problem), queries * 16);
  EXPECT_EQ(gradient_workspace_bytes(problem), queries * (16 + 4 * 128));
  const Problem strict = parsed("2d 256x256 kernel_size 80 heads 2 head_dim 128 dtype bf16");
  EXPECT_EQ(gradient_workspace_bytes(strict), queries * 16);
  // Rows of sums are padded.
  EXPECT_EQ(
      files("2d 64x64 kernel_size 20 heads 2 head_dim 72 allow nondeterministic dtype f16", 90),
      all);
  EXPECT_EQ(gradient_workspace_bytes(parsed(
                "2d 64x64 kernel_size 20 heads 2 head_dim 72 allow nondeterministic dtype f16")),
            size_t{64} * 64 * 2 * (16 + 4 * 80));
  // One gradient alone, additional tokens and few keys are left to the kernels that do not add.
  vecina_backward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  example.grad_query = {};
  EXPECT_EQ(files(problem, example, 80),
            (std::vector<std::string>{"tiles_gradient_query.cu", "tiles_gradient_key.cu"}));
  imagine_arguments(problem, VECINA_CUDA, &example);
  example.grad_key = example.grad_value = {};
  EXPECT_EQ(files(problem, example, 80), (std::vector<std::string>{"tiles_gradient_query.cu"}));
  for (const char* other :
       {"additional 3 allow nondeterministic dtype bf16",
        "head_dim_value 64 kernel_size 7x9 allow nondeterministic dtype bf16"}) {
    std::string text = other;
    if (text.find("kernel_size") == std::string::npos) text = "kernel_size 80 " + text;
    const Problem left = parsed("2d 256x256 heads 2 head_dim 128 " + text);
    imagine_arguments(left, VECINA_CUDA, &example);
    EXPECT_EQ(files(left, example, 80).front(), "tiles_gradient_query.cu") << other;
    // Sums of parts of the queries alone: 6 tokens, 65,536 queries, 1024 at least of a part.
    const size_t parts = left.additional_tokens() > 0 ? 64 : 0;
    EXPECT_EQ(gradient_workspace_bytes(left),
              gradient_facts_bytes(left) + parts * 6 * (128 + 128) * 4)
        << other;
  }
}

std::string forward_file(const Problem& problem, const vecina_forward_args& example,
                         const DeviceFacts& facts) {
  const char* family = nullptr;
  std::vector<ForwardLaunch> launches;
  EXPECT_TRUE(plan_launches(problem, example, facts, &family, &launches).ok());
  std::set<std::string> files;
  for (const ForwardLaunch& launch : launches) files.insert(launch.source.file);
  return files.size() == 1 ? *files.begin() : "";
}
std::string forward_file(const Problem& problem, const DeviceFacts& facts) {
  vecina_forward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  return forward_file(problem, example, facts);
}
std::string forward_file(const std::string& line, int compute_capability) {
  return forward_file(parsed(line), facts_of(compute_capability));
}

TEST(TilesPlan, TakesTheForwardOfLargeWindowsWithoutHopper) {
  for (const char* line : {
           "2d 256x256 kernel_size 80 heads 2 head_dim 128 dtype bf16",
           "3d 30x48x80 kernel_size 18x24x24 heads 2 heads_kv 1 head_dim 128 dtype f16",
           "1d 4096 kernel_size 1024 dilation 3 heads 2 head_dim 64 dtype bf16",
           "attention 1000x1000 causal heads 2 head_dim 64 dtype f16 additional 70",
           "2d 256x256 kernel_size 20 stride 4 heads 2 head_dim 48 head_dim_value 104 dtype f16",
           "2d 256x256 kernel_size 20 heads 2 head_dim 64 dtype f16 scale -1",
       }) {
    for (const int capability : {80, 86, 89, 100, 120}) {
      EXPECT_EQ(forward_file(line, capability), "tiles_forward.cu") << line;
    }
  }
  // Few queries of as many keys are left to the kernels for small problems.
  EXPECT_EQ(forward_file("2d 64x64 kernel_size 13 heads 24 head_dim 64 dtype bf16", 80),
            "tiles_forward.cu");
  EXPECT_EQ(forward_file("2d 32x32 kernel_size 13 heads 4 head_dim 64 dtype bf16", 80),
            "small_fragments.cu");
  const char* large = "2d 256x256 kernel_size 80 heads 2 head_dim 128 dtype bf16";
  EXPECT_EQ(forward_file(large, 90), "hopper_forward.cu");
  // Of head dims that are no multiples of 16, Hopper's kernels take all but those of three axes and
  // small samples.
  EXPECT_EQ(forward_file("2d 256x256 kernel_size 80 heads 2 head_dim 104 dtype bf16", 90),
            "hopper_forward.cu");
  EXPECT_EQ(forward_file("3d 30x48x80 kernel_size 18x24x24 heads 2 head_dim 104 dtype bf16", 90),
            "hopper_forward.cu");
  EXPECT_EQ(forward_file("3d 8x16x16 kernel_size 5 heads 1 batch 64 head_dim 104 dtype bf16", 90),
            "tiles_forward.cu");
}

TEST(TilesPlan, TakesBiasLengthsOutputStrideAndQueriesOfTheirOwn) {
  struct Row {
    const char *line, *last_of_backward;
  };
  for (const Row& row : {
           Row{"2d 56x56 kernel_size 20 bias heads 2 head_dim 64 dtype f16",
               "gradient_bias_sum.cu"},
           {"2d 56x56 kernel_size 20 batch 3 heads 2 head_dim 128 lengths padded dtype bf16",
            "tiles_gradient_key.cu"},
           {"3d 20x20x20 kernel_size 5 heads 2 head_dim 24 lengths packed:4 dtype bf16",
            "tiles_gradient_key.cu"},
           {"2d 56x56 kernel_size 20 output_stride 2x3 dilation 2 heads 2 head_dim 64 dtype f16",
            "tiles_gradient_key.cu"},
           {"attention 1000x999 heads 2 head_dim 64 dtype f16", "tiles_gradient_key.cu"},
           {"1d 500 kernel_size 100 output_stride 3 batch 2 heads 1 head_dim 64 additional 2 bias "
            "lengths padded dtype bf16",
            "gradient_bias_sum.cu"},
       }) {
    EXPECT_EQ(forward_file(row.line, 80), "tiles_forward.cu") << row.line;
    for (const char* allowed : {"", " allow nondeterministic"}) {
      const std::string line = std::string(row.line) + allowed;
      for (const int capability : {80, 90, 120}) {  // not Hopper's warpgroups
        const std::vector<std::string> backward = files(line, capability);
        EXPECT_EQ(backward.front(), "tiles_gradient_query.cu") << line;
        EXPECT_EQ(backward.at(1), "tiles_gradient_key.cu") << line;
        EXPECT_EQ(backward.back(), row.last_of_backward) << line;
      }
      const Problem problem = parsed(line);
      EXPECT_EQ(gradient_workspace_bytes(problem),
                gradient_facts_bytes(problem) + tiles_bias_bytes(problem));
      EXPECT_EQ(tiles_bias_bytes(problem) > 0, problem.has_bias()) << line;
    }
  }
}

TEST(TilesPlan, OffsetsOfABiasFit31Bits) {
  const Problem problem = parsed("2d 56x56 kernel_size 20 bias heads 2 head_dim 64 dtype f16");
  for (const int64_t stride : {int64_t{-6000}, int64_t{1} << 29}) {
    vecina_forward_args forward;
    imagine_arguments(problem, VECINA_CUDA, &forward);
    forward.bias.strides[0] = stride;
    EXPECT_EQ(forward_file(problem, forward, facts_of(80)), "small_lanes.cu") << stride;
    vecina_backward_args backward;
    imagine_arguments(problem, VECINA_CUDA, &backward);
    backward.bias.strides[0] = stride;
    EXPECT_EQ(files(problem, backward, 80).front(), "gradient_query.cu") << stride;
  }
}

// A packed tensor may be larger than what offsets reach, a sample may not.
TEST(TilesPlan, OffsetsOfPackedTokensCountOneSample) {
  const Problem problem =
      parsed("1d 4000 kernel_size 100 heads 2 head_dim 64 lengths packed:9000 dtype f16");
  vecina_forward_args forward;
  imagine_arguments(problem, VECINA_CUDA, &forward);
  ASSERT_GT(forward.key.shape[1] * forward.key.strides[1] * 2, int64_t{1} << 31);
  EXPECT_EQ(forward_file(problem, forward, facts_of(80)), "tiles_forward.cu");
  forward.key.strides[1] = int64_t{1} << 19;  // 4000 times 2 bytes of it are beyond
  EXPECT_EQ(forward_file(problem, forward, facts_of(80)), "small_lanes.cu");
}

// Forms that may come before tiles: halo, fragments.
bool may_be_small(const Problem& problem) {
  constexpr double kMostKeysOfFragments = 1024.0, kMostKeysOfHaloPlane = 128.0;
  if (problem.head_dim() != problem.head_dim_value()) return false;
  double plane = 1.0;
  for (int a = 1; a < 3; ++a) plane *= static_cast<double>(small_axis(problem, a).kernel_size);
  switch (problem.head_dim()) {
    case 32:
    case 64:
      return visible_keys(problem) <= kMostKeysOfFragments;
    case 128:
      return plane <= kMostKeysOfHaloPlane;
    default:
      return false;
  }
}

// Problems that check_cuda.sh runs on a GPU, also as an older one: their plans reach the kernels
// of tiles with both sizes of boxes, with much shared memory and with little.
TEST(TilesPlan, LargeProblemsReachBothSizesOfBoxes) {
  struct Gpu {
    int capability, multiprocessors, shared_bytes;
  };
  for (const Gpu& gpu : {Gpu{80, 108, 163 * 1024}, Gpu{86, 82, 99 * 1024}}) {
    DeviceFacts facts;
    facts.compute_capability = gpu.capability;
    facts.multiprocessors = gpu.multiprocessors;
    facts.shared_bytes_per_block = gpu.shared_bytes;
    std::ifstream lines(tests::tests_path("large_problems.txt"));
    std::set<int> rows;
    for (std::string line; std::getline(lines, line);) {
      const Problem problem = parsed(line);
      const std::string file = forward_file(problem, facts);
      EXPECT_NE(file, "small_lanes.cu") << line;
      if (may_be_small(problem)) continue;
      EXPECT_EQ(file, "tiles_forward.cu") << line;
      const Problem part =
          problem.with_head_dim_value(part_of(problem.head_dim_value(), /*most=*/256));
      const TilesShape shape = choose_tiles_shape(part, TilesKernel::forward, facts);
      rows.insert(shape.box[0] * shape.box[1] * shape.box[2]);
    }
    EXPECT_EQ(rows, (std::set<int>{16, 32})) << gpu.capability;
  }
}

// Warps meet tiles of 3-D in part. 4x4 keys and 4x4 queries of a plane, which a warp takes at once,
// see each other with the fewest steps; four warps wait less for each other than eight, which add
// half as often to queries, and keep long rows of value. What adds to queries needs registers of
// its own: two blocks of four.
TEST(TilesPlan, GradientsIn3DTakeFewSteps) {
  using Box = std::array<int, 3>;
  DeviceFacts facts = facts_of(80);
  facts.shared_bytes_per_block = 227 * 1024;
  const struct {
    TilesKernel kernel;
    int head_dim;
    Box boxes;
    int blocks;
  } rows[] = {{TilesKernel::gradient_query, 128, {2, 2, 1}, 2},
              {TilesKernel::gradient_key, 128, {2, 2, 2}, 1},
              {TilesKernel::gradient_key, 64, {2, 2, 1}, 3},
              {TilesKernel::gradient_all, 128, {2, 2, 2}, 1},
              {TilesKernel::gradient_all, 64, {2, 2, 1}, 2}};
  for (const auto& row : rows) {
    const Problem problem = parsed(
        fmt::format("3d 30x48x80 kernel_size 18x24x24 heads 2 head_dim {} allow nondeterministic "
                    "dtype bf16",
                    row.head_dim));
    const TilesShape shape = choose_tiles_shape(problem, row.kernel, facts);
    EXPECT_EQ(shape.box, (Box{1, 4, 4}));
    EXPECT_EQ(shape.boxes, row.boxes);
    EXPECT_EQ(shape.partner_box, (Box{4, 4, 4}));
    const auto config = make_tiles_config(problem, row.kernel, shape);
    EXPECT_EQ(tiles_blocks(problem, config, row.kernel, facts), row.blocks);
  }
}

// Eight warps of the key's kernel keep long rows of value in registers. Where a thread lacks them,
// and where eight would wait for each other, or leave multiprocessors without work, four are taken.
TEST(TilesPlan, EightWarpsKeepRowsOfValue) {
  DeviceFacts facts = facts_of(80);
  facts.shared_bytes_per_block = 227 * 1024;
  const struct {
    const char* line;
    int warps;
    bool shares_value;
  } rows[] = {
      {"2d 256x256 kernel_size 80 heads 2 head_dim 128 dtype bf16", 8, false},
      {"2d 256x256 kernel_size 80x41 causal 1x0 heads 2 head_dim 96 dtype f16", 8, false},
      {"3d 24x40x40 kernel_size 18x24x24 heads 2 head_dim 128 head_dim_value 48 dtype bf16", 8,
       false},
      {"2d 256x256 kernel_size 80 bias heads 2 head_dim 128 dtype bf16", 4, true},
      {"2d 256x256 kernel_size 80 batch 2 heads 2 head_dim 128 lengths padded dtype bf16", 4, true},
      {"2d 256x256 kernel_size 40 dilation 2 heads 2 head_dim 128 dtype bf16", 4, true},
      {"2d 256x256 kernel_size 80 heads 2 head_dim 120 dtype bf16", 4, true},
      {"2d 256x256 kernel_size 80 heads 2 head_dim 64 head_dim_value 192 dtype bf16", 4, true},
      {"2d 256x256 kernel_size 80 heads 2 head_dim 80 dtype bf16", 4, false},
      {"2d 256x256 kernel_size 13 heads 2 head_dim 128 dtype bf16", 4, true},
      {"3d 64x64x64 kernel_size 5 heads 2 head_dim 128 dtype bf16", 4, true},
      {"2d 100x100 kernel_size 80 heads 1 head_dim 128 dtype bf16", 4, true},
  };
  for (const auto& row : rows) {
    const Problem problem = parsed(row.line);
    const TilesShape shape = choose_tiles_shape(problem, TilesKernel::gradient_key, facts);
    const auto config = make_tiles_config(problem, TilesKernel::gradient_key, shape);
    EXPECT_EQ(tiles_warps(config), row.warps) << row.line;
    EXPECT_EQ(config.shares_value, row.shares_value) << row.line;
    EXPECT_FALSE(config.shares_key) << row.line;
  }
  facts.shared_bytes_per_block = 99 * 1024;
  const Problem few_along_axes =
      parsed("3d 24x40x40 kernel_size 9 heads 8 head_dim 128 dtype bf16");
  const auto shape = choose_tiles_shape(few_along_axes, TilesKernel::gradient_key, facts);
  EXPECT_EQ(tiles_warps(make_tiles_config(few_along_axes, TilesKernel::gradient_key, shape)), 4);
}

TEST(TilesPlan, OffsetsOfLseFit31Bits) {
  const Problem problem = parsed("2d 256x256 kernel_size 20 heads 2 head_dim 64 dtype f16");
  DeviceFacts facts;
  facts.compute_capability = 80;
  const int64_t far = int64_t{1} << 21;  // 256 times 4 bytes of it are 2^31
  for (const int64_t stride : {int64_t{-512}, far}) {
    vecina_forward_args forward;
    imagine_arguments(problem, VECINA_CUDA, &forward);
    EXPECT_EQ(forward_file(problem, forward, facts), "tiles_forward.cu");
    forward.lse.strides[1] = stride;
    EXPECT_EQ(forward_file(problem, forward, facts), "small_lanes.cu") << stride;
    for (vecina_tensor vecina_backward_args::*of :
         {&vecina_backward_args::lse, &vecina_backward_args::grad_lse}) {
      vecina_backward_args backward;
      imagine_arguments(problem, VECINA_CUDA, &backward);
      EXPECT_EQ(files(problem, backward, 80).front(), "tiles_gradient_query.cu");
      (backward.*of).strides[1] = stride;
      EXPECT_EQ(files(problem, backward, 80).front(), "gradient_query.cu") << stride;
    }
  }
}

TEST(TilesPlan, LeavesTheForwardToOthers) {
  for (const char* line : {
           "2d 56x56 kernel_size 20 heads 2 head_dim 64",                              // f32
           "2d 56x56 kernel_size 30 heads 2 head_dim 520 dtype f16",                   // columns
           "2d 56x56 kernel_size 30 heads 2 head_dim 64 head_dim_value 60 dtype f16",  // columns
           "1d 4096 kernel_size 7 heads 2 head_dim 48 dtype f16",                      // few keys
       }) {
    EXPECT_EQ(forward_file(line, 80), "small_lanes.cu") << line;
  }
}

TEST(TilesPlan, LeavesSmallForwardsWithFieldsToRows) {
  const std::string small = "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32 bias dtype bf16";
  EXPECT_EQ(forward_file(small, 80), "small_lanes.cu");
  for (const char* line :
       {"2d 56x56 kernel_size 7 batch 8 heads 4 head_dim 32 bias dtype bf16",
        "2d 32x32 kernel_size 8 batch 2 heads 4 head_dim 32 bias dtype bf16",
        "2d 30x30 kernel_size 7 heads 4 head_dim 64 lengths packed:90 dtype bf16"}) {
    EXPECT_EQ(forward_file(line, 80), "tiles_forward.cu") << line;
  }
}

TEST(TilesPlan, LeavesLittleWorkInPartsToRows) {
  EXPECT_EQ(forward_file("2d 32x32 kernel_size 9 heads 2 head_dim 384 dtype bf16", 80),
            "small_lanes.cu");
  for (const char* line : {"2d 32x32 kernel_size 9 heads 4 head_dim 384 dtype bf16",
                           "2d 32x32 kernel_size 9 heads 2 head_dim 256 dtype bf16"}) {
    EXPECT_EQ(forward_file(line, 80), "tiles_forward.cu") << line;
  }
  for (const char* line : {"2d 32x32 kernel_size 5 heads 2 head_dim 512 dtype bf16",
                           "1d 4096 kernel_size 3 heads 4 head_dim 256 dtype bf16"}) {
    EXPECT_EQ(files(line, 90).front(), "gradient_query.cu") << line;
  }
  for (const char* line : {"2d 32x32 kernel_size 5 heads 4 head_dim 512 dtype bf16",
                           "1d 4096 kernel_size 3 heads 4 batch 4 head_dim 256 dtype bf16",
                           "1d 4096 kernel_size 3 heads 4 head_dim 64 dtype bf16",
                           "2d 32x32 kernel_size 5 heads 2 head_dim 192 dtype bf16",
                           "1d 4096 kernel_size 3 heads 4 head_dim 256 bias dtype bf16"}) {
    EXPECT_NE(files(line, 90).front(), "gradient_query.cu") << line;
  }
}

// A block of a dilation group without queries would read in front of the tensors.
TEST(TilesPlan, GroupsWithoutQueriesHaveNoBlocks) {
  const Problem problem =
      parsed("1d 9 kernel_size 3 dilation 3 output_stride 5 heads 1 head_dim 8 dtype bf16");
  ASSERT_EQ(problem.axis(0).num_queries(), 2);
  EXPECT_EQ(count_owner_tiles(small_axis(problem, 2), /*of_keys=*/false, 16), 2);
  EXPECT_EQ(count_owner_tiles(small_axis(problem, 2), /*of_keys=*/true, 16), 3);
}

// Where sums of both gradients would not fit a thread's registers, key and value have a launch
// each.
TEST(TilesPlan, LongRowsHaveTheirGradientsOneByOne) {
  const std::vector<std::string> three = {"tiles_gradient_query.cu", "tiles_gradient_key.cu",
                                          "tiles_gradient_key.cu"};
  for (const char* dims :
       {"head_dim 256", "head_dim 160 head_dim_value 104", "head_dim 64 head_dim_value 256"}) {
    const std::string line =
        std::string("2d 56x56 kernel_size 20 heads 2 dtype bf16 allow nondeterministic ") + dims;
    for (const int capability : {80, 86, 90}) EXPECT_EQ(files(line, capability), three) << line;
    EXPECT_EQ(forward_file(line, 80), "tiles_forward.cu") << line;
    const Problem problem = parsed(line);
    EXPECT_EQ(gradient_workspace_bytes(problem), gradient_facts_bytes(problem)) << line;
    vecina_backward_args example;
    imagine_arguments(problem, VECINA_CUDA, &example);
    example.grad_key = {};
    EXPECT_EQ(files(problem, example, 80), (std::vector<std::string>{three[0], three[1]}));
  }
  EXPECT_EQ(files("2d 56x56 kernel_size 20 heads 2 head_dim 192 head_dim_value 64 dtype f16", 80),
            (std::vector<std::string>{three[0], three[1]}));
}

// Columns `first` to `end` of the launches' sums, in order.
using Columns = std::vector<std::pair<int, int>>;
Columns columns_of(const std::vector<BackwardLaunch>& launches, const std::string& file,
                   const std::string& what) {
  const auto number = [](const std::string& config, const std::string& field) {
    return std::stoi(config.substr(config.find(field) + field.size()));
  };
  Columns columns;
  for (const BackwardLaunch& launch : launches) {
    const std::string& config = launch.source.config;
    if (launch.source.file != file || config.find(what) == std::string::npos) continue;
    columns.push_back({number(config, ".first_column = "), number(config, ".end_column = ")});
  }
  return columns;
}

// Where a thread lacks registers for sums of a row, each part of its columns has a launch.
TEST(TilesPlan, SumsOfManyColumnsHaveLaunchesForParts) {
  struct Row {
    const char* line;
    Columns query, key;
    size_t value_launches;
  };
  for (const Row& row : {
           Row{"2d 56x56 kernel_size 20 heads 2 head_dim 512 dtype bf16",
               {{0, 256}, {256, 512}},
               {{0, 256}, {256, 512}},
               2},
           {"2d 56x56 kernel_size 20 heads 2 head_dim 264 head_dim_value 64 dtype bf16",
            {{0, 160}, {160, 264}},
            {{0, 160}, {160, 264}},
            1},
           // Two sums make the gradient of query where few keys may be seen.
           {"2d 56x56 kernel_size 7 heads 2 head_dim 136 dtype f16",
            {{0, 96}, {96, 136}},
            {{0, 136}},
            1},
           {"attention 500x700 heads 2 head_dim 256 lengths packed:2 dtype f16",
            {{0, 128}, {128, 256}},
            {{0, 256}},
            1},
       }) {
    const Problem problem = parsed(row.line);
    vecina_backward_args example;
    imagine_arguments(problem, VECINA_CUDA, &example);
    for (const int capability : {80, 90}) {
      std::vector<BackwardLaunch> launches;
      ASSERT_TRUE(gradient_plan_backward(problem, example, facts_of(capability), &launches).ok());
      EXPECT_EQ(columns_of(launches, "tiles_gradient_query.cu", "{"), row.query) << row.line;
      EXPECT_EQ(columns_of(launches, "tiles_gradient_key.cu", ".adds_key = true"), row.key)
          << row.line;
      EXPECT_EQ(columns_of(launches, "tiles_gradient_key.cu", ".adds_key = false").size(),
                row.value_launches)
          << row.line;
    }
    example.grad_query = {};  // facts of queries alone
    std::vector<BackwardLaunch> launches;
    ASSERT_TRUE(gradient_plan_backward(problem, example, facts_of(80), &launches).ok());
    EXPECT_EQ(columns_of(launches, "tiles_gradient_query.cu", "{"), Columns{row.query.front()});
  }
}

TEST(TilesPlan, PartsOfValuesAreGivenTheirColumnsOfTensors) {
  const Problem problem = parsed(
      "1d 300 kernel_size 100 batch 9 heads 2 head_dim 64 head_dim_value 264 additional 3 "
      "dtype bf16");
  std::vector<char> memory(16);
  const auto offset = [first = memory.data()](const vecina::cuda::HaloRows& rows) {
    return rows.data == nullptr ? -1 : static_cast<int>(rows.data - first);
  };
  vecina_forward_args forward;
  imagine_arguments(problem, VECINA_CUDA, &forward);
  for (vecina_tensor* tensor : {&forward.query, &forward.key, &forward.value,
                                &forward.additional_value, &forward.output, &forward.lse}) {
    tensor->data = memory.data();
    tensor->byte_offset = 0;
  }
  std::vector<ForwardLaunch> launches;
  ASSERT_EQ(plan_tiles_forward(problem, forward, facts_of(80), &launches), "");
  ASSERT_EQ(launches.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    vecina::cuda::HaloParams params = {};
    ASSERT_TRUE(launches[i].fill(forward, &params).ok());
    const int first = i == 0 ? 0 : 160 * 2;
    EXPECT_EQ(offset(params.query), 0);
    EXPECT_EQ(offset(params.value), first);
    EXPECT_EQ(offset(params.additional_value), first);
    EXPECT_EQ(offset(params.output), first);
    EXPECT_EQ(offset(params.lse), i == 0 ? 0 : -1) << "of the first part alone";
    EXPECT_NE(launches[i].source.config.find(i == 0 ? ".head_dim_value = 160,"
                                                    : ".head_dim_value = 104,"),
              std::string::npos);
  }

  vecina_backward_args backward;
  imagine_arguments(problem, VECINA_CUDA, &backward);
  for (vecina_tensor* tensor : {&backward.query, &backward.grad_output, &backward.grad_value}) {
    tensor->data = memory.data();
    tensor->byte_offset = 0;
  }
  backward.grad_query = backward.grad_key = {};
  std::vector<BackwardLaunch> gradients;
  ASSERT_EQ(plan_tiles_backward(problem, backward, facts_of(80), &gradients), "");
  ASSERT_EQ(gradients.size(), 3u);
  for (size_t i = 1; i < 3; ++i) {
    vecina::cuda::HaloParams params = {};
    ASSERT_TRUE(gradients[i].fill(backward, &params).ok());
    const int first = i == 1 ? 0 : 160 * 2;
    EXPECT_EQ(offset(params.query), 0);
    EXPECT_EQ(offset(params.grad_output), first);
    EXPECT_EQ(offset(params.grad_value), first);
    EXPECT_EQ(offset(params.grad_key), -1);
  }
}

TEST(TilesPlan, LeavesToOthersWhatItDoesNotTake) {
  for (const char* line : {
           "2d 56x56 kernel_size 20 heads 2 head_dim 64",                              // f32
           "2d 56x56 kernel_size 20 heads 2 head_dim 520 dtype f16",                   // columns
           "2d 56x56 kernel_size 20 heads 2 head_dim 64 head_dim_value 60 dtype f16",  // columns
       }) {
    EXPECT_EQ(files(line, 90).front(), "gradient_query.cu") << line;
  }
}

TEST(TilesPlan, LaunchesAskForTheirOwnSumsAlone) {
  const Problem problem =
      parsed("1d 3000 kernel_size 70 heads 2 head_dim 64 additional 3 bias dtype bf16");
  const size_t facts_bytes = gradient_facts_bytes(problem);
  vecina_backward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  std::map<std::string, std::pair<size_t, std::string>> launched;
  std::vector<BackwardLaunch> launches;
  ASSERT_TRUE(gradient_plan_backward(problem, example, facts_of(80), &launches).ok());
  for (const BackwardLaunch& launch : launches) {
    launched[launch.source.file] = {launch.workspace_bytes, launch.description};
  }
  EXPECT_EQ(launched["tiles_gradient_query.cu"].first, facts_bytes);
  EXPECT_EQ(launched["tiles_gradient_key.cu"].first, facts_bytes);
  const size_t bias_bytes = facts_bytes + tiles_bias_bytes(problem);
  EXPECT_EQ(launched["tiles_gradient_bias.cu"].first, bias_bytes);
  EXPECT_EQ(launched["gradient_bias_sum.cu"].first, bias_bytes);
  const size_t key_bytes = launched["gradient_key_sum.cu"].first;
  EXPECT_GT(key_bytes, facts_bytes);
  EXPECT_EQ(launched["gradient_key.cu"].first, key_bytes);
  EXPECT_EQ(gradient_workspace_bytes(problem), std::max(key_bytes, bias_bytes));
  for (const char* file : {"gradient_bias_sum.cu", "gradient_key_sum.cu"}) {
    const std::string& description = launched[file].second;
    EXPECT_NE(description.find(R"("threads_per_row": 1, "why": "adds up)"), std::string::npos)
        << description;
  }
}

// Problems that every test of the table runs, also with guards around the workspace.
TEST(TilesPlan, TheTableReachesSumsOfParts) {
  std::set<std::pair<std::string, int32_t>> of_parts;  // kernels and dtypes
  for (const tests::Case& row : tests::all_cases()) {
    Problem problem;
    ASSERT_TRUE(Problem::make(row.problem, &problem).ok()) << row.line;
    vecina_backward_args example;
    imagine_arguments(problem, VECINA_CUDA, &example);
    std::vector<BackwardLaunch> launches;
    if (!gradient_why_not(problem, Pass::backward, facts_of(80)).empty()) continue;
    ASSERT_TRUE(gradient_plan_backward(problem, example, facts_of(80), &launches).ok());
    for (const BackwardLaunch& launch : launches) {
      if (launch.source.file == "gradient_key.cu" && launch.grid[1] > 1) {
        of_parts.insert({launch.source.file, problem.dtype()});
      }
      if (launch.source.file == "gradient_bias_sum.cu" && tiles_bias_parts(problem) > 1) {
        of_parts.insert({launch.source.file, problem.dtype()});
      }
    }
  }
  for (const int32_t dtype : {VECINA_F32, VECINA_F64}) {
    EXPECT_EQ(of_parts.count({"gradient_key.cu", dtype}), 1u) << dtype;
  }
  EXPECT_EQ(of_parts.count({"gradient_bias_sum.cu", VECINA_BF16}), 1u);
}

// Warps take 17 and 22 steps of 16 partners; before, with {1, 4, 4} and {8, 1, 2}, 19 and 24.
TEST(TilesPlan, CountsStepsOfFewKeysIn3d) {
  const Problem problem =
      parsed("3d 16x32x32 kernel_size 5 batch 2 heads 8 head_dim 128 dtype bf16");
  const TilesShape query = choose_tiles_shape(problem, TilesKernel::gradient_query, facts_of(80));
  EXPECT_EQ(query.box, (std::array<int, 3>{2, 2, 4}));
  EXPECT_EQ(query.partner_box, (std::array<int, 3>{1, 8, 8}));
  const TilesShape key = choose_tiles_shape(problem, TilesKernel::gradient_key, facts_of(80));
  EXPECT_EQ(key.box, (std::array<int, 3>{4, 2, 2}));
  EXPECT_EQ(key.partner_box, (std::array<int, 3>{16, 2, 2}));
  const TilesShape hopper = choose_tiles_shape(problem, TilesKernel::gradient_key, facts_of(90));
  EXPECT_EQ(hopper.box[0] * hopper.box[1] * hopper.box[2], 64);
}

TEST(TilesPlan, BoxesFillWarpsAndTilesAndFitTheDevice) {
  const std::vector<std::string> fields = {"", " bias", " lengths packed:3", " output_stride 3"};
  cli::Random random(5);
  for (int i = 0; i < 150; ++i) {
    DeviceFacts facts;
    facts.shared_bytes_per_block = random.chance(0.5) ? 99 * 1024 : 227 * 1024;
    const auto rank = static_cast<int>(random.integer(1, 3));
    std::string extents, kernel_sizes, dilations;
    for (int a = 0; a < rank; ++a) {
      const int64_t extent = random.integer(1, rank == 1 ? 3000 : rank == 2 ? 90 : 30);
      const int64_t kernel_size = random.integer(1, extent);
      const std::string by = a == 0 ? "" : "x";
      extents += by + std::to_string(extent);
      kernel_sizes += by + std::to_string(kernel_size);
      dilations += by + std::to_string(random.integer(1, extent / kernel_size));
    }
    const Problem problem =
        parsed(std::to_string(rank) + "d " + extents + " kernel_size " + kernel_sizes +
               " dilation " + dilations + " heads 2 head_dim " +
               std::to_string(8 * random.integer(1, 32)) + " head_dim_value " +
               std::to_string(8 * random.integer(1, 32)) + fields.at(i % 4) + " dtype bf16");
    vecina_forward_args forward;
    vecina_backward_args backward;
    imagine_arguments(problem, VECINA_CUDA, &forward);
    imagine_arguments(problem, VECINA_CUDA, &backward);
    std::vector<TilesKernel> kernels = {TilesKernel::forward, TilesKernel::gradient_query};
    const auto padded = [](int columns) { return (columns + 15) / 16 * 16; };
    if (padded(problem.head_dim()) + padded(problem.head_dim_value()) <= 256) {
      kernels.push_back(TilesKernel::gradient_key);
    }
    if (std::max(problem.head_dim(), problem.head_dim_value()) <= 128) {
      kernels.push_back(TilesKernel::gradient_all);
    }
    kernels.insert(kernels.end(),
                   {TilesKernel::gradient_key_alone, TilesKernel::gradient_value_alone});
    if (problem.has_bias()) kernels.push_back(TilesKernel::gradient_bias);
    for (const TilesKernel kernel : kernels) {
      const TilesShape shape = choose_tiles_shape(problem, kernel, facts);
      ASSERT_GT(shape.partners, 0) << problem.line();
      const int rows = shape.box[0] * shape.box[1] * shape.box[2];
      const bool is_of_warpgroups = rows == 64 && kernel != TilesKernel::forward &&
                                    problem.head_dim() % 64 == 0 &&
                                    problem.head_dim_value() % 64 == 0;
      ASSERT_TRUE(rows == 16 || is_of_warpgroups || (rows == 32 && kernel == TilesKernel::forward))
          << problem.line();
      const int partners = shape.partner_box[0] * shape.partner_box[1] * shape.partner_box[2];
      ASSERT_GE(partners, 1) << problem.line();
      ASSERT_LE(partners, shape.partners) << problem.line();
      uint32_t shared_bytes = 0, threads = 0;
      const auto take = [&](const auto& launch) {
        shared_bytes = launch.shared_bytes;
        threads = launch.block[0];
      };
      if (kernel == TilesKernel::forward) {
        take(tiles_forward_launch(problem, forward, facts, shape));
      } else {
        take(tiles_gradient_launch(problem, kernel, backward, facts, shape));
      }
      const auto owners =
          static_cast<uint32_t>(rows * shape.boxes[0] * shape.boxes[1] * shape.boxes[2]);
      const uint32_t tables = 5 * 1024 + 24 * owners + (problem.has_bias() ? 4 * owners : 0);
      ASSERT_LE(shared_bytes + tables, static_cast<uint32_t>(facts.shared_bytes_per_block))
          << problem.line();
      ASSERT_LE(threads, 256u);
      for (int a = 0; a < 3; ++a) {
        const auto at = static_cast<size_t>(a);
        const int64_t length = a < 3 - rank ? 1 : problem.axis(a - (3 - rank)).extent;
        ASSERT_LE(shape.partner_box[at], length) << problem.line();
        if (a < 3 - rank) {
          ASSERT_EQ(shape.box[at] * shape.boxes[at], 1) << problem.line();
        }
      }
    }
  }
}

}  // namespace
}  // namespace vecina::internal::cuda
