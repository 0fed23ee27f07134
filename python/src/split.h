// SPDX-License-Identifier: MIT
// The split form, qk and av, for Python.
#ifndef VECINA_PYTHON_SPLIT_H_
#define VECINA_PYTHON_SPLIT_H_

#include <nanobind/nanobind.h>

namespace vecina::python {

void bind_split(nanobind::module_& m);

}  // namespace vecina::python
#endif  // VECINA_PYTHON_SPLIT_H_
