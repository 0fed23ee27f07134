// SPDX-License-Identifier: MIT
// Any bytes are refused with a sentence or give an array whose elements lie within them; what is
// written reads back the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "cli/npy.h"

namespace {

using vecina::cli::HostTensor;
using vecina::cli::NpyArray;
using vecina::cli::NpyError;

void expect(bool is_true, const char* what) {
  if (is_true) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

bool same_number(double a, double b) { return a == b || (a != a && b != b); }

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<std::byte> copy(reinterpret_cast<const std::byte*>(data),
                                    reinterpret_cast<const std::byte*>(data) + size);
  try {
    const NpyArray array = vecina::cli::parse_npy(copy);
    size_t bytes = static_cast<size_t>(array.item_bytes);
    for (int64_t extent : array.shape) bytes *= static_cast<size_t>(extent);
    expect(array.data.size() == bytes, "data does not fit the shape");
    expect(array.shape.size() >= 1 && array.shape.size() <= 6, "number of axes");
    expect(bytes == 0 || (array.data.data() >= copy.data() &&
                          array.data.data() + bytes <= copy.data() + copy.size()),
           "data leaves the file");
    const bool is_brain = array.kind == 'u';
    const HostTensor tensor = vecina::cli::to_tensor(array, is_brain ? VECINA_BF16 : -1);
    expect(tensor.shape() == array.shape, "shape of the tensor");
    const std::vector<std::byte> written = vecina::cli::format_npy(tensor);
    const HostTensor again =
        vecina::cli::to_tensor(vecina::cli::parse_npy(written), is_brain ? VECINA_BF16 : -1);
    expect(again.shape() == tensor.shape() && again.dtype() == tensor.dtype(), "read back");
    for (int64_t i = 0; i < tensor.size(); ++i) {
      expect(same_number(again.get(i), tensor.get(i)), "an element read back");
    }
  } catch (const NpyError& error) {
    expect(std::strlen(error.what()) > 0, "refused without a sentence");
  }
  return 0;
}
