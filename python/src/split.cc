// SPDX-License-Identifier: MIT
// qk(), av() and their gradients: tensors, then one tuple of parameters.
#include "split.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "contexts.h"
#include "problem.h"
#include "tensors.h"
#include "vecina/vecina.h"

namespace vecina::python {
namespace {

using namespace nb::literals;  // NOLINT: the names of arguments

using Function = vecina_status (*)(vecina_context*, const vecina_problem*, const vecina_split_args*,
                                   void*);

void call(Function function, const vecina_problem& problem, const vecina_split_args& args,
          nb::handle backend, int32_t device, const Tensors& tensors) {
  const ContextPtr context = context_for(backend, device);
  vecina_status status = VECINA_OK;
  {
    const nb::gil_scoped_release released;
    status = function(context.get(), &problem, &args, tensors.queue());
  }
  throw_if_failed(status);
}

vecina_split_args new_args(bool right_aligned) {
  vecina_split_args args = {};
  args.struct_size = sizeof(args);
  args.right_aligned = right_aligned;
  return args;
}

vecina_problem problem_of_qk(const vecina_split_args& args, const Parameters& parameters) {
  Inputs inputs = {};
  inputs.query = args.query;
  inputs.key = inputs.value = args.key;
  inputs.additional_key = inputs.additional_value = args.additional_key;
  inputs.bias = args.bias;
  return make_problem(parameters, &inputs);
}

std::string text_of(const int64_t* sizes, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

// The library calls it weights; whoever calls av() does not.
void check_attention(const vecina_problem& problem, const vecina_tensor& attention) {
  throw_if_failed(vecina_problem_check(&problem));
  int64_t needed[6] = {problem.batch};
  int64_t slots = 1;
  for (int a = 0; a < problem.rank; ++a) {
    const int64_t step = problem.output_stride[a];
    needed[1 + a] = (problem.extent[a] + step - 1) / step;
    slots *= problem.kernel_size[a];
  }
  needed[problem.rank + 1] = problem.heads;
  needed[problem.rank + 2] = slots + problem.additional_tokens;
  if (std::equal(needed, needed + attention.ndim, attention.shape)) return;
  throw nb::value_error(("attention has shape " + text_of(attention.shape, attention.ndim) +
                         "; value and the window need " + text_of(needed, attention.ndim) + ".")
                            .c_str());
}

// There is no query: its tokens are those of value, its heads those of attention.
vecina_problem problem_of_av(const vecina_split_args& args, const Parameters& parameters) {
  if (args.weights.ndim != args.value.ndim) {
    throw nb::value_error("attention and value must have the same number of dimensions.");
  }
  Inputs inputs = {};
  inputs.key = inputs.value = inputs.query = args.value;
  inputs.additional_key = inputs.additional_value = args.additional_value;
  const int heads = std::max(args.value.ndim - 2, 0);
  inputs.query.shape[heads] = args.weights.shape[heads];
  const vecina_problem problem = make_problem(parameters, &inputs);
  check_attention(problem, args.weights);
  return problem;
}

// (rank, kernel_size, stride, dilation, is_causal, scale, output_stride, right_aligned, backend).
class SplitParameters {
 public:
  explicit SplitParameters(nb::tuple values) : values_(values) {
    if (nb::len(values) != 9) throw nb::type_error("9 parameters are needed.");
  }
  Parameters window() const {
    const nb::handle none = nb::none();
    return {nb::cast<int>(at(0)), at(1), at(2), at(3), at(4), at(5), at(6), none, none};
  }
  bool right_aligned() const { return nb::cast<bool>(at(7)); }
  nb::handle backend() const { return at(8); }

 private:
  nb::handle at(Py_ssize_t i) const { return PyTuple_GetItem(values_.ptr(), i); }
  nb::tuple values_;
};

void qk(nb::handle query, nb::handle key, nb::handle additional_keys, nb::handle bias,
        nb::handle weights, nb::tuple parameters) {
  const SplitParameters read(parameters);
  Tensors tensors;
  vecina_split_args args = new_args(read.right_aligned());
  args.query = tensors.read("query", query);
  args.key = tensors.read("key", key);
  args.additional_key = tensors.read("additional_keys", additional_keys);
  args.bias = tensors.read("bias", bias);
  args.weights = tensors.read("weights", weights, true);
  const vecina_problem problem = problem_of_qk(args, read.window());
  call(&vecina_qk, problem, args, read.backend(), args.query.device, tensors);
}

void qk_backward(nb::handle query, nb::handle key, nb::handle additional_keys, nb::handle bias,
                 nb::handle grad_weights, nb::handle grad_query, nb::handle grad_key,
                 nb::handle grad_additional_keys, nb::handle grad_bias, nb::tuple parameters) {
  const SplitParameters read(parameters);
  Tensors tensors;
  vecina_split_args args = new_args(read.right_aligned());
  args.query = tensors.read("query", query);
  args.key = tensors.read("key", key);
  args.additional_key = tensors.read("additional_keys", additional_keys);
  args.bias = tensors.read("bias", bias);
  args.grad_weights = tensors.read("grad_weights", grad_weights);
  args.grad_query = tensors.read("grad_query", grad_query, true);
  args.grad_key = tensors.read("grad_key", grad_key, true);
  args.grad_additional_key = tensors.read("grad_additional_keys", grad_additional_keys, true);
  args.grad_bias = tensors.read("grad_bias", grad_bias, true);
  const vecina_problem problem = problem_of_qk(args, read.window());
  call(&vecina_qk_backward, problem, args, read.backend(), args.query.device, tensors);
}

void av(nb::handle attention, nb::handle value, nb::handle additional_values, nb::handle output,
        nb::tuple parameters) {
  const SplitParameters read(parameters);
  Tensors tensors;
  vecina_split_args args = new_args(read.right_aligned());
  args.weights = tensors.read("attention", attention);
  args.value = tensors.read("value", value);
  args.additional_value = tensors.read("additional_values", additional_values);
  args.output = tensors.read("output", output, true);
  const vecina_problem problem = problem_of_av(args, read.window());
  call(&vecina_av, problem, args, read.backend(), args.value.device, tensors);
}

void av_backward(nb::handle attention, nb::handle value, nb::handle additional_values,
                 nb::handle grad_output, nb::handle grad_attention, nb::handle grad_value,
                 nb::handle grad_additional_values, nb::tuple parameters) {
  const SplitParameters read(parameters);
  Tensors tensors;
  vecina_split_args args = new_args(read.right_aligned());
  args.weights = tensors.read("attention", attention);
  args.value = tensors.read("value", value);
  args.additional_value = tensors.read("additional_values", additional_values);
  args.grad_output = tensors.read("grad_output", grad_output);
  args.grad_weights = tensors.read("grad_attention", grad_attention, true);
  args.grad_value = tensors.read("grad_value", grad_value, true);
  args.grad_additional_value = tensors.read("grad_additional_values", grad_additional_values, true);
  const vecina_problem problem = problem_of_av(args, read.window());
  call(&vecina_av_backward, problem, args, read.backend(), args.value.device, tensors);
}

}  // namespace

void bind_split(nb::module_& m) {
  m.def("qk", &qk, "query"_a.none(), "key"_a.none(), "additional_keys"_a.none(), "bias"_a.none(),
        "weights"_a.none(), "parameters"_a);
  m.def("qk_backward", &qk_backward, "query"_a.none(), "key"_a.none(), "additional_keys"_a.none(),
        "bias"_a.none(), "grad_weights"_a.none(), "grad_query"_a.none(), "grad_key"_a.none(),
        "grad_additional_keys"_a.none(), "grad_bias"_a.none(), "parameters"_a);
  m.def("av", &av, "attention"_a.none(), "value"_a.none(), "additional_values"_a.none(),
        "output"_a.none(), "parameters"_a);
  m.def("av_backward", &av_backward, "attention"_a.none(), "value"_a.none(),
        "additional_values"_a.none(), "grad_output"_a.none(), "grad_attention"_a.none(),
        "grad_value"_a.none(), "grad_additional_values"_a.none(), "parameters"_a);
}

}  // namespace vecina::python
