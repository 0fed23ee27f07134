// SPDX-License-Identifier: MIT
#include "cli/split.h"

#include <cmath>
#include <limits>
#include <vector>

#include "cli/errors.h"

namespace vecina::cli {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

int64_t num_slots(const vecina_problem& problem) {
  int64_t slots = 1;
  for (int a = 0; a < problem.rank; ++a) {
    slots *= problem.kind == VECINA_ATTENTION ? problem.extent[a] : problem.kernel_size[a];
  }
  return slots + problem.additional_tokens;
}

vecina_split_args split_args(const Inputs& inputs, bool right_aligned) {
  vecina_split_args args = {};
  args.struct_size = sizeof(args);
  args.query = inputs.query.view();
  args.key = inputs.key.view();
  args.value = inputs.value.view();
  args.additional_key = inputs.additional_key.view();
  args.additional_value = inputs.additional_value.view();
  args.bias = inputs.bias.view();
  args.grad_output = inputs.grad_output.view();
  args.right_aligned = right_aligned;
  return args;
}

}  // namespace

HostTensor make_weights(const vecina_problem& problem, Placement placement) {
  std::vector<int64_t> shape = make_outputs(problem).lse.shape();
  shape.push_back(num_slots(problem));
  HostTensor weights(shape, problem.dtype, placement);
  weights.fill(kNan);
  return weights;
}

SplitInputs random_split_inputs(const HostTensor& logits, bool right_aligned, uint64_t seed,
                                Placement placement) {
  Random random(seed + 2);
  const auto draw = [&] {
    HostTensor tensor(logits.shape(), logits.dtype(), placement);
    for (int64_t i = 0; i < tensor.size(); ++i) {
      tensor.set(i, std::isinf(logits.get(i)) ? kNan : random.normal());
    }
    return tensor;
  };
  SplitInputs inputs;
  inputs.weights = draw();
  inputs.grad_weights = draw();
  inputs.right_aligned = right_aligned;
  return inputs;
}

HostTensor run_qk(vecina_context* context, const vecina_problem& problem, const Inputs& inputs,
                  bool right_aligned, Placement placement) {
  const HostTensor logits = make_weights(problem, placement);
  vecina_split_args args = split_args(inputs, right_aligned);
  args.weights = logits.view();
  throw_if_failed(vecina_qk(context, &problem, &args, nullptr));
  return logits;
}

SplitResults run_split(vecina_context* context, const vecina_problem& problem, const Inputs& inputs,
                       const SplitInputs& split, Placement placement) {
  SplitResults results;
  results.logits = run_qk(context, problem, inputs, split.right_aligned, placement);
  results.output = make_outputs(problem, placement).output;
  results.grad_weights = make_weights(problem, placement);
  results.gradients = make_gradients(problem, placement);

  vecina_split_args args = split_args(inputs, split.right_aligned);
  args.weights = split.weights.view();
  args.output = results.output.view();
  throw_if_failed(vecina_av(context, &problem, &args, nullptr));

  args.grad_weights = results.grad_weights.view();
  args.grad_value = results.gradients.value.view();
  args.grad_additional_value = results.gradients.additional_value.view();
  throw_if_failed(vecina_av_backward(context, &problem, &args, nullptr));

  args.grad_weights = split.grad_weights.view();
  args.grad_query = results.gradients.query.view();
  args.grad_key = results.gradients.key.view();
  args.grad_additional_key = results.gradients.additional_key.view();
  args.grad_bias = results.gradients.bias.view();
  throw_if_failed(vecina_qk_backward(context, &problem, &args, nullptr));
  return results;
}

}  // namespace vecina::cli
