// SPDX-License-Identifier: MIT
// Drawings of which keys a query sees, through vecina_window.
#ifndef VECINA_CLI_WINDOW_H_
#define VECINA_CLI_WINDOW_H_

#include <cstdint>
#include <string>
#include <vector>

#include "vecina/vecina.h"

namespace vecina::cli {

// Keys of one query along one axis: tokens begin, begin + step, ..., count of them.
struct Keys {
  int64_t begin = 0, step = 1, count = 0;

  int64_t last() const { return begin + (count - 1) * step; }
  bool contains(int64_t token) const {
    return count > 0 && token >= begin && token <= last() && (token - begin) % step == 0;
  }
};

// The queries and keys of one axis, all of them.
struct AxisWindows {
  int64_t extent = 0;                 // tokens of key
  std::vector<int64_t> query_tokens;  // where each query stands
  std::vector<Keys> keys;             // what it sees
};
AxisWindows axis_windows(const vecina_problem& problem, int axis);

// One query for each axis (an index into query_tokens) and what to call it.
struct ChosenQuery {
  std::vector<size_t> index;
  std::string caption;
};

// Pictures with a fixed viewBox; `title` is the problem as the user wrote it. Throw UsageError if
// the axes are too long to be drawn.
std::string draw_rows_svg(const AxisWindows& axis, const std::string& title);
std::string draw_grids_svg(const AxisWindows& rows, const AxisWindows& columns,
                           const std::vector<ChosenQuery>& queries, const std::string& title);

}  // namespace vecina::cli
#endif  // VECINA_CLI_WINDOW_H_
