# SPDX-License-Identifier: MIT
# Writes the text of kernels into one C++ file.
# Usage: cmake -DOUTPUT=out.cc -DROOT=src -DFILES="a;b" -P embed.cmake
# A file of cuda/kernels goes by its name alone, any other by its path below ROOT.
set(rows "")
foreach(file IN LISTS FILES)
  file(READ "${ROOT}/${file}" text)
  string(REPLACE "cuda/kernels/" "" name "${file}")
  # A literal may hold 64 kB by the standard; adjacent ones are joined.
  set(literal "")
  string(LENGTH "${text}" length)
  set(begin 0)
  while(begin LESS length)
    string(SUBSTRING "${text}" ${begin} 8000 piece)
    string(APPEND literal "R\"kernel(${piece})kernel\"\n")
    math(EXPR begin "${begin} + 8000")
  endwhile()
  string(APPEND rows "{\"${name}\",\n${literal}},\n")
endforeach()
file(WRITE "${OUTPUT}" "// Written by tools/embed.cmake.
#include \"cuda/embedded.h\"

namespace vecina::internal::cuda {

std::span<const EmbeddedFile> embedded_files() {
  static constexpr EmbeddedFile kFiles[] = {
${rows}};
  return kFiles;
}

}  // namespace vecina::internal::cuda
")
