// SPDX-License-Identifier: MIT
// Windows as pictures for the documentation: cells are tokens, filled where the query sees the key,
// framed where the query itself stands.
#include <fmt/format.h>

#include <algorithm>

#include "cli/errors.h"
#include "cli/svg.h"
#include "cli/window.h"

namespace vecina::cli {
namespace {

constexpr int64_t kLongestAxis = 64;
constexpr double kMargin = 20.0, kLegendHeight = 34.0, kPanelGap = 36.0;
constexpr double kGap = 2.0;  // between cells
constexpr double kUnseenOpacity = 0.16;

void check_extent(int64_t extent) {
  if (extent > kLongestAxis) {
    throw UsageError(fmt::format("an axis of {} tokens is too long for a picture; at most {}.",
                                 extent, kLongestAxis));
  }
}

double size_of(int64_t cells, double cell) { return static_cast<double>(cells) * cell - kGap; }

void draw_cell(Svg& svg, double x, double y, double cell, bool is_seen,
               const std::string& tooltip) {
  svg.rectangle(x, y, cell - kGap, cell - kGap, is_seen ? colour::kBlue : colour::kGrid,
                is_seen ? 1.0 : kUnseenOpacity, 2.0, tooltip);
}

void draw_query(Svg& svg, double x, double y, double cell) {
  svg.frame(x, y, cell - kGap, cell - kGap, colour::kOrange, 2.5);
}

void draw_legend(Svg& svg, double y) {
  constexpr double kCell = 14.0;
  double x = kMargin;
  draw_query(svg, x, y, kCell);
  svg.text(x + 19.0, y + 10.5, "query");
  x += 76.0;
  draw_cell(svg, x, y, kCell, true, {});
  svg.text(x + 19.0, y + 10.5, "key it sees");
  x += 106.0;
  draw_cell(svg, x, y, kCell, false, {});
  svg.text(x + 19.0, y + 10.5, "other token");
}

// Width of a title in 15 point bold, estimated; the picture must be at least that wide.
double title_width(const std::string& title) { return 8.2 * static_cast<double>(title.size()); }

// Axis labels at 0, step, 2 * step, ...: few enough to be read.
int64_t label_step(int64_t extent, double cell) {
  for (const int64_t step : {1, 2, 5, 10}) {
    if (static_cast<double>(step) * cell >= (extent > 10 ? 20.0 : 14.0)) return step;
  }
  return 20;
}

void draw_panel(Svg& svg, double left, double top, double cell, const AxisWindows& rows,
                const AxisWindows& columns, const ChosenQuery& query) {
  const int64_t query_y = rows.query_tokens[query.index[0]];
  const int64_t query_x = columns.query_tokens[query.index[1]];
  const std::string position = fmt::format("query {},{}", query_y, query_x);
  svg.text(left, top - 8.0,
           query.caption.empty() ? position : fmt::format("{}: {}", query.caption, position), 12.5);
  for (int64_t y = 0; y < rows.extent; ++y) {
    for (int64_t x = 0; x < columns.extent; ++x) {
      const bool is_seen =
          rows.keys[query.index[0]].contains(y) && columns.keys[query.index[1]].contains(x);
      draw_cell(svg, left + static_cast<double>(x) * cell, top + static_cast<double>(y) * cell,
                cell, is_seen, fmt::format("token {},{}", y, x));
    }
  }
  draw_query(svg, left + static_cast<double>(query_x) * cell,
             top + static_cast<double>(query_y) * cell, cell);
}

}  // namespace

std::string draw_rows_svg(const AxisWindows& axis, const std::string& title) {
  const int64_t num_rows = static_cast<int64_t>(axis.keys.size());
  check_extent(axis.extent);
  check_extent(num_rows);
  const double cell = std::clamp(640.0 / static_cast<double>(axis.extent), 10.0, 22.0);
  const double left = kMargin + 52.0, top = 78.0;
  const double width =
      std::max({left + size_of(axis.extent, cell), kMargin + title_width(title), 330.0}) + kMargin;
  const double bottom = top + size_of(num_rows, cell);
  Svg svg(width, bottom + kLegendHeight + kMargin, title);
  svg.text(kMargin, 30.0, title, 15.0, Anchor::start, true);
  svg.text(kMargin, top - 8.0, "query", 11.5);
  svg.text(left + size_of(axis.extent, cell) / 2.0, 54.0, "key", 11.5, Anchor::middle);

  const int64_t step = label_step(axis.extent, cell);
  for (int64_t x = 0; x < axis.extent; x += step) {
    svg.text(left + (static_cast<double>(x) + 0.5) * cell - kGap / 2.0, top - 8.0,
             fmt::format("{}", x), 10.5, Anchor::middle);
  }
  for (size_t q = 0; q < axis.keys.size(); ++q) {
    const double y = top + static_cast<double>(q) * cell;
    const int64_t token = axis.query_tokens[q];
    if (static_cast<int64_t>(q) % label_step(num_rows, cell + 4.0) == 0) {
      svg.text(left - 12.0, y + cell / 2.0 + 2.5, fmt::format("{}", token), 10.5, Anchor::end);
    }
    for (int64_t x = 0; x < axis.extent; ++x) {
      draw_cell(svg, left + static_cast<double>(x) * cell, y, cell, axis.keys[q].contains(x),
                fmt::format("query {}, key {}", token, x));
    }
    if (token < axis.extent) draw_query(svg, left + static_cast<double>(token) * cell, y, cell);
  }
  draw_legend(svg, bottom + 22.0);
  return svg.finish();
}

std::string draw_grids_svg(const AxisWindows& rows, const AxisWindows& columns,
                           const std::vector<ChosenQuery>& queries, const std::string& title) {
  check_extent(rows.extent);
  check_extent(columns.extent);
  const double longest = static_cast<double>(std::max(rows.extent, columns.extent));
  const double cell = std::clamp(260.0 / longest, 7.0, 22.0);
  // Wide enough for "interior: query 16,16".
  const double panel = std::max(size_of(columns.extent, cell), 132.0);
  const double panels = static_cast<double>(queries.size()) * (panel + kPanelGap) - kPanelGap;
  const double top = 76.0, bottom = top + size_of(rows.extent, cell);
  const double width = kMargin + std::max({panels, title_width(title), 310.0}) + kMargin;
  Svg svg(width, bottom + kLegendHeight + kMargin, title);
  svg.text(kMargin, 30.0, title, 15.0, Anchor::start, true);
  double left = kMargin;
  for (const ChosenQuery& query : queries) {
    draw_panel(svg, left, top, cell, rows, columns, query);
    left += panel + kPanelGap;
  }
  draw_legend(svg, bottom + 22.0);
  return svg.finish();
}

}  // namespace vecina::cli
