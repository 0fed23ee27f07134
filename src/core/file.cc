// SPDX-License-Identifier: MIT
#include "core/file.h"

#include <cstdio>

namespace vecina::internal {

std::string read_file(const std::string& path) {
  std::string bytes;
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return bytes;
  char block[4096];
  size_t count = 0;
  while ((count = std::fread(block, 1, sizeof(block), file)) > 0) bytes.append(block, count);
  std::fclose(file);
  return bytes;
}

bool write_file(const std::string& path, const std::string& bytes) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return false;
  const bool is_written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  return std::fclose(file) == 0 && is_written;
}

}  // namespace vecina::internal
