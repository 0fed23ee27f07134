// SPDX-License-Identifier: MIT
// A plan that works in device memory refuses too little of it, none, or crooked memory; and
// arguments can be imagined for planning without any.
#include <gtest/gtest.h>

#include <string>

#include "core/arguments.h"
#include "core/problem.h"
#include "core/tensor.h"

namespace vecina::internal {
namespace {

TEST(Workspace, IsEnoughAlignedAndThere) {
  alignas(256) static char memory[1024];
  EXPECT_TRUE(check_workspace(0, nullptr, 0).ok());
  EXPECT_TRUE(check_workspace(512, memory, 512).ok());
  EXPECT_TRUE(check_workspace(512, memory + 256, 768).ok());
  for (const Status& refused : {check_workspace(512, nullptr, 0), check_workspace(512, memory, 511),
                                check_workspace(512, memory + 128, 600)}) {
    EXPECT_EQ(refused.code(), VECINA_INVALID_ARGUMENT);
    EXPECT_NE(refused.message().find("512 bytes"), std::string::npos) << refused.message();
    EXPECT_NE(refused.message().find("256"), std::string::npos) << refused.message();
  }
}

template <typename Args>
void expect_valid(const std::string& line) {
  SCOPED_TRACE(line);
  Problem problem;
  ASSERT_TRUE(Problem::parse(line, &problem).ok());
  Args args;
  imagine_arguments(problem, VECINA_CUDA, &args);
  // All at one address: outputs seem to share memory, and nothing else may be wrong.
  const Status status = check_arguments(problem, args);
  EXPECT_NE(status.message().find("shares memory"), std::string::npos) << status.message();
  EXPECT_EQ(args.query.device, VECINA_CUDA);
  EXPECT_EQ(given(args.bias), problem.has_bias());
  EXPECT_EQ(given(args.additional_key), problem.additional_tokens() > 0);
}

TEST(ImaginedArguments, HaveTheProblemsShapes) {
  for (const char* line : {"1d 9 kernel_size 3 heads 2 head_dim 4",
                           "2d 9x8 kernel_size 3 output_stride 2 heads 4 heads_kv 2 head_dim 4 "
                           "head_dim_value 6 additional 3 bias dtype bf16",
                           "attention 7x12 heads 2 head_dim 8 dtype f64"}) {
    expect_valid<vecina_forward_args>(line);
    expect_valid<vecina_backward_args>(line);
  }
}

}  // namespace
}  // namespace vecina::internal
