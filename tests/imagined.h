// SPDX-License-Identifier: MIT
// Arguments of a call on a GPU that need none: shapes and addresses.
#ifndef VECINA_TESTS_IMAGINED_H_
#define VECINA_TESTS_IMAGINED_H_

#include <cstdint>

#include "core/arguments.h"
#include "core/tensor.h"

namespace vecina::tests {

// Their addresses are so many bytes apart.
template <typename Args>
Args imagined(const internal::Problem& problem, int64_t apart) {
  Args args;
  internal::imagine_arguments(problem, VECINA_CUDA, &args);
  internal::NamedTensor list[internal::kMaxTensors];
  const int count = internal::list_tensors(args, list);
  for (int i = 0; i < count; ++i) {
    auto* tensor = const_cast<vecina_tensor*>(list[i].tensor);  // a member of args
    if (internal::given(*tensor)) tensor->byte_offset = (i + 1) * apart;
  }
  return args;
}

}  // namespace vecina::tests
#endif  // VECINA_TESTS_IMAGINED_H_
