// SPDX-License-Identifier: MIT
// A call costs a few microseconds and the kernel of a small problem no more, so that each argument
// is looked at once here: no Python between the caller and the kernel but the framework's own
// allocation. Parameters are compared by identity, which is enough for what cannot change.
#include "attend.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "contexts.h"
#include "problem.h"
#include "tensors.h"
#include "vecina/vecina.h"
#include "workspace.h"

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
  kHeadScale,
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
constexpr const char* kNames[kNumTensors] = {
    "query", "key",     "value",         "additional_keys", "additional_values",
    "bias",  "lengths", "query_lengths", "head_scale"};
constexpr int kNumParameters = kNumArguments - kRank;
using Arguments = PyObject* const*;

// What a held call consists of, in its order, for whoever times it.
enum Part {
  kWatchers,
  kAutocast,
  kGradients,
  kRead,
  kFind,
  kAllocate,
  kReadOutputs,
  kRun,
  kReturn,
  kClock,  // of the clock itself, which is in each of the others
  kNumParts
};
constexpr const char* kPartNames[kClock] = {"who watches",
                                            "autocast",
                                            "who needs gradients",
                                            "read the tensors",
                                            "find the plan",
                                            "allocate the outputs",
                                            "read the outputs",
                                            "library and kernel, without the GIL",
                                            "return"};

struct Untimed {
  void end(Part) {}
};

// The time since the end of the last part goes to the part that ends.
class Timed {
 public:
  void end(Part part) {
    const Clock::time_point now = Clock::now();
    total_[part] += now - last_;
    ++count_[part];
    last_ = now;
  }
  void start() { last_ = Clock::now(); }
  // In all, without the clock's own time.
  double nanoseconds(Part part) const {
    const auto of = [this](Part p) {
      return std::chrono::duration<double, std::nano>(total_[p]).count();
    };
    return of(part) - of(kClock) / std::max(count_[kClock], 1) * count_[part];
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
  std::array<Clock::duration, kNumParts> total_ = {};
  std::array<int, kNumParts> count_ = {};
};

// A function without arguments. A builtin one is called without the interpreter's detours.
class Question {
 public:
  explicit Question(nb::object function) : function_(std::move(function)) {
    PyObject* object = function_.ptr();
    if (!PyCFunction_CheckExact(object) || PyCFunction_GetFlags(object) != METH_NOARGS) return;
    direct_ = PyCFunction_GetFunction(object);
    self_ = PyCFunction_GetSelf(object);
  }
  bool is_true() const {
    PyObject* result =
        direct_ != nullptr ? direct_(self_, nullptr) : PyObject_CallNoArgs(function_.ptr());
    if (result == nullptr) throw nb::python_error();
    const bool value = result != Py_False && PyObject_IsTrue(result) == 1;
    Py_DECREF(result);
    return value;
  }

 private:
  nb::object function_;
  PyCFunction direct_ = nullptr;
  PyObject* self_ = nullptr;
};

// An integer that a module keeps, -1 as long as nobody has entered a level.
class Level {
 public:
  Level(nb::dict variables, nb::str name)
      : variables_(std::move(variables)), name_(std::move(name)) {}
  bool is_entered() const {
    PyObject* level = PyDict_GetItemWithError(variables_.ptr(), name_.ptr());  // borrowed
    if (level == nullptr) {
      if (PyErr_Occurred()) throw nb::python_error();
      return false;
    }
    if (level == none_.ptr()) return false;
    const long value = PyLong_AsLong(level);
    if (value == -1 && PyErr_Occurred()) throw nb::python_error();
    return value >= 0;
  }

 private:
  nb::dict variables_;
  nb::str name_;
  nb::int_ none_{-1};  // Python keeps one object for it
};

// An attribute that the type computes; looked up once.
class Attribute {
 public:
  Attribute(nb::handle type, const char* name)
      : type_(nb::borrow(type)), descriptor_(type.attr(name)) {
    get_ =
        reinterpret_cast<descrgetfunc>(PyType_GetSlot(Py_TYPE(descriptor_.ptr()), Py_tp_descr_get));
    if (get_ == nullptr) throw nb::type_error("the attribute is no property.");
  }
  // Of an object of the type, or of one that inherits the attribute.
  PyObject* of(PyObject* object) const { return get_(descriptor_.ptr(), object, type_.ptr()); }

