// SPDX-License-Identifier: MIT
// Which family of kernels takes a problem. No GPU and no compiler is needed.
#include "cuda/families.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/arguments.h"
#include "cuda/hopper_cases.h"
#include "cuda/parsed_problem.h"

namespace vecina::internal::cuda {
namespace {

struct Choice {
  std::string family, description;
};

Choice choose(const std::string& line, int nvrtc) {
  const Problem problem = parsed(line);
  vecina_forward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  DeviceFacts facts;
  facts.nvrtc = nvrtc;
  EXPECT_EQ(why_not(problem, Pass::forward, facts), "") << line;
  const char* family = "";
  std::vector<ForwardLaunch> launches;
  const Status status = plan_launches(problem, example, facts, &family, &launches);
  EXPECT_TRUE(status.ok()) << line << ": " << status.message();
  return {family, launches.empty() ? "" : launches.front().description};
}

const std::string kLarge = "2d 64x64 kernel_size 31 batch 2 heads 8 head_dim 128 dtype bf16";

TEST(Families, AnOldCompilerLeavesLengthsToOtherKernels) {
  const std::string padded = kLarge + " lengths padded";
  EXPECT_EQ(choose(padded, 0).family, "hopper");  // not known
  EXPECT_EQ(choose(padded, 1203).family, "hopper");
  const Choice old = choose(padded, 1202);
  EXPECT_EQ(old.family, "small");
  EXPECT_NE(old.description.find("NVRTC 12.3"), std::string::npos) << old.description;
  EXPECT_NE(old.description.find("12.2"), std::string::npos) << old.description;
  EXPECT_EQ(choose(kLarge, 1202).family, "hopper");
}

// containment_test.cc counts on it.
TEST(Families, HopperTakesTheSmallest) {
  for (const char* line : kSmallest) EXPECT_EQ(choose(line, 0).family, "hopper") << line;
}

TEST(Families, APlanSaysWhoWasPassedOver) {
  EXPECT_NE(choose("2d 64x64 kernel_size 31 head_dim 128", 0).description.find("passed_over"),
            std::string::npos);
  EXPECT_EQ(choose(kLarge, 0).description.find("passed_over"), std::string::npos);
}

}  // namespace
}  // namespace vecina::internal::cuda
