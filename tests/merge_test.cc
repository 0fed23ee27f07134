// SPDX-License-Identifier: MIT
// Merging attentions: every backend against the formula, gradients against the formula and finite
// differences, and a problem split in two against the whole.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "cli/conformance.h"
#include "oracle.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The tensors of one merge.
struct Branches {
  Branches(int count, const std::vector<int64_t>& shape, int32_t dtype, uint64_t seed,
           cli::Placement placement = {}) {
    const int32_t lse_dtype = dtype == VECINA_F64 ? VECINA_F64 : VECINA_F32;
    std::vector<int64_t> lse_shape = shape;
    lse_shape.pop_back();
    cli::Random random(seed);
    const auto make = [&](const std::vector<int64_t>& of_shape, int32_t of_dtype, double spread) {
      cli::HostTensor tensor(of_shape, of_dtype, placement);
      for (int64_t i = 0; i < tensor.size(); ++i) tensor.set(i, spread * random.normal());
      return tensor;
    };
    for (int i = 0; i < count; ++i) {
      outputs.push_back(make(shape, dtype, 1.0));
      lses.push_back(make(lse_shape, lse_dtype, 3.0));
      grad_outputs.push_back(make(shape, dtype, NAN));
      grad_lses.push_back(make(lse_shape, lse_dtype, NAN));
    }
    output = make(shape, dtype, NAN);
    lse = make(lse_shape, lse_dtype, NAN);
    grad_output = make(shape, dtype, 1.0);
    grad_lse = make(lse_shape, lse_dtype, 1.0);
  }

  static std::vector<vecina_tensor> views(const std::vector<cli::HostTensor>& tensors) {
    std::vector<vecina_tensor> list;
    for (const cli::HostTensor& tensor : tensors) list.push_back(tensor.view());
    return list;
  }
  static std::vector<std::vector<double>> values(const std::vector<cli::HostTensor>& tensors) {
    std::vector<std::vector<double>> list;
    for (const cli::HostTensor& tensor : tensors) list.push_back(values_of(tensor));
    return list;
  }

  vecina_status merge(vecina_context* context) const {
    const vecina_tensor to_output = output.view(), to_lse = lse.view();
    return vecina_merge_attentions(context, static_cast<int32_t>(outputs.size()),
                                   views(outputs).data(), views(lses).data(), &to_output, &to_lse,
                                   nullptr);
  }
  vecina_status merge_backward(vecina_context* context) const {
    const vecina_tensor of_output = grad_output.view(), of_lse = grad_lse.view();
    return vecina_merge_attentions_backward(
        context, static_cast<int32_t>(outputs.size()), views(outputs).data(), views(lses).data(),
        &of_output, &of_lse, views(grad_outputs).data(), views(grad_lses).data(), nullptr);
  }
  OracleMerge expected() const {
    return oracle_merge(values(outputs), values(lses), values_of(grad_output),
                        grad_lse.given() ? values_of(grad_lse) : std::vector<double>());
  }

  std::vector<cli::HostTensor> outputs, lses, grad_outputs, grad_lses;
  cli::HostTensor output, lse, grad_output, grad_lse;
};

// Rounding of one merge in the dtype: a few units in the last place.
double relative_error(int32_t dtype) {
  return dtype == VECINA_F64   ? 1e-14
         : dtype == VECINA_F32 ? 1e-6
         : dtype == VECINA_F16 ? 1e-3
                               : 8e-3;
}
double relative_lse_error(int32_t dtype) { return dtype == VECINA_F64 ? 1e-13 : 2e-6; }

TEST(Merge, EveryBackendFollowsTheFormula) {
  for (const std::string& backend : backend_names()) {
    const cli::ContextPtr context = cli::make_context(backend, 2);
    for (int count : {2, 3, 5}) {
      for (int32_t dtype : {VECINA_F32, VECINA_F64, VECINA_F16, VECINA_BF16}) {
        for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
                 {3, 8},
                 {2, 5, 7, 3},
                 {1, 4, 3, 2, 17},
                 {2, 2, 3, 2, 2, 33},
                 {130, 3, 9},  // more rows than a thread takes at once, which do not divide them
                 {4, 0},
                 {0, 3, 2, 8}}) {
          for (int64_t gap : {0, 3}) {
            SCOPED_TRACE(backend + " count " + std::to_string(count) + " dtype " +
                         std::to_string(dtype) + " rank " + std::to_string(shape.size()));
            const Branches branches(count, shape, dtype, 31, {gap, gap});
            ASSERT_EQ(branches.merge(context.get()), VECINA_OK) << vecina_last_error();
            const OracleMerge expected = branches.expected();
            expect_close("output", branches.output, expected.output, relative_error(dtype));
            expect_close("lse", branches.lse, expected.lse, relative_lse_error(dtype));
            EXPECT_TRUE(branches.output.gaps_intact());
            EXPECT_TRUE(branches.lse.gaps_intact());
          }
        }
      }
    }
  }
}