 private:
  nb::object type_, descriptor_;
  descrgetfunc get_;
};

// A method without arguments, of any tensor; from one tensor's.
class Method {
 public:
  explicit Method(nb::object bound) : name_(bound.attr("__name__")) {
    PyObject* object = bound.ptr();
    if (!PyCFunction_CheckExact(object) || PyCFunction_GetFlags(object) != METH_NOARGS) return;
    direct_ = PyCFunction_GetFunction(object);
  }
  bool is_true(PyObject* tensor) const {
    PyObject* result = direct_ != nullptr
                           ? direct_(tensor, nullptr)
                           : PyObject_CallMethodObjArgs(tensor, name_.ptr(), nullptr);
    if (result == nullptr) throw nb::python_error();
    const bool value = result == Py_True;
    Py_DECREF(result);
    return value;
  }

 private:
  nb::object name_;
  PyCFunction direct_ = nullptr;
};

// What is asked of the framework. Never freed: the interpreter may be gone before statics are.
struct Framework {
  std::vector<nb::object> tensor_types;  // exact types that nobody overrides
  std::vector<Question> watchers;        // a true one: somebody watches
  Level forward_mode;                    // entered: tensors may have tangents, which ops ask for
  Question is_autocasting;
  Question is_grad_enabled;
  Attribute requires_grad;
  Method is_negative;        // its memory holds the numbers with the other sign
  nb::object empty_like;     // makes an output from a prototype
  nb::object new_prototype;  // (value, shape, is_lse) -> a tensor like the output, without memory
  nb::object new_memory;     // (query, bytes) -> a tensor of so many bytes, or a few more
};
Framework* framework = nullptr;

std::vector<nb::object> items_of(nb::tuple tuple) {
  std::vector<nb::object> items;
  for (nb::handle item : tuple) items.push_back(nb::borrow(item));
  return items;
}

bool is_known_type(PyObject* object) {
  const nb::handle type(reinterpret_cast<PyObject*>(Py_TYPE(object)));
  return std::any_of(framework->tensor_types.begin(), framework->tensor_types.end(),
                     [type](const nb::object& known) { return known.is(type); });
}

// True if a mode, a transform or a subclass wants to see an op.
bool is_watched(Arguments arguments, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (arguments[i] != Py_None && !is_known_type(arguments[i])) return true;
  }
  return std::any_of(framework->watchers.begin(), framework->watchers.end(),
                     [](const Question& watcher) { return watcher.is_true(); });
}

// True if what lies in the memory of a tensor has the other sign, which the dispatcher mends.
bool is_any_negative(Arguments arguments, size_t count) {
  return std::any_of(arguments, arguments + count, [](PyObject* tensor) {
    return tensor != Py_None && framework->is_negative.is_true(tensor);
  });
}

