// SPDX-License-Identifier: MIT
// Plans: run at other addresses, refused where these are worse, alive without their context; the
// choice of a backend; bad calls of merge.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <future>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "cli/conformance.h"
#include "plan_cases.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

using PlanPtr = std::unique_ptr<vecina_plan, void (*)(vecina_plan*)>;

PlanPtr plan_forward(vecina_context* context, const vecina_problem& problem,
                     const vecina_forward_args& args) {
  vecina_plan* plan = nullptr;
  EXPECT_EQ(vecina_plan_forward(context, &problem, &args, &plan), VECINA_OK) << vecina_last_error();
  return PlanPtr(plan, vecina_plan_destroy);
}

std::string described(const vecina_plan* plan) {
  std::string text(vecina_plan_describe(plan, nullptr, 0), '\0');
  vecina_plan_describe(plan, text.data(), text.size() + 1);
  return text;
}

class Plans : public testing::TestWithParam<std::string> {
 protected:
  const vecina_problem problem_ = cli::parse_problem(
      "2d 9x8 kernel_size 5x3 batch 2 heads 4 heads_kv 2 head_dim 16 additional 2");
  cli::ContextPtr context_ = cli::make_context(GetParam(), 2);
};
INSTANTIATE_TEST_SUITE_P(Backends, Plans, testing::ValuesIn(backend_names()),
                         [](const auto& row) { return row.param; });

TEST_P(Plans, RunAtOtherAddresses) {
  const cli::Inputs first = cli::random_inputs(problem_, 1),
                    second = cli::random_inputs(problem_, 2);
  const cli::Outputs outputs = cli::make_outputs(problem_);
  const PlanPtr plan = plan_forward(context_.get(), problem_, cli::forward_args(first, outputs));
  for (const cli::Inputs* inputs : {&second, &first, &second}) {
    const cli::Outputs expected = run_forward(context_.get(), problem_, *inputs);
    const cli::Outputs actual = cli::make_outputs(problem_);
    const vecina_forward_args args = cli::forward_args(*inputs, actual);
    ASSERT_EQ(vecina_run_forward(plan.get(), &args, nullptr), VECINA_OK) << vecina_last_error();
    EXPECT_EQ(bits_of(actual.output), bits_of(expected.output));
    EXPECT_EQ(bits_of(actual.lse), bits_of(expected.lse));
  }
}

// What both passes read.
template <typename Args>
void keep_inputs(const Args& args, Rest rest, Args* run) {
  for (auto tensor :
       {&Args::query, &Args::key, &Args::value, &Args::additional_key, &Args::additional_value,
        &Args::bias, &Args::lengths, &Args::query_lengths, &Args::output, &Args::lse}) {
    run->*tensor = address_alone(args.*tensor, rest);
  }
}
vecina_forward_args addresses_alone(const vecina_forward_args& args, Rest rest) {
  vecina_forward_args run = {};
  run.struct_size = sizeof(run);
  keep_inputs(args, rest, &run);
  run.head_scale = address_alone(args.head_scale, rest);
  return run;
}
vecina_backward_args addresses_alone(const vecina_backward_args& args, Rest rest) {
  using Args = vecina_backward_args;
  vecina_backward_args run = {};
  run.struct_size = sizeof(run);
  keep_inputs(args, rest, &run);
  for (auto tensor :
       {&Args::grad_output, &Args::grad_lse, &Args::grad_query, &Args::grad_key, &Args::grad_value,
        &Args::grad_additional_key, &Args::grad_additional_value, &Args::grad_bias}) {
    run.*tensor = address_alone(args.*tensor, rest);
  }
  return run;
}

