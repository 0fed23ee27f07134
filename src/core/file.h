// SPDX-License-Identifier: MIT
// Small files, whole. By stdio: a host process may bring a libstdc++ of its own, and iostreams do
// not work where two of them share a locale.
#ifndef VECINA_CORE_FILE_H_
#define VECINA_CORE_FILE_H_

#include <string>

namespace vecina::internal {

// Empty if it cannot be read.
std::string read_file(const std::string& path);

// False if it cannot be written, or not whole.
bool write_file(const std::string& path, const std::string& bytes);

}  // namespace vecina::internal
#endif  // VECINA_CORE_FILE_H_
