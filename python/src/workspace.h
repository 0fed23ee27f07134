// SPDX-License-Identifier: MIT
// Device memory that a call works in, from the framework's allocator.
#ifndef VECINA_PYTHON_WORKSPACE_H_
#define VECINA_PYTHON_WORKSPACE_H_

#include <nanobind/nanobind.h>

#include <type_traits>

#include "tensors.h"
#include "vecina/vecina.h"

namespace vecina::python {

// allocate(bytes) returns a tensor, which must live until the call is enqueued. None, and nothing
// is asked, if the call needs no workspace.
template <typename Args, typename Allocate>
nb::object give_workspace(vecina_context* context, const vecina_problem& problem,
                          const Allocate& allocate, Tensors* tensors, Args* args) {
  if (args->query.device == VECINA_CPU) return nb::none();
  constexpr int32_t kIsBackward = std::is_same_v<Args, vecina_backward_args> ? 1 : 0;
  args->workspace_bytes = vecina_workspace_bytes(context, &problem, kIsBackward);
  if (args->workspace_bytes == 0) return nb::none();
  nb::object memory = allocate(args->workspace_bytes);
  args->workspace = tensors->read("workspace", memory, true).data;
  return memory;
}

}  // namespace vecina::python
#endif  // VECINA_PYTHON_WORKSPACE_H_
