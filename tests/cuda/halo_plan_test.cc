// SPDX-License-Identifier: MIT
// Plans of the halo kernels: when they are taken, and that boxes and halos hold every window.
#include "cuda/halo_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cli/random.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "core/window.h"
#include "cuda/gradient_plan.h"
#include "cuda/parsed_problem.h"
#include "cuda/small_plan.h"

namespace vecina::internal::cuda {
namespace {

std::string forward_file(const std::string& line) {
  const Problem problem = parsed(line);
  vecina_forward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  std::vector<ForwardLaunch> launches;
  EXPECT_TRUE(small_plan_forward(problem, example, {}, &launches).ok());
  return launches.empty() ? "" : launches.front().source.file;
}

std::vector<std::string> backward_files(const std::string& line) {
  const Problem problem = parsed(line);
  vecina_backward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  std::vector<BackwardLaunch> launches;
  EXPECT_TRUE(gradient_plan_backward(problem, example, {}, &launches).ok());
  std::vector<std::string> files;
  for (const BackwardLaunch& launch : launches) files.push_back(launch.source.file);
  return files;
}

TEST(HaloPlan, TakesManyQueriesAndWhatFragmentsDoNot) {
  EXPECT_EQ(forward_file("2d 56x56 kernel_size 7 batch 64 heads 4 head_dim 32 dtype bf16"),
            "halo_forward.cu");
  EXPECT_EQ(forward_file("2d 20x20 kernel_size 7 heads 4 head_dim 128 dtype f16"),
            "halo_forward.cu");
  EXPECT_EQ(forward_file("3d 9x20x22 kernel_size 5 heads 4 head_dim 128 dtype f16"),
            "halo_forward.cu");
  EXPECT_EQ(forward_file("2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32 dtype bf16"),
            "small_fragments.cu");
}

TEST(HaloPlan, LeavesToOthersWhatItDoesNotTake) {
  for (const char* line : {
           "2d 56x56 kernel_size 7 batch 64 heads 4 head_dim 128",                     // f32
           "2d 56x56 kernel_size 7 batch 64 heads 4 head_dim 48 dtype f16",            // columns
           "2d 56x56 kernel_size 7 batch 64 heads 4 head_dim 128 dtype f16 bias",      // bias
           "2d 56x56 kernel_size 7 batch 64 heads 4 head_dim 128 dtype f16 scale -1",  // scale
           "2d 56x56 kernel_size 7 heads 4 head_dim 128 dtype f16 output_stride 2",    // queries
           "2d 56x56 kernel_size 40 heads 4 head_dim 128 dtype f16",                   // keys
           "2d 56x56 kernel_size 3 heads 4 head_dim 128 dtype f16",                    // few keys
           "3d 9x20x22 kernel_size 5 heads 4 head_dim 128 dtype f16 additional 2",     // planes
       }) {
    EXPECT_NE(forward_file(line), "halo_forward.cu") << line;
    EXPECT_NE(backward_files(line).front(), "halo_gradient_query.cu") << line;
  }
}

TEST(HaloPlan, RefusesNegativeStridesOfLse) {
  const Problem problem = parsed("2d 56x56 kernel_size 7 batch 64 heads 4 head_dim 32 dtype bf16");
  vecina_forward_args forward;
  imagine_arguments(problem, VECINA_CUDA, &forward);
  ForwardLaunch launch;
  EXPECT_EQ(plan_halo_forward(problem, forward, {}, &launch), "");
  forward.lse.strides[1] *= -1;
  EXPECT_EQ(plan_halo_forward(problem, forward, {}, &launch), "a negative stride");
  for (vecina_tensor vecina_backward_args::*of :
       {&vecina_backward_args::lse, &vecina_backward_args::grad_lse}) {
    vecina_backward_args backward;
    imagine_arguments(problem, VECINA_CUDA, &backward);
    std::vector<BackwardLaunch> launches;
    EXPECT_EQ(plan_halo_backward(problem, backward, {}, &launches), "");
    (backward.*of).strides[1] *= -1;
    EXPECT_EQ(plan_halo_backward(problem, backward, {}, &launches), "a negative stride");
  }
}

TEST(HaloPlan, GradientsOfAdditionalTokensComeFromTheirOwnKernel) {
  EXPECT_EQ(backward_files("2d 12x12 kernel_size 5 heads 2 head_dim 32 dtype bf16 additional 2"),
            (std::vector<std::string>{"halo_gradient_query.cu", "halo_gradient_key.cu",
                                      "gradient_key.cu"}));
}

TEST(HaloPlan, NothingIsLaunchedForAnEmptyBatch) {
  EXPECT_TRUE(
      backward_files("2d 12x12 kernel_size 5 batch 0 heads 2 head_dim 32 dtype f16").empty());
}

TEST(HaloPlan, BoxesOfLongRowsMayLieInTwoPlanes) {
  const auto planes = [](const std::string& line, HaloKernel kernel) {
    return choose_halo_shape(parsed(line), kernel, {}).box[0];
  };
  const std::string window = "3d 16x32x32 kernel_size 5 batch 2 heads 8 dtype bf16 head_dim ";
  EXPECT_EQ(planes(window + "128", HaloKernel::forward), 2);
  EXPECT_EQ(planes(window + "64", HaloKernel::forward), 1);
  EXPECT_EQ(planes(window + "64", HaloKernel::gradient_query), 1);
  for (const char* line : {
           "3d 1x32x32 kernel_size 1x7x7 batch 2 heads 8 head_dim 128 dtype bf16",
           "3d 4x32x32 kernel_size 1x7x7 dilation 4x1x1 batch 2 heads 8 head_dim 128 dtype bf16",
       }) {
    EXPECT_EQ(planes(line, HaloKernel::forward), 1) << line;  // there are no two
  }
}

// From the first partner of a box's first owner on.
TEST(HaloPlan, ABoxMeetsNoMorePartners) {
  cli::Random random(3);
  for (int i = 0; i < 3000; ++i) {
    Axis axis;
    axis.dilation = random.integer(1, 3);
    axis.kernel_size = random.integer(1, 9);
    axis.stride = random.integer(1, axis.kernel_size);
    axis.is_causal = random.chance(0.3);
    const int64_t most = random.chance(0.1) ? 700 : 60;
    axis.extent = axis.query_extent = random.integer(axis.kernel_size * axis.dilation, most);
    const auto owners = static_cast<int>(random.integer(1, 20));
    for (const bool of_keys : {false, true}) {
      const int size = most_partners(axis, of_keys, owners);
      int reached = 0;
      for (int group = 0; group < axis.dilation; ++group) {
        const int length =
            na_group_length(static_cast<int>(axis.extent), static_cast<int>(axis.dilation), group);
        const NaAxis dense = {length, static_cast<int>(axis.kernel_size),
                              static_cast<int>(axis.stride), axis.is_causal};
        const auto begin = [&](int owner) {
          return of_keys ? na_query_begin(dense, owner) : na_window_begin(dense, owner);
        };
        const auto end = [&](int owner) {
          return of_keys ? na_query_end(dense, owner) : na_window_end(dense, owner);
        };
        for (int first = 0; first < length; first += owners) {
          for (int owner = first; owner < std::min(first + owners, length); ++owner) {
            ASSERT_GE(begin(owner), begin(first));
            reached = std::max(reached, end(owner) - begin(first));
          }
        }
      }
      ASSERT_EQ(size, reached) << "extent " << axis.extent << " kernel_size " << axis.kernel_size
                               << " stride " << axis.stride << " dilation " << axis.dilation
                               << " causal " << axis.is_causal << " owners " << owners << " keys "
                               << of_keys;
    }
  }
}

}  // namespace
}  // namespace vecina::internal::cuda
