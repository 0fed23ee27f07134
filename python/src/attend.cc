// SPDX-License-Identifier: MIT
// A call costs a few microseconds and the kernel of a small problem no more, so that each argument
// is looked at once here: no Python between the caller and the kernel but the framework's own
// allocation. Parameters are compared by identity, which is enough for what cannot change.
#include "attend.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "contexts.h"
#include "problem.h"
#include "tensors.h"
#include "vecina/vecina.h"

namespace vecina::python {
namespace {

// Order of the arguments of attend(), all positional.
enum Argument {
  kQuery,
  kKey,
  kValue,
  kAdditionalKeys,
  kAdditionalValues,
  kBias,
  kLengths,
  kQueryLengths,
  kRank,
  kKernelSize,
  kStride,
  kDilation,
  kIsCausal,
  kScale,
  kOutputStride,
  kExtents,  //
  kQueryExtent,
  kBackend,
  kReturnLse,
  kNumArguments
};
constexpr int kNumTensors = kRank;
constexpr int kNumParameters = kNumArguments - kRank;
using Arguments = PyObject* const*;

// What is asked of the framework. Never freed: the interpreter may be gone before statics are.
struct Framework {
  nb::tuple tensor_types;     // exact types that nobody overrides
  nb::tuple watchers;         // functions without arguments; something true: somebody watches
  nb::object is_autocasting;  // functions without arguments
  nb::object is_grad_enabled;
  nb::object requires_grad;  // name of the attribute
  nb::object empty_like;     // makes an output from a prototype
  nb::object new_prototype;  // (query, shape, is_lse) -> a tensor like the output, without memory
};
Framework* framework = nullptr;

bool is_true(nb::handle function) {
  PyObject* result = PyObject_CallNoArgs(function.ptr());
  if (result == nullptr) throw nb::python_error();
  const bool value = result != Py_None && result != Py_False && PyObject_IsTrue(result) == 1;
  Py_DECREF(result);
  return value;
}

bool is_known_type(PyObject* object) {
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  for (nb::handle known : framework->tensor_types) {
    if (known.ptr() == type) return true;
  }
  return false;
}

// True if a mode, a transform or a subclass wants to see an op.
bool is_watched(Arguments arguments, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (arguments[i] != Py_None && !is_known_type(arguments[i])) return true;
  }
  for (nb::handle watcher : framework->watchers) {
    if (is_true(watcher)) return true;
  }
  return false;
}

bool needs_gradient(Arguments arguments) {
  if (!is_true(framework->is_grad_enabled)) return false;
  for (int i = 0; i <= kBias; ++i) {
    if (arguments[i] == Py_None) continue;
    PyObject* value = PyObject_GetAttr(arguments[i], framework->requires_grad.ptr());
    if (value == nullptr) throw nb::python_error();
    Py_DECREF(value);  // True or False, which stay
    if (value == Py_True) return true;
  }
  return false;
}

// True for what cannot change, so that the same object is the same value.
bool is_immutable(nb::handle object) {
  if (object.is_none() || PyBool_Check(object.ptr()) || PyLong_CheckExact(object.ptr()) ||
      PyFloat_CheckExact(object.ptr()) || PyUnicode_CheckExact(object.ptr())) {
    return true;
  }
  if (!PyTuple_CheckExact(object.ptr())) return false;
  return std::all_of(
      nb::borrow<nb::tuple>(object).begin(), nb::borrow<nb::tuple>(object).end(),
      [](nb::handle item) { return PyLong_CheckExact(item.ptr()) || PyBool_Check(item.ptr()); });
}

bool is_aligned(const vecina_tensor& tensor) {
  return (reinterpret_cast<uintptr_t>(tensor.data) + static_cast<uintptr_t>(tensor.byte_offset)) %
             16 ==
         0;
}

// All but the address.
bool is_alike(const vecina_tensor& one, const vecina_tensor& other) {
  const size_t bytes = sizeof(int64_t) * static_cast<size_t>(one.ndim);
  return one.ndim == other.ndim && one.dtype == other.dtype && one.device == other.device &&
         one.device_index == other.device_index && is_aligned(one) == is_aligned(other) &&
         std::memcmp(one.shape, other.shape, bytes) == 0 &&
         std::memcmp(one.strides, other.strides, bytes) == 0;
}

bool is_empty(const vecina_tensor& tensor) {
  return std::find(tensor.shape, tensor.shape + tensor.ndim, 0) != tensor.shape + tensor.ndim;
}

// A call that was seen before, ready to run.
struct Held {
  uint64_t hash = 0;  // of the last call that came here
  std::shared_ptr<vecina_plan> plan;
  std::array<PyObject*, kNumParameters> parameters = {};  // owned
  std::array<vecina_tensor, kNumTensors> tensors = {};
  PyObject* output = nullptr;  // prototypes, owned
  PyObject* lse = nullptr;
};
constexpr size_t kNumHeld = 64;
std::array<Held, kNumHeld> held;  // guarded by the GIL

void release(Held* entry) {
  entry->plan.reset();
  for (PyObject*& parameter : entry->parameters) Py_CLEAR(parameter);
  Py_CLEAR(entry->output);
  Py_CLEAR(entry->lse);
}

uint64_t hash_of(Arguments arguments, const vecina_tensor* tensors) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&hash](uint64_t word) { hash = (hash ^ word) * 0x100000001b3u; };
  for (int i = kRank; i < kNumArguments; ++i) add(reinterpret_cast<uintptr_t>(arguments[i]));
  for (const int i : {kQuery, kKey, kValue, kAdditionalKeys}) {
    const vecina_tensor& tensor = tensors[i];
    for (int d = 0; d < tensor.ndim; ++d) add(static_cast<uint64_t>(tensor.shape[d]));
  }
  add(static_cast<uint64_t>(tensors[kQuery].dtype * 16 + tensors[kQuery].device));
  return hash ^ (hash >> 32);
}

