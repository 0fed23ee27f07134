// SPDX-License-Identifier: MIT
// Results of NATTEN and natten-mps (tests/golden/README.md): windows, outputs and gradients.
// Tolerances are theirs: 2e-6 of the largest magnitude of each array, 1e-5 for gradients, and for
// these 1e-6 of the largest grad_output.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cases.h"
#include "cli/conformance.h"
#include "cli/npy.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

constexpr double kTolerance = 2e-6, kGradientTolerance = 1e-5;
// Gradients of query and key are differences of products with grad_output; with one key they
// vanish, and what rounding leaves is a share of those products.
constexpr double kCancelledTolerance = 1e-6;

double largest_magnitude(const std::vector<double>& values) {
  double largest = 0.0;
  for (double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

struct GoldenCase {
  std::string name, line;
  std::vector<std::string> arrays;

  bool has(const std::string& array) const {
    return std::find(arrays.begin(), arrays.end(), array) != arrays.end();
  }
  std::string path(const std::string& array) const {
    return tests_path("golden/" + name + "/" + array + ".npy");
  }
  // Not given if the case has no such array.
  cli::HostTensor read(const std::string& array, int32_t dtype = VECINA_F32) const {
    if (!has(array)) return {};
    std::ifstream file(path(array), std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    const cli::NpyArray parsed = cli::parse_npy(std::as_bytes(std::span(bytes)));
    if (parsed.kind != 'u') return cli::to_tensor(parsed, dtype);
    // bfloat16 by its bits; exact in f32.
    const cli::HostTensor narrow = cli::to_tensor(parsed, VECINA_BF16);
    cli::HostTensor wide(narrow.shape(), dtype);
    for (int64_t i = 0; i < wide.size(); ++i) wide.set(i, narrow.get(i));
    return wide;
  }
};
void PrintTo(const GoldenCase& row, std::ostream* out) { *out << row.name << ": " << row.line; }

std::vector<GoldenCase> golden_cases() {
  std::ifstream file(tests_path("golden/index.json"));
  std::vector<GoldenCase> cases;
  const auto index = nlohmann::json::parse(file);
  for (const auto& row : index.at("cases")) {
    cases.push_back({row.at("name"), row.at("problem"), row.at("arrays")});
  }
  return cases;
}

class Golden : public testing::TestWithParam<GoldenCase> {
 protected:
  cli::Inputs inputs(int32_t dtype = VECINA_F32) const {
    const GoldenCase& row = GetParam();
    cli::Inputs inputs;
    inputs.query = row.read("query", dtype);
    inputs.key = row.read("key", dtype);
    inputs.value = row.read("value", dtype);
    inputs.additional_key = row.read("additional_key", dtype);
    inputs.additional_value = row.read("additional_value", dtype);
    inputs.bias = row.read("bias");
    inputs.lengths = row.read("lengths", VECINA_I32);
    inputs.grad_output = row.read("grad_output", dtype);
    inputs.grad_lse = row.read("grad_lse");
    return inputs;
  }
  const vecina_problem problem_ = cli::parse_problem(GetParam().line);
};
INSTANTIATE_TEST_SUITE_P(Cases, Golden, testing::ValuesIn(golden_cases()),
                         [](const auto& row) { return test_name(row.param.name); });

TEST_P(Golden, Forward) {
  for (const std::string& backend : backend_names()) {
    SCOPED_TRACE(backend);
    const cli::ContextPtr context = cli::make_context(backend, 2);
    if (!why_not(context.get(), backend, problem_).empty()) {
      EXPECT_NE(backend, "reference");
      continue;
    }
    const cli::Outputs outputs = run_forward(context.get(), problem_, inputs());
    expect_close("output", outputs.output, values_of(GetParam().read("output")), kTolerance);
    if (GetParam().has("lse")) {
      expect_close("lse", outputs.lse, values_of(GetParam().read("lse")), kTolerance);
    }
  }
}

TEST_P(Golden, Backward) {
  if (!GetParam().has("grad_output")) GTEST_SKIP() << "forward only";
  int num_gradients = 0;
  for (const std::string& backend : backend_names()) {
    SCOPED_TRACE(backend);
    const cli::ContextPtr context = cli::make_context(backend, 2);
    const cli::ContextPtr any = cli::make_context("", 2);
    const cli::Inputs given = inputs();
    const cli::Outputs outputs = run_forward(any.get(), problem_, given);
    const cli::Gradients actual = cli::make_gradients(problem_);
    const vecina_backward_args args = cli::backward_args(given, outputs, actual);
    const vecina_status status = vecina_backward(context.get(), &problem_, &args, nullptr);
    if (backend != "reference" && status == VECINA_UNSUPPORTED) continue;
    ASSERT_EQ(status, VECINA_OK) << vecina_last_error();
    const std::pair<const char*, const cli::HostTensor*> gradients[] = {
        {"grad_query", &actual.query},
        {"grad_key", &actual.key},
        {"grad_value", &actual.value},
        {"grad_additional_key", &actual.additional_key},
        {"grad_additional_value", &actual.additional_value},
        {"grad_bias", &actual.bias}};
    const double cancelled = kCancelledTolerance * largest_magnitude(values_of(given.grad_output));
    for (const auto& [name, gradient] : gradients) {
      if (!GetParam().has(name)) continue;
      expect_close(name, *gradient, values_of(GetParam().read(name)), kGradientTolerance,
                   cancelled);
      ++num_gradients;
    }
  }
  EXPECT_GE(num_gradients, 2);
}

// NATTEN's own mask, bit by bit, against vecina_window on every axis.
TEST_P(Golden, Mask) {
  if (!GetParam().has("mask_bits")) GTEST_SKIP() << "no mask in this case";
  std::ifstream file(GetParam().path("mask_bits"), std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  int64_t tokens = 1;
  for (int a = 0; a < problem_.rank; ++a) tokens *= problem_.extent[a];
  const auto size = static_cast<size_t>((tokens * tokens + 7) / 8);
  ASSERT_GE(bytes.size(), size);  // np.packbits, first bit highest; a header stands before
  const char* mask = bytes.data() + bytes.size() - size;
  const auto sees = [&](int64_t query, int64_t key) {
    for (int a = problem_.rank - 1; a >= 0; --a) {
      int64_t begin = 0, step = 0, count = 0;
      EXPECT_EQ(vecina_window(&problem_, a, query % problem_.extent[a], &begin, &step, &count),
                VECINA_OK);
      const int64_t distance = key % problem_.extent[a] - begin;
      if (distance < 0 || distance % step != 0 || distance / step >= count) return false;
      query /= problem_.extent[a];
      key /= problem_.extent[a];
    }
    return true;
  };
  int64_t num_seen = 0;
  for (int64_t query = 0; query < tokens; ++query) {
    for (int64_t key = 0; key < tokens; ++key) {
      const int64_t bit = query * tokens + key;
      const bool expected = (mask[bit / 8] >> (7 - bit % 8) & 1) != 0;
      ASSERT_EQ(sees(query, key), expected) << "query " << query << " key " << key;
      num_seen += expected;
    }
  }
  EXPECT_GT(num_seen, 0);
}

TEST(GoldenCases, AreAllThere) {
  const std::vector<GoldenCase> cases = golden_cases();
  EXPECT_EQ(std::count_if(cases.begin(), cases.end(),
                          [](const auto& row) { return row.has("mask_bits"); }),
            32);
  EXPECT_EQ(cases.size(), 42u);
}

}  // namespace
}  // namespace vecina::tests
