// SPDX-License-Identifier: MIT
// Plans of the gradients' kernels: every problem; deterministic unless the problem allows
// otherwise.
#ifndef VECINA_CUDA_GRADIENT_PLAN_H_
#define VECINA_CUDA_GRADIENT_PLAN_H_

#include <string>
#include <vector>

#include "core/backend.h"
#include "core/problem.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

std::string gradient_why_not(const Problem& problem, Pass pass, const DeviceFacts& facts);
Status gradient_plan_backward(const Problem& problem, const vecina_backward_args& example,
                              const DeviceFacts& facts, std::vector<BackwardLaunch>* launches);

// Of the facts of each query, which begin the caller's device memory.
size_t gradient_facts_bytes(const Problem& problem);
// What a call needs of that memory at most.
size_t gradient_workspace_bytes(const Problem& problem);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_GRADIENT_PLAN_H_
