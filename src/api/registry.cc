// SPDX-License-Identifier: MIT
// A new backend is one row here.
#include "api/registry.h"

#include <algorithm>

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

bool is_hidden(std::string_view name) {
  const auto rows = backend_rows();
  return std::any_of(rows.begin(), rows.end(),
                     [&](const BackendRow& row) { return row.name == name && row.is_hidden; });
}

}  // namespace vecina::internal
