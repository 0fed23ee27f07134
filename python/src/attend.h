// SPDX-License-Identifier: MIT
// The eager call for a framework's tensors as one function, attend(): it makes the output and runs,
// with everything that was decided for the same shapes and parameters before.
#ifndef VECINA_PYTHON_ATTEND_H_
#define VECINA_PYTHON_ATTEND_H_

#include <nanobind/nanobind.h>

namespace vecina::python {

namespace nb = nanobind;

// Adds set_framework(), attend() and attend_plain() to the module.
void add_attend(nb::module_* module);

// Plans that are held belong to contexts that may have gone.
void forget_held_plans();

}  // namespace vecina::python
#endif  // VECINA_PYTHON_ATTEND_H_
