// SPDX-License-Identifier: MIT
#include "cuda/small_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "cuda/halo_plan.h"
#include "cuda/small_common.h"
#include "cuda/small_fragments_plan.h"
#include "cuda/small_lanes_plan.h"
#include "cuda/tiles_plan.h"

namespace vecina::internal::cuda {
namespace {

// A form of one launch.
template <auto plan>
std::string plan_one(const Problem& problem, const vecina_forward_args& example,
                     const DeviceFacts& facts, std::vector<ForwardLaunch>* launches) {
  ForwardLaunch launch;
  std::string why = plan(problem, example, facts, &launch);
  if (why.empty()) launches->push_back(std::move(launch));
  return why;
}

}  // namespace

std::string small_why_not(const Problem& problem, Pass pass, const DeviceFacts& /*facts*/) {
  if (pass == Pass::backward) return "computes outputs alone";
  if (problem.has_e4m3()) return e4m3_why_not(problem, pass);
  if (lanes_blocks(problem) > kMaxBlocks) {
    return "the problem needs more than 2^31 - 1 blocks of threads";
  }
  return {};
}

Status small_plan_forward(const Problem& problem, const vecina_forward_args& example,
                          const DeviceFacts& facts, std::vector<ForwardLaunch>* launches) {
  if (problem.batch() == 0) return {};
  using PlanForm = std::string (*)(const Problem&, const vecina_forward_args&, const DeviceFacts&,
                                   std::vector<ForwardLaunch>*);
  const bool is_halo_first = pays_for_halo(problem);
  std::array<PlanForm, 3> forms = {
      is_halo_first ? plan_one<plan_halo_forward> : plan_one<plan_fragments>,
      is_halo_first ? plan_one<plan_fragments> : plan_one<plan_halo_forward>, plan_tiles_forward};
  if (pays_for_tiles(problem)) std::rotate(forms.begin(), forms.end() - 1, forms.end());
  std::string sentences;
  bool is_planned = false;
  for (const PlanForm plan : forms) {
    const std::string why = plan(problem, example, facts, launches);
    is_planned = why.empty();
    if (is_planned) break;
    sentences += fmt::format(R"({}"{}")", sentences.empty() ? "" : ", ", why);
  }
  if (!is_planned) {
    ForwardLaunch launch = plan_lanes(problem, example, facts);
    launch.description += fmt::format(R"(, "why_not_tensor_cores": [{}])", sentences);
    launches->push_back(std::move(launch));
  }
  return {};
}

}  // namespace vecina::internal::cuda