// An f32 tensor with any strides, its elements drawn.
class StridedTensor {
 public:
  StridedTensor(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                cli::Random* random) {
    int64_t before = 0, behind = 0;
    size_ = 1;
    for (size_t d = 0; d < shape.size(); ++d) {
      const int64_t reach = (shape[d] - 1) * strides[d];
      (reach < 0 ? before : behind) += std::abs(reach);
      size_ *= shape[d];
      view_.shape[d] = shape[d];
      view_.strides[d] = strides[d];
    }
    storage_.resize(static_cast<size_t>(before + behind + 1));
    for (float& element : storage_) element = static_cast<float>(random->normal());
    view_.data = storage_.data() + before;
    view_.ndim = static_cast<int32_t>(shape.size());
    view_.dtype = VECINA_F32;
  }
  const vecina_tensor& view() const { return view_; }
  std::vector<double> values() const {  // in row-major order
    std::vector<double> list;
    for (int64_t i = 0; i < size_; ++i) {
      int64_t at = 0, rest = i;
      for (int d = view_.ndim - 1; d >= 0; rest /= view_.shape[d--]) {
        at += rest % view_.shape[d] * view_.strides[d];
      }
      list.push_back(static_cast<const float*>(view_.data)[at]);
    }
    return list;
  }

 private:
  std::vector<float> storage_;
  vecina_tensor view_ = {};
  int64_t size_ = 0;
};

void expect_near(const char* name, const std::vector<double>& found,
                 const std::vector<double>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], expected[i], 1e-5) << name << " " << i;
  }
}

// Rows whose distances differ from axis to axis: slices, swapped axes, backwards; an axis of one
// token, whose stride means nothing, among them.
TEST(Merge, RowsLieAnywhere) {
  const std::vector<int64_t> shape = {4, 1, 3, 8}, lse_shape = {4, 1, 3};
  struct Layout {
    std::vector<int64_t> output, lse;  // strides
  };
  const Layout contiguous = {{24, 24, 8, 1}, {3, 3, 1}};
  const Layout layouts[] = {contiguous,
                            {{40, 40, 8, 1}, {5, 5, 1}},
                            {{40, 1000, 8, 1}, {5, 1000, 1}},
                            {{8, 32, 32, 1}, {3, 12, 1}},
                            {{-24, 24, -8, 1}, {-3, 3, 1}}};
  for (const std::string& backend : backend_names()) {
    const cli::ContextPtr context = cli::make_context(backend, 1);
    cli::Random random(6);
    for (const Layout& merged : layouts) {
      for (const Layout& branch : layouts) {
        SCOPED_TRACE(backend + " " + testing::PrintToString(merged.output) + " " +
                     testing::PrintToString(branch.output));
        const StridedTensor output(shape, merged.output, &random);
        const StridedTensor lse(lse_shape, merged.lse, &random);
        const StridedTensor outputs[] = {{shape, branch.output, &random},
                                         {shape, contiguous.output, &random}};
        const StridedTensor lses[] = {{lse_shape, contiguous.lse, &random},
                                      {lse_shape, branch.lse, &random}};
        const vecina_tensor output_views[] = {outputs[0].view(), outputs[1].view()};
        const vecina_tensor lse_views[] = {lses[0].view(), lses[1].view()};
        const OracleMerge expected =
            oracle_merge({outputs[0].values(), outputs[1].values()},
                         {lses[0].values(), lses[1].values()}, output.values(), {});
        ASSERT_EQ(vecina_merge_attentions(context.get(), 2, output_views, lse_views, &output.view(),
                                          &lse.view(), nullptr),
                  VECINA_OK)
            << vecina_last_error();
        expect_near("output", output.values(), expected.output);
        expect_near("lse", lse.values(), expected.lse);
      }
    }
  }
}