bool is_of(const Held& entry, Arguments arguments, const vecina_tensor* tensors) {
  return entry.plan != nullptr &&
         std::equal(entry.parameters.begin(), entry.parameters.end(), arguments + kRank) &&
         std::equal(entry.tensors.begin(), entry.tensors.end(), tensors, is_alike);
}

vecina_forward_args args_of(const vecina_tensor* tensors) {
  vecina_forward_args args = {};
  args.struct_size = sizeof(args);
  args.query = tensors[kQuery];
  args.key = tensors[kKey];
  args.value = tensors[kValue];
  args.additional_key = tensors[kAdditionalKeys];
  args.additional_value = tensors[kAdditionalValues];
  args.bias = tensors[kBias];
  args.lengths = tensors[kLengths];
  args.query_lengths = tensors[kQueryLengths];
  return args;
}

nb::object empty_like(PyObject* prototype) {
  PyObject* made = PyObject_CallOneArg(framework->empty_like.ptr(), prototype);
  if (made == nullptr) throw nb::python_error();
  return nb::steal(made);
}

nb::object result_of(nb::object output, nb::object lse) {
  return lse.is_valid() ? nb::object(nb::make_tuple(output, lse)) : output;
}

nb::object run_held(const Held& entry, const vecina_tensor* inputs, Tensors* tensors) {
  const std::shared_ptr<vecina_plan> plan = entry.plan;  // without the GIL the entry may go
  nb::object output = empty_like(entry.output), lse;
  vecina_forward_args args = args_of(inputs);
  args.output = tensors->read("output", output, true);
  if (entry.lse != nullptr) {
    lse = empty_like(entry.lse);
    args.lse = tensors->read("lse", lse, true);
  }
  vecina_status status = VECINA_OK;
  {
    const nb::gil_scoped_release released;
    status = vecina_run_forward(plan.get(), &args, tensors->queue());
  }
  throw_if_failed(status);
  return result_of(std::move(output), std::move(lse));
}