// Shapes, strides, dtypes and devices in the args of a run do not count.
void expect_only_pointers_are_read(const std::string& backend, const char* line) {
  SCOPED_TRACE(line);
  const cli::ContextPtr context = cli::make_context(backend, 2);
  const vecina_problem problem = cli::parse_problem(line);
  if (!why_not(context.get(), backend, problem).empty()) return;
  if (backend == "reference" && !cli::is_quick(problem)) return;
  const cli::Inputs inputs = cli::random_inputs(problem, 1);
  const cli::Outputs expected = cli::make_outputs(problem);
  const PlanPtr plan = plan_forward(context.get(), problem, cli::forward_args(inputs, expected));
  const vecina_forward_args args = cli::forward_args(inputs, expected);
  ASSERT_EQ(vecina_run_forward(plan.get(), &args, nullptr), VECINA_OK) << vecina_last_error();
  for (const Rest rest : {Rest::is_missing, Rest::is_misleading}) {
    const cli::Outputs outputs = cli::make_outputs(problem);
    const vecina_forward_args run = addresses_alone(cli::forward_args(inputs, outputs), rest);
    ASSERT_EQ(vecina_run_forward(plan.get(), &run, nullptr), VECINA_OK) << vecina_last_error();
    EXPECT_EQ(bits_of(outputs.output), bits_of(expected.output));
    EXPECT_EQ(bits_of(outputs.lse), bits_of(expected.lse));
  }
  if (problem.query_key_dtype == VECINA_E4M3) return;
  const cli::Gradients wanted = run_backward(context.get(), problem, inputs, expected);
  const vecina_backward_args example = cli::backward_args(inputs, expected, wanted);
  vecina_plan* made = nullptr;
  ASSERT_EQ(vecina_plan_backward(context.get(), &problem, &example, &made), VECINA_OK)
      << vecina_last_error();
  const PlanPtr backward(made, vecina_plan_destroy);
  for (const Rest rest : {Rest::is_missing, Rest::is_misleading}) {
    const cli::Gradients gradients = cli::make_gradients(problem);
    const vecina_backward_args run =
        addresses_alone(cli::backward_args(inputs, expected, gradients), rest);
    ASSERT_EQ(vecina_run_backward(backward.get(), &run, nullptr), VECINA_OK) << vecina_last_error();
    for (auto member : {&cli::Gradients::query, &cli::Gradients::key, &cli::Gradients::value,
                        &cli::Gradients::additional_key, &cli::Gradients::additional_value,
                        &cli::Gradients::bias}) {
      if (!(wanted.*member).given()) continue;
      EXPECT_EQ(bits_of(gradients.*member), bits_of(wanted.*member));
    }
  }
}

TEST_P(Plans, RunReadsOnlyPointers) {
  for (const char* line : kCallLines) expect_only_pointers_are_read(GetParam(), line);
  for (const char* line : {
           "2d 9x8 kernel_size 5x3 batch 2 heads 4 heads_kv 2 head_dim 16 additional 2",
           "2d 9x8 kernel_size 3 batch 3 heads 2 head_dim 8 bias additional 1 lengths padded",
           "1d 20 kernel_size 5 output_stride 3 heads 2 head_dim 8 lengths packed:4",
           "attention 12x15 heads 2 head_dim 8 additional 1 lengths packed:3",
           "3d 4x5x6 kernel_size 3 batch 3 heads 2 head_dim 40 dtype bf16",
           "2d 12x10 kernel_size 5 heads 2 head_dim 32 head_dim_value 320 dtype f16",
           "2d 6x6 kernel_size 3 heads 2 head_dim 16 dtype bf16 query_key_dtype e4m3",
       }) {
    expect_only_pointers_are_read(GetParam(), line);
  }
}

TEST_P(Plans, RunAtWorseAddressesIsRefused) {
  const cli::Inputs inputs = cli::random_inputs(problem_, 1);
  const cli::Inputs shifted = cli::random_inputs(problem_, 1, {0, 1});  // 4 bytes off
  const cli::Outputs outputs = cli::make_outputs(problem_);
  const vecina_forward_args good = cli::forward_args(inputs, outputs);
  ASSERT_EQ(reinterpret_cast<uintptr_t>(good.query.data) % 16, 0u);
  const PlanPtr plan = plan_forward(context_.get(), problem_, good);
  const auto expect_refused = [&](const vecina_forward_args& args,
                                  const std::vector<std::string>& words) {
    EXPECT_EQ(vecina_run_forward(plan.get(), &args, nullptr), VECINA_INVALID_ARGUMENT);
    expect_last_error(words);
    for (double value : values_of(outputs.output)) ASSERT_TRUE(std::isnan(value));
  };
  vecina_forward_args args = good;
  args.query = shifted.query.view();
  expect_refused(args, {"query", "aligned", "16"});
  args = good;
  args.value.byte_offset = -2;
  expect_refused(args, {"value", "aligned"});
  args = good;
  args.lse = {};
  expect_refused(args, {"lse", "not given"});
  args = good;
  args.key.data = nullptr;
  expect_refused(args, {"key", "not given"});
  args = good;
  args.bias = good.key;
  expect_refused(args, {"bias", "given"});
  args = good;
  args.output.data = args.query.data;
  expect_refused(args, {"output", "query", "memory"});
  // A plan made of less aligned tensors takes any.
  const PlanPtr modest =
      plan_forward(context_.get(), problem_, cli::forward_args(shifted, outputs));
  EXPECT_EQ(vecina_run_forward(modest.get(), &good, nullptr), VECINA_OK) << vecina_last_error();
}

