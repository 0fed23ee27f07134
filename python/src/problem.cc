// SPDX-License-Identifier: MIT
#include "problem.h"

#include <limits>
#include <string>

namespace vecina::python {
namespace {

[[noreturn]] void refuse(const std::string& sentence) { throw nb::value_error(sentence.c_str()); }

std::string shown(nb::handle object) { return nb::repr(object).c_str(); }

// False if it is no integer. True and False are none.
bool read_integer(nb::handle object, int64_t* value) {
  if (PyBool_Check(object.ptr()) || !PyIndex_Check(object.ptr())) return false;
  nb::object index;
  if (!PyLong_Check(object.ptr())) {
    index = nb::steal(PyNumber_Index(object.ptr()));
    object = index;
    if (!object.is_valid()) {  // as of an array of more than one
      PyErr_Clear();
      return false;
    }
  }
  *value = PyLong_AsLongLong(object.ptr());
  if (*value == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    return false;
  }
  return true;
}

bool read_flag(nb::handle object, int64_t* value) {
  if (!PyBool_Check(object.ptr())) return false;
  *value = object.ptr() == Py_True;
  return true;
}

// One value for all axes, or one for each.
template <typename Integer, typename Read>
void read_axes(const char* name, const char* kind, nb::handle object, int rank, Integer* values,
               Read read) {
  int64_t value = 0;
  if (read(object, &value)) {
    for (int a = 0; a < rank; ++a) values[a] = static_cast<Integer>(value);
    return;
  }
  const bool is_sequence = PySequence_Check(object.ptr()) && !PyUnicode_Check(object.ptr());
  if (!is_sequence || nb::len(object) != static_cast<size_t>(rank)) {
    refuse(std::string(name) + " is " + shown(object) + "; one " + kind + " or a sequence of " +
           std::to_string(rank) + " is needed, one for each axis.");
  }
  for (int a = 0; a < rank; ++a) {
    const nb::object item = nb::steal(PySequence_GetItem(object.ptr(), a));
    if (!item.is_valid()) throw nb::python_error();
    if (!read(item, &value)) {
      refuse(std::string(name) + " is " + shown(object) + ", which holds " + shown(item) +
             " where one " + kind + " is needed.");
    }
    values[a] = static_cast<Integer>(value);
  }
}

void check_dimensions(const char* name, const vecina_tensor& tensor, int rank) {
  static constexpr const char* kTokens[] = {"tokens", "length", "height, width",
                                            "depth, height, width"};
  if (tensor.ndim == 0 && tensor.dtype == 0)
    refuse(std::string(name) + " is None; a tensor is needed.");
  if (tensor.ndim != (rank == 0 ? 4 : rank + 3)) {
    refuse(std::string(name) + " has " + std::to_string(tensor.ndim) + " dimensions; " +
           (rank == 0 ? "attention" : std::to_string(rank) + "-D neighborhood attention") +
           " takes [batch, " + kTokens[rank] + ", heads, head_dim].");
  }
}

// In the library an extent of 0 is a default, or said of no tensor.
void check_tokens(const char* name, const vecina_tensor& tensor, int rank) {
  for (int a = 0; a < rank; ++a) {
    if (tensor.shape[1 + a] == 0) {
      refuse(std::string(name) + " has no tokens along axis " + std::to_string(a) +
             "; one or more are needed.");
    }
  }
}

int32_t narrow(const char* name, int64_t value) {
  if (value > std::numeric_limits<int32_t>::max()) {
    refuse(std::string(name) + " is " + std::to_string(value) + "; at most 2^31 - 1.");
  }
  return static_cast<int32_t>(value);
}

void read_scale(nb::handle scale, vecina_problem* problem) {
  if (scale.is_none()) return;
  problem->has_scale = 1;
  problem->scale = PyFloat_AsDouble(scale.ptr());
  if (problem->scale == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    refuse("scale is " + shown(scale) + "; a number or None is needed.");
  }
}

void read_lengths(const Parameters& parameters, Inputs* inputs, vecina_problem* problem) {
  for (vecina_tensor* lengths : {&inputs->lengths, &inputs->query_lengths}) {
    if (lengths->ndim != 1 || problem->rank != 1) continue;
    lengths->ndim = 2;
    lengths->shape[1] = lengths->strides[1] = 1;
  }
  if (inputs->lengths.ndim == 0) {
    if (inputs->query_lengths.ndim != 0 || !parameters.extents.is_none()) {
      refuse("lengths is None, but query_lengths or the largest extents are given.");
    }
    return;
  }
  if (parameters.extents.is_none()) {
    problem->lengths = VECINA_LENGTHS_PADDED;
    return;
  }
  problem->lengths = VECINA_LENGTHS_PACKED;
  problem->samples = narrow("lengths.shape[0]", inputs->lengths.shape[0]);
  read_axes("the largest extent", "integer", parameters.extents, problem->rank, problem->extent,
            read_integer);
  if (!parameters.query_extent.is_none()) {
    read_axes("the largest query extent", "integer", parameters.query_extent, problem->rank,
              problem->query_extent, read_integer);
  }
}

}  // namespace

vecina_problem make_problem(const Parameters& parameters, Inputs* inputs) {
  const vecina_tensor &query = inputs->query, &key = inputs->key, &value = inputs->value;
  const bool is_attention = parameters.rank == 0;
  const int rank = is_attention ? 1 : parameters.rank;
  const bool is_packed = !parameters.extents.is_none();
  check_dimensions("query", query, is_packed && rank > 1 ? 1 : parameters.rank);
  check_dimensions("key", key, is_packed && rank > 1 ? 1 : parameters.rank);
  check_dimensions("value", value, is_packed && rank > 1 ? 1 : parameters.rank);
  if ((inputs->additional_key.ndim == 0) != (inputs->additional_value.ndim == 0)) {
    refuse("additional_keys and additional_values belong together; only one of them is given.");
  }

  vecina_problem problem;
  vecina_problem_init(&problem, sizeof(problem), rank);
  const int heads = query.ndim - 2;
  problem.kind = is_attention ? VECINA_ATTENTION : VECINA_NEIGHBORHOOD;
  const bool has_e4m3 = query.dtype == VECINA_E4M3;
  problem.dtype = has_e4m3 ? value.dtype : query.dtype;
  problem.query_key_dtype = has_e4m3 ? VECINA_E4M3 : 0;
  problem.batch = query.shape[0];
  problem.heads = narrow("heads", query.shape[heads]);
  problem.heads_kv = narrow("heads_kv", key.shape[heads]);
  problem.head_dim = narrow("head_dim", query.shape[heads + 1]);
  problem.head_dim_value = narrow("head_dim of value", value.shape[heads + 1]);
  if (problem.heads_kv == 0 || problem.head_dim_value == 0) {  // in the library 0 is a default
    refuse("key and value need one head or more, and a head_dim of 1 or more.");
  }
  if (!is_packed) {
    check_tokens("query", query, rank);
    check_tokens("key", key, rank);
  }
  for (int a = 0; a < rank && !is_packed; ++a) {
    problem.extent[a] = key.shape[1 + a];
    problem.query_extent[a] = query.shape[1 + a];
  }
  if (!is_attention && !is_packed) {  // said of the tensors, since extent comes from one of them
    for (int a = 0; a < rank; ++a) {
      if (problem.extent[a] != problem.query_extent[a]) {
        refuse("query has " + std::to_string(problem.query_extent[a]) + " tokens along axis " +
               std::to_string(a) + ", key has " + std::to_string(problem.extent[a]) +
               ". In neighborhood attention they must be equal; attention() takes others.");
      }
      problem.query_extent[a] = 0;
    }
  }
  if (!is_attention) {
    read_axes("kernel_size", "integer", parameters.kernel_size, rank, problem.kernel_size,
              read_integer);
    read_axes("stride", "integer", parameters.stride, rank, problem.stride, read_integer);
    read_axes("dilation", "integer", parameters.dilation, rank, problem.dilation, read_integer);
    read_axes("output_stride", "integer", parameters.output_stride, rank, problem.output_stride,
              read_integer);
  }
  read_axes("is_causal", "bool", parameters.is_causal, rank, problem.is_causal, read_flag);
  read_scale(parameters.scale, &problem);
  problem.additional_tokens =
      inputs->additional_key.ndim == 4 ? inputs->additional_key.shape[1] : 0;
  if (inputs->additional_key.ndim != 0 && inputs->additional_key.ndim != 4) {
    refuse("additional_keys has " + std::to_string(inputs->additional_key.ndim) +
           " dimensions; [batch, additional tokens, heads_kv, head_dim].");
  }
  problem.has_bias = inputs->bias.ndim != 0;
  read_lengths(parameters, inputs, &problem);
  return problem;
}

}  // namespace vecina::python
