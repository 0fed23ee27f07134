// SPDX-License-Identifier: MIT
//
// The first call in C++: a video problem in bf16, run by a plan; then two attentions over different
// keys, merged into one, against the same keys in one call.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <vector>

#include "vecina/vecina.hpp"

namespace {

// Any numbers will do.
template <typename T>
std::vector<T> numbers(std::size_t count, std::size_t seed) {
  std::vector<T> data(count);
  for (std::size_t i = 0; i < count; ++i) {
    data[i] = static_cast<T>(static_cast<float>((i * 37 + seed) % 101) / 50.0f - 1.0f);
  }
  return data;
}

// Frames are causal, height and width are not. Decide once, run often.
void run_video(const vecina::Context& context) {
  const auto problem = vecina::Problem::parse(
      "3d 4x12x16 kernel_size 2x5x5 causal 1x0x0 heads 4 head_dim 64 dtype bf16");
  const auto query = numbers<vecina::bfloat16>(problem.query_shape().count(), 1);
  const auto key = numbers<vecina::bfloat16>(problem.key_shape().count(), 2);
  const auto value = numbers<vecina::bfloat16>(problem.value_shape().count(), 3);
  std::vector<vecina::bfloat16> output(problem.output_shape().count());

  const vecina::ForwardArgs args{.query = query, .key = key, .value = value, .output = output};
  const auto plan = vecina::Plan::forward(context, problem, args);
  for (int step = 0; step < 3; ++step) plan.run(args);

  std::printf("%s\n  output[0] = %g\n", problem.line().c_str(),
              static_cast<double>(static_cast<float>(output[0])));
}

// Attention over a window and over 4 additional tokens, once apart and merged, once in one call.
// Returns the largest difference.
double merge_two(const vecina::Context& context) {
  auto window = vecina::Problem(1).extent(256).kernel_size(7).heads(8).head_dim(32);
  auto both = window;
  both.additional_tokens(4);
  const auto extra = vecina::Problem::attention(256, 4).heads(8).head_dim(32);

  const auto query = numbers<float>(window.query_shape().count(), 1);
  const auto key = numbers<float>(window.key_shape().count(), 2);
  const auto value = numbers<float>(window.value_shape().count(), 3);
  const auto extra_key = numbers<float>(extra.key_shape().count(), 4);
  const auto extra_value = numbers<float>(extra.value_shape().count(), 5);

  const std::size_t size = window.output_shape().count(), rows = window.lse_shape().count();
  std::vector<float> output_a(size), output_b(size), merged(size), at_once(size);
  std::vector<float> lse_a(rows), lse_b(rows), lse(rows);

  vecina::forward(context, window,
                  {.query = query, .key = key, .value = value, .output = output_a, .lse = lse_a});
  vecina::forward(
      context, extra,
      {.query = query, .key = extra_key, .value = extra_value, .output = output_b, .lse = lse_b});
  vecina::merge_attentions(
      context,
      {.outputs = {output_a, output_b}, .lses = {lse_a, lse_b}, .output = merged, .lse = lse});
  vecina::forward(context, both,
                  {.query = query,
                   .key = key,
                   .value = value,
                   .additional_key = extra_key,
                   .additional_value = extra_value,
                   .output = at_once});

  double worst = 0.0;
  for (std::size_t i = 0; i < size; ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(merged[i]) - at_once[i]));
  }
  return worst;
}

}  // namespace

int main() {
  try {
    vecina::Context context;  // the best backend here
    std::printf("vecina %s, backends:", vecina::version().c_str());
    for (const auto& name : vecina::backends()) std::printf(" %s", name.c_str());
    std::printf("\n");

    run_video(context);
    const double worst = merge_two(context);
    std::printf("merged and at once differ by at most %.1e\n", worst);
    return worst < 1e-5 ? 0 : 1;
  } catch (const vecina::Error& error) {  // anything that the library refuses
    std::fprintf(stderr, "vecina: %s\n", error.what());
    return 1;
  }
}
