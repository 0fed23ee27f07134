// SPDX-License-Identifier: MIT
// Which memory calls on a GPU touch: every element of an output and nothing beside it, on every row
// of tests/cases.json and for tensors of every layout.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cases.h"
#include "cli/conformance.h"
#include "core/tensor.h"
#include "device_call.h"
#include "results.h"

namespace vecina::internal::cuda {
namespace {

// Outputs hold NaN until they are written; no right result is NaN.
void expect_written(const char* name, const cli::HostTensor& tensor) {
  if (!tensor.given()) return;
  int64_t num_left = 0;
  for (int64_t i = 0; i < tensor.size(); ++i) num_left += std::isnan(tensor.get(i)) ? 1 : 0;
  EXPECT_EQ(num_left, 0) << name << ": elements that are NaN, of " << tensor.size();
  EXPECT_TRUE(tensor.gaps_intact()) << name << ": bytes between its rows were written";
}

void wait() { ASSERT_EQ(Driver::get().cuStreamSynchronize(nullptr), kSuccess); }

void check_passes(const Device& device, vecina_context* context, const vecina_problem& problem,
                  cli::Placement placement) {
  const cli::Inputs inputs = cli::random_inputs(problem, 1, placement);
  for (const bool with_lse : {false, true}) {
    cli::Outputs outputs = cli::make_outputs(problem, placement);
    if (!with_lse) outputs.lse = {};
    const DeviceCall call(device, cli::forward_args(inputs, outputs),
                          vecina_workspace_bytes(context, &problem, 0));
    call.upload();
    ASSERT_EQ(vecina_forward(context, &problem, &call.args, nullptr), VECINA_OK)
        << vecina_last_error();
    wait();
    call.download();
    expect_written("output", outputs.output);
    expect_written("lse", outputs.lse);
    EXPECT_EQ(call.damage(), "") << "forward wrote";
    if (!with_lse) continue;

    const cli::Gradients gradients = cli::make_gradients(problem, placement);
    const DeviceCall backward(device, cli::backward_args(inputs, outputs, gradients),
                              vecina_workspace_bytes(context, &problem, 1));
    backward.upload();
    const vecina_status status = vecina_backward(context, &problem, &backward.args, nullptr);
    if (status == VECINA_UNSUPPORTED) return;  // with its sentence: conformance_test.cc
    ASSERT_EQ(status, VECINA_OK) << vecina_last_error();
    wait();
    backward.download();
    for (auto [name, member] : {std::pair("grad_query", &cli::Gradients::query),
                                {"grad_key", &cli::Gradients::key},
                                {"grad_value", &cli::Gradients::value},
                                {"grad_additional_key", &cli::Gradients::additional_key},
                                {"grad_additional_value", &cli::Gradients::additional_value},
                                {"grad_bias", &cli::Gradients::bias}}) {
      expect_written(name, gradients.*member);
    }
    EXPECT_EQ(backward.damage(), "") << "backward wrote";
  }
}

// In parts, so that processes can share them.
constexpr size_t kParts = 16;
class CudaMemory : public OnDevice, public testing::WithParamInterface<size_t> {};
INSTANTIATE_TEST_SUITE_P(Part, CudaMemory, testing::Range(size_t{0}, kParts));

TEST_P(CudaMemory, OfEveryRowOfTheTable) {
  const cli::ContextPtr context = cli::make_context("", 1);
  const std::vector<tests::Case>& cases = tests::all_cases();
  size_t num_checked = 0;
  for (size_t i = GetParam(); i < cases.size(); i += kParts) {
    if (!tests::why_not(context.get(), "cuda", cases[i].problem).empty()) continue;
    SCOPED_TRACE(cases[i].line);
    // Rows aligned to 16 bytes, and rows that allow no wide access. Nobody writes to gaps.
    check_passes(device(), context.get(), cases[i].problem, {0, 0});
    check_passes(device(), context.get(), cases[i].problem, {is_bare() ? 0 : 3, 1});
    ++num_checked;
  }
  EXPECT_GT(num_checked, 0u);
}

using CudaLayouts = OnDevice;

// The tensor with its dimensions in another order in memory, the last one excepted.
vecina_tensor reordered(vecina_tensor tensor, std::vector<int> outer_first) {
  int64_t stride = tensor.shape[tensor.ndim - 1];
  for (size_t i = outer_first.size(); i-- > 0;) {
    tensor.strides[outer_first[i]] = stride;
    stride *= tensor.shape[outer_first[i]];
  }
  return tensor;
}

// The tensor walked backwards along a dimension.
vecina_tensor reversed(vecina_tensor tensor, int dimension) {
  tensor.byte_offset +=
      (tensor.shape[dimension] - 1) * tensor.strides[dimension] * dtype_bytes(tensor.dtype);
  tensor.strides[dimension] *= -1;
  return tensor;
}

void copy_elements(const vecina_tensor& from, const vecina_tensor& to) {
  const int64_t bytes = dtype_bytes(from.dtype);
  int64_t index[6] = {};
  for (int64_t n = num_elements(from); n > 0; --n) {
    int64_t source = 0, target = 0;
    for (int d = 0; d < from.ndim; ++d) {
      source += index[d] * from.strides[d];
      target += index[d] * to.strides[d];
    }
    std::memcpy(address(to) + target * bytes, address(from) + source * bytes,
                static_cast<size_t>(bytes));
    for (int d = from.ndim; d-- > 0 && ++index[d] == from.shape[d];) index[d] = 0;
  }
}

TEST_F(CudaLayouts, HeadsFirstReversedAndRepeated) {
  const cli::ContextPtr context = cli::make_context("", 1);
  for (const char* line : {"2d 9x11 kernel_size 5x3 batch 2 heads 4 heads_kv 2 head_dim 32",
                           "2d 24x24 kernel_size 9 batch 2 heads 4 head_dim 64 dtype bf16",
                           "2d 40x40 kernel_size 17 batch 2 heads 2 head_dim 64 dtype f16",
                           "1d 60 kernel_size 7 batch 2 heads 4 head_dim 20 dtype f64"}) {
    SCOPED_TRACE(line);
    const vecina_problem problem = cli::parse_problem(line);
    const cli::Inputs inputs = cli::random_inputs(problem, 1);
    const cli::Outputs outputs = cli::make_outputs(problem);
    const int heads = problem.rank + 1;
    std::vector<int> heads_first = {0, heads};
    for (int a = 0; a < problem.rank; ++a) heads_first.push_back(1 + a);
    const double tolerance = problem.dtype == VECINA_BF16 ? 1e-2 : 1e-3;

    const vecina_forward_args plain = cli::forward_args(inputs, outputs);
    {
      const DeviceCall call(device(), plain, 0);
      call.upload();
      ASSERT_EQ(vecina_forward(context.get(), &problem, &call.args, nullptr), VECINA_OK);
      wait();
      call.download();
    }
    for (const char* layout : {"heads first", "reversed", "repeated"}) {
      SCOPED_TRACE(layout);
      const cli::Inputs moved = cli::random_inputs(problem, 2);
      const cli::Outputs found = cli::make_outputs(problem), straight = cli::make_outputs(problem);
      vecina_forward_args args = cli::forward_args(moved, found);
      const bool is_repeated = std::string(layout) == "repeated";
      for (auto [tensor, from] : {std::pair(&args.query, &plain.query),
                                  {&args.key, &plain.key},
                                  {&args.value, &plain.value},
                                  {&args.output, &plain.output}}) {
        if (std::string(layout) == "heads first") *tensor = reordered(*tensor, heads_first);
        if (std::string(layout) == "reversed") *tensor = reversed(reversed(*tensor, 1), heads);
        if (tensor != &args.output) copy_elements(*from, *tensor);
      }
      args.lse = {};
      if (is_repeated) {  // one sample for all: results of sample 0
        for (vecina_tensor* tensor : {&args.query, &args.key, &args.value}) tensor->strides[0] = 0;
      }
      const DeviceCall call(device(), args, 0);
      call.upload();
      ASSERT_EQ(vecina_forward(context.get(), &problem, &call.args, nullptr), VECINA_OK)
          << vecina_last_error();
      wait();
      call.download();
      EXPECT_EQ(call.damage(), "");
      vecina_tensor to = cli::forward_args(moved, straight).output;
      copy_elements(args.output, to);
      std::vector<double> wanted = tests::values_of(outputs.output);
      if (is_repeated) {
        const size_t sample = wanted.size() / static_cast<size_t>(problem.batch);
        for (size_t i = sample; i < wanted.size(); ++i) wanted[i] = wanted[i % sample];
      }
      tests::expect_close("output", straight.output, wanted, tolerance);
    }
  }
}

}  // namespace
}  // namespace vecina::internal::cuda
