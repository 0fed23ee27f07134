// SPDX-License-Identifier: MIT
// Helpers that report through GoogleTest.
#include "results.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vecina::tests {
namespace {

// Half the distance between neighbouring numbers of the dtype around `value`.
double half_ulp(int32_t dtype, double value) {
  struct Format {
    int digits, least_exponent;  // of the significand; of the smallest normal number
  };
  const Format format = dtype == VECINA_F64   ? Format{53, -1022}
                        : dtype == VECINA_F32 ? Format{24, -126}
                        : dtype == VECINA_F16 ? Format{11, -14}
                                              : Format{8, -126};
  const int exponent = value == 0.0 ? format.least_exponent : std::ilogb(value);
  return std::ldexp(0.5, std::max(exponent, format.least_exponent) - (format.digits - 1));
}

bool is_same_special(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (std::isinf(b) && a == b);
}

}  // namespace

std::vector<std::string> backend_names() {
  const cli::ContextPtr context = cli::make_context("", 1);
  std::vector<std::string> names;
  for (int32_t i = 0; i < vecina_backend_count(); ++i) {
    const char* name = vecina_backend_name(i);
    if (vecina_backend_why_not(context.get(), name, nullptr, nullptr, 0) == 0) {
      names.push_back(name);
    }
  }
  return names;
}

std::string why_not(vecina_context* context, const std::string& backend,
                    const vecina_problem& problem) {
  char text[1000] = "";
  vecina_backend_why_not(context, backend.c_str(), &problem, text, sizeof(text));
  return text;
}

cli::Outputs run_forward(vecina_context* context, const vecina_problem& problem,
                         const cli::Inputs& inputs, cli::Placement placement) {
  const cli::Outputs outputs = cli::make_outputs(problem, placement);
  const vecina_forward_args args = cli::forward_args(inputs, outputs);
  EXPECT_EQ(vecina_forward(context, &problem, &args, nullptr), VECINA_OK)
      << cli::print_problem(problem) << "\n"
      << vecina_last_error();
  return outputs;
}

cli::Gradients run_backward(vecina_context* context, const vecina_problem& problem,
                            const cli::Inputs& inputs, const cli::Outputs& outputs,
                            cli::Placement placement) {
  const cli::Gradients gradients = cli::make_gradients(problem, placement);
  const vecina_backward_args args = cli::backward_args(inputs, outputs, gradients);
  EXPECT_EQ(vecina_backward(context, &problem, &args, nullptr), VECINA_OK)
      << cli::print_problem(problem) << "\n"
      << vecina_last_error();
  return gradients;
}

std::vector<double> values_of(const cli::HostTensor& tensor) {
  std::vector<double> values;
  for (int64_t i = 0; i < tensor.size(); ++i) values.push_back(tensor.get(i));
  return values;
}

std::vector<uint64_t> bits_of(const cli::HostTensor& tensor) {
  std::vector<uint64_t> bits;
  for (int64_t i = 0; i < tensor.size(); ++i) {
    const double value = tensor.get(i);  // exact for every dtype
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof(word));
    bits.push_back(word);
  }
  return bits;
}

void expect_close(const std::string& name, const std::vector<double>& actual,
                  const std::vector<double>& expected, double relative, double absolute) {
  ASSERT_EQ(actual.size(), expected.size()) << name;
  double largest = 0.0;
  for (double value : expected) {
    if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
  }
  const double allowed = relative * largest + absolute;
  double worst = -1.0;
  size_t at = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (is_same_special(actual[i], expected[i])) continue;
    const double error = std::abs(actual[i] - expected[i]);
    if (error > worst || !std::isfinite(error)) {
      worst = error;
      at = i;
      if (!std::isfinite(error)) break;
    }
  }
  EXPECT_LE(worst, allowed) << name << "[" << at << "] is " << actual[at] << ", expected "
                            << expected[at];
}

void expect_close(const std::string& name, const cli::HostTensor& actual,
                  const std::vector<double>& expected, double relative, double absolute) {
  expect_close(name, values_of(actual), expected, relative, absolute);
}

void expect_rounded(const std::string& name, const cli::HostTensor& actual,
                    const std::vector<double>& expected, double absolute) {
  ASSERT_EQ(actual.size(), static_cast<int64_t>(expected.size())) << name;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = actual.get(static_cast<int64_t>(i));
    if (is_same_special(value, expected[i])) continue;
    ASSERT_LE(std::abs(value - expected[i]), half_ulp(actual.dtype(), expected[i]) + absolute)
        << name << "[" << i << "] is " << value << ", expected " << expected[i];
  }
}

void expect_last_error(const std::vector<std::string>& words) {
  const std::string sentence = vecina_last_error();
  for (const std::string& word : words) {
    EXPECT_NE(sentence.find(word), std::string::npos)
        << "'" << word << "' is missing in: " << sentence;
  }
}

}  // namespace vecina::tests
