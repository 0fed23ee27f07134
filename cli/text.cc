// SPDX-License-Identifier: MIT
// Strings and whole files.
#include "cli/text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <system_error>

#include "cli/errors.h"

namespace vecina::cli {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (true) {
    const size_t end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end - begin));
    if (end == std::string::npos) return parts;
    begin = end + 1;
  }
}

std::string join(const std::vector<std::string>& parts, const std::string& separator) {
  return fmt::format("{}", fmt::join(parts, separator));
}

std::string format_ms(double ms) {
  if (ms >= 10000.0) return fmt::format("{:.2f} s", ms / 1000.0);
  if (ms >= 0.1) return fmt::format("{:.2f} ms", ms);
  if (ms >= 0.01) return fmt::format("{:.0f} µs", ms * 1000.0);
  return fmt::format("{:.2f} µs", ms * 1000.0);
}

std::string read_file(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw UsageError(fmt::format("{} is a folder, not a file.", path));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UsageError(fmt::format("cannot read {}: {}.", path, std::strerror(errno)));
  std::string content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) throw UsageError(fmt::format("reading {} failed.", path));
  return content;
}

void write_file(const std::string& path, const std::string& content) {
  if (path == "-") {
    std::fwrite(content.data(), 1, content.size(), stdout);
    if (std::fflush(stdout) != 0) throw std::runtime_error("writing to standard output failed.");
    return;
  }
  std::ofstream file(path, std::ios::binary);
  if (!file) throw UsageError(fmt::format("cannot write {}: {}.", path, std::strerror(errno)));
  file << content;
  file.close();
  if (!file) {
    throw std::runtime_error(fmt::format("writing {} failed: {}.", path, std::strerror(errno)));
  }
}

void expect_writable(const std::string& path) {
  namespace fs = std::filesystem;
  if (path == "-") return;
  std::error_code ignored;
  const bool exists = fs::exists(path, ignored);
  if (exists && fs::is_directory(path, ignored)) {
    throw UsageError(fmt::format("cannot write {}: it is a folder.", path));
  }
  const fs::path folder = fs::path(path).parent_path();
  const fs::path target = exists ? fs::path(path) : folder.empty() ? fs::path(".") : folder;
  if (!exists && fs::exists(target, ignored) && !fs::is_directory(target, ignored)) {
    throw UsageError(fmt::format("cannot write {}: {} is no folder.", path, target.string()));
  }
  if (access(target.c_str(), exists ? W_OK : W_OK | X_OK) != 0) {
    throw UsageError(fmt::format("cannot write {}: {}.", path, std::strerror(errno)));
  }
}

}  // namespace vecina::cli
