// SPDX-License-Identifier: MIT
// The benchmark as a picture: one bar for each backend and configuration, time on a log axis.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cli/bench.h"
#include "cli/svg.h"
#include "cli/text.h"
#include "vecina/vecina.h"

namespace vecina::cli {
namespace {

constexpr const char* kColours[] = {colour::kBlue, colour::kOrange, colour::kGreen,
                                    colour::kViolet};
constexpr double kWidth = 900.0, kTop = 78.0, kBottom = 46.0;
constexpr double kConfigRight = 262.0, kBarsLeft = 272.0, kBarsRight = 830.0;
constexpr double kBar = 10.0, kRowGap = 7.0, kGroupGap = 10.0;

const char* colour_of(size_t backend) { return kColours[backend % std::size(kColours)]; }

// From milliseconds to x, on whole decades around all times.
class TimeAxis {
 public:
  explicit TimeAxis(const std::vector<BenchResult>& results) {
    double least = std::numeric_limits<double>::infinity(), most = 0.0;
    for (const BenchResult& result : results) {
      for (const BackendResult& backend : result.backends) {
        if (!backend.times) continue;
        least = std::min(least, backend.times->median_ms);
        most = std::max(most, backend.times->median_ms);
      }
    }
    if (most <= 0.0) return;
    // A bar of the least time keeps a visible length.
    low_ = static_cast<int>(std::floor(std::log10(std::max(least, 1e-6) * 0.7)));
    high_ = std::max(static_cast<int>(std::ceil(std::log10(most))), low_ + 1);
  }

  int low() const { return low_; }
  int high() const { return high_; }
  double x(double ms) const {
    const double part = (std::log10(std::max(ms, 1e-6)) - low_) / (high_ - low_);
    return kBarsLeft + part * (kBarsRight - kBarsLeft);
  }

 private:
  int low_ = -2, high_ = 1;  // powers of ten of a millisecond
};

std::string decade_label(int power) {
  const double ms = std::pow(10.0, power);
  if (power >= 3) return fmt::format("{:g} s", ms / 1e3);
  if (power >= 0) return fmt::format("{:g} ms", ms);
  if (power >= -3) return fmt::format("{:g} µs", ms * 1e3);
  return fmt::format("{:g} ns", ms * 1e6);
}

double row_height(const BenchSetup& setup) {
  return static_cast<double>(setup.backends.size()) * kBar + kRowGap;
}

double chart_height(const BenchSetup& setup, const std::vector<BenchResult>& results) {
  double height = 0.0;
  for (size_t i = 0; i < results.size(); ++i) {
    const bool begins_group = i > 0 && results[i].row.title != results[i - 1].row.title;
    height += row_height(setup) + (begins_group ? kGroupGap : 0.0);
  }
  return height;
}

void draw_axis(Svg& svg, const TimeAxis& axis, double bottom) {
  for (int power = axis.low(); power <= axis.high(); ++power) {
    const double x = axis.x(std::pow(10.0, power));
    svg.line(x, kTop - 6.0, x, bottom, colour::kGrid, 0.45);
    svg.text(x, bottom + 16.0, decade_label(power), 11.0, Anchor::middle);
    for (int step = 2; step < 10 && power < axis.high(); ++step) {
      const double minor = axis.x(step * std::pow(10.0, power));
      svg.line(minor, kTop - 6.0, minor, bottom, colour::kGrid, 0.1);
    }
  }
}

void draw_legend(Svg& svg, const BenchSetup& setup) {
  double x = kBarsLeft;
  for (size_t b = 0; b < setup.backends.size(); ++b) {
    svg.rectangle(x, 46.0, 12.0, 12.0, colour_of(b));
    svg.text(x + 18.0, 56.0, setup.backends[b]);
    x += 18.0 + 8.0 * static_cast<double>(setup.backends[b].size()) + 24.0;
  }
}

void draw_row(Svg& svg, const BenchSetup& setup, const TimeAxis& axis, const BenchResult& result,
              double y) {
  for (size_t b = 0; b < setup.backends.size(); ++b) {
    const double top = y + static_cast<double>(b) * kBar;
    const std::optional<Times>& times = result.backends[b].times;
    const std::string label = times ? format_ms(times->median_ms) : "n/a";
    double end = kBarsLeft;
    if (times) {
      end = axis.x(times->median_ms);
      svg.rectangle(kBarsLeft, top, std::max(end - kBarsLeft, 1.0), kBar - 1.0, colour_of(b), 1.0,
                    1.5, fmt::format("{}, {}: {}", result.row.config, setup.backends[b], label));
    }
    svg.text(end + 5.0, top + kBar - 2.0, label, 9.0);
  }
}

}  // namespace

std::string draw_chart(const BenchSetup& setup, const std::vector<BenchResult>& results) {
  const TimeAxis axis(results);
  const double bottom = kTop + chart_height(setup, results);
  const std::string title =
      fmt::format("Time of one forward call: {}", join(setup.backends, " and "));
  Svg svg(kWidth, bottom + kBottom, title);
  svg.text(20.0, 28.0, title, 16.0, Anchor::start, true);
  draw_legend(svg, setup);
  draw_axis(svg, axis, bottom);

  double y = kTop;
  std::string last_title;
  for (const BenchResult& result : results) {
    const bool begins_group = result.row.title != last_title;
    if (begins_group && !last_title.empty()) y += kGroupGap;
    const double centre = y + (row_height(setup) - kRowGap) / 2.0 + 4.0;
    if (begins_group) svg.text(20.0, centre, result.row.title, 12.0, Anchor::start, true);
    last_title = result.row.title;
    svg.text(kConfigRight, centre, result.row.config, 11.5, Anchor::end);
    draw_row(svg, setup, axis, result, y);
    y += row_height(setup);
  }
  svg.text(20.0, bottom + 34.0,
           fmt::format("{}, median of {} repeats, log axis, less is better; vecina {}",
                       setup.device, setup.repeats, vecina_version()),
           10.5);
  return svg.finish();
}

}  // namespace vecina::cli
