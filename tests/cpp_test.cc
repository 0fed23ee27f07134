// SPDX-License-Identifier: MIT
// vecina.hpp: the shapes that a problem says, and that what fails throws.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "vecina/vecina.hpp"

namespace vecina::tests {
namespace {

// The sentence that `call` throws; empty if it throws none.
std::string sentence_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), VECINA_INVALID_ARGUMENT) << error.what();
    return error.what();
  }
  return "";
}

void expect_thrown(const std::function<void()>& call, const std::string& word) {
  const std::string sentence = sentence_of(call);
  EXPECT_NE(sentence.find(word), std::string::npos) << "'" << sentence << "' lacks " << word;
}

TEST(Cpp, AdditionalTokensOfPackedSamplesHaveARowForEach) {
  const Context context({.backend = "cpu", .threads = 1});
  const auto problem =
      Problem::parse("1d 9 kernel_size 3 heads 2 head_dim 4 additional 3 lengths packed:2");
  EXPECT_EQ(problem.additional_key_shape().text(), "[2, 3, 2, 4]");
  EXPECT_EQ(problem.additional_value_shape().text(), "[2, 3, 2, 4]");
  EXPECT_EQ(problem.lengths_shape().text(), "[2, 1]");
  std::vector<float> tokens(18 * 8, 1.0f), additional(2 * 3 * 8, 1.0f), output(18 * 8);
  std::vector<std::int32_t> lengths = {9, 9};
  const Sizes shape = {1, 18, 2, 4};
  forward(context, problem,
          {.query = view(tokens, shape),
           .key = view(tokens, shape),
           .value = view(tokens, shape),
           .additional_key = additional,
           .additional_value = additional,
           .lengths = lengths,
           .output = view(output, shape)});
  EXPECT_EQ(output, std::vector<float>(18 * 8, 1.0f));
}

TEST(Cpp, FunctionsThatReturnTextOrSizesThrowToo) {
  const Context context({.backend = "cpu", .threads = 1});
  const auto problem = Problem::parse("1d 9 kernel_size 3 heads 2 head_dim 4");
  std::vector<float> tokens(9 * 8, 1.0f), output(9 * 8), lse(9 * 2);
  const ForwardArgs args = {.query = tokens, .key = tokens, .value = tokens, .output = output};
  const Plan plan = Plan::forward(context, problem, args);
  EXPECT_NE(plan.profile(args, 1).find("repeats"), std::string::npos);
  expect_thrown([&] { plan.profile(ForwardArgs{.query = tokens}, 3); }, "key");
  expect_thrown([&] { plan.profile(args, 0); }, "repeats 0");
  const BackwardArgs backward = {.query = tokens,
                                 .key = tokens,
                                 .value = tokens,
                                 .output = output,
                                 .lse = lse,
                                 .grad_output = tokens};
  expect_thrown([&] { plan.profile(backward, 1); }, "ForwardArgs");
  expect_thrown([&] { Plan::backward(context, problem, backward).profile(args, 1); },
                "BackwardArgs");

  const auto wrong = Problem(1).extent(9).kernel_size(30).head_dim(4);
  EXPECT_EQ(workspace_bytes(context, problem), 0u);
  expect_thrown([&] { workspace_bytes(context, wrong, true); }, "kernel_size 30");
  // Not a failure: this is what it says.
  EXPECT_NE(context.why_not("cpu", wrong).find("kernel_size 30"), std::string::npos);
}

TEST(LastStatus, IsThatOfTheLastCall) {
  const auto problem = Problem::parse("1d 9 kernel_size 3 head_dim 4");
  const auto wrong = Problem(1).extent(9).kernel_size(30).head_dim(4);
  char text[200];
  EXPECT_GT(vecina_problem_print(&problem.fields(), text, sizeof(text)), 0u);
  EXPECT_EQ(vecina_last_status(), VECINA_OK);
  vecina_problem_print(&wrong.fields(), text, sizeof(text));
  EXPECT_EQ(vecina_last_status(), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(text, std::string(vecina_last_error()));
  vecina_set_log(nullptr, nullptr);
  EXPECT_EQ(vecina_last_status(), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_problem_check(&problem.fields()), VECINA_OK);
  EXPECT_EQ(vecina_last_status(), VECINA_OK);
  EXPECT_EQ(vecina_plan_workspace_bytes(nullptr), 0u);
  EXPECT_EQ(vecina_last_status(), VECINA_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace vecina::tests