// Tokens of query, every output_stride-th, heads, head_dim of value.
nb::object prototype_of(Arguments arguments, const vecina_problem& problem,
                        const vecina_tensor* tensors, bool is_lse) {
  const vecina_tensor& query = tensors[kQuery];
  nb::object shape = nb::steal(PyTuple_New(query.ndim - (is_lse ? 1 : 0)));
  if (!shape.is_valid()) throw nb::python_error();
  const auto set = [&shape](int d, int64_t size) {
    PyObject* number = PyLong_FromLongLong(size);
    if (number == nullptr || PyTuple_SetItem(shape.ptr(), d, number) != 0) throw nb::python_error();
  };
  for (int d = 0; d < query.ndim - 1; ++d) {
    const bool is_axis = d >= 1 && d < query.ndim - 2 && problem.kind == VECINA_NEIGHBORHOOD &&
                         problem.lengths != VECINA_LENGTHS_PACKED;
    const int64_t step = is_axis ? std::max<int64_t>(problem.output_stride[d - 1], 1) : 1;
    set(d, (query.shape[d] + step - 1) / step);
  }
  if (!is_lse) set(query.ndim - 1, problem.head_dim_value);
  PyObject* made = PyObject_CallFunctionObjArgs(framework->new_prototype.ptr(), arguments[kQuery],
                                                shape.ptr(), is_lse ? Py_True : Py_False, nullptr);
  if (made == nullptr) throw nb::python_error();
  return nb::steal(made);
}

void hold(Held* entry, Arguments arguments, vecina_context* context, const vecina_problem& problem,
          const vecina_forward_args& args, const vecina_tensor* tensors, nb::object output,
          nb::object lse) {
  vecina_plan* made = nullptr;
  if (vecina_plan_forward(context, &problem, &args, &made) != VECINA_OK) return;
  const std::shared_ptr<vecina_plan> plan(made, vecina_plan_destroy);
  if (vecina_plan_workspace_bytes(made) != 0) return;
  release(entry);
  for (int i = 0; i < kNumParameters; ++i) {
    entry->parameters[static_cast<size_t>(i)] = nb::handle(arguments[kRank + i]).inc_ref().ptr();
  }
  std::copy_n(tensors, kNumTensors, entry->tensors.begin());
  entry->output = output.release().ptr();
  entry->lse = lse.is_valid() ? lse.release().ptr() : nullptr;
  entry->plan = plan;
}

nb::object run_new(Held* entry, uint64_t hash, Arguments arguments, vecina_tensor* inputs,
                   Tensors* tensors) {
  const auto parameter = [&](Argument i) { return nb::handle(arguments[i]); };
  const int dimensions = inputs[kQuery].ndim;
  const bool is_packed = arguments[kExtents] != Py_None;
  const int rank = arguments[kRank] == Py_None ? dimensions - 3
                                               : static_cast<int>(PyLong_AsLong(arguments[kRank]));
  if (rank < 0 || rank > 3 || (!is_packed && dimensions != std::max(rank, 1) + 3)) {
    return nb::none();
  }
  Inputs read = {inputs[kQuery],
                 inputs[kKey],
                 inputs[kValue],
                 inputs[kAdditionalKeys],
                 inputs[kAdditionalValues],
                 inputs[kBias],
                 inputs[kLengths],
                 inputs[kQueryLengths]};
  const vecina_problem problem = make_problem(
      {rank, parameter(kKernelSize), parameter(kStride), parameter(kDilation), parameter(kIsCausal),
       parameter(kScale), parameter(kOutputStride), parameter(kExtents), parameter(kQueryExtent)},
      &read);
  vecina_forward_args args = args_of(inputs);
  args.lengths = read.lengths;
  args.query_lengths = read.query_lengths;
  nb::object prototype = prototype_of(arguments, problem, inputs, false), lse_prototype, lse;
  nb::object output = empty_like(prototype.ptr());
  args.output = tensors->read("output", output, true);
  if (PyObject_IsTrue(arguments[kReturnLse]) == 1) {
    lse_prototype = prototype_of(arguments, problem, inputs, true);
    lse = empty_like(lse_prototype.ptr());
    args.lse = tensors->read("lse", lse, true);
  }
  const ContextPtr context = context_for(parameter(kBackend), inputs[kQuery].device);
  vecina_status status = VECINA_OK;
  {
    const nb::gil_scoped_release released;
    status = vecina_forward(context.get(), &problem, &args, tensors->queue());
  }
  throw_if_failed(status);
  // From the second time on, so that shapes that never come again are planned once.
  const bool is_second = entry->hash == hash;
  entry->hash = hash;
  if (is_second && problem.lengths == VECINA_LENGTHS_EQUAL && !is_empty(args.output) &&
      std::all_of(arguments + kRank, arguments + kNumArguments, is_immutable)) {
    hold(entry, arguments, context.get(), problem, args, inputs, prototype, lse_prototype);
  }
  return result_of(std::move(output), std::move(lse));
}

