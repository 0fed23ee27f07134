// SPDX-License-Identifier: MIT
// Plans are made from the arguments that they later run on.
#include "cli/calls.h"

#include "cli/text.h"

namespace vecina::cli {
namespace {

constexpr size_t kWorkspaceAlignment = 256;  // vecina.h

HeldPlan plan_forward(vecina_context* context, const vecina_problem& problem,
                      const vecina_forward_args& args) {
  vecina_plan* plan = nullptr;
  throw_if_failed(vecina_plan_forward(context, &problem, &args, &plan));
  return HeldPlan(plan);
}

HeldPlan plan_backward(vecina_context* context, const vecina_problem& problem,
                       const vecina_backward_args& args) {
  vecina_plan* plan = nullptr;
  throw_if_failed(vecina_plan_backward(context, &problem, &args, &plan));
  return HeldPlan(plan);
}

}  // namespace

HeldPlan::HeldPlan(vecina_plan* plan) : plan_(plan, vecina_plan_destroy) {
  workspace_bytes_ = vecina_plan_workspace_bytes(plan);
  if (workspace_bytes_ == 0) return;
  memory_.resize(workspace_bytes_ + kWorkspaceAlignment);
  size_t space = memory_.size();
  workspace_ = memory_.data();
  std::align(kWorkspaceAlignment, workspace_bytes_, workspace_, space);
}

nlohmann::ordered_json HeldPlan::describe() const {
  return nlohmann::ordered_json::parse(read_text(
      [&](char* text, size_t size) { return vecina_plan_describe(plan_.get(), text, size); }));
}

Times HeldPlan::time(const void* args, const std::function<void()>& call,
                     const TimingOptions& options) const {
  const auto profile = [&](int repeats) {
    return nlohmann::ordered_json::parse(read_text([&](char* text, size_t size) {
      return vecina_profile(plan_.get(), args, repeats, text, size);
    }));
  };
  if (profile(1).at("clock") == "host") return time_calls(call, options);
  const nlohmann::ordered_json times = profile(options.repeats);
  return {times.at("median_us").get<double>() * 1e-3, times.at("best_us").get<double>() * 1e-3,
          times.at("spread"), times.at("repeats")};
}

ForwardCall::ForwardCall(vecina_context* context, const vecina_problem& problem,
                         const Inputs& inputs, const Outputs& outputs)
    : args_(forward_args(inputs, outputs)), plan_(plan_forward(context, problem, args_)) {
  args_.workspace = plan_.workspace();
  args_.workspace_bytes = plan_.workspace_bytes();
}

BackwardCall::BackwardCall(vecina_context* context, const vecina_problem& problem,
                           const Inputs& inputs, const Outputs& outputs, const Gradients& gradients)
    : args_(backward_args(inputs, outputs, gradients)),
      plan_(plan_backward(context, problem, args_)) {
  args_.workspace = plan_.workspace();
  args_.workspace_bytes = plan_.workspace_bytes();
}

}  // namespace vecina::cli
