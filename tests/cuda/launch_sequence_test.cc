// SPDX-License-Identifier: MIT
// What is said of several launches, and which kernels they are. No GPU is needed.
#include "cuda/launch_sequence.h"

#include <gtest/gtest.h>

#include <vector>

namespace vecina::internal::cuda {
namespace {

ForwardLaunch launch(const char* config, uint32_t blocks) {
  ForwardLaunch launch;
  launch.source.entry = "entry";
  launch.source.config = config;
  launch.grid[0] = blocks;
  launch.description = R"("predicted_ms": 0.5)";
  return launch;
}

TEST(Launches, EqualOnesInARowAreCounted) {
  const std::vector<ForwardLaunch> launches = {launch("{1}", 7), launch("{1}", 7), launch("{1}", 8),
                                               launch("{2}", 8), launch("{1}", 8)};
  const auto list = describe_launches(launches, std::vector<Kernel>(launches.size()));
  ASSERT_EQ(list.size(), 4u);
  EXPECT_EQ(list[0].at("launches"), 2);
  EXPECT_EQ(list[0].at("grid")[0], 7);
  EXPECT_EQ(list[0].at("predicted_ms"), 0.5);
  for (size_t i = 1; i < list.size(); ++i) {
    EXPECT_FALSE(list[i].contains("launches")) << i;
    EXPECT_EQ(list[i].at("grid")[0], 8) << i;
    EXPECT_EQ(list[i].at("config"), i == 2 ? "{2}" : "{1}") << i;
  }
}

TEST(Launches, ThoseOfOneKernelAreTogether) {
  EXPECT_EQ(group_by_kernel<vecina_forward_args>(
                {launch("{1}", 7), launch("{2}", 7), launch("{1}", 8), launch("{1}", 7)}),
            (std::vector<std::vector<size_t>>{{0, 2, 3}, {1}}));
}

}  // namespace
}  // namespace vecina::internal::cuda
