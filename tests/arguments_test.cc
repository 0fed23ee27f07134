// SPDX-License-Identifier: MIT
// Bad tensors through the C interface: each is refused with a sentence that names the tensor and
// what was given, and nothing is written. First with a cold plan cache, then with a warm one.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cli/conformance.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

using Words = std::vector<std::string>;
constexpr double kUntouched = 12288.0;  // exact in every dtype

// One problem with tensors that fit it; outputs hold kUntouched until a call succeeds.
struct Call {
  explicit Call(const std::string& line)
      : problem(cli::parse_problem(line)),
        inputs(cli::random_inputs(problem, 9)),
        outputs(cli::make_outputs(problem)),
        gradients(cli::make_gradients(problem)) {
    refill();
  }

  void refill() {
    for (cli::HostTensor* tensor :
         {&outputs.output, &outputs.lse, &gradients.query, &gradients.key, &gradients.value,
          &gradients.additional_key, &gradients.additional_value, &gradients.bias}) {
      tensor->fill(kUntouched);
    }
  }
  bool is_untouched() const {
    for (const cli::HostTensor* tensor :
         {&outputs.output, &outputs.lse, &gradients.query, &gradients.key, &gradients.value,
          &gradients.additional_key, &gradients.additional_value, &gradients.bias}) {
      for (double value : values_of(*tensor)) {
        if (value != kUntouched) return false;
      }
    }
    return true;
  }
  vecina_forward_args forward() const { return cli::forward_args(inputs, outputs); }
  vecina_backward_args backward() const { return cli::backward_args(inputs, outputs, gradients); }

  vecina_problem problem;
  cli::Inputs inputs;
  cli::Outputs outputs;
  cli::Gradients gradients;
};

using ForwardChange = std::function<void(vecina_forward_args&)>;
using BackwardChange = std::function<void(vecina_backward_args&)>;

class Arguments : public testing::Test {
 protected:
  void expect_refused(Call& call, const ForwardChange& change, const Words& words) {
    vecina_forward_args args = call.forward();
    change(args);
    for (bool is_warm : {false, true}) {
      const cli::ContextPtr context = cli::make_context("", 1);
      if (is_warm) {
        const vecina_forward_args good = call.forward();
        ASSERT_EQ(vecina_forward(context.get(), &call.problem, &good, nullptr), VECINA_OK)
            << vecina_last_error();
        call.refill();
      }
      EXPECT_EQ(vecina_forward(context.get(), &call.problem, &args, nullptr),
                VECINA_INVALID_ARGUMENT)
          << (is_warm ? "warm" : "cold");
      expect_last_error(words);
      EXPECT_TRUE(call.is_untouched()) << (is_warm ? "warm" : "cold");
      call.refill();
      vecina_plan* plan = reinterpret_cast<vecina_plan*>(1);
      EXPECT_EQ(vecina_plan_forward(context.get(), &call.problem, &args, &plan),
                VECINA_INVALID_ARGUMENT);
      EXPECT_EQ(plan, nullptr);
    }
  }

  void expect_refused(Call& call, const BackwardChange& change, const Words& words) {
    const cli::ContextPtr context = cli::make_context("reference", 1);
    vecina_backward_args args = call.backward();
    change(args);
    EXPECT_EQ(vecina_backward(context.get(), &call.problem, &args, nullptr),
              VECINA_INVALID_ARGUMENT);
    expect_last_error(words);
    EXPECT_TRUE(call.is_untouched());
    call.refill();
  }
};

struct Field {
  const char* name;
  vecina_tensor vecina_forward_args::*tensor;
};
constexpr Field kForwardFields[] = {
    {"query", &vecina_forward_args::query},
    {"key", &vecina_forward_args::key},
    {"value", &vecina_forward_args::value},
    {"additional_key", &vecina_forward_args::additional_key},
    {"additional_value", &vecina_forward_args::additional_value},
    {"bias", &vecina_forward_args::bias},
    {"output", &vecina_forward_args::output},
    {"lse", &vecina_forward_args::lse},
};

const char* const kEverything =
    "2d 6x5 kernel_size 3 batch 2 heads 4 heads_kv 2 head_dim 8 head_dim_value 6 additional 3 bias";

TEST_F(Arguments, TheUnchangedCallIsTaken) {
  Call call(kEverything);
  const cli::ContextPtr context = cli::make_context("", 1);
  const vecina_forward_args args = call.forward();
  EXPECT_EQ(vecina_forward(context.get(), &call.problem, &args, nullptr), VECINA_OK)
      << vecina_last_error();
  EXPECT_FALSE(call.is_untouched());
}

