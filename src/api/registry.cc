// SPDX-License-Identifier: MIT
// A new backend is one row here.
#include "api/registry.h"

#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "reference/reference.h"

namespace vecina::internal {

std::span<const BackendRow> backend_rows() {
  static constexpr BackendRow kRows[] = {
      {"cpu", make_cpu_backend, false},
      {"cuda", make_cuda_backend, false},
      {"reference", make_reference_backend, false},
      {"plain", make_plain_backend, true},
  };
  return kRows;
}

}  // namespace vecina::internal
