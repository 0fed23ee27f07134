// SPDX-License-Identifier: MIT
// One line on standard error that is overwritten as work proceeds; nothing if that is no terminal.
#ifndef VECINA_CLI_PROGRESS_H_
#define VECINA_CLI_PROGRESS_H_

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <string>

namespace vecina::cli {

class Progress {
 public:
  Progress() = default;
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  void show(const std::string& line) { write(line); }
  // Before anything else is printed.
  void clear() { write(""); }

 private:
  void write(const std::string& line) {
    if (!is_terminal_) return;
    fmt::print(stderr, "\r\x1b[K{}", line);
    std::fflush(stderr);
  }

  const bool is_terminal_ = isatty(STDERR_FILENO) != 0;
};

}  // namespace vecina::cli
#endif  // VECINA_CLI_PROGRESS_H_