nb::object attend_plain(Arguments arguments) {
  static constexpr const char* kNames[] = {
      "query", "key",     "value",        "additional_keys", "additional_values",
      "bias",  "lengths", "query_lengths"};
  Tensors tensors;
  vecina_tensor inputs[kNumTensors];
  for (int i = 0; i < kNumTensors; ++i) inputs[i] = tensors.read(kNames[i], arguments[i]);
  const int32_t bias_dtype = inputs[kQuery].dtype == VECINA_F64 ? VECINA_F64 : VECINA_F32;
  if (arguments[kBias] != Py_None && inputs[kBias].dtype != bias_dtype) return nb::none();
  const uint64_t hash = hash_of(arguments, inputs);
  Held& entry = held[hash % kNumHeld];
  if (is_of(entry, arguments, inputs)) return run_held(entry, inputs, &tensors);
  return run_new(&entry, hash, arguments, inputs, &tensors);
}

nb::object attend(Arguments arguments) {
  if (is_watched(arguments, kNumTensors) || is_true(framework->is_autocasting)) return nb::none();
  if (needs_gradient(arguments)) return nb::bool_(false);
  return attend_plain(arguments);
}

// nanobind reads arguments by name and turns exceptions over; here there are 19 of them by place.
template <nb::object (*run)(Arguments)>
PyObject* entry_point(PyObject*, PyObject* const* arguments, Py_ssize_t count) noexcept {
  if (framework == nullptr || count != kNumArguments) {
    PyErr_Format(PyExc_TypeError, "%d arguments are needed, after set_framework().", kNumArguments);
    return nullptr;
  }
  try {
    return run(arguments).release().ptr();
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const nb::builtin_exception& error) {
    PyErr_SetString(
        error.type() == nb::exception_type::type_error ? PyExc_TypeError : PyExc_ValueError,
        error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <nb::object (*run)(Arguments)>
void add(nb::module_* module, const char* name, const char* doc) {
  static PyMethodDef definition = {name, nullptr, METH_FASTCALL, doc};
  definition.ml_meth = reinterpret_cast<PyCFunction>(
      reinterpret_cast<void (*)()>(&entry_point<run>));  // by way of a cast that -Wall accepts
  const nb::object module_name = module->attr("__name__");
  module->attr(name) = nb::steal(PyCFunction_NewEx(&definition, nullptr, module_name.ptr()));
}

}  // namespace

void forget_held_plans() {
  for (Held& entry : held) release(&entry);
}

void add_attend(nb::module_* module) {
  module->def(
      "set_framework",
      [](nb::tuple tensor_types, nb::tuple watchers, nb::object is_autocasting,
         nb::object is_grad_enabled, nb::object empty_like, nb::object new_prototype) {
        forget_held_plans();
        delete framework;
        framework = new Framework{tensor_types,
                                  watchers,
                                  is_autocasting,
                                  is_grad_enabled,
                                  nb::steal(PyUnicode_InternFromString("requires_grad")),
                                  empty_like,
                                  new_prototype};
      },
      nb::arg("tensor_types"), nb::arg("watchers"), nb::arg("is_autocasting"),
      nb::arg("is_grad_enabled"), nb::arg("empty_like"), nb::arg("new_prototype"),
      "What attend() asks of the framework.");
  module->def(
      "is_watched",
      [](nb::args tensors) {
        std::array<PyObject*, kNumTensors> list;
        if (framework == nullptr || tensors.size() > list.size())
          throw nb::type_error("8 tensors.");
        for (size_t i = 0; i < tensors.size(); ++i) list[i] = tensors[i].ptr();
        return is_watched(list.data(), tensors.size());
      },
      "True if a mode, a transform or a subclass wants to see an op.");
  add<attend>(module, "attend",
              "attend($module, /, *arguments)\n--\n\nThe output, or (output, lse); None where "
              "somebody watches, False where gradients are needed.");
  add<attend_plain>(module, "attend_plain",
                    "attend_plain($module, /, *arguments)\n--\n\nThe output, or (output, lse), of "
                    "tensors that nobody watches; None where dimensions or bias do not fit.");
}

}  // namespace vecina::python