TEST_P(Plans, OutliveTheirContext) {
  const cli::Inputs inputs = cli::random_inputs(problem_, 1);
  const cli::Outputs outputs = cli::make_outputs(problem_);
  const cli::Outputs expected = run_forward(context_.get(), problem_, inputs);
  const vecina_forward_args args = cli::forward_args(inputs, outputs);
  const PlanPtr plan = plan_forward(context_.get(), problem_, args);
  context_.reset();
  ASSERT_EQ(vecina_run_forward(plan.get(), &args, nullptr), VECINA_OK) << vecina_last_error();
  EXPECT_EQ(bits_of(outputs.output), bits_of(expected.output));
}

TEST_P(Plans, LengthsOfARunAreCheckedAnew) {
  const vecina_problem problem =
      cli::parse_problem("1d 9 kernel_size 3 batch 2 heads 2 head_dim 8 lengths padded");
  if (!why_not(context_.get(), GetParam(), problem).empty()) GTEST_SKIP();
  cli::Inputs inputs = cli::random_inputs(problem, 1);
  const cli::Outputs outputs = cli::make_outputs(problem);
  const vecina_forward_args args = cli::forward_args(inputs, outputs);
  const PlanPtr plan = plan_forward(context_.get(), problem, args);
  inputs.lengths.set(1, 10);
  EXPECT_EQ(vecina_run_forward(plan.get(), &args, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"lengths[1, 0]", "10"});
  EXPECT_EQ(vecina_forward(context_.get(), &problem, &args, nullptr), VECINA_INVALID_ARGUMENT);
  inputs.lengths.set(1, 4);
  EXPECT_EQ(vecina_run_forward(plan.get(), &args, nullptr), VECINA_OK) << vecina_last_error();
}

TEST_P(Plans, DescribeThemselvesAsJson) {
  const cli::Outputs outputs = cli::make_outputs(problem_);
  const cli::Inputs inputs = cli::random_inputs(problem_, 1);
  const PlanPtr plan = plan_forward(context_.get(), problem_, cli::forward_args(inputs, outputs));
  const nlohmann::json json = nlohmann::json::parse(described(plan.get()));
  EXPECT_EQ(json.at("backend"), GetParam());
  EXPECT_EQ(json.at("problem"), cli::print_problem(problem_));
  EXPECT_EQ(vecina_plan_workspace_bytes(plan.get()), 0u);
  EXPECT_EQ(vecina_workspace_bytes(context_.get(), &problem_, 0), 0u);
}

TEST_P(Plans, ProfileCountsItsRuns) {
  const cli::Outputs outputs = cli::make_outputs(problem_);
  const cli::Inputs inputs = cli::random_inputs(problem_, 1);
  const vecina_forward_args args = cli::forward_args(inputs, outputs);
  const PlanPtr plan = plan_forward(context_.get(), problem_, args);
  char text[2000];
  ASSERT_LT(vecina_profile(plan.get(), &args, 4, text, sizeof(text)), sizeof(text));
  const nlohmann::json json = nlohmann::json::parse(text);
  EXPECT_EQ(json.at("repeats"), 4);
  EXPECT_LE(json.at("best_us").get<double>(), json.at("median_us").get<double>());
  EXPECT_FALSE(std::isnan(outputs.output.get(0)));
  vecina_profile(plan.get(), &args, 0, text, sizeof(text));
  EXPECT_NE(std::string(text).find("repeats 0"), std::string::npos) << text;
}

