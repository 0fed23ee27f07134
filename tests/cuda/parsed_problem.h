// SPDX-License-Identifier: MIT
#ifndef VECINA_TESTS_CUDA_PARSED_PROBLEM_H_
#define VECINA_TESTS_CUDA_PARSED_PROBLEM_H_

#include <gtest/gtest.h>

#include <string>

#include "core/problem.h"

namespace vecina::internal::cuda {

// The problem of a line that must be right.
inline Problem parsed(const std::string& line) {
  Problem problem;
  const Status status = Problem::parse(line, &problem);
  EXPECT_TRUE(status.ok()) << line << ": " << status.message();
  return problem;
}

}  // namespace vecina::internal::cuda
#endif  // VECINA_TESTS_CUDA_PARSED_PROBLEM_H_
