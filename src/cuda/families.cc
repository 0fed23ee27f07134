// SPDX-License-Identifier: MIT
// A new family is one row here.
#include "cuda/families.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cuda/gradient_plan.h"
#include "cuda/hopper_plan.h"
#include "cuda/small_plan.h"

namespace vecina::internal::cuda {
namespace {

constexpr Pass pass_of(const vecina_forward_args&) { return Pass::forward; }
constexpr Pass pass_of(const vecina_backward_args&) { return Pass::backward; }
constexpr auto planner(const Family& family, const vecina_forward_args&) {
  return family.plan_forward;
}
constexpr auto planner(const Family& family, const vecina_backward_args&) {
  return family.plan_backward;
}

// Also what its own why_not does not know: what the compiler lacks.
std::string why_not_of(const Family& family, const Problem& problem, Pass pass,
                       const DeviceFacts& facts) {
  std::string why = family.why_not(problem, pass, facts);
  const int oldest = family.oldest_nvrtc_for_lengths;
  if (why.empty() && problem.lengths() != VECINA_LENGTHS_EQUAL && facts.nvrtc != 0 &&
      facts.nvrtc < oldest) {
    why = fmt::format("lengths of samples need NVRTC {}.{} or newer, here is {}.{}", oldest / 100,
                      oldest % 100, facts.nvrtc / 100, facts.nvrtc % 100);
  }
  return why;
}

void add_sentence(std::string* sentences, const Family& family, const std::string& why) {
  *sentences += fmt::format("{}{}: {}", sentences->empty() ? "" : "; ", family.name, why);
}

template <typename Args>
Status plan(const Problem& problem, const Args& example, const DeviceFacts& facts,
            const char** name, std::vector<KernelLaunch<Args>>* launches) {
  std::string sentences;
  for (const Family& family : families()) {
    std::string why = why_not_of(family, problem, pass_of(example), facts);
    if (why.empty()) {
      *name = family.name;
      launches->clear();
      Status status = planner(family, example)(problem, example, facts, launches);
      if (status.ok() && !sentences.empty() && !launches->empty()) {
        launches->front().description +=
            fmt::format(R"(, "passed_over": {})", nlohmann::json(sentences).dump());
      }
      if (status.code() != VECINA_UNSUPPORTED) return status;
      why = status.message();
    }
    add_sentence(&sentences, family, why);
  }
  return unsupported(sentences);
}

}  // namespace

std::span<const Family> families() {
  static constexpr Family kFamilies[] = {
      {"hopper", hopper_why_not, hopper_plan_forward, nullptr, 1203},  // tensormap.replace
      {"small", small_why_not, small_plan_forward, nullptr, 0},
      {"gradient", gradient_why_not, nullptr, gradient_plan_backward, 0},
  };
  return kFamilies;
}

std::string why_not(const Problem& problem, Pass pass, const DeviceFacts& facts) {
  if (is_split(pass)) {
    return problem.has_e4m3() ? e4m3_why_not(problem, pass) : split_why_not(problem);
  }
  std::string sentences;
  for (const Family& family : families()) {
    const std::string why = why_not_of(family, problem, pass, facts);
    if (why.empty()) return {};
    add_sentence(&sentences, family, why);
  }
  return sentences;
}

size_t workspace_bytes(const Problem& problem, Pass pass) {
  return pass == Pass::backward ? gradient_workspace_bytes(problem)
                                : hopper_workspace_bytes(problem);
}

Status plan_launches(const Problem& problem, const vecina_forward_args& example,
                     const DeviceFacts& facts, const char** family,
                     std::vector<ForwardLaunch>* launches) {
  return plan(problem, example, facts, family, launches);
}

Status plan_launches(const Problem& problem, const vecina_backward_args& example,
                     const DeviceFacts& facts, const char** family,
                     std::vector<BackwardLaunch>* launches) {
  return plan(problem, example, facts, family, launches);
}

Status plan_launches(const Problem& problem, const SplitArgs& example, const DeviceFacts& facts,
                     const char** family, std::vector<SplitLaunch>* launches) {
  *family = "split";
  return split_plan(problem, example, facts, launches);
}

}  // namespace vecina::internal::cuda
