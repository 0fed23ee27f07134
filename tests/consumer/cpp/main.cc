// SPDX-License-Identifier: MIT
// The same number as in ../c, through vecina.hpp; and its errors arrive as exceptions.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "vecina/vecina.hpp"

int main() {
  try {
    vecina::Context context;
    const auto problem = vecina::Problem::parse("1d 8 kernel_size 3 heads 1 head_dim 4");
    const std::size_t size = problem.query_shape().count();
    const std::vector<float> query(size, 0.0f), key(size, 1.0f);
    std::vector<float> value(size), output(size), lse(problem.lse_shape().count());
    for (std::size_t i = 0; i < size; ++i) value[i] = static_cast<float>(i / 4);

    const vecina::ForwardArgs args{
        .query = query, .key = key, .value = value, .output = output, .lse = lse};
    vecina::forward(context, problem, args);
    std::printf("vecina %s from C++: output %g, lse %g\n", vecina::version().c_str(),
                static_cast<double>(output[8]), static_cast<double>(lse[2]));
    if (std::abs(output[8] - 2.0f) > 1e-6f || std::abs(lse[2] - std::log(3.0f)) > 1e-6f) return 1;

    const auto plan = vecina::Plan::forward(context, problem, args);
    output.assign(size, 0.0f);
    plan.run(args);
    if (std::abs(output[8] - 2.0f) > 1e-6f) return 1;

    try {
      vecina::forward(context, problem, {.query = lse, .key = key, .value = value});
      std::fprintf(stderr, "a query of the wrong size was accepted\n");
      return 1;
    } catch (const vecina::Error& error) {
      const std::string message = error.what();
      if (message.find("8 elements") == std::string::npos ||
          message.find("32") == std::string::npos) {
        std::fprintf(stderr, "the message lacks the sizes: %s\n", message.c_str());
        return 1;
      }
    }
  } catch (const vecina::Error& error) {
    std::fprintf(stderr, "vecina: %s\n", error.what());
    return 1;
  }
  return 0;
}
