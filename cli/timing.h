// SPDX-License-Identifier: MIT
// Times of repeated calls, each call timed on its own.
#ifndef VECINA_CLI_TIMING_H_
#define VECINA_CLI_TIMING_H_

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

namespace vecina::cli {

struct Times {
  double median_ms = 0.0;  // sorted[count / 2]: the upper median if count is even
  double min_ms = 0.0;
  double spread = 0.0;  // middle half of the times (third quartile - first) / median
  int count = 0;
};

inline Times summarize(std::vector<double> times_ms) {
  std::sort(times_ms.begin(), times_ms.end());
  const size_t count = times_ms.size();
  const double median = times_ms[count / 2];
  const double middle_half = times_ms[count * 3 / 4] - times_ms[count / 4];
  return {median, times_ms.front(), median > 0.0 ? middle_half / median : 0.0,
          static_cast<int>(count)};
}

struct TimingOptions {
  int warmup = 0, repeats = 1;
  // Seconds after which it stops early, with 3 timed calls at least.
  double limit_s = std::numeric_limits<double>::infinity();
};

// Calls `call` warmup times, then repeats times.
template <typename Call>
Times time_calls(Call&& call, const TimingOptions& options) {
  using Clock = std::chrono::steady_clock;
  const auto elapsed_ms = [](Clock::time_point since) {
    return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
  };
  const Clock::time_point begin = Clock::now();
  const auto is_late = [&] { return elapsed_ms(begin) > options.limit_s * 1000.0; };
  for (int i = 0; i < options.warmup && !(i > 0 && is_late()); ++i) call();
  std::vector<double> times_ms;
  for (int i = 0; i < options.repeats && !(i >= 3 && is_late()); ++i) {
    const Clock::time_point start = Clock::now();
    call();
    times_ms.push_back(elapsed_ms(start));
  }
  return summarize(std::move(times_ms));
}

}  // namespace vecina::cli
#endif  // VECINA_CLI_TIMING_H_
