// SPDX-License-Identifier: MIT
#include "cuda/small_plan.h"

#include "cuda/small_common.h"
#include "cuda/small_lanes_plan.h"

namespace vecina::internal::cuda {

std::string small_why_not(const Problem& problem, Pass pass, const DeviceFacts& /*facts*/) {
  if (pass == Pass::backward) return "gradients: not yet";
  if (problem.lengths() != VECINA_LENGTHS_EQUAL) return "lengths of samples: not yet";
  if (lanes_blocks(problem) > kMaxBlocks) {
    return "the problem needs more than 2^31 - 1 blocks of threads";
  }
  return {};
}

Status small_plan_forward(const Problem& problem, const vecina_forward_args& example,
                          const DeviceFacts& facts, std::vector<ForwardLaunch>* launches) {
  if (problem.batch() == 0) return {};
  launches->push_back(plan_lanes(problem, example, facts));
  return {};
}

}  // namespace vecina::internal::cuda
