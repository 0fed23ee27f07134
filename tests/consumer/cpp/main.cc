// SPDX-License-Identifier: MIT
// The same number as in ../c through vecina.hpp, and each other door of that header once.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "vecina/vecina.hpp"

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  ++failures;
}
bool near(double a, double b) { return std::abs(a - b) < 1e-5; }

// The message of the error that `call` throws, empty if it throws none.
template <typename Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const vecina::Error& error) {
    return error.status() == VECINA_INVALID_ARGUMENT ? error.what() : "another status";
  }
  return "";
}
bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// Queries are 0, so an output is the mean of its window's values: token 2 sees 1, 2 and 3.
struct Data {
  vecina::Problem problem = vecina::Problem::parse("1d 8 kernel_size 3 heads 1 head_dim 4");
  std::vector<float> query, key, value, output, lse;

  Data() : query(32, 0.0f), key(32, 1.0f), value(32), output(32), lse(8) {
    for (std::size_t i = 0; i < value.size(); ++i) value[i] = static_cast<float>(i / 4);
  }
  vecina::ForwardArgs args() {
    return {.query = query, .key = key, .value = value, .output = output, .lse = lse};
  }
};

void forward_and_plan(const vecina::Context& context) {
  Data data;
  vecina::forward(context, data.problem, data.args());
  std::printf("vecina %s from C++: output %g, lse %g\n", vecina::version().c_str(),
              static_cast<double>(data.output[8]), static_cast<double>(data.lse[2]));
  expect(near(data.output[8], 2.0) && near(data.lse[2], std::log(3.0)), "forward");

  const auto plan = vecina::Plan::forward(context, data.problem, data.args());
  data.output.assign(32, 0.0f);
  plan.run(data.args());
  expect(near(data.output[8], 2.0), "Plan::run");
  expect(has(plan.describe(), "backend"), "Plan::describe");
  expect(has(plan.profile(data.args(), 2), "repeats"), "Plan::profile");
  expect(plan.workspace_bytes() == 0, "Plan::workspace_bytes");
}

void views(const vecina::Context& context) {
  Data data;
  // Values and outputs lie in every second row of larger arrays.
  std::vector<float> wide(64, -1.0f), wide_output(64, -1.0f);
  for (std::size_t i = 0; i < 32; ++i) wide[i / 4 * 8 + i % 4] = data.value[i];
  const vecina::Sizes shape = data.problem.value_shape(), strides = {64, 8, 4, 1};
  vecina::forward(context, data.problem,
                  {.query = data.query,
                   .key = std::span<const float>(data.key),
                   .value = vecina::view(std::span(wide).first(60), shape, strides),
                   .output = vecina::view(wide_output, shape, strides)});
  expect(near(wide_output[16], 2.0) && near(wide_output[20], -1.0), "strided views");
  expect(has(message_of([&] { vecina::view(data.value, {8, 5}); }), "40"), "view, wrong size");
  expect(has(message_of([&] {
               vecina::view(data.value, {8, 4}, {5, 1});
             }),
             "39"),
         "view, strides that reach too far");

  auto args = data.args();
  args.query = data.lse;
  const std::string message = message_of([&] { vecina::forward(context, data.problem, args); });
  expect(has(message, "query has 8 elements") && has(message, "32"), "a span of the wrong size");
  const auto empty = vecina::Problem(data.problem).batch(0);
  const std::vector<float> none;
  std::vector<float> no_output;
  vecina::forward(context, empty, {.query = none, .key = none, .value = none, .output = no_output});
}

void problems() {
  const auto problem =
      vecina::Problem(2).extent({6, 9}).kernel_size({3, 4}).is_causal({1, 0}).heads(4).heads_kv(2);
  expect(has(message_of([&] { problem.check(); }), "head_dim"), "check");
  auto complete = vecina::Problem(problem).head_dim(8).scale(0.5).dtype(VECINA_BF16);
  const std::string line = complete.line();
  expect(line == vecina::Problem::parse(line).line(), "line and parse");
  expect(complete.key_shape().text() == "[1, 6, 9, 2, 8]", "key_shape");
  expect(complete.output_stride({1, 2}).lse_shape().text() == "[1, 6, 5, 4]", "lse_shape");
  expect(has(message_of([&] { complete.stride({1, 2, 3}); }), "rank 2"), "a wrong rank");
  const auto window = vecina::window(complete, 0, 1);
  expect(window.begin == 0 && window.step == 1 && window.count == 2, "window");
  expect(has(message_of([] { vecina::Problem::parse("4d 3"); }), "4d"), "parse, a wrong word");
}

