// SPDX-License-Identifier: MIT
// NumPy's .npy files, versions 1 to 3: numbers in, tensors out, and back.
//
// Parsing is apart from files, so that it can be fuzzed: any bytes give an array or a sentence.
// Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#ifndef VECINA_CLI_NPY_H_
#define VECINA_CLI_NPY_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "cli/host_tensor.h"

namespace vecina::cli {

class NpyError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A checked header and the elements behind it: data.size() is the product of shape x item_bytes.
struct NpyArray {
  std::vector<int64_t> shape;  // 1 to 6 axes
  char kind = 'f';             // 'f' float, 'i' signed, 'u' unsigned (2 bytes only)
  int item_bytes = 4;
  bool is_big_endian = false;
  bool is_fortran_order = false;
  std::span<const std::byte> data;  // points into the bytes that were parsed
};

// Throws NpyError. Bytes behind the elements are ignored, as NumPy does.
NpyArray parse_npy(std::span<const std::byte> bytes);

// In C order and native endianness, rounded to `dtype`; -1 keeps the file's own. 2-byte unsigned
// integers are the bits of bf16, which NumPy cannot name, and are taken only if dtype is
// VECINA_BF16. Throws NpyError.
HostTensor to_tensor(const NpyArray& array, int32_t dtype = -1);

// Version 1; bf16 is written as its bits, 2-byte unsigned integers.
std::vector<std::byte> format_npy(const HostTensor& tensor);

// The same on files; the error names the file.
HostTensor read_npy(const std::string& path, int32_t dtype = -1);
void write_npy(const std::string& path, const HostTensor& tensor);

}  // namespace vecina::cli
#endif  // VECINA_CLI_NPY_H_
