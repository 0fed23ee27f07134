// SPDX-License-Identifier: MIT
#include "cuda/small_plan.h"

#include <fmt/format.h>

#include <utility>

#include "cuda/halo_plan.h"
#include "cuda/small_common.h"
#include "cuda/small_fragments_plan.h"
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
  ForwardLaunch launch;
  const bool is_halo_first = pays_for_halo(problem);
  const auto plan_first = is_halo_first ? plan_halo_forward : plan_fragments;
  const auto plan_second = is_halo_first ? plan_fragments : plan_halo_forward;
  const std::string why = plan_first(problem, example, facts, &launch);
  const std::string why_second = why.empty() ? "" : plan_second(problem, example, facts, &launch);
  if (!why_second.empty()) {
    launch = plan_lanes(problem, example, facts);
    launch.description += fmt::format(R"(, "why_not_tensor_cores": ["{}", "{}"])", why, why_second);
  }
  launches->push_back(std::move(launch));
  return {};
}

}  // namespace vecina::internal::cuda
