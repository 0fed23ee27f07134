// SPDX-License-Identifier: MIT
// Lengths in device memory are not read: the tensors of a call must fit each other all the same.
#include <gtest/gtest.h>

#include <string>

#include "core/arguments.h"
#include "core/problem.h"
#include "core/tensor.h"
#include "imagined.h"
#include "vecina/vecina.h"

namespace vecina::internal {
namespace {

Problem parsed(const std::string& line) {
  Problem problem;
  EXPECT_TRUE(Problem::parse(line, &problem).ok()) << line;
  return problem;
}

template <typename Args>
Args imagined(const Problem& problem) {
  return tests::imagined<Args>(problem, int64_t{1} << 30);
}

constexpr const char* kLines[] = {
    "2d 9x8 kernel_size 3x2 dilation 2 batch 3 heads 2 head_dim 8 additional 2 lengths padded",
    "1d 20 kernel_size 5 output_stride 3 heads 2 head_dim 8 bias lengths packed:4",
    "attention 12x15 heads 2 head_dim 8 additional 1 lengths packed:3"};

TEST(DeviceLengths, ImaginedArgumentsFit) {
  for (const char* line : kLines) {
    const Problem problem = parsed(line);
    const Status forward = check_arguments(problem, imagined<vecina_forward_args>(problem));
    EXPECT_TRUE(forward.ok()) << line << ": " << forward.message();
  }
}

// More tokens than the extents of all samples may come; as many keys as values must.
TEST(DeviceLengths, PackedTensorsSayHowManyTokensThereAre) {
  const Problem problem = parsed("1d 20 kernel_size 5 heads 2 head_dim 8 lengths packed:4");
  vecina_forward_args args = imagined<vecina_forward_args>(problem);
  for (vecina_tensor* tensor : {&args.query, &args.key, &args.value, &args.output, &args.lse}) {
    tensor->shape[1] = 33;
  }
  EXPECT_TRUE(check_arguments(problem, args).ok()) << check_arguments(problem, args).message();
  for (vecina_tensor* tensor : {&args.query, &args.value, &args.output, &args.lse}) {
    for (const int64_t tokens : {32, -1}) {
      tensor->shape[1] = tokens;
      EXPECT_EQ(check_arguments(problem, args).code(), VECINA_INVALID_ARGUMENT) << tokens;
      tensor->shape[1] = 33;
    }
  }
}

TEST(DeviceLengths, QueriesOfAttentionHaveTheirOwnNumber) {
  const Problem problem = parsed("attention 12x15 heads 2 head_dim 8 lengths packed:3");
  vecina_forward_args args = imagined<vecina_forward_args>(problem);
  EXPECT_NE(args.query.shape[1], args.key.shape[1]);
  for (vecina_tensor* tensor : {&args.query, &args.output, &args.lse}) tensor->shape[1] = 7;
  EXPECT_TRUE(check_arguments(problem, args).ok()) << check_arguments(problem, args).message();
  args.query_lengths = {};  // then they are those of the keys
  EXPECT_EQ(check_arguments(problem, args).code(), VECINA_INVALID_ARGUMENT);
}

TEST(DeviceLengths, LieWhereTheTensorsLie) {
  for (const char* line : kLines) {
    const Problem problem = parsed(line);
    vecina_backward_args args = imagined<vecina_backward_args>(problem);
    EXPECT_TRUE(check_arguments(problem, args).ok()) << check_arguments(problem, args).message();
    args.lengths.device = VECINA_CPU;
    const Status mixed = check_arguments(problem, args);
    EXPECT_EQ(mixed.code(), VECINA_INVALID_ARGUMENT);
    EXPECT_NE(mixed.message().find("lengths is on device 0:0, but query on 1:0"), std::string::npos)
        << mixed.message();
    args.lengths.device = VECINA_CUDA;
    args.lengths.device_index = 1;
    EXPECT_EQ(check_arguments(problem, args).code(), VECINA_INVALID_ARGUMENT);
  }
}

}  // namespace
}  // namespace vecina::internal
