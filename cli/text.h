// SPDX-License-Identifier: MIT
// Strings: out of the library's size-returning functions, and small formatting helpers.
#ifndef VECINA_CLI_TEXT_H_
#define VECINA_CLI_TEXT_H_

#include <cstddef>
#include <string>
#include <vector>

namespace vecina::cli {

// write(text, size) follows vecina_problem_print's rule. The first buffer is large, because some of
// these functions measure and should be called once.
template <typename Write>
std::string read_text(Write write) {
  std::string text(size_t{1} << 16, '\0');
  size_t needed = write(text.data(), text.size());
  if (needed >= text.size()) {
    text.resize(needed + 1);
    needed = write(text.data(), text.size());
  }
  text.resize(needed);
  return text;
}

std::vector<std::string> split(const std::string& text, char separator);
std::string join(const std::vector<std::string>& parts, const std::string& separator);
// "0.58 ms", "47 µs" below 0.1 ms, "1.24 s" from 10 s on.
std::string format_ms(double ms);

// Throws UsageError if the file cannot be read.
std::string read_file(const std::string& path);
// "-" writes to stdout. Throws UsageError if the file cannot be opened, std::runtime_error if
// writing fails.
void write_file(const std::string& path, const std::string& content);
// Before what takes long: throws UsageError if write_file could not open the file. Writes nothing.
void expect_writable(const std::string& path);

}  // namespace vecina::cli
#endif  // VECINA_CLI_TEXT_H_
