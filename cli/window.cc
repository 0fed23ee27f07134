// SPDX-License-Identifier: MIT
// vecina window: which keys each query sees. One axis is drawn as one row for each query, two axes
// as a grid for a chosen query.
#include "cli/window.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "cli/commands.h"
#include "cli/conformance.h"
#include "cli/errors.h"
#include "cli/text.h"

namespace vecina::cli {
namespace {

constexpr int64_t kWidestDrawing = 200;  // characters; longer axes are listed only

struct WindowOptions {
  std::vector<std::string> line;
  std::string svg, query;
  int axis = -1;
};

std::string keys_text(const Keys& keys) {
  if (keys.count == 0) return "none";
  if (keys.count == 1) return fmt::format("{}", keys.begin);
  const std::string range = fmt::format("{}..{}", keys.begin, keys.last());
  return keys.step == 1 ? range : fmt::format("{} step {}", range, keys.step);
}

std::string drawn_keys(const Keys& keys, int64_t extent) {
  std::string drawing(static_cast<size_t>(extent), '.');
  for (int64_t i = 0; i < keys.count; ++i) {
    drawing[static_cast<size_t>(keys.begin + i * keys.step)] = '#';
  }
  return drawing;
}

void print_rows(const AxisWindows& axis) {
  size_t width = 4;
  for (const Keys& keys : axis.keys) width = std::max(width, keys_text(keys).size());
  fmt::print("query  keys\n");
  for (size_t q = 0; q < axis.keys.size(); ++q) {
    const bool is_drawn = axis.extent <= kWidestDrawing;
    fmt::print("{:5}  {:<{}}{}{}\n", axis.query_tokens[q], keys_text(axis.keys[q]),
               is_drawn ? width : 0, is_drawn ? "  " : "",
               is_drawn ? drawn_keys(axis.keys[q], axis.extent) : "");
  }
}

void print_grid(const std::vector<AxisWindows>& axes, const ChosenQuery& query) {
  const AxisWindows &rows = axes[0], &columns = axes[1];
  if (columns.extent > kWidestDrawing || rows.extent > kWidestDrawing) return;
  for (int64_t y = 0; y < rows.extent; ++y) {
    std::string line(static_cast<size_t>(columns.extent), '.');
    if (rows.keys[query.index[0]].contains(y)) {
      line = drawn_keys(columns.keys[query.index[1]], columns.extent);
    }
    if (y == rows.query_tokens[query.index[0]]) {
      line[static_cast<size_t>(columns.query_tokens[query.index[1]])] = 'Q';
    }
    fmt::print("{}\n", line);
  }
}

// "query 4,5 (interior) sees 9 keys: axis 0: 3..5, axis 1: 4..6".
void print_query(const std::vector<AxisWindows>& axes, const ChosenQuery& query) {
  std::vector<std::string> position, seen;
  int64_t count = 1;
  for (size_t a = 0; a < axes.size(); ++a) {
    const Keys& keys = axes[a].keys[query.index[a]];
    position.push_back(fmt::format("{}", axes[a].query_tokens[query.index[a]]));
    seen.push_back(fmt::format("axis {}: {}", a, keys_text(keys)));
    count *= keys.count;
  }
  fmt::print("query {}{} sees {} keys: {}\n", join(position, ","),
             query.caption.empty() ? "" : fmt::format(" ({})", query.caption), count,
             join(seen, ", "));
}

// From "4,5", in tokens, to an index for each axis.
ChosenQuery parse_query(const std::string& text, const std::vector<AxisWindows>& axes) {
  const std::vector<std::string> parts = split(text, ',');
  if (parts.size() != axes.size()) {
    throw UsageError(
        fmt::format("--query takes {} number(s) joined by commas, not '{}'.", axes.size(), text));
  }
  ChosenQuery query;
  for (size_t a = 0; a < axes.size(); ++a) {
    int64_t token = -1;
    const char* end = parts[a].data() + parts[a].size();
    if (std::from_chars(parts[a].data(), end, token).ptr != end) token = -1;
    const auto& tokens = axes[a].query_tokens;
    const auto found = std::find(tokens.begin(), tokens.end(), token);
    if (found == tokens.end()) {
      throw UsageError(fmt::format(
          "'{}' is not a query of axis {}; they are {}, ..., {}{}.", parts[a], a, tokens.front(),
          tokens.back(),
          tokens.size() > 1 && tokens[1] > 1 ? fmt::format(" in steps of {}", tokens[1]) : ""));
    }
    query.index.push_back(static_cast<size_t>(found - tokens.begin()));
  }
  return query;
}

// `where`: for each axis, half the index of the query in units of the last one: 0 first, 1 middle.
ChosenQuery query_at(const std::vector<AxisWindows>& axes, const std::vector<int>& is_middle,
                     const std::string& caption) {
  ChosenQuery query = {{}, caption};
  for (size_t a = 0; a < axes.size(); ++a) {
    query.index.push_back(is_middle[a] ? axes[a].keys.size() / 2 : 0);
  }
  return query;
}

void draw_one_axis(const AxisWindows& axis, const WindowOptions& options,
                   const std::string& title) {
  AxisWindows shown = axis;
  if (!options.query.empty()) {
    const size_t index = parse_query(options.query, {axis}).index[0];
    shown.query_tokens = {axis.query_tokens[index]};
    shown.keys = {axis.keys[index]};
  }
  print_rows(shown);
  if (!options.svg.empty()) write_file(options.svg, draw_rows_svg(shown, title));
}

void draw_two_axes(const std::vector<AxisWindows>& axes, const WindowOptions& options,
                   const std::string& title) {
  std::vector<ChosenQuery> printed = {query_at(axes, {1, 1}, "interior"),
                                      query_at(axes, {0, 0}, "corner")};
  std::vector<ChosenQuery> drawn = {printed[1], query_at(axes, {1, 0}, "edge"), printed[0]};
  if (!options.query.empty()) printed = drawn = {parse_query(options.query, axes)};
  for (const ChosenQuery& query : printed) {
    print_query(axes, query);
    print_grid(axes, query);
  }
  if (!options.svg.empty()) write_file(options.svg, draw_grids_svg(axes[0], axes[1], drawn, title));
}

void print_three_axes(const std::vector<AxisWindows>& axes, const WindowOptions& options) {
  if (!options.svg.empty()) {
    throw UsageError("three axes are not drawn as SVG; choose one with --axis 0, 1 or 2.");
  }
  if (!options.query.empty()) return print_query(axes, parse_query(options.query, axes));
  print_query(axes, query_at(axes, {1, 1, 1}, "interior"));
  print_query(axes, query_at(axes, {0, 0, 0}, "corner"));
  for (size_t a = 0; a < axes.size(); ++a) {
    fmt::print("\naxis {}\n", a);
    print_rows(axes[a]);
  }
}

// Windows do not depend on heads and head_dim, so the line may leave them out.
vecina_problem parse_window_line(const std::vector<std::string>& line) {
  std::vector<std::string> words = split(join(line, " "), ' ');
  for (const char* word : {"heads", "head_dim"}) {
    if (std::find(words.begin(), words.end(), word) == words.end()) {
      words.insert(words.end(), {word, "1"});
    }
  }
  return parse_problem(join(words, " "));
}

int run_window(const WindowOptions& options) {
  const std::string line = join(options.line, " ");
  const vecina_problem problem = parse_window_line(options.line);
  if (options.axis >= problem.rank) {
    throw UsageError(fmt::format("--axis {} is not an axis; the problem has {}, counted from 0.",
                                 options.axis, problem.rank));
  }
  std::vector<AxisWindows> axes;
  for (int a = 0; a < problem.rank; ++a) axes.push_back(axis_windows(problem, a));
  if (options.axis >= 0) {
    draw_one_axis(axes[static_cast<size_t>(options.axis)], options,
                  fmt::format("{}, axis {}", line, options.axis));
  } else if (problem.rank == 1) {
    draw_one_axis(axes[0], options, line);
  } else if (problem.rank == 2) {
    draw_two_axes(axes, options, line);
  } else {
    print_three_axes(axes, options);
  }
  if (problem.additional_tokens > 0) {
    fmt::print("Every query also sees the {} additional token(s).\n", problem.additional_tokens);
  }
  return 0;
}

}  // namespace

AxisWindows axis_windows(const vecina_problem& problem, int axis) {
  const bool is_attention = problem.kind == VECINA_ATTENTION;
  const int64_t tokens = is_attention ? problem.query_extent[axis] : problem.extent[axis];
  AxisWindows windows;
  windows.extent = problem.extent[axis];
  for (int64_t token = 0; token < tokens; token += problem.output_stride[axis]) {
    Keys keys;
    throw_if_failed(vecina_window(&problem, axis, token / problem.output_stride[axis], &keys.begin,
                                  &keys.step, &keys.count));
    windows.query_tokens.push_back(token);
    windows.keys.push_back(keys);
  }
  return windows;
}

Command add_window(CLI::App& root) {
  CLI::App* app = root.add_subcommand("window", "Draw which keys each query sees");
  const auto options = std::make_shared<WindowOptions>();
  add_line_option(*app, options->line)->required();
  add_option(*app, "--svg", options->svg, "FILE", "Also draw it into an SVG file");
  add_option(*app, "--axis", options->axis, "A", "Draw this axis only, counted from 0")
      ->check(CLI::Range(0, 2));
  add_option(*app, "--query", options->query, "Y,X",
             "Draw this query only: one token for each axis, joined by commas");
  app->footer(
      "#: a key that the query sees, Q: the query in a grid.\n\n"
      "Examples:\n"
      "  vecina window 1d 10 kernel_size 3 stride 2\n"
      "  vecina window \"2d 8x12 kernel_size 3 dilation 2\" --svg window.svg");
  return {app, [options] { return run_window(*options); }};
}

}  // namespace vecina::cli