TEST_F(Arguments, EachTensorMissing) {
  Call call(kEverything);
  for (const Field& field : kForwardFields) {
    SCOPED_TRACE(field.name);
    if (std::string(field.name) == "lse") continue;  // optional
    expect_refused(call, ForwardChange([&](auto& args) { (args.*field.tensor).data = nullptr; }),
                   {field.name, "NULL"});
    expect_refused(call, ForwardChange([&](auto& args) { args.*field.tensor = {}; }), {field.name});
  }
}

TEST_F(Arguments, EachTensorOfTheWrongShape) {
  Call call(kEverything);
  for (const Field& field : kForwardFields) {
    SCOPED_TRACE(field.name);
    const vecina_forward_args good = call.forward();
    const int32_t ndim = (good.*field.tensor).ndim;
    for (int32_t wrong : {-1, 0, 1, ndim - 1, ndim + 1, 7, 100, 259}) {
      if (wrong == ndim) continue;
      expect_refused(call, ForwardChange([&](auto& args) { (args.*field.tensor).ndim = wrong; }),
                     {field.name, "shape"});
    }
    for (int d = 0; d < ndim; ++d) {
      const int64_t size = (good.*field.tensor).shape[d];
      for (int64_t wrong : {size + 1, size - 1, int64_t{0}, -size,
                            std::numeric_limits<int64_t>::max(), int64_t{1} << 32}) {
        expect_refused(call,
                       ForwardChange([&](auto& args) { (args.*field.tensor).shape[d] = wrong; }),
                       {field.name, std::to_string(wrong), std::to_string(size)});
      }
    }
  }
}

TEST_F(Arguments, EachTensorOfTheWrongDtype) {
  Call call(kEverything);
  for (const Field& field : kForwardFields) {
    SCOPED_TRACE(field.name);
    for (int32_t wrong : {int32_t{VECINA_F64}, int32_t{VECINA_F16}, int32_t{VECINA_BF16},
                          int32_t{VECINA_I32}, -1, 6, 1 << 24, 1 << 25, 256}) {
      expect_refused(call, ForwardChange([&](auto& args) { (args.*field.tensor).dtype = wrong; }),
                     {field.name, "f32"});
    }
  }
}

TEST_F(Arguments, LseAndBiasOfHalfPrecisionProblemsAreF32) {
  for (const char* dtype : {"f16", "bf16", "f64"}) {
    Call call("1d 9 kernel_size 3 heads 2 head_dim 8 bias dtype " + std::string(dtype));
    const int32_t wrong = std::string(dtype) == "f64" ? int32_t{VECINA_F32} : call.problem.dtype;
    const char* right = std::string(dtype) == "f64" ? "f64" : "f32";
    expect_refused(call, ForwardChange([&](auto& args) { args.lse.dtype = wrong; }),
                   {"lse", right});
    expect_refused(call, ForwardChange([&](auto& args) { args.bias.dtype = wrong; }),
                   {"bias", right});
  }
}

TEST_F(Arguments, EachTensorOnAnotherDevice) {
  Call call(kEverything);
  for (const Field& field : kForwardFields) {
    SCOPED_TRACE(field.name);
    for (int32_t device : {-1, 4, 1 << 20}) {
      expect_refused(call, ForwardChange([&](auto& args) { (args.*field.tensor).device = device; }),
                     {field.name, "device", std::to_string(device)});
    }
    expect_refused(call,
                   ForwardChange([&](auto& args) { (args.*field.tensor).device = VECINA_CUDA; }),
                   {"device"});
    expect_refused(call, ForwardChange([&](auto& args) { (args.*field.tensor).device_index = 1; }),
                   {"device"});
  }
}

// Host memory that claims to be a device's must never be handed to a backend of the CPU.
TEST_F(Arguments, AllTensorsOnADeviceThatNoBackendHas) {
  for (const std::string& backend : backend_names()) {
    const cli::ContextPtr context = cli::make_context(backend, 1);
    for (int32_t device : {int32_t{VECINA_CUDA}, int32_t{VECINA_VULKAN}, int32_t{VECINA_METAL}}) {
      Call call("1d 9 kernel_size 3 heads 2 head_dim 8");
      vecina_forward_args args = call.forward();
      for (vecina_tensor* tensor : {&args.query, &args.key, &args.value, &args.output, &args.lse}) {
        tensor->device = device;
      }
      EXPECT_NE(vecina_forward(context.get(), &call.problem, &args, nullptr), VECINA_OK)
          << backend << " took tensors of device " << device;
      EXPECT_TRUE(call.is_untouched());
    }
  }
}

