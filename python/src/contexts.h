// SPDX-License-Identifier: MIT
// The contexts that Python's calls share: one for each backend, made when first needed.
#ifndef VECINA_PYTHON_CONTEXTS_H_
#define VECINA_PYTHON_CONTEXTS_H_

#include <nanobind/nanobind.h>

#include <memory>

#include "vecina/vecina.h"

namespace vecina::python {

namespace nb = nanobind;
using ContextPtr = std::shared_ptr<vecina_context>;

// Throws what Python expects for a status that is not VECINA_OK: ValueError, NotImplementedError,
// MemoryError or RuntimeError, with the library's sentence.
void throw_if_failed(vecina_status status);

// `backend` is a name or None: VECINA_BACKEND, else the backend of the device's kind. The slow
// `reference` is taken only when named. Needs the GIL; the result may be used without it.
ContextPtr context_for(nb::handle backend, int32_t device);

// Contexts made from now on have so many threads; 0: VECINA_NUM_THREADS, else the usable cores.
void set_num_threads(int threads);

}  // namespace vecina::python
#endif  // VECINA_PYTHON_CONTEXTS_H_