TEST(Merge, LseIsOptional) {
  for (const std::string& backend : backend_names()) {
    const cli::ContextPtr context = cli::make_context(backend, 1);
    const Branches branches(2, {3, 4, 5}, VECINA_F32, 3);
    const vecina_tensor to_output = branches.output.view();
    ASSERT_EQ(vecina_merge_attentions(context.get(), 2, Branches::views(branches.outputs).data(),
                                      Branches::views(branches.lses).data(), &to_output, nullptr,
                                      nullptr),
              VECINA_OK)
        << vecina_last_error();
    expect_close("output", branches.output, branches.expected().output, 1e-6);
  }
}

// A branch that saw nothing (lse -infinity) has weight 0 even if its output is not a number; where
// all saw nothing, the output is 0 and lse -infinity.
TEST(Merge, BranchesThatSawNothing) {
  for (const std::string& backend : backend_names()) {
    SCOPED_TRACE(backend);
    const cli::ContextPtr context = cli::make_context(backend, 1);
    Branches branches(3, {4, 2, 8}, VECINA_F32, 4);
    branches.lses[0].set(0, -kInfinity);  // row 0: branch 0 saw nothing
    branches.outputs[0].set(3, NAN);
    for (auto& lse : branches.lses) lse.set(5, -kInfinity);  // row 5: nobody saw anything
    ASSERT_EQ(branches.merge(context.get()), VECINA_OK) << vecina_last_error();
    const OracleMerge expected = branches.expected();
    expect_close("output", branches.output, expected.output, 1e-6);
    expect_close("lse", branches.lse, expected.lse, 2e-6);
    EXPECT_EQ(branches.output.get(5 * 8 + 1), 0.0);
    EXPECT_EQ(branches.lse.get(5), -kInfinity);
    EXPECT_TRUE(std::isfinite(branches.output.get(3)));
  }
}

TEST(Merge, LargeLsesDoNotOverflow) {
  for (const std::string& backend : backend_names()) {
    const cli::ContextPtr context = cli::make_context(backend, 1);
    Branches branches(2, {3, 8}, VECINA_F32, 5);
    const double lses[2][3] = {{3e4, -3e4, 1e38}, {3e4 + 1, -3e4 + 1, -1e38}};
    for (size_t i = 0; i < 2; ++i) {
      for (int64_t row = 0; row < 3; ++row) branches.lses[i].set(row, lses[i][row]);
    }
    ASSERT_EQ(branches.merge(context.get()), VECINA_OK) << vecina_last_error();
    expect_close("output", branches.output, branches.expected().output, 1e-6);
    expect_close("lse", branches.lse, branches.expected().lse, 2e-6);
  }
}

void expect_gradients(const Branches& branches, int32_t dtype) {
  const OracleMerge expected = branches.expected();
  for (size_t i = 0; i < branches.outputs.size(); ++i) {
    expect_close("grad_outputs", branches.grad_outputs[i], expected.grad_outputs[i],
                 relative_error(dtype));
    expect_close("grad_lses", branches.grad_lses[i], expected.grad_lses[i],
                 relative_lse_error(dtype));
    EXPECT_TRUE(branches.grad_outputs[i].gaps_intact());
    EXPECT_TRUE(branches.grad_lses[i].gaps_intact());
  }
}

TEST(MergeBackward, FollowsTheFormula) {
  for (const std::string& backend : backend_names()) {
    const cli::ContextPtr context = cli::make_context(backend, 2);
    for (int count : {2, 3, 5}) {
      for (int32_t dtype : {VECINA_F32, VECINA_F64, VECINA_F16, VECINA_BF16}) {
        for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
                 {2, 5, 3, 7}, {3, 8}, {2, 2, 3, 2, 2, 33}, {700, 2, 16}, {0, 3, 2, 8}}) {
          for (bool has_grad_lse : {true, false}) {
            SCOPED_TRACE(backend + " count " + std::to_string(count) + " dtype " +
                         std::to_string(dtype) + " rank " + std::to_string(shape.size()));
            Branches branches(count, shape, dtype, 32, {2, 0});
            if (!has_grad_lse) branches.grad_lse = {};
            ASSERT_EQ(branches.merge_backward(context.get()), VECINA_OK) << vecina_last_error();
            expect_gradients(branches, dtype);
          }
        }
      }
    }
  }
}