// With equal logits the gradient of a value is the sum of 1/3 over the queries that see it.
void gradients(const vecina::Context& context) {
  Data data;
  vecina::forward(context, data.problem, data.args());
  const std::vector<float> ones(32, 1.0f);
  std::vector<float> grad_value(32);
  vecina::backward(context, data.problem,
                   {.query = data.query,
                    .key = data.key,
                    .value = data.value,
                    .output = data.output,
                    .lse = data.lse,
                    .grad_output = ones,
                    .grad_value = grad_value});
  expect(near(grad_value[0], 2.0 / 3) && near(grad_value[16], 1.0), "backward");
}

// Weights of 1 add up the values of a window; the logits of queries of 0 are 0.
void split(const vecina::Context& context) {
  Data data;
  std::vector<float> logits(data.problem.weights_shape().count(), -1.0f);
  vecina::qk(context, data.problem, {.query = data.query, .key = data.key, .weights = logits});
  expect(logits.size() == 24 && near(logits[7], 0.0), "qk");
  std::vector<float> ones(24, 1.0f), grad_weights(24), grad_value(32), grad_query(32);
  vecina::av(context, data.problem, {.value = data.value, .weights = ones, .output = data.output});
  expect(near(data.output[8], 6.0), "av");
  vecina::av_backward(context, data.problem,
                      {.value = data.value,
                       .weights = ones,
                       .grad_weights = grad_weights,
                       .grad_output = data.key,
                       .grad_value = grad_value});
  expect(near(grad_weights[7], 8.0) && near(grad_value[16], 3.0), "av_backward");
  vecina::qk_backward(
      context, data.problem,
      {.query = data.query, .key = data.key, .grad_weights = ones, .grad_query = grad_query});
  expect(near(grad_query[8], 1.5), "qk_backward");
}

void merges(const vecina::Context& context) {
  const std::vector<float> a(8, 1.0f), b(8, 4.0f), lse_a(2, 0.0f), lse_b(2, std::log(2.0f));
  std::vector<float> output(8), lse(2), grad_a(8), grad_lse_b(2);
  vecina::merge_attentions(
      context, {.outputs = {a, b}, .lses = {lse_a, lse_b}, .output = output, .lse = lse});
  expect(near(output[0], 3.0) && near(lse[0], std::log(3.0)), "merge_attentions");
  const std::vector<float> ones(8, 1.0f);
  vecina::merge_attentions_backward(context, {.outputs = {a, b},
                                              .lses = {lse_a, lse_b},
                                              .grad_output = ones,
                                              .grad_outputs = {grad_a, {}},
                                              .grad_lses = {{}, grad_lse_b}});
  // d output / d lse_b = w_b (b - output), summed over 4 elements.
  expect(near(grad_a[0], 1.0 / 3) && near(grad_lse_b[0], 4 * 2.0 / 3), "merge backward");
}

void number_types() {
  expect(static_cast<float>(vecina::float16(1.0f / 3)) == 0x1.554p-2f, "float16");
  expect(static_cast<float>(vecina::bfloat16(1.0f / 3)) == 0x1.56p-2f, "bfloat16");
  static_assert(vecina::dtype_of<vecina::bfloat16> == VECINA_BF16);
  static_assert(!std::is_constructible_v<vecina::TensorView, const std::vector<float>&>);
  static_assert(!std::is_constructible_v<vecina::ConstTensorView, std::vector<float>>);
}

}  // namespace

int main() {
  try {
    const vecina::Context context;
    const vecina::Context reference({.backend = "reference", .threads = 1});
    expect(!vecina::backends().empty() && has(context.info(), "reference"), "backends and info");
    expect(reference.why_not("reference").empty(), "why_not");
    for (const vecina::Context* each : {&context, &reference}) {
      forward_and_plan(*each);
      views(*each);
      gradients(*each);
      split(*each);
      merges(*each);
    }
    problems();
    number_types();
  } catch (const vecina::Error& error) {
    std::fprintf(stderr, "vecina: %s\n", error.what());
    return 1;
  }
  return failures == 0 ? 0 : 1;
}
