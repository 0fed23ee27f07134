// SPDX-License-Identifier: MIT
// Any text is refused with a sentence or gives a problem whose line reads back as the same problem.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "core/problem.h"

namespace {

using vecina::internal::Problem;
using vecina::internal::Status;

void expect(bool is_true, const char* what, const std::string& line) {
  if (is_true) return;
  std::fprintf(stderr, "%s: %s\n", what, line.c_str());
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Problem problem;
  const Status status = Problem::parse(text, &problem);
  if (!status.ok()) {
    expect(!status.message().empty(), "refused without a sentence", std::string(text));
    return 0;
  }
  const std::string line = problem.line();
  Problem again;
  expect(Problem::parse(line, &again).ok(), "printed line does not parse", line);
  expect(again == problem, "printed line is another problem", line);
  expect(again.hash() == problem.hash(), "equal problems hash apart", line);
  expect(again.line() == line, "printed line is not canonical", line);
  Problem from_c;
  expect(Problem::make(problem.to_c(), &from_c).ok() && from_c == problem, "to_c loses", line);
  // The windows of the first and last query lie within the axis.
  for (int a = 0; a < problem.rank(); ++a) {
    for (int64_t index : {int64_t{0}, problem.axis(a).num_queries() - 1}) {
      const auto window = vecina::internal::window_of(problem, a, index);
      const int64_t last = window.begin + (window.count - 1) * window.step;
      expect(window.begin >= 0 && window.count >= 1 && last < problem.axis(a).extent,
             "window leaves the axis", line);
    }
  }
  return 0;
}
