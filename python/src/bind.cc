// SPDX-License-Identifier: MIT
// The extension module vecina._vecina: the calls of vecina.h for Python objects.
//
// forward() and backward() are the hot entries: every argument is positional and read as it is, the
// library's own held plan is found by the tensors' shapes, strides, dtypes, devices and alignment,
// and the GIL is free while it runs. No framework is imported or linked.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "attend.h"
#include "contexts.h"
#include "problem.h"
#include "split.h"
#include "tensors.h"
#include "vecina/vecina.h"
#include "workspace.h"

namespace vecina::python {
namespace {

using namespace nb::literals;  // NOLINT: the names of arguments

// vecina.h's functions that write text: asked twice if the first room was too small.
template <typename Write>
std::string text_of(Write write) {
  std::string text(1024, '\0');
  const size_t needed = write(text.data(), text.size());
  text.resize(needed);
  if (needed >= 1024) write(text.data(), needed + 1);
  return text;
}

Inputs read_inputs(Tensors* tensors, nb::handle query, nb::handle key, nb::handle value,
                   nb::handle additional_keys, nb::handle additional_values, nb::handle bias,
                   nb::handle lengths, nb::handle query_lengths) {
  return {tensors->read("query", query),
          tensors->read("key", key),
          tensors->read("value", value),
          tensors->read("additional_keys", additional_keys),
          tensors->read("additional_values", additional_values),
          tensors->read("bias", bias),
          tensors->read("lengths", lengths),
          tensors->read("query_lengths", query_lengths)};
}

template <typename Args>
Args make_args(const Inputs& inputs) {
  Args args = {};
  args.struct_size = sizeof(args);
  args.query = inputs.query;
  args.key = inputs.key;
  args.value = inputs.value;
  args.additional_key = inputs.additional_key;
  args.additional_value = inputs.additional_value;
  args.bias = inputs.bias;
  args.lengths = inputs.lengths;
  args.query_lengths = inputs.query_lengths;
  return args;
}

void forward(nb::handle query, nb::handle key, nb::handle value, nb::handle additional_keys,
             nb::handle additional_values, nb::handle bias, nb::handle lengths,
             nb::handle query_lengths, nb::handle head_scale, nb::handle output, nb::handle lse,
             int rank, nb::handle kernel_size, nb::handle stride, nb::handle dilation,
             nb::handle is_causal, nb::handle scale, nb::handle output_stride, nb::handle extents,
             nb::handle query_extent, nb::handle backend) {
  Tensors tensors;
  Inputs inputs = read_inputs(&tensors, query, key, value, additional_keys, additional_values, bias,
                              lengths, query_lengths);
  const vecina_problem problem = make_problem(
      {rank, kernel_size, stride, dilation, is_causal, scale, output_stride, extents, query_extent},
      &inputs);
  auto args = make_args<vecina_forward_args>(inputs);
  args.head_scale = tensors.read("head_scale", head_scale);
  args.output = tensors.read("output", output, true);
  args.lse = tensors.read("lse", lse, true);
  const ContextPtr context = context_for(backend, inputs.query.device);
  vecina_status status = VECINA_OK;
  {
    const nb::gil_scoped_release released;
    status = vecina_forward(context.get(), &problem, &args, tensors.queue());
  }
  throw_if_failed(status);
}

void backward(nb::handle query, nb::handle key, nb::handle value, nb::handle additional_keys,
              nb::handle additional_values, nb::handle bias, nb::handle lengths,
              nb::handle query_lengths, nb::handle output, nb::handle lse, nb::handle grad_output,
              nb::handle grad_lse, nb::handle grad_query, nb::handle grad_key,
              nb::handle grad_value, nb::handle grad_additional_keys,
              nb::handle grad_additional_values, nb::handle grad_bias, int rank,
              nb::handle kernel_size, nb::handle stride, nb::handle dilation, nb::handle is_causal,
              nb::handle scale, nb::handle output_stride, nb::handle extents,
              nb::handle query_extent, nb::handle backend, nb::handle allocate,
              bool may_be_nondeterministic) {
  Tensors tensors;
  Inputs inputs = read_inputs(&tensors, query, key, value, additional_keys, additional_values, bias,
                              lengths, query_lengths);
  vecina_problem problem = make_problem(
      {rank, kernel_size, stride, dilation, is_causal, scale, output_stride, extents, query_extent},
      &inputs);
  if (may_be_nondeterministic) problem.flags |= VECINA_NONDETERMINISTIC_BACKWARD;
  auto args = make_args<vecina_backward_args>(inputs);
  args.output = tensors.read("output", output);
  args.lse = tensors.read("lse", lse);
  args.grad_output = tensors.read("grad_output", grad_output);
  args.grad_lse = tensors.read("grad_lse", grad_lse);
  args.grad_query = tensors.read("grad_query", grad_query, true);
  args.grad_key = tensors.read("grad_key", grad_key, true);
  args.grad_value = tensors.read("grad_value", grad_value, true);
  args.grad_additional_key = tensors.read("grad_additional_keys", grad_additional_keys, true);
  args.grad_additional_value = tensors.read("grad_additional_values", grad_additional_values, true);
  args.grad_bias = tensors.read("grad_bias", grad_bias, true);
  const ContextPtr context = context_for(backend, inputs.query.device);
  nb::object workspace;
  if (!allocate.is_none()) {
    workspace = give_workspace(context.get(), problem, allocate, &tensors, &args);
  }
  vecina_status status = VECINA_OK;
  {
    const nb::gil_scoped_release released;
    status = vecina_backward(context.get(), &problem, &args, tensors.queue());
  }
  throw_if_failed(status);
}

std::vector<vecina_tensor> read_list(Tensors* tensors, const char* name, nb::sequence list,
                                     bool is_written = false) {
  std::vector<vecina_tensor> read;
  for (nb::handle object : list) read.push_back(tensors->read(name, object, is_written));
  return read;
}

void check_counts(size_t outputs, size_t lses) {
  if (outputs >= 2 && outputs == lses) return;
  throw nb::value_error(("merge takes two or more outputs and as many lses, not " +
                         std::to_string(outputs) + " and " + std::to_string(lses) + ".")
                            .c_str());
}

void merge(nb::sequence outputs, nb::sequence lses, nb::handle output, nb::handle lse,
           nb::handle backend) {
  Tensors tensors;
  check_counts(nb::len(outputs), nb::len(lses));
  const auto given_outputs = read_list(&tensors, "outputs", outputs);
  const auto given_lses = read_list(&tensors, "lses", lses);
  const vecina_tensor merged = tensors.read("output", output, true);
  const vecina_tensor merged_lse = tensors.read("lse", lse, true);
  const ContextPtr context = context_for(backend, given_outputs[0].device);
  vecina_status status = VECINA_OK;
  {
    const nb::gil_scoped_release released;
    status = vecina_merge_attentions(context.get(), static_cast<int32_t>(given_outputs.size()),
                                     given_outputs.data(), given_lses.data(), &merged, &merged_lse,
                                     tensors.queue());
  }
  throw_if_failed(status);
}

void merge_backward(nb::sequence outputs, nb::sequence lses, nb::handle grad_output,
                    nb::handle grad_lse, nb::sequence grad_outputs, nb::sequence grad_lses,
                    nb::handle backend) {
  Tensors tensors;
  check_counts(nb::len(outputs), nb::len(lses));
  check_counts(nb::len(grad_outputs), nb::len(outputs));
  check_counts(nb::len(grad_lses), nb::len(outputs));
  const auto given_outputs = read_list(&tensors, "outputs", outputs);
  const auto given_lses = read_list(&tensors, "lses", lses);
  const vecina_tensor given_grad = tensors.read("grad_output", grad_output);
  const vecina_tensor given_grad_lse = tensors.read("grad_lse", grad_lse);
  const auto wanted_outputs = read_list(&tensors, "grad_outputs", grad_outputs, true);
  const auto wanted_lses = read_list(&tensors, "grad_lses", grad_lses, true);
  const ContextPtr context = context_for(backend, given_outputs[0].device);
  vecina_status status = VECINA_OK;
  {
    const nb::gil_scoped_release released;
    status = vecina_merge_attentions_backward(
        context.get(), static_cast<int32_t>(given_outputs.size()), given_outputs.data(),
        given_lses.data(), &given_grad, &given_grad_lse, wanted_outputs.data(), wanted_lses.data(),
        tensors.queue());
  }
  throw_if_failed(status);
}

std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (int32_t i = 0; i < vecina_backend_count(); ++i) names.push_back(vecina_backend_name(i));
  return names;
}

vecina_problem parse(const std::string& line) {
  vecina_problem problem;
  vecina_problem_init(&problem, sizeof(problem), 1);
  throw_if_failed(vecina_problem_parse(line.c_str(), &problem));
  return problem;
}

std::string why_not(const std::string& backend, const std::string& line) {
  vecina_problem problem;
  if (!line.empty()) problem = parse(line);
  // Any context answers for every backend; the reference is always there.
  const ContextPtr context = context_for(nb::str("reference"), VECINA_CPU);
  return text_of([&](char* text, size_t size) {
    return vecina_backend_why_not(context.get(), backend.c_str(), line.empty() ? nullptr : &problem,
                                  text, size);
  });
}

std::string info(nb::handle backend) {
  const ContextPtr context = context_for(backend, VECINA_CPU);
  return text_of(
      [&](char* text, size_t size) { return vecina_info(context.get(), "info", text, size); });
}

nb::tuple window(const std::string& line, int axis, int64_t index) {
  const vecina_problem problem = parse(line);
  int64_t begin = 0, step = 0, count = 0;
  throw_if_failed(vecina_window(&problem, axis, index, &begin, &step, &count));
  return nb::make_tuple(begin, step, count);
}

nb::list windows(const std::string& line, int axis) {
  const vecina_problem problem = parse(line);
  if (axis < 0 || axis >= problem.rank) throw nb::value_error("axis is not one of the problem's.");
  const int64_t queries =
      (problem.extent[axis] + problem.output_stride[axis] - 1) / problem.output_stride[axis];
  nb::list rows;
  for (int64_t index = 0; index < queries; ++index) {
    int64_t begin = 0, step = 0, count = 0;
    throw_if_failed(vecina_window(&problem, axis, index, &begin, &step, &count));
    rows.append(nb::make_tuple(begin, step, count));
  }
  return rows;
}

NB_MODULE(_vecina, m) {
  m.doc() = "The calls of the C interface for tensors of any framework; used by vecina's modules.";
  m.def("forward", &forward, "query"_a.none(), "key"_a.none(), "value"_a.none(),
        "additional_keys"_a.none(), "additional_values"_a.none(), "bias"_a.none(),
        "lengths"_a.none(), "query_lengths"_a.none(), "head_scale"_a.none(), "output"_a.none(),
        "lse"_a.none(), "rank"_a, "kernel_size"_a.none(), "stride"_a.none(), "dilation"_a.none(),
        "is_causal"_a.none(), "scale"_a.none(), "output_stride"_a.none(), "extents"_a.none(),
        "query_extent"_a.none(), "backend"_a.none());
  m.def("backward", &backward, "query"_a.none(), "key"_a.none(), "value"_a.none(),
        "additional_keys"_a.none(), "additional_values"_a.none(), "bias"_a.none(),
        "lengths"_a.none(), "query_lengths"_a.none(), "output"_a.none(), "lse"_a.none(),
        "grad_output"_a.none(), "grad_lse"_a.none(), "grad_query"_a.none(), "grad_key"_a.none(),
        "grad_value"_a.none(), "grad_additional_keys"_a.none(), "grad_additional_values"_a.none(),
        "grad_bias"_a.none(), "rank"_a, "kernel_size"_a.none(), "stride"_a.none(),
        "dilation"_a.none(), "is_causal"_a.none(), "scale"_a.none(), "output_stride"_a.none(),
        "extents"_a.none(), "query_extent"_a.none(), "backend"_a.none(),
        "allocate"_a.none() = nb::none(), "may_be_nondeterministic"_a = false);
  m.def("merge", &merge, "outputs"_a, "lses"_a, "output"_a.none(), "lse"_a.none(),
        "backend"_a.none());
  m.def("merge_backward", &merge_backward, "outputs"_a, "lses"_a, "grad_output"_a.none(),
        "grad_lse"_a.none(), "grad_outputs"_a, "grad_lses"_a, "backend"_a.none());
  bind_split(m);
  m.def("version", &vecina_version);
  m.def("backends", &backends, "Names, in order of preference.");
  m.def("why_not", &why_not, "backend"_a, "line"_a = "",
        "Why a backend cannot run a problem line (forward), or at all; empty if it can.");
  m.def("info", &info, "backend"_a.none() = nb::none(), "JSON: version, backends, machine.");
  m.def("window", &window, "line"_a, "axis"_a, "index"_a,
        "(begin, step, count) of the keys that a query sees along an axis.");
  m.def("windows", &windows, "line"_a, "axis"_a, "window() of every query of an axis, in order.");
  m.def(
      "set_num_threads",
      [](int threads) {
        set_num_threads(threads);
        forget_held_plans();
      },
      "threads"_a);
  add_attend(&m);
}

}  // namespace
}  // namespace vecina::python