TEST_F(Arguments, Strides) {
  Call call(kEverything);
  for (const Field& field : kForwardFields) {
    SCOPED_TRACE(field.name);
    const vecina_forward_args good = call.forward();
    const int last = (good.*field.tensor).ndim - 1;
    for (int64_t wrong : {int64_t{2}, int64_t{0}, int64_t{-1}}) {
      expect_refused(call,
                     ForwardChange([&](auto& args) { (args.*field.tensor).strides[last] = wrong; }),
                     {field.name, "stride", std::to_string(wrong)});
    }
    for (int64_t wrong : {std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min(),
                          int64_t{1} << 60}) {
      expect_refused(call,
                     ForwardChange([&](auto& args) { (args.*field.tensor).strides[0] = wrong; }),
                     {field.name, "stride"});
    }
  }
}

TEST_F(Arguments, EachTensorMisaligned) {
  Call call(kEverything);
  for (const Field& field : kForwardFields) {
    SCOPED_TRACE(field.name);
    for (int64_t bytes : {-1, -2, -3}) {
      expect_refused(call,
                     ForwardChange([&](auto& args) { (args.*field.tensor).byte_offset = bytes; }),
                     {field.name, "4"});
    }
    expect_refused(call, ForwardChange([&](auto& args) {
                     vecina_tensor& tensor = args.*field.tensor;
                     tensor.data = static_cast<char*>(tensor.data) - 2;
                   }),
                   {field.name, "4"});
  }
}

TEST_F(Arguments, OutputsThatShareMemory) {
  Call call("2d 6x5 kernel_size 3 batch 2 heads 4 head_dim 8 additional 3 bias");
  const auto same = [](vecina_tensor& to, const vecina_tensor& from, int64_t bytes) {
    to.data = from.data;
    to.byte_offset = from.byte_offset + bytes;
  };
  for (const Field& field : kForwardFields) {
    SCOPED_TRACE(field.name);
    if (std::string(field.name) != "output") {
      for (int64_t bytes : {0, 16}) {
        expect_refused(
            call, ForwardChange([&](auto& args) { same(args.output, args.*field.tensor, bytes); }),
            {"output is written", "memory"});
      }
    }
    if (std::string(field.name) != "lse") {
      expect_refused(call,
                     ForwardChange([&](auto& args) { same(args.lse, args.*field.tensor, 4); }),
                     {"lse", "memory"});
    }
  }
}

TEST_F(Arguments, TheSentenceNamesBothThatShareMemory) {
  Call call("1d 4 kernel_size 1 heads 1 head_dim 1");
  expect_refused(call, ForwardChange([](auto& args) { args.output.data = args.key.data; }),
                 {"output", "key", "memory"});
  expect_refused(call, ForwardChange([](auto& args) { args.lse.data = args.value.data; }),
                 {"lse", "value", "memory"});
  expect_refused(call, ForwardChange([](auto& args) { args.lse.data = args.output.data; }),
                 {"lse", "output", "memory"});
  expect_refused(call, BackwardChange([](auto& args) { args.grad_key.data = args.query.data; }),
                 {"grad_key", "query", "memory"});
  expect_refused(call,
                 BackwardChange([](auto& args) { args.grad_value.data = args.grad_query.data; }),
                 {"grad_value", "grad_query", "memory"});
}

TEST_F(Arguments, OutputsThatOverlapThemselves) {
  Call call("2d 6x5 kernel_size 3 batch 2 heads 4 head_dim 8");
  for (int d = 0; d < 4; ++d) {
    for (int64_t wrong : {int64_t{0}, int64_t{7}, int64_t{-7}}) {
      expect_refused(call, ForwardChange([&](auto& args) { args.output.strides[d] = wrong; }),
                     {"output", "overlap"});
    }
    expect_refused(call, ForwardChange([&](auto& args) { args.lse.strides[d < 3 ? d : 2] = 0; }),
                   {"lse", "overlap"});
  }
}

