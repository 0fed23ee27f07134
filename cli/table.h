// SPDX-License-Identifier: MIT
// Rows of fixed widths that a terminal shows well and Markdown reads as a table.
#ifndef VECINA_CLI_TABLE_H_
#define VECINA_CLI_TABLE_H_

#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

namespace vecina::cli {

class Table {
 public:
  struct Column {
    std::string title;
    int width;
    bool is_number = false;  // aligned right
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  std::string header() const {
    std::string rule = "|";
    std::vector<std::string> titles;
    for (const Column& column : columns_) {
      titles.push_back(column.title);
      // Width and two spaces around; a colon marks right alignment.
      rule += fmt::format("{:-<{}}{}|", "", column.width + 1, column.is_number ? ":" : "-");
    }
    return row(titles) + rule + "\n";
  }

  std::string row(const std::vector<std::string>& cells) const {
    std::string line = "|";
    for (size_t i = 0; i < columns_.size(); ++i) {
      line += columns_[i].is_number ? fmt::format(" {:>{}} |", cells[i], columns_[i].width)
                                    : fmt::format(" {:<{}} |", cells[i], columns_[i].width);
    }
    return line + "\n";
  }

 private:
  std::vector<Column> columns_;
};

}  // namespace vecina::cli
#endif  // VECINA_CLI_TABLE_H_
