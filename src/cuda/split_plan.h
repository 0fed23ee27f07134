// SPDX-License-Identifier: MIT
// Plans of the split form: qk and av with their gradients, every problem of equal lengths,
// deterministic.
#ifndef VECINA_CUDA_SPLIT_PLAN_H_
#define VECINA_CUDA_SPLIT_PLAN_H_

#include <string>
#include <vector>

#include "core/arguments.h"
#include "core/problem.h"
#include "core/status.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

using SplitLaunch = KernelLaunch<SplitArgs>;

std::string split_why_not(const Problem& problem);
// One launch for each tensor that is written.
Status split_plan(const Problem& problem, const SplitArgs& example, const DeviceFacts& facts,
                  std::vector<SplitLaunch>* launches);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_SPLIT_PLAN_H_