TEST(MergeBackward, BranchesThatSawNothing) {
  for (const std::string& backend : backend_names()) {
    SCOPED_TRACE(backend);
    const cli::ContextPtr context = cli::make_context(backend, 1);
    Branches branches(3, {4, 2, 8}, VECINA_F32, 4);
    branches.lses[0].set(0, -kInfinity);
    branches.outputs[0].set(3, NAN);
    for (auto& lse : branches.lses) lse.set(5, -kInfinity);
    ASSERT_EQ(branches.merge_backward(context.get()), VECINA_OK) << vecina_last_error();
    expect_gradients(branches, VECINA_F32);
    for (int64_t column = 0; column < 8; ++column) {
      EXPECT_EQ(branches.grad_outputs[0].get(column), 0.0);
      EXPECT_EQ(branches.grad_outputs[1].get(5 * 8 + column), 0.0);
    }
    EXPECT_EQ(branches.grad_lses[0].get(0), 0.0);
    EXPECT_EQ(branches.grad_lses[2].get(5), 0.0);
  }
}

TEST(MergeBackward, FollowsFiniteDifferences) {
  for (const std::string& backend : backend_names()) {
    SCOPED_TRACE(backend);
    const cli::ContextPtr context = cli::make_context(backend, 1);
    constexpr double kStep = 1e-5;
    Branches branches(4, {2, 3, 2, 3}, VECINA_F64, 33);
    ASSERT_EQ(branches.merge_backward(context.get()), VECINA_OK) << vecina_last_error();
    const auto loss = [&] {
      EXPECT_EQ(branches.merge(context.get()), VECINA_OK);
      double sum = 0.0;
      for (int64_t i = 0; i < branches.output.size(); ++i) {
        sum += branches.output.get(i) * branches.grad_output.get(i);
      }
      for (int64_t i = 0; i < branches.lse.size(); ++i) {
        sum += branches.lse.get(i) * branches.grad_lse.get(i);
      }
      return sum;
    };
    const auto expect_gradient = [&](cli::HostTensor& input, const cli::HostTensor& gradient) {
      std::vector<double> expected;
      for (int64_t i = 0; i < input.size(); ++i) {
        const double value = input.get(i);
        input.set(i, value + kStep);
        const double above = loss();
        input.set(i, value - kStep);
        const double below = loss();
        input.set(i, value);
        expected.push_back((above - below) / (2 * kStep));
      }
      expect_close("gradient", gradient, expected, 1e-8, 1e-9);
    };
    for (size_t i = 0; i < 4; ++i) {
      expect_gradient(branches.outputs[i], branches.grad_outputs[i]);
      expect_gradient(branches.lses[i], branches.grad_lses[i]);
    }
  }
}

// Attention over keys [0, 5) and [5, 12), merged, is attention over all twelve.
TEST(Merge, PartsMakeTheWhole) {
  for (const std::string& backend : backend_names()) {
    SCOPED_TRACE(backend);
    const cli::ContextPtr context = cli::make_context(backend, 2);
    const vecina_problem whole = cli::parse_problem("attention 6x12 batch 1 heads 2 head_dim 8");
    const cli::Inputs inputs = cli::random_inputs(whole, 40);
    const cli::Outputs expected = run_forward(context.get(), whole, inputs);
    Branches branches(2, {1, 6, 2, 8}, VECINA_F32, 41);
    const int64_t begins[] = {0, 5}, ends[] = {5, 12};
    for (size_t i = 0; i < 2; ++i) {
      vecina_problem part = whole;
      part.extent[0] = ends[i] - begins[i];
      vecina_forward_args args = {};
      args.struct_size = sizeof(args);
      args.query = inputs.query.view();
      args.key = inputs.key.view();
      args.value = inputs.value.view();
      for (vecina_tensor* tensor : {&args.key, &args.value}) {
        tensor->shape[1] = part.extent[0];
        tensor->byte_offset = begins[i] * tensor->strides[1] * 4;
      }
      args.output = branches.outputs[i].view();
      args.lse = branches.lses[i].view();
      ASSERT_EQ(vecina_forward(context.get(), &part, &args, nullptr), VECINA_OK)
          << vecina_last_error();
    }
    ASSERT_EQ(branches.merge(context.get()), VECINA_OK) << vecina_last_error();
    expect_close("output", branches.output, values_of(expected.output), 2e-6);
    expect_close("lse", branches.lse, values_of(expected.lse), 2e-6);
  }
}

}  // namespace
}  // namespace vecina::tests