// Of tensors of known types.
bool needs_gradient(Arguments arguments) {
  if (!framework->is_grad_enabled.is_true()) return false;
  for (int i = 0; i < kNumTensors; ++i) {
    if (arguments[i] == Py_None) continue;
    PyObject* value = framework->requires_grad.of(arguments[i]);
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

// False for what lies as imaginary parts cannot, which is where PyTorch's tensors of the other sign
// come from. To ask each tensor would cost a held call a tenth of its time.
bool may_be_negative(const vecina_tensor& tensor) {
  if (tensor.ndim == 0 || tensor.shape[tensor.ndim - 1] != 1) return false;
  for (int d = 0; d < tensor.ndim; ++d) {
    if (tensor.shape[d] > 1 && tensor.strides[d] % 2 != 0) return false;
  }
  return true;
}

// A call that was seen before, ready to run.
struct Held {
  uint64_t hash = 0;  // of the last call that came here
  std::shared_ptr<vecina_plan> plan;
  std::array<PyObject*, kNumParameters> parameters = {};  // owned
  vecina_forward_args inputs = {};  // compared with those of a call; without outputs
  PyObject* output = nullptr;       // prototypes, owned
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

// In the order of Argument.
constexpr std::array<vecina_tensor vecina_forward_args::*, kNumTensors> kInputs = {
    &vecina_forward_args::query,
    &vecina_forward_args::key,
    &vecina_forward_args::value,
    &vecina_forward_args::additional_key,
    &vecina_forward_args::additional_value,
    &vecina_forward_args::bias,
    &vecina_forward_args::lengths,
    &vecina_forward_args::query_lengths,
    &vecina_forward_args::head_scale};

uint64_t hash_of(Arguments arguments, const vecina_forward_args& args) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&hash](uint64_t word) { hash = (hash ^ word) * 0x100000001b3u; };
  for (int i = kRank; i < kNumArguments; ++i) add(reinterpret_cast<uintptr_t>(arguments[i]));
  for (const vecina_tensor* tensor : {&args.query, &args.key, &args.value, &args.additional_key}) {
    for (int d = 0; d < tensor->ndim; ++d) add(static_cast<uint64_t>(tensor->shape[d]));
  }
  uint64_t given = 0;
  for (const auto input : kInputs) given = given * 2 + ((args.*input).ndim != 0 ? 1 : 0);
  add(given * 256 + static_cast<uint64_t>(args.query.dtype * 16 + args.query.device));
  return hash ^ (hash >> 32);
}

bool is_of(const Held& entry, Arguments arguments, const vecina_forward_args& args) {
  return entry.plan != nullptr &&
         std::equal(entry.parameters.begin(), entry.parameters.end(), arguments + kRank) &&
         std::all_of(kInputs.begin(), kInputs.end(),
                     [&](auto input) { return is_alike(entry.inputs.*input, args.*input); });
}

nb::object empty_like(PyObject* prototype) {
  PyObject* made = PyObject_Vectorcall(framework->empty_like.ptr(), &prototype, 1, nullptr);
  if (made == nullptr) throw nb::python_error();
  return nb::steal(made);
}

nb::object result_of(nb::object output, nb::object lse) {
  return lse.is_valid() ? nb::object(nb::make_tuple(output, lse)) : output;
}

template <typename Watch>
nb::object run_held(const Held& entry, vecina_forward_args* args, Tensors* tensors, Watch* watch) {
  const std::shared_ptr<vecina_plan> plan = entry.plan;  // without the GIL the entry may go
  nb::object output = empty_like(entry.output), lse;
  if (entry.lse != nullptr) lse = empty_like(entry.lse);
  watch->end(kAllocate);
  args->output = tensors->read("output", output, true);
  if (lse.is_valid()) args->lse = tensors->read("lse", lse, true);
  watch->end(kReadOutputs);
  vecina_status status = VECINA_OK;
  {
    const nb::gil_scoped_release released;
    status = vecina_run_forward(plan.get(), args, tensors->queue());
  }
  watch->end(kRun);
  throw_if_failed(status);
  return result_of(std::move(output), std::move(lse));
}

// Tokens of query, every output_stride-th, heads, head_dim of value.
nb::object prototype_of(Arguments arguments, const vecina_problem& problem,
                        const vecina_tensor& query, bool is_lse) {
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
  PyObject* made = PyObject_CallFunctionObjArgs(framework->new_prototype.ptr(), arguments[kValue],
                                                shape.ptr(), is_lse ? Py_True : Py_False, nullptr);
  if (made == nullptr) throw nb::python_error();
  return nb::steal(made);
}

void hold(Held* entry, Arguments arguments, vecina_context* context, const vecina_problem& problem,
          const vecina_forward_args& args, nb::object output, nb::object lse) {
  vecina_plan* made = nullptr;
  if (vecina_plan_forward(context, &problem, &args, &made) != VECINA_OK) return;
  const std::shared_ptr<vecina_plan> plan(made, vecina_plan_destroy);
  if (vecina_plan_workspace_bytes(made) != 0) return;
  release(entry);
  for (int i = 0; i < kNumParameters; ++i) {
    entry->parameters[static_cast<size_t>(i)] = nb::handle(arguments[kRank + i]).inc_ref().ptr();
  }
  entry->inputs = args;
  entry->output = output.release().ptr();
  entry->lse = lse.is_valid() ? lse.release().ptr() : nullptr;
  entry->plan = plan;
}

nb::object run_new(Held* entry, uint64_t hash, Arguments arguments, vecina_forward_args* args,
                   Tensors* tensors) {
  const auto parameter = [&](Argument i) { return nb::handle(arguments[i]); };
  const vecina_tensor& query = args->query;
  const int dimensions = query.ndim;
  const int rank = arguments[kRank] == Py_None ? dimensions - 3
                                               : static_cast<int>(PyLong_AsLong(arguments[kRank]));
  const bool is_packed = arguments[kExtents] != Py_None;
  if (rank < 0 || rank > 3 || (rank > 0 && !is_packed && dimensions != rank + 3)) {
    return nb::none();
  }
  if (is_any_negative(arguments, kNumTensors)) return nb::none();
  Inputs inputs = {
      args->query, args->key,     args->value,        args->additional_key, args->additional_value,
      args->bias,  args->lengths, args->query_lengths};
  const vecina_problem problem = make_problem(
      {rank, parameter(kKernelSize), parameter(kStride), parameter(kDilation), parameter(kIsCausal),
       parameter(kScale), parameter(kOutputStride), parameter(kExtents), parameter(kQueryExtent)},
      &inputs);
  args->lengths = inputs.lengths;  // with the dimensions that the library wants
  args->query_lengths = inputs.query_lengths;
  nb::object prototype = prototype_of(arguments, problem, query, false), lse_prototype, lse;
  nb::object output = empty_like(prototype.ptr());
  args->output = tensors->read("output", output, true);
  if (PyObject_IsTrue(arguments[kReturnLse]) == 1) {
    lse_prototype = prototype_of(arguments, problem, query, true);
    lse = empty_like(lse_prototype.ptr());
    args->lse = tensors->read("lse", lse, true);
  }
  const ContextPtr context = context_for(parameter(kBackend), query.device);
  const auto allocate = [&](size_t bytes) {
    return framework->new_memory(nb::handle(arguments[kQuery]), bytes);
  };
  const nb::object workspace = give_workspace(context.get(), problem, allocate, tensors, args);
  vecina_status status = VECINA_OK;
  {
    const nb::gil_scoped_release released;
    status = vecina_forward(context.get(), &problem, args, tensors->queue());
  }
  throw_if_failed(status);
  // From the second time on, so that shapes that never come again are planned once.
  const bool is_second = entry->hash == hash;
  entry->hash = hash;
  if (is_second && problem.lengths == VECINA_LENGTHS_EQUAL && !is_empty(args->output) &&
      std::all_of(arguments + kRank, arguments + kNumArguments, is_immutable)) {
    hold(entry, arguments, context.get(), problem, *args, prototype, lse_prototype);
  }
  return result_of(std::move(output), std::move(lse));
}

template <typename Watch>
nb::object attend_plain(Arguments arguments, Watch* watch) {
  Tensors tensors;
  vecina_forward_args args = {};
  args.struct_size = sizeof(args);
  for (size_t i = 0; i < kNumTensors; ++i) {
    if (arguments[i] != Py_None) args.*kInputs[i] = tensors.read(kNames[i], arguments[i]);
  }
  const int32_t bias_dtype = args.value.dtype == VECINA_F64 ? VECINA_F64 : VECINA_F32;
  if (arguments[kBias] != Py_None && args.bias.dtype != bias_dtype) return nb::none();
  watch->end(kRead);
  const uint64_t hash = hash_of(arguments, args);
  Held& entry = held[hash % kNumHeld];
  const bool is_held = is_of(entry, arguments, args);
  watch->end(kFind);
  if (is_held && std::none_of(kInputs.begin(), kInputs.end(),
                              [&args](auto input) { return may_be_negative(args.*input); })) {
    return run_held(entry, &args, &tensors, watch);
  }
  return run_new(&entry, hash, arguments, &args, &tensors);
}

template <typename Watch>
nb::object attend(Arguments arguments, Watch* watch) {
  for (const Argument i : {kQuery, kKey, kValue}) {
    if (arguments[i] == Py_None) {
      throw nb::value_error((std::string(kNames[i]) + " is None; a tensor is needed.").c_str());
    }
  }
  const bool is_seen = framework->forward_mode.is_entered() || is_watched(arguments, kNumTensors);
  watch->end(kWatchers);
  if (is_seen || framework->is_autocasting.is_true()) return nb::none();
  watch->end(kAutocast);
  const bool is_derived = needs_gradient(arguments);
  watch->end(kGradients);
  if (is_derived) return nb::bool_(false);
  return attend_plain(arguments, watch);
}

nb::object run_attend(Arguments arguments) {
  Untimed untimed;
  return attend(arguments, &untimed);
}
nb::object run_attend_plain(Arguments arguments) {
  Untimed untimed;
  return attend_plain(arguments, &untimed);
}

// Of the calls of timed_attend() and timed_attend_plain() since take_times(); under the GIL.
Timed timed;

template <nb::object (*run)(Arguments, Timed*)>
nb::object run_timed(Arguments arguments) {
  timed.start();
  nb::object result = run(arguments, &timed);
  timed.end(kReturn);
  timed.end(kClock);
  return result;
}

// The nanoseconds of each part, by name.
nb::dict take_times() {
  nb::dict parts;
  for (int part = 0; part < kClock; ++part) {
    parts[kPartNames[part]] = timed.nanoseconds(static_cast<Part>(part));
  }
  timed = Timed();
  return parts;
}

// What the call of a function with so many arguments costs: it does nothing.
nb::object run_nothing(Arguments arguments) { return nb::borrow(arguments[kQuery]); }

// The mean nanoseconds in which a tensor like this one ends.
double time_release(nb::handle tensor, int calls) {
  if (framework == nullptr || calls < 1) throw nb::type_error("calls, and a tensor, are needed.");
  timed = Timed();
  for (int i = 0; i < calls; ++i) {
    nb::object made = empty_like(tensor.ptr());
    timed.start();
    made.reset();
    timed.end(kReturn);
    timed.end(kClock);
  }
  const double spent = timed.nanoseconds(kReturn);
  timed = Timed();
  return spent / calls;
}

// nanobind reads arguments by name and turns exceptions over; here there are 20 of them by place.
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
      [](nb::tuple tensor_types, nb::tuple watchers, nb::tuple forward_mode,
         nb::object is_autocasting, nb::object is_grad_enabled, nb::object empty_like,
         nb::object new_prototype, nb::object new_memory, nb::object is_negative) {
        std::vector<Question> questions;
        for (nb::handle watcher : watchers) questions.emplace_back(nb::borrow(watcher));
        auto* made = new Framework{
            items_of(tensor_types),
            std::move(questions),
            Level(nb::cast<nb::dict>(forward_mode[0]), nb::cast<nb::str>(forward_mode[1])),
            Question(is_autocasting),
            Question(is_grad_enabled),
            Attribute(tensor_types[0], "requires_grad"),
            Method(is_negative),
            empty_like,
            new_prototype,
            new_memory};
        forget_held_plans();
        delete framework;
        framework = made;
      },
      nb::arg("tensor_types"), nb::arg("watchers"), nb::arg("forward_mode"),
      nb::arg("is_autocasting"), nb::arg("is_grad_enabled"), nb::arg("empty_like"),
      nb::arg("new_prototype"), nb::arg("new_memory"), nb::arg("is_negative"),
      "What attend() asks of the framework.");
  module->def("take_times", &take_times,
              "Nanoseconds of each part of timed_attend() since the last time, by name.");
  module->def("time_release", &time_release, nb::arg("tensor"), nb::arg("calls"),
              "Mean nanoseconds in which a tensor like this one ends.");
  module->def(
      "is_watched",
      [](nb::args tensors) {
        std::array<PyObject*, kNumTensors> list;
        if (framework == nullptr || tensors.size() > list.size())
          throw nb::type_error("9 tensors.");
        for (size_t i = 0; i < tensors.size(); ++i) list[i] = tensors[i].ptr();
        return is_watched(list.data(), tensors.size()) ||
               is_any_negative(list.data(), tensors.size());
      },
      "True if a mode, a transform or a subclass wants to see an op, or a tensor needs one, "
      "because its memory holds the numbers with the other sign.");
  add<run_attend>(module, "attend",
                  "attend($module, /, *arguments)\n--\n\nThe output, or (output, lse); None where "
                  "somebody watches, False where gradients are needed.");
  add<run_attend_plain>(
      module, "attend_plain",
      "attend_plain($module, /, *arguments)\n--\n\nThe output, or (output, lse), of "
      "tensors that nobody watches; None where query has another rank, the bias another dtype "
      "or a tensor's memory the other sign.");
  add<run_timed<attend<Timed>>>(module, "timed_attend", "attend(), for take_times().");
  add<run_timed<attend_plain<Timed>>>(module, "timed_attend_plain",
                                      "attend_plain(), for take_times().");
  add<run_nothing>(module, "attend_nothing", "The first of as many arguments as attend() has.");
}

}  // namespace vecina::python
