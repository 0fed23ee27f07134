// SPDX-License-Identifier: MIT
#include "contexts.h"

#include <array>
#include <cstdlib>
#include <map>
#include <string>

namespace vecina::python {
namespace {

// Guarded by the GIL.
std::map<std::string, ContextPtr> contexts;         // by name; "" is VECINA_BACKEND's
std::array<ContextPtr, VECINA_METAL + 1> defaults;  // by device: what None means there
int num_threads = 0;

const ContextPtr& context_named(const std::string& name) {
  ContextPtr& context = contexts[name];
  if (context == nullptr) {
    vecina_context_options options = {};
    options.struct_size = sizeof(options);
    options.backend = name.empty() ? nullptr : name.c_str();
    options.threads = num_threads;
    vecina_context* made = nullptr;
    throw_if_failed(vecina_context_create(&options, &made));
    context = ContextPtr(made, vecina_context_destroy);
  }
  return context;
}

bool is_chosen_by_environment() {
  const char* backend = std::getenv("VECINA_BACKEND");
  return backend != nullptr && *backend != '\0';
}

}  // namespace

void throw_if_failed(vecina_status status) {
  if (status == VECINA_OK) return;
  PyObject* type = PyExc_RuntimeError;
  if (status == VECINA_INVALID_ARGUMENT) type = PyExc_ValueError;
  if (status == VECINA_UNSUPPORTED) type = PyExc_NotImplementedError;
  if (status == VECINA_OUT_OF_MEMORY) type = PyExc_MemoryError;
  PyErr_SetString(type, vecina_last_error());
  throw nb::python_error();
}

ContextPtr context_for(nb::handle backend, int32_t device) {
  if (!backend.is_none()) {
    if (!PyUnicode_Check(backend.ptr())) {
      throw nb::value_error(("backend is " + std::string(nb::repr(backend).c_str()) +
                             "; a name of vecina.backends() or None is needed.")
                                .c_str());
    }
    return context_named(nb::str(backend).c_str());
  }
  static constexpr const char* kBackends[] = {"cpu", "cuda", "vulkan", "metal"};
  ContextPtr& context = defaults[static_cast<size_t>(device)];
  if (context == nullptr)
    context = context_named(is_chosen_by_environment() ? "" : kBackends[device]);
  return context;
}

void set_num_threads(int threads) {
  if (threads < 0) throw nb::value_error("the number of threads is 0 (the default) or more.");
  num_threads = threads;
  contexts.clear();
  defaults.fill(nullptr);
}

}  // namespace vecina::python
