// SPDX-License-Identifier: MIT
// What VECINA_CUDA_TARGET may be. No GPU is needed.
#include "cuda/device.h"

#include <gtest/gtest.h>

namespace vecina::internal::cuda {
namespace {

TEST(CudaTarget, IsAGpuWhoseKernelsRunOnThisOneToo) {
  int target = 0;
  EXPECT_TRUE(read_target("80", 90, &target).ok());
  EXPECT_EQ(target, 80);
  EXPECT_TRUE(read_target("90", 90, &target).ok());
  EXPECT_EQ(target, 90);
  EXPECT_TRUE(read_target("100", 120, &target).ok());
  EXPECT_EQ(target, 100);
  for (const char* text : {"100", "75", "", "80 ", "sm_80", "99999999999"}) {
    const Status status = read_target(text, 90, &target);
    EXPECT_EQ(status.code(), VECINA_UNSUPPORTED) << text;
    EXPECT_NE(status.message().find("a number from 80 to 90 is allowed"), std::string::npos);
  }
  for (const int own : {100, 120}) {  // without Hopper's instructions
    const Status status = read_target("90", own, &target);
    EXPECT_EQ(status.code(), VECINA_UNSUPPORTED) << own;
    EXPECT_NE(status.message().find("instructions that no other GPU has"), std::string::npos);
  }
  EXPECT_EQ(target, 100);
}

TEST(CudaTarget, HasLittleSharedMemoryWhereSuchGpusHave) {
  DeviceFacts facts;
  const int own = facts.shared_bytes_per_block;
  set_target(80, &facts);
  EXPECT_EQ(facts.compute_capability, 80);
  EXPECT_EQ(facts.shared_bytes_per_block, own);
  set_target(86, &facts);
  EXPECT_EQ(facts.compute_capability, 86);
  EXPECT_EQ(facts.shared_bytes_per_block, 99 * 1024);
  facts.shared_bytes_per_block = 48 * 1024;  // less than that
  set_target(89, &facts);
  EXPECT_EQ(facts.shared_bytes_per_block, 48 * 1024);
}

}  // namespace
}  // namespace vecina::internal::cuda
