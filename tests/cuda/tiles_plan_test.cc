// SPDX-License-Identifier: MIT
// Plans of the kernels of large windows: when they are taken, and that their boxes fit.
#include "cuda/tiles_plan.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cli/random.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "cuda/families.h"
#include "cuda/gradient_plan.h"
#include "cuda/parsed_problem.h"

namespace vecina::internal::cuda {
namespace {

std::vector<BackwardLaunch> launches_of(const std::string& line, const DeviceFacts& facts = {}) {
  const Problem problem = parsed(line);
  vecina_backward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  std::vector<BackwardLaunch> launches;
  EXPECT_TRUE(gradient_plan_backward(problem, example, facts, &launches).ok());
  return launches;
}

std::vector<std::string> files(const std::string& line) {
  std::vector<std::string> files;
  for (const BackwardLaunch& launch : launches_of(line)) files.push_back(launch.source.file);
  return files;
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
    EXPECT_EQ(files(line), both) << line;
  }
  EXPECT_EQ(files("2d 56x56 kernel_size 20 heads 2 head_dim 64 dtype f16 additional 70"),
            (std::vector<std::string>{"tiles_gradient_query.cu", "tiles_gradient_key.cu",
                                      "gradient_key.cu"}));
}

std::string forward_file(const std::string& line, int compute_capability) {
  const Problem problem = parsed(line);
  vecina_forward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  DeviceFacts facts;
  facts.compute_capability = compute_capability;
  const char* family = nullptr;
  std::vector<ForwardLaunch> launches;
  EXPECT_TRUE(plan_launches(problem, example, facts, &family, &launches).ok());
  return launches.size() == 1 ? launches.front().source.file : "";
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
  // Rows of Hopper's kernels are multiples of 16 columns.
  EXPECT_EQ(forward_file("2d 256x256 kernel_size 80 heads 2 head_dim 104 dtype bf16", 90),
            "tiles_forward.cu");
}

TEST(TilesPlan, LeavesTheForwardToOthers) {
  for (const char* line : {
           "2d 56x56 kernel_size 20 heads 2 head_dim 64",                              // f32
           "2d 56x56 kernel_size 30 heads 2 head_dim 136 dtype f16",                   // columns
           "2d 56x56 kernel_size 30 heads 2 head_dim 64 head_dim_value 60 dtype f16",  // columns
           "2d 56x56 kernel_size 30 heads 2 head_dim 64 dtype f16 bias",
           "2d 56x56 kernel_size 30 heads 2 head_dim 64 dtype f16 output_stride 2",
           "attention 1000x999 heads 2 head_dim 64 dtype f16",
           "1d 4096 kernel_size 7 heads 2 head_dim 48 dtype f16",  // few keys
       }) {
    EXPECT_EQ(forward_file(line, 80), "small_lanes.cu") << line;
  }
}

TEST(TilesPlan, LeavesToOthersWhatItDoesNotTake) {
  for (const char* line : {
           "2d 56x56 kernel_size 20 heads 2 head_dim 64",                              // f32
           "2d 56x56 kernel_size 20 heads 2 head_dim 136 dtype f16",                   // columns
           "2d 56x56 kernel_size 20 heads 2 head_dim 64 head_dim_value 60 dtype f16",  // columns
           "2d 56x56 kernel_size 20 heads 2 head_dim 64 dtype f16 bias",
           "2d 56x56 kernel_size 20 heads 2 head_dim 64 dtype f16 output_stride 2",
           "attention 1000x999 heads 2 head_dim 64 dtype f16",
       }) {
    EXPECT_EQ(files(line).front(), "gradient_query.cu") << line;
  }
}

TEST(TilesPlan, BoxesFillWarpsAndTilesAndFitTheDevice) {
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
    const Problem problem = parsed(std::to_string(rank) + "d " + extents + " kernel_size " +
                                   kernel_sizes + " dilation " + dilations + " heads 2 head_dim " +
                                   std::to_string(8 * random.integer(1, 16)) + " head_dim_value " +
                                   std::to_string(8 * random.integer(1, 16)) + " dtype bf16");
    vecina_forward_args forward;
    vecina_backward_args backward;
    imagine_arguments(problem, VECINA_CUDA, &forward);
    imagine_arguments(problem, VECINA_CUDA, &backward);
    for (const TilesKernel kernel :
         {TilesKernel::forward, TilesKernel::gradient_query, TilesKernel::gradient_key}) {
      const TilesShape shape = choose_tiles_shape(problem, kernel, facts);
      ASSERT_GT(shape.partners, 0) << problem.line();
      const int rows = shape.box[0] * shape.box[1] * shape.box[2];
      ASSERT_TRUE(rows == 16 || (rows == 32 && kernel == TilesKernel::forward)) << problem.line();
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
      const uint32_t tables = 4 * 1024 + 24 * static_cast<uint32_t>(rows) * threads / 32;
      ASSERT_LE(shared_bytes + tables, static_cast<uint32_t>(facts.shared_bytes_per_block))
          << problem.line();
      ASSERT_LE(threads, 384u);
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