// Views that interleave without sharing a byte are taken, inputs may repeat (stride 0), and a
// dimension of size 1 may have any stride.
TEST_F(Arguments, ViewsThatOnlyLookOverlapping) {
  const cli::ContextPtr context = cli::make_context("", 1);
  const vecina_problem problem =
      cli::parse_problem("1d 12 kernel_size 5 batch 1 heads 3 head_dim 8");
  const cli::Inputs inputs = cli::random_inputs(problem, 2);
  const cli::Outputs expected = run_forward(context.get(), problem, inputs);
  // [token, (query, key, value, output), head, head_dim] in one buffer.
  cli::HostTensor packed({1, 12, 4, 3, 8}, VECINA_F32);
  const cli::HostTensor* from[] = {&inputs.query, &inputs.key, &inputs.value};
  for (int64_t part = 0; part < 3; ++part) {
    for (int64_t i = 0; i < 12 * 24; ++i) {
      packed.set(i / 24 * 96 + part * 24 + i % 24, from[part]->get(i));
    }
  }
  const vecina_tensor whole = packed.view();
  const auto slice = [&](int64_t part) {
    vecina_tensor view = expected.output.view();
    view.data = whole.data;
    view.byte_offset = part * 24 * 4;
    view.strides[0] = std::numeric_limits<int64_t>::max();  // batch 1: any stride
    view.strides[1] = 96;
    view.strides[2] = 8;
    return view;
  };
  vecina_forward_args args = {};
  args.struct_size = sizeof(args);
  args.query = slice(0);
  args.key = slice(1);
  args.value = slice(2);
  args.output = slice(3);
  for (vecina_tensor* tensor : {&args.query, &args.key, &args.value, &args.output}) {
    tensor->strides[0] = -77;
  }
  ASSERT_EQ(vecina_forward(context.get(), &problem, &args, nullptr), VECINA_OK)
      << vecina_last_error();
  for (int64_t i = 0; i < 12 * 24; ++i) {
    ASSERT_EQ(packed.get(i / 24 * 96 + 72 + i % 24), expected.output.get(i)) << i;
  }
  // The key broadcast over heads and tokens.
  const cli::Outputs outputs = cli::make_outputs(problem);
  vecina_forward_args repeated = cli::forward_args(inputs, outputs);
  repeated.key.strides[1] = repeated.key.strides[2] = 0;
  EXPECT_EQ(vecina_forward(context.get(), &problem, &repeated, nullptr), VECINA_OK)
      << vecina_last_error();
}

TEST_F(Arguments, WhatTheProblemDoesNotHave) {
  Call call("1d 9 kernel_size 3 batch 2 heads 2 head_dim 8");
  Call other("1d 9 kernel_size 3 batch 2 heads 2 head_dim 8 additional 2 bias lengths padded");
  const vecina_forward_args extra = other.forward();
  expect_refused(call, ForwardChange([&](auto& args) {
                   args.additional_key = extra.additional_key;
                   args.additional_value = extra.additional_value;
                 }),
                 {"additional_key", "additional_tokens"});
  expect_refused(call,
                 ForwardChange([&](auto& args) { args.additional_key = extra.additional_key; }),
                 {"additional_key"});
  expect_refused(call,
                 ForwardChange([&](auto& args) { args.additional_value = extra.additional_value; }),
                 {"additional_value"});
  expect_refused(call, ForwardChange([&](auto& args) { args.bias = extra.bias; }), {"bias"});
  expect_refused(call, ForwardChange([&](auto& args) { args.head_scale = extra.bias; }),
                 {"head_scale", "query_key_dtype", "e4m3"});
  expect_refused(call, ForwardChange([&](auto& args) { args.lengths = extra.lengths; }),
                 {"lengths", "equal"});
  expect_refused(call, ForwardChange([&](auto& args) { args.query_lengths = extra.lengths; }),
                 {"query_lengths"});
  Call padded("1d 9 kernel_size 3 batch 2 heads 2 head_dim 8 lengths padded");
  expect_refused(padded, ForwardChange([&](auto& args) { args.query_lengths = extra.lengths; }),
                 {"query_lengths", "attention"});
}

