// SPDX-License-Identifier: MIT
// Tensors and calls of the split form, for checks.
#ifndef VECINA_CLI_SPLIT_H_
#define VECINA_CLI_SPLIT_H_

#include <cstdint>

#include "cli/conformance.h"
#include "cli/host_tensor.h"
#include "vecina/vecina.h"

namespace vecina::cli {

// What the calls read besides Inputs: weights for av, which are not looked at where causality
// leaves a slot empty, and the gradient of qk's weights.
struct SplitInputs {
  HostTensor weights, grad_weights;
  bool right_aligned = false;
};
// Values normal(0, 1); NaN in slots that `logits`, the result of a qk, says are empty.
SplitInputs random_split_inputs(const HostTensor& logits, bool right_aligned, uint64_t seed,
                                Placement placement = {});

// What the four calls write, filled with NaN before.
struct SplitResults {
  HostTensor logits, output, grad_weights;
  Gradients gradients;  // of query, key, additional_key and bias by qk's, the others by av's
};

HostTensor make_weights(const vecina_problem& problem, Placement placement = {});

// Each throws what throw_if_failed (errors.h) throws.
HostTensor run_qk(vecina_context* context, const vecina_problem& problem, const Inputs& inputs,
                  bool right_aligned, Placement placement = {});
SplitResults run_split(vecina_context* context, const vecina_problem& problem, const Inputs& inputs,
                       const SplitInputs& split, Placement placement = {});

}  // namespace vecina::cli
#endif  // VECINA_CLI_SPLIT_H_
