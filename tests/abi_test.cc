// SPDX-License-Identifier: MIT
// The binary interface: vecina.h as C++20 and, through abi_test.c, as C11; frozen layouts; callers
// that were compiled with an older, shorter or a newer, longer struct.
#include "abi_layout.h"
#include "vecina/vecina.h"

// Everything else comes after, so that vecina.h stands on its own.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "cli/conformance.h"
#include "results.h"

extern "C" int vecina_test_from_c(void);

namespace vecina::tests {
namespace {

TEST(Abi, WorksFromC) { EXPECT_EQ(vecina_test_from_c(), 0); }

// A struct as an older or newer caller has it: `size` bytes right before an inaccessible page, so
// that a read beyond them faults.
template <typename Struct>
class Resized {
 public:
  Resized(const Struct& full, size_t size)
      : bytes_({static_cast<int64_t>((size + 7) / 8)}, VECINA_I64) {
    std::memset(data(), 0, size);
    std::memcpy(data(), &full, std::min(size, sizeof(Struct)));
    std::memcpy(data(), &size, sizeof(size));
  }
  const Struct* get() const { return reinterpret_cast<const Struct*>(data()); }
  char* data() const { return static_cast<char*>(bytes_.view().data); }

 private:
  cli::HostTensor bytes_;
};

class Sizes : public testing::Test {
 protected:
  const cli::ContextPtr context_ = cli::make_context("", 1);
  const vecina_problem problem_ = cli::parse_problem("1d 9 kernel_size 3 heads 2 head_dim 8");
  const cli::Inputs inputs_ = cli::random_inputs(problem_, 1);
  const cli::Outputs expected_ = run_forward(context_.get(), problem_, inputs_);
};

TEST_F(Sizes, OlderForwardArgs) {
  // Up to output; up to and including lse; up to workspace; the same of 0.1.
  for (size_t size :
       {offsetof(vecina_forward_args, lse), offsetof(vecina_forward_args, workspace),
        offsetof(vecina_forward_args, workspace_bytes), sizeof(vecina_forward_args)}) {
    SCOPED_TRACE(size);
    const cli::Outputs outputs = cli::make_outputs(problem_);
    const Resized<vecina_forward_args> args(cli::forward_args(inputs_, outputs), size);
    ASSERT_EQ(vecina_forward(context_.get(), &problem_, args.get(), nullptr), VECINA_OK)
        << vecina_last_error();
    EXPECT_EQ(bits_of(outputs.output), bits_of(expected_.output));
    const bool has_lse = size > offsetof(vecina_forward_args, lse);
    EXPECT_EQ(bits_of(outputs.lse) == bits_of(expected_.lse), has_lse);
    vecina_plan* plan = nullptr;
    ASSERT_EQ(vecina_plan_forward(context_.get(), &problem_, args.get(), &plan), VECINA_OK);
    EXPECT_EQ(vecina_run_forward(plan, args.get(), nullptr), VECINA_OK) << vecina_last_error();
    vecina_plan_destroy(plan);
  }
}

TEST_F(Sizes, OlderProblem) {
  const cli::Outputs outputs = cli::make_outputs(problem_);
  const vecina_forward_args args = cli::forward_args(inputs_, outputs);
  for (size_t size : {offsetof(vecina_problem, additional_tokens),
                      offsetof(vecina_problem, has_scale), offsetof(vecina_problem, scale),
                      offsetof(vecina_problem, lengths), sizeof(vecina_problem)}) {
    SCOPED_TRACE(size);
    const Resized<vecina_problem> problem(problem_, size);
    ASSERT_EQ(vecina_problem_check(problem.get()), VECINA_OK) << vecina_last_error();
    ASSERT_EQ(vecina_forward(context_.get(), problem.get(), &args, nullptr), VECINA_OK)
        << vecina_last_error();
    EXPECT_EQ(bits_of(outputs.output), bits_of(expected_.output));
  }
}

TEST_F(Sizes, OlderBackwardArgs) {
  const cli::ContextPtr context = cli::make_context("reference", 1);
  cli::Inputs inputs = inputs_;
  inputs.grad_lse = {};
  const cli::Gradients expected = run_backward(context.get(), problem_, inputs, expected_);
  for (size_t size : {offsetof(vecina_backward_args, grad_additional_key),
                      offsetof(vecina_backward_args, workspace), sizeof(vecina_backward_args)}) {
    SCOPED_TRACE(size);
    const cli::Gradients gradients = cli::make_gradients(problem_);
    const Resized<vecina_backward_args> args(cli::backward_args(inputs, expected_, gradients),
                                             size);
    ASSERT_EQ(vecina_backward(context.get(), &problem_, args.get(), nullptr), VECINA_OK)
        << vecina_last_error();
    EXPECT_EQ(bits_of(gradients.query), bits_of(expected.query));
    EXPECT_EQ(bits_of(gradients.value), bits_of(expected.value));
  }
}

TEST_F(Sizes, OlderContextOptions) {
  vecina_context_options full = {};
  full.backend = "reference";
  for (size_t size :
       {offsetof(vecina_context_options, cache_dir), offsetof(vecina_context_options, parallel_for),
        sizeof(vecina_context_options)}) {
    const Resized<vecina_context_options> options(full, size);
    vecina_context* context = nullptr;
    ASSERT_EQ(vecina_context_create(options.get(), &context), VECINA_OK) << vecina_last_error();
    vecina_context_destroy(context);
  }
  const Resized<vecina_context_options> nothing(full, sizeof(size_t));
  vecina_context* context = nullptr;
  EXPECT_EQ(vecina_context_create(nothing.get(), &context), VECINA_INVALID_ARGUMENT);
  expect_last_error({"struct_size", "8"});
}

TEST_F(Sizes, OlderSplitArgs) {
  const cli::HostTensor weights({1, 9, 2, 3}, VECINA_F32);
  vecina_split_args full = {};
  full.query = inputs_.query.view();
  full.key = inputs_.key.view();
  full.weights = weights.view();
  for (size_t size : {offsetof(vecina_split_args, right_aligned), sizeof(vecina_split_args)}) {
    SCOPED_TRACE(size);
    const Resized<vecina_split_args> args(full, size);
    EXPECT_EQ(vecina_qk(context_.get(), &problem_, args.get(), nullptr), VECINA_OK)
        << vecina_last_error();
  }
}

// A caller of a later version: taken if what we do not know is zero, else refused.
TEST_F(Sizes, NewerStructs) {
  const cli::Outputs outputs = cli::make_outputs(problem_);
  const Resized<vecina_forward_args> args(cli::forward_args(inputs_, outputs),
                                          sizeof(vecina_forward_args) + 40);
  const Resized<vecina_problem> problem(problem_, sizeof(vecina_problem) + 16);
  ASSERT_EQ(vecina_forward(context_.get(), problem.get(), args.get(), nullptr), VECINA_OK)
      << vecina_last_error();
  EXPECT_EQ(bits_of(outputs.output), bits_of(expected_.output));
  args.data()[sizeof(vecina_forward_args) + 39] = 1;
  EXPECT_EQ(vecina_forward(context_.get(), problem.get(), args.get(), nullptr),
            VECINA_INVALID_ARGUMENT);
  expect_last_error({"args", "struct_size"});
  problem.data()[sizeof(vecina_problem)] = 1;
  EXPECT_EQ(vecina_problem_check(problem.get()), VECINA_INVALID_ARGUMENT);
  expect_last_error({"problem", "struct_size"});
}

}  // namespace
}  // namespace vecina::tests