TEST_F(Arguments, OfE4m3) {
  Call call("1d 9 kernel_size 3 heads 2 head_dim 8 additional 2 dtype bf16 query_key_dtype e4m3");
  ASSERT_TRUE(call.inputs.head_scale.given());
  for (auto tensor : {&vecina_forward_args::query, &vecina_forward_args::key,
                      &vecina_forward_args::additional_key}) {
    expect_refused(call, ForwardChange([&](auto& args) { (args.*tensor).dtype = VECINA_BF16; }),
                   {"bf16", "e4m3"});
  }
  expect_refused(call, ForwardChange([&](auto& args) { args.value.dtype = VECINA_E4M3; }),
                 {"value", "e4m3", "bf16"});
  expect_refused(call, ForwardChange([&](auto& args) { args.head_scale.shape[0] = 1; }),
                 {"head_scale", "[1]", "[2]"});
  expect_refused(call, ForwardChange([&](auto& args) { args.head_scale.dtype = VECINA_F64; }),
                 {"head_scale", "f64", "f32"});
  for (const float value : {0.0f, -1.0f, std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
    cli::HostTensor wrong({2}, VECINA_F32);
    wrong.fill(1.0);
    wrong.set(1, value);
    expect_refused(call, ForwardChange([&](auto& args) { args.head_scale = wrong.view(); }),
                   {"head_scale[1]", "above 0"});
  }
}

TEST_F(Arguments, Lengths) {
  Call call("2d 9x8 kernel_size 3x2 dilation 2x1 batch 3 heads 2 head_dim 8 lengths padded");
  const auto wrong_length = [&](int64_t index, double value, const Words& words) {
    Call changed = call;
    changed.inputs.lengths = cli::HostTensor({3, 2}, VECINA_I64);
    for (int64_t i = 0; i < 6; ++i) changed.inputs.lengths.set(i, i % 2 == 0 ? 9 : 8);
    const cli::HostTensor good = changed.inputs.lengths;
    cli::HostTensor bad({3, 2}, VECINA_I64);
    for (int64_t i = 0; i < 6; ++i) bad.set(i, i == index ? value : good.get(i));
    expect_refused(changed, ForwardChange([&](auto& args) { args.lengths = bad.view(); }), words);
  };
  wrong_length(2, 10, {"lengths[1, 0]", "10", "9"});
  wrong_length(5, 9, {"lengths[2, 1]", "9", "8"});
  wrong_length(0, -1, {"lengths[0, 0]", "-1"});
  wrong_length(4, 5, {"lengths[2, 0]", "5", "kernel_size 3", "dilation 2", "6"});
  wrong_length(1, 1, {"lengths[0, 1]", "1", "kernel_size 2"});
  wrong_length(1, 4294967297.0, {"lengths[0, 1]"});  // 1 in 32 bits
  expect_refused(call, ForwardChange([](auto& args) { args.lengths = {}; }), {"lengths", "NULL"});
  expect_refused(call, ForwardChange([](auto& args) { args.lengths.dtype = VECINA_F32; }),
                 {"lengths", "f32"});
  expect_refused(call, ForwardChange([](auto& args) { args.lengths.shape[0] = 2; }),
                 {"lengths", "2", "3"});
  expect_refused(call, ForwardChange([](auto& args) { args.lengths.shape[1] = 1; }), {"lengths"});
  expect_refused(call, ForwardChange([](auto& args) { args.lengths.strides[1] = 3; }),
                 {"lengths", "stride"});
  expect_refused(call, ForwardChange([](auto& args) { args.lengths.byte_offset = -2; }),
                 {"lengths"});
}

TEST_F(Arguments, LengthsOfPackedSamplesAddUp) {
  Call call("1d 9 kernel_size 3 heads 2 head_dim 8 lengths packed:3");
  const int64_t total = call.inputs.key.shape()[1];
  for (const Field& field : kForwardFields) {
    if (field.tensor == &vecina_forward_args::additional_key ||
        field.tensor == &vecina_forward_args::additional_value ||
        field.tensor == &vecina_forward_args::bias) {
      continue;
    }
    expect_refused(call, ForwardChange([&](auto& args) { (args.*field.tensor).shape[1] -= 1; }),
                   {field.name, std::to_string(total), std::to_string(total - 1)});
  }
  cli::HostTensor lengths({3, 1}, VECINA_I32);
  for (int64_t i = 0; i < 3; ++i) lengths.set(i, 9);
  if (total == 27) lengths.set(1, 8);
  expect_refused(call, ForwardChange([&](auto& args) { args.lengths = lengths.view(); }), {"27"});
}

// 128 samples of 2^57 tokens: 2^64 in all, which is 0 in 64 bits.
TEST_F(Arguments, LengthsWhoseSumOverflows) {
  const vecina_problem problem = cli::parse_problem(
      "3d 524288x524288x524288 kernel_size 3 heads 1 head_dim 1 lengths packed:128");
  cli::HostTensor lengths({1, 3}, VECINA_I64);
  for (int64_t i = 0; i < 3; ++i) lengths.set(i, 524288);
  float element = 0.0f;
  vecina_tensor empty = {};
  empty.data = &element;
  empty.ndim = 4;
  empty.shape[0] = empty.shape[2] = empty.shape[3] = 1;
  vecina_forward_args forward = {};
  forward.struct_size = sizeof(forward);
  forward.query = forward.key = forward.value = forward.output = empty;
  forward.lengths = lengths.view();
  forward.lengths.shape[0] = 128;
  forward.lengths.strides[0] = 0;
  vecina_backward_args backward = {};
  backward.struct_size = sizeof(backward);
  backward.query = backward.key = backward.value = backward.output = backward.grad_output = empty;
  backward.lse = empty;
  backward.lse.ndim = 3;
  backward.lengths = forward.lengths;
  for (const char* backend : {"cpu", "reference"}) {
    const cli::ContextPtr context = cli::make_context(backend, 1);
    EXPECT_EQ(vecina_forward(context.get(), &problem, &forward, nullptr), VECINA_INVALID_ARGUMENT);
    expect_last_error({"lengths", "add up", "2^60"});
    EXPECT_EQ(vecina_backward(context.get(), &problem, &backward, nullptr),
              VECINA_INVALID_ARGUMENT);
    expect_last_error({"lengths", "add up", "2^60"});
  }
}

// Lengths stand for query lengths that are not given, so they must fit the queries too.
TEST_F(Arguments, LengthsThatExceedTheQueries) {
  Call call("attention 4x10 batch 2 heads 1 head_dim 8 lengths padded");
  cli::HostTensor lengths({2, 1}, VECINA_I32);
  lengths.set(0, 4);
  lengths.set(1, 10);
  expect_refused(call, ForwardChange([&](auto& args) {
                   args.lengths = lengths.view();
                   args.query_lengths = {};
                 }),
                 {"lengths[1, 0]", "10", "4"});
  lengths.set(1, 5);
  Call with_queries("attention 4x10 batch 2 heads 1 head_dim 8 lengths padded");
  expect_refused(with_queries,
                 ForwardChange([&](auto& args) { args.query_lengths = lengths.view(); }),
                 {"query_lengths[1, 0]", "5", "4"});
}

TEST_F(Arguments, Backward) {
  Call call(
      "2d 6x5 kernel_size 3 batch 2 heads 4 heads_kv 2 head_dim 8 head_dim_value 6 additional 3 "
      "bias");
  struct BackwardField {
    const char* name;
    vecina_tensor vecina_backward_args::*tensor;
    bool is_required;
  };
  const BackwardField fields[] = {
      {"query", &vecina_backward_args::query, true},
      {"key", &vecina_backward_args::key, true},
      {"value", &vecina_backward_args::value, true},
      {"additional_key", &vecina_backward_args::additional_key, true},
      {"additional_value", &vecina_backward_args::additional_value, true},
      {"bias", &vecina_backward_args::bias, true},
      {"output", &vecina_backward_args::output, true},
      {"lse", &vecina_backward_args::lse, true},
      {"grad_output", &vecina_backward_args::grad_output, true},
      {"grad_lse", &vecina_backward_args::grad_lse, false},
      {"grad_query", &vecina_backward_args::grad_query, false},
      {"grad_key", &vecina_backward_args::grad_key, false},
      {"grad_value", &vecina_backward_args::grad_value, false},
      {"grad_additional_key", &vecina_backward_args::grad_additional_key, false},
      {"grad_additional_value", &vecina_backward_args::grad_additional_value, false},
      {"grad_bias", &vecina_backward_args::grad_bias, false},
  };
  for (const BackwardField& field : fields) {
    SCOPED_TRACE(field.name);
    const auto refused = [&](const std::function<void(vecina_tensor&)>& change,
                             const Words& words) {
      Words all = words;
      all.push_back(field.name);
      expect_refused(call, BackwardChange([&](auto& args) { change(args.*field.tensor); }), all);
    };
    if (field.is_required) refused([](auto& tensor) { tensor = {}; }, {"NULL"});
    refused([](auto& tensor) { tensor.ndim -= 1; }, {"shape"});
    refused([](auto& tensor) { tensor.shape[0] += 1; }, {"shape"});
    refused([](auto& tensor) { tensor.shape[tensor.ndim - 1] -= 1; }, {"shape"});
    refused([](auto& tensor) { tensor.dtype = VECINA_F16; }, {"f16", "f32"});
    refused([](auto& tensor) { tensor.strides[tensor.ndim - 1] = 2; }, {"stride", "2"});
    refused([](auto& tensor) { tensor.byte_offset = -1; }, {"4"});
    refused([](auto& tensor) { tensor.device = VECINA_METAL; }, {});
    if (std::string(field.name).rfind("grad_", 0) != 0 || field.is_required) continue;
    if (std::string(field.name) == "grad_lse") continue;
    refused([](auto& tensor) { tensor.strides[0] = 0; }, {"overlap"});
    for (const BackwardField& other : fields) {
      if (other.tensor == field.tensor) continue;
      expect_refused(call, BackwardChange([&](auto& args) {
                       (args.*field.tensor).data = (args.*other.tensor).data;
                     }),
                     {"is written", "memory"});
    }
  }
}

TEST_F(Arguments, GradientsThatTheProblemDoesNotHave) {
  Call call("1d 9 kernel_size 3 heads 2 head_dim 8");
  Call other("1d 9 kernel_size 3 heads 2 head_dim 8 additional 2 bias");
  const vecina_backward_args extra = other.backward();
  expect_refused(call, BackwardChange([&](auto& args) { args.grad_bias = extra.grad_bias; }),
                 {"grad_bias"});
  expect_refused(call, BackwardChange([&](auto& args) {
                   args.grad_additional_key = extra.grad_additional_key;
                 }),
                 {"grad_additional_key"});
  expect_refused(call, BackwardChange([&](auto& args) {
                   args.grad_additional_value = extra.grad_additional_value;
                 }),
                 {"grad_additional_value"});
}

TEST_F(Arguments, NullPointersAndStructSizes) {
  Call call("1d 9 kernel_size 3 heads 2 head_dim 8");
  const cli::ContextPtr context = cli::make_context("", 1);
  const vecina_forward_args args = call.forward();
  const vecina_backward_args backward = call.backward();
  EXPECT_EQ(vecina_forward(nullptr, &call.problem, &args, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"context", "NULL"});
  EXPECT_EQ(vecina_forward(context.get(), nullptr, &args, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"problem", "NULL"});
  EXPECT_EQ(vecina_forward(context.get(), &call.problem, nullptr, nullptr),
            VECINA_INVALID_ARGUMENT);
  expect_last_error({"args", "NULL"});
  EXPECT_EQ(vecina_backward(nullptr, &call.problem, &backward, nullptr), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_backward(context.get(), nullptr, &backward, nullptr), VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_backward(context.get(), &call.problem, nullptr, nullptr),
            VECINA_INVALID_ARGUMENT);
  for (size_t size : {size_t{0}, size_t{8}, size_t{16}, offsetof(vecina_forward_args, output)}) {
    vecina_forward_args wrong = args;
    wrong.struct_size = size;
    EXPECT_EQ(vecina_forward(context.get(), &call.problem, &wrong, nullptr),
              VECINA_INVALID_ARGUMENT);
    expect_last_error({"struct_size", std::to_string(size), "sizeof(vecina_forward_args)"});
  }
  for (size_t size : {size_t{0}, size_t{8}, offsetof(vecina_backward_args, grad_output)}) {
    vecina_backward_args wrong = backward;
    wrong.struct_size = size;
    EXPECT_EQ(vecina_backward(context.get(), &call.problem, &wrong, nullptr),
              VECINA_INVALID_ARGUMENT);
    expect_last_error({"struct_size", std::to_string(size)});
  }
  EXPECT_TRUE(call.is_untouched());
  vecina_context_destroy(nullptr);
  vecina_plan_destroy(nullptr);
}

TEST_F(Arguments, ABadProblemIsRefusedByEveryCall) {
  Call call("1d 9 kernel_size 3 heads 2 head_dim 8");
  const cli::ContextPtr context = cli::make_context("", 1);
  call.problem.kernel_size[0] = 10;
  const vecina_forward_args args = call.forward();
  const vecina_backward_args backward = call.backward();
  vecina_plan* plan = nullptr;
  char text[500];
  EXPECT_EQ(vecina_forward(context.get(), &call.problem, &args, nullptr), VECINA_INVALID_ARGUMENT);
  expect_last_error({"kernel_size 10", "9"});
  EXPECT_EQ(vecina_backward(context.get(), &call.problem, &backward, nullptr),
            VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_plan_forward(context.get(), &call.problem, &args, &plan),
            VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_plan_backward(context.get(), &call.problem, &backward, &plan),
            VECINA_INVALID_ARGUMENT);
  EXPECT_EQ(vecina_workspace_bytes(context.get(), &call.problem, 0), 0u);
  vecina_backend_why_not(context.get(), "cpu", &call.problem, text, sizeof(text));
  EXPECT_NE(std::string(text).find("kernel_size 10"), std::string::npos) << text;
  EXPECT_TRUE(call.is_untouched());
}

TEST_F(Arguments, EmptyBatchNeedsNoMemory) {
  const vecina_problem problem =
      cli::parse_problem("1d 9 kernel_size 3 batch 0 heads 2 head_dim 8");
  for (const std::string& backend : backend_names()) {
    const cli::ContextPtr context = cli::make_context(backend, 1);
    const cli::Inputs inputs = cli::random_inputs(problem, 1);
    const cli::Outputs outputs = cli::make_outputs(problem);
    vecina_forward_args args = cli::forward_args(inputs, outputs);
    for (vecina_tensor* tensor : {&args.query, &args.key, &args.value, &args.output}) {
      tensor->data = nullptr;
    }
    args.lse = {};
    EXPECT_EQ(vecina_forward(context.get(), &problem, &args, nullptr), VECINA_OK)
        << backend << ": " << vecina_last_error();
  }
}

// PyTorch's empty tensors keep stride 0 in the last dimension.
vecina_tensor with_stride_0(vecina_tensor empty) {
  if (empty.ndim > 0) empty.strides[empty.ndim - 1] = 0;
  return empty;
}

TEST_F(Arguments, StridesOfAnEmptyBatchDoNotMatter) {
  const vecina_problem problem =
      cli::parse_problem("2d 9x9 kernel_size 3 batch 0 heads 2 head_dim 8 additional 2");
  const cli::Inputs inputs = cli::random_inputs(problem, 1);
  const cli::Outputs outputs = cli::make_outputs(problem);
  const cli::Gradients gradients = cli::make_gradients(problem);
  vecina_forward_args forward = cli::forward_args(inputs, outputs);
  for (const Field& field : kForwardFields) {
    forward.*field.tensor = with_stride_0(forward.*field.tensor);
  }
  vecina_backward_args backward = cli::backward_args(inputs, outputs, gradients);
  for (vecina_tensor* tensor : {&backward.query, &backward.key, &backward.output, &backward.lse,
                                &backward.grad_output, &backward.grad_lse, &backward.grad_query,
                                &backward.grad_key, &backward.grad_additional_value}) {
    *tensor = with_stride_0(*tensor);
  }
  const cli::HostTensor weights({0, 9, 9, 2, 9 + 2}, VECINA_F32);
  vecina_split_args split = {};
  split.struct_size = sizeof(split);
  split.query = split.grad_query = forward.query;
  split.key = split.grad_key = split.value = split.grad_value = forward.key;
  split.additional_key = split.additional_value = forward.additional_key;
  split.weights = split.grad_weights = with_stride_0(weights.view());
  split.output = split.grad_output = forward.output;
  const vecina_tensor many_outputs[2] = {forward.output, forward.output};
  const vecina_tensor lses[2] = {forward.lse, forward.lse};
  for (const std::string& backend : backend_names()) {
    SCOPED_TRACE(backend);
    const cli::ContextPtr context = cli::make_context(backend, 1);
    const auto expect_done = [](vecina_status status) {
      EXPECT_EQ(status, VECINA_OK) << vecina_last_error();
    };
    expect_done(vecina_forward(context.get(), &problem, &forward, nullptr));
    expect_done(vecina_backward(context.get(), &problem, &backward, nullptr));
    expect_done(vecina_qk(context.get(), &problem, &split, nullptr));
    expect_done(vecina_av(context.get(), &problem, &split, nullptr));
    expect_done(vecina_qk_backward(context.get(), &problem, &split, nullptr));
    expect_done(vecina_av_backward(context.get(), &problem, &split, nullptr));
    expect_done(vecina_merge_attentions(context.get(), 2, many_outputs, lses, &forward.output,
                                        &forward.lse, nullptr));
    expect_done(vecina_merge_attentions_backward(context.get(), 2, many_outputs, lses,
                                                 &forward.output, &forward.lse, many_outputs, lses,
                                                 nullptr));
  }
}

}  // namespace
}  // namespace vecina::tests
