// SPDX-License-Identifier: MIT
#include "cuda/small_plan.h"

#include <fmt/format.h>

#include <utility>

#include "cuda/halo_plan.h"
#include "cuda/small_common.h"
#include "cuda/small_fragments_plan.h"
#include "cuda/small_lanes_plan.h"

namespace vecina::internal::cuda {
namespace {

// Rows of queries from which on tokens in shared memory save more than barriers cost.
constexpr double kManyQueries = 65536.0;

}  // namespace

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
  const double queries = static_cast<double>(problem.batch()) * problem.heads() *
                         static_cast<double>(problem.num_queries());
  std::string why =
      queries < kManyQueries ? plan_fragments(problem, example, facts, &launch) : "many queries";
  if (!why.empty()) {
    const std::string why_not_halo = plan_halo_forward(problem, example, facts, &launch);
    if (!why_not_halo.empty() && queries >= kManyQueries) {
      why = plan_fragments(problem, example, facts, &launch);
    }
    if (!why_not_halo.empty() && !why.empty()) {
      launch = plan_lanes(problem, example, facts);
      launch.description +=
          fmt::format(R"(, "why_not_fragments": "{}", "why_not_halo": "{}")", why, why_not_halo);
    }
  }
  launches->push_back(std::move(launch));
  return {};
}

}  // namespace vecina::internal::cuda