// A thread of its own, so that one that waits for itself fails the test.
TEST(Log, MayCallTheLibrary) {
  struct Listener {
    cli::ContextPtr context = cli::make_context("", 1);
    vecina_problem problem = cli::parse_problem("1d 9 kernel_size 3 heads 1 head_dim 8");
    cli::Inputs inputs = cli::random_inputs(problem, 1);
    cli::Outputs outputs = cli::make_outputs(problem);
    int lines = 0;

    void plan() { plan_forward(context.get(), problem, cli::forward_args(inputs, outputs)); }
    static void listen(void* user, int32_t, const char*) {
      auto* self = static_cast<Listener*>(user);
      if (++self->lines == 1) self->plan();
      vecina_set_log(nullptr, nullptr);
    }
  };
  auto* listener = new Listener;  // outlives a thread that never ends
  vecina_set_log(Listener::listen, listener);
  std::promise<void> done;
  std::future<void> is_done = done.get_future();
  std::thread([listener, done = std::move(done)]() mutable {
    listener->plan();
    done.set_value();
  }).detach();
  ASSERT_EQ(is_done.wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_EQ(listener->lines, 2);
  delete listener;
}

TEST(PlanArguments, NullsAndMixedUpPasses) {
  const cli::ContextPtr context = cli::make_context("reference", 1);
  const vecina_problem problem = cli::parse_problem("1d 9 kernel_size 3 heads 2 head_dim 8");
  const cli::Inputs inputs = cli::random_inputs(problem, 1);
  const cli::Outputs outputs = run_forward(context.get(), problem, inputs);
  const cli::Gradients gradients = cli::make_gradients(problem);
  const vecina_forward_args forward = cli::forward_args(inputs, outputs);
  const vecina_backward_args backward = cli::backward_args(inputs, outputs, gradients);
  vecina_plan* plan = nullptr;
  EXPECT_EQ(vecina_plan_forward(nullptr, &problem, &forward, &plan), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_plan_forward(context.get(), nullptr, &forward, &plan), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_plan_forward(context.get(), &problem, nullptr, &plan), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_plan_forward(context.get(), &problem, &forward, nullptr),
            VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_run_forward(nullptr, &forward, nullptr), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_run_backward(nullptr, &backward, nullptr), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_plan_workspace_bytes(nullptr), 0u);
  EXPECT_NE(described(nullptr).find("NULL"), std::string::npos);

  const PlanPtr forward_plan = plan_forward(context.get(), problem, forward);
  EXPECT_EQ(vecina_run_forward(forward_plan.get(), nullptr, nullptr), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_run_backward(forward_plan.get(), &backward, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"forward"});
  ASSERT_EQ(vecina_plan_backward(context.get(), &problem, &backward, &plan), VECINA_OK)
      << vecina_last_error();
  const PlanPtr backward_plan(plan, vecina_plan_destroy);
  EXPECT_EQ(vecina_run_forward(backward_plan.get(), &forward, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"backward"});
  EXPECT_TRUE(std::isnan(gradients.key.get(0)));
  EXPECT_EQ(vecina_run_backward(backward_plan.get(), &backward, nullptr), VECINA_OK);
  const cli::Gradients expected = run_backward(context.get(), problem, inputs, outputs);
  EXPECT_EQ(bits_of(gradients.key), bits_of(expected.key));
}

TEST(ContextOptions, BadOnesAreRefused) {
  const auto create = [](const char* backend, int32_t threads) {
    vecina_context_options options = {};
    options.struct_size = sizeof(options);
    options.backend = backend;
    options.threads = threads;
    vecina_context* context = reinterpret_cast<vecina_context*>(1);
    const vecina_status status = vecina_context_create(&options, &context);
    if (status != VECINA_OK) {
      EXPECT_EQ(context, nullptr);
    } else {
      vecina_context_destroy(context);
    }
    return status;
  };
  EXPECT_EQ(create("warp", 0), VECINA_INVALID_ARGUMENT);
  expect_last_error({"'warp'", "cpu", "reference"});
  EXPECT_EQ(create(nullptr, -1), VECINA_INVALID_ARGUMENT);
  expect_last_error({"threads", "-1"});
  EXPECT_EQ(create(nullptr, 1 << 30), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(create(nullptr, 3), VECINA_OK);
  EXPECT_EQ(create("plain", 1), VECINA_OK) << "hidden, but there when asked for";
  EXPECT_EQ(vecina_context_create(nullptr, nullptr), VECINA_INVALID_ARGUMENT);
  vecina_context* context = nullptr;
  EXPECT_EQ(vecina_context_create(nullptr, &context), VECINA_OK) << vecina_last_error();
  vecina_context_destroy(context);
}

TEST(ContextOptions, EnvironmentChoosesTheBackend) {
  ASSERT_EQ(setenv("VECINA_BACKEND", "reference", 1), 0);
  vecina_context* context = nullptr;
  ASSERT_EQ(vecina_context_create(nullptr, &context), VECINA_OK) << vecina_last_error();
  const cli::ContextPtr owner(context, vecina_context_destroy);
  const vecina_problem problem = cli::parse_problem("1d 9 kernel_size 3 heads 2 head_dim 8");
  const cli::Outputs outputs = cli::make_outputs(problem);
  const cli::Inputs inputs = cli::random_inputs(problem, 1);
  const PlanPtr plan = plan_forward(context, problem, cli::forward_args(inputs, outputs));
  EXPECT_NE(described(plan.get()).find("\"backend\":\"reference\""), std::string::npos)
      << described(plan.get());
  ASSERT_EQ(setenv("VECINA_BACKEND", "abacus", 1), 0);
  EXPECT_EQ(vecina_context_create(nullptr, &context), VECINA_INVALID_ARGUMENT);
  expect_last_error({"'abacus'"});
  unsetenv("VECINA_BACKEND");
}

// Others are asked too, but the user named this one.
TEST(Backends, ThatAreHiddenSayWhyTheyDoNotTakeAProblem) {
  const cli::ContextPtr context = cli::make_context("plain", 1);
  const vecina_problem problem = cli::parse_problem("1d 9 kernel_size 3 heads 2 head_dim 8");
  const cli::Inputs inputs = cli::random_inputs(problem, 1);
  const cli::Outputs outputs = run_forward(context.get(), problem, inputs);
  const cli::Gradients gradients = cli::make_gradients(problem);
  vecina_problem e4m3 = problem;
  e4m3.query_key_dtype = VECINA_E4M3;
  cli::Inputs bytes = inputs;
  bytes.query = bytes.key = cli::HostTensor({1, 9, 2, 8}, VECINA_E4M3);
  const vecina_backward_args args = cli::backward_args(bytes, outputs, gradients);
  EXPECT_EQ(vecina_backward(context.get(), &e4m3, &args, nullptr), VECINA_UNSUPPORTED);
  expect_last_error({"backend 'plain' does not take", "plain: query_key_dtype e4m3"});
}

TEST(ContextOptions, BadEnvironmentIsRefused) {
  const auto expect_refused = [](const char* name, const char* value,
                                 const std::vector<std::string>& words) {
    ASSERT_EQ(setenv(name, value, 1), 0);
    vecina_context* context = nullptr;
    EXPECT_EQ(vecina_context_create(nullptr, &context), VECINA_INVALID_ARGUMENT) << value;
    unsetenv(name);
    expect_last_error({name});
    expect_last_error(words);
  };
  for (const char* value : {"0", "-1", "many", "4097", "99999999999"}) {
    expect_refused("VECINA_NUM_THREADS", value, {value, "within 1 and 4096"});
  }
  expect_refused("VECINA_LOG", "foo", {"'foo'", "plan or cache"});
  expect_refused("VECINA_LOG", "plan,foo", {"'plan,foo'"});
  expect_refused("VECINA_LOG", "plan,,cache", {"'plan,,cache'"});
}

TEST(Backends, AreListedInOrder) {
  const std::vector<std::string> names = backend_names();
  ASSERT_GE(names.size(), 2u);
  EXPECT_EQ(std::count(names.begin(), names.end(), "cpu"), 1) << "every test skips it otherwise";
  EXPECT_EQ(names.back(), "reference");
  EXPECT_EQ(std::count(names.begin(), names.end(), "plain"), 0) << "hidden";
  EXPECT_EQ(vecina_backend_name(-1), nullptr);
  EXPECT_EQ(vecina_backend_name(vecina_backend_count()), nullptr);
  const cli::ContextPtr context = cli::make_context("", 1);
  char text[500];
  EXPECT_GT(vecina_backend_why_not(context.get(), "warp", nullptr, text, sizeof(text)), 0u);
  EXPECT_NE(std::string(text).find("cpu"), std::string::npos) << text;
  EXPECT_EQ(vecina_backend_why_not(context.get(), "reference", nullptr, text, sizeof(text)), 0u);
  EXPECT_STREQ(vecina_version(), "0.1.0");
}

TEST(MergeArguments, BadOnesAreRefused) {
  const cli::ContextPtr context = cli::make_context("", 1);
  const auto make = [](std::vector<int64_t> shape, int32_t dtype = VECINA_F32) {
    cli::HostTensor tensor(shape, dtype);
    tensor.fill(1.0);
    return tensor;
  };
  const cli::HostTensor a = make({2, 3, 4, 8}), b = make({2, 3, 4, 8});
  const cli::HostTensor lse_a = make({2, 3, 4}), lse_b = make({2, 3, 4});
  const cli::HostTensor output = make({2, 3, 4, 8}), lse = make({2, 3, 4});
  struct Merge {
    int32_t count;
    std::vector<vecina_tensor> outputs, lses;
    vecina_tensor output, lse;
  };
  const Merge good = {
      2, {a.view(), b.view()}, {lse_a.view(), lse_b.view()}, output.view(), lse.view()};
  const auto run = [&](const Merge& merge) {
    return vecina_merge_attentions(context.get(), merge.count, merge.outputs.data(),
                                   merge.lses.data(), &merge.output, &merge.lse, nullptr);
  };
  ASSERT_EQ(run(good), VECINA_OK) << vecina_last_error();
  const auto refused = [&](auto change, const std::vector<std::string>& words) {
    Merge merge = good;
    change(merge);
    cli::HostTensor(output).fill(77.0);
    EXPECT_EQ(run(merge), VECINA_INVALID_ARGUMENT);
    expect_last_error(words);
    EXPECT_EQ(output.get(5), 77.0);
  };
  refused([](auto& m) { m.count = 1; }, {"count 1"});
  refused([](auto& m) { m.count = 0; }, {"count 0"});
  refused([](auto& m) { m.count = -3; }, {"count -3"});
  refused([](auto& m) { m.outputs[1].data = nullptr; }, {"outputs", "NULL"});
  refused([](auto& m) { m.lses[0].data = nullptr; }, {"lses", "NULL"});
  refused([](auto& m) { m.outputs[1].shape[1] = 2; }, {"outputs", "3"});
  refused([](auto& m) { m.outputs[1].dtype = VECINA_F16; }, {"outputs", "f16", "f32"});
  refused([](auto& m) { m.outputs[0].dtype = VECINA_I32; }, {"outputs", "i32"});
  refused([](auto& m) { m.outputs[0].ndim = 1; }, {"outputs", "1"});
  refused([](auto& m) { m.outputs[0].ndim = 7; }, {"outputs", "7"});
  refused([](auto& m) { m.outputs[0].shape[0] = -2; }, {"outputs", "-2"});
  refused([](auto& m) { m.lses[1].ndim = 4; }, {"lses", "shape"});
  refused([](auto& m) { m.lses[1].dtype = VECINA_F64; }, {"lses", "f64"});
  refused([](auto& m) { m.output.shape[3] = 7; }, {"output", "7", "8"});
  refused([](auto& m) { m.output.data = nullptr; }, {"output", "NULL"});
  refused([](auto& m) { m.output.strides[0] = 0; }, {"output", "overlap"});
  refused([](auto& m) { m.output.data = m.outputs[1].data; }, {"output", "outputs", "memory"});
  refused([](auto& m) { m.lse.data = m.lses[0].data; }, {"lse", "lses", "memory"});
  refused([](auto& m) { m.lse.dtype = VECINA_F16; }, {"lse", "f16"});
  refused([](auto& m) { m.outputs[1].device = VECINA_CUDA; }, {"device"});

  EXPECT_EQ(vecina_merge_attentions(nullptr, 2, good.outputs.data(), good.lses.data(), &good.output,
                                    &good.lse, nullptr),
            VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_merge_attentions(context.get(), 2, nullptr, good.lses.data(), &good.output,
                                    &good.lse, nullptr),
            VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_merge_attentions(context.get(), 2, good.outputs.data(), nullptr, &good.output,
                                    &good.lse, nullptr),
            VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_merge_attentions(context.get(), 2, good.outputs.data(), good.lses.data(),
                                    nullptr, &good.lse, nullptr),
            VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_merge_attentions_backward(context.get(), 2, good.outputs.data(),
                                             good.lses.data(), nullptr, nullptr,
                                             good.outputs.data(), good.lses.data(), nullptr),
            VECINA_INVALID_ARGUMENT);
  // The gradients would overwrite what they are made of.
  EXPECT_EQ(vecina_merge_attentions_backward(context.get(), 2, good.outputs.data(),
                                             good.lses.data(), &good.output, &good.lse,
                                             good.outputs.data(), good.lses.data(), nullptr),
            VECINA_INVALID_ARGUMENT);
  expect_last_error({"grad_outputs", "memory"});
}

}  // namespace
}  // namespace vecina::tests
