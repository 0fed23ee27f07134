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
  size_t space = workspace_bytes_ + kWorkspaceAlignment;
  memory_ = std::make_unique_for_overwrite<std::byte[]>(space);
  workspace_ = memory_.get();
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

MergeCall::MergeCall(vecina_context* context, const vecina_problem& problem, const Inputs& inputs)
    : context_(context),
      parts_{make_outputs(problem), make_outputs(problem)},
      merged_(make_outputs(problem)),
      passes_{ForwardCall(context, problem, inputs, parts_[0]),
              ForwardCall(context, problem, inputs, parts_[1])} {}

void MergeCall::run() const {
  const vecina_tensor outputs[] = {parts_[0].output.view(), parts_[1].output.view()};
  const vecina_tensor lses[] = {parts_[0].lse.view(), parts_[1].lse.view()};
  const vecina_tensor output = merged_.output.view(), lse = merged_.lse.view();
  for (const ForwardCall& pass : passes_) pass.run();
  throw_if_failed(
      vecina_merge_attentions(context_, 2, outputs, lses, &output, &lse, /*queue=*/nullptr));
}

Times MergeCall::time(const TimingOptions& options) const {
  if (passes_[0].describe().at("device") != "host") {
    throw Unsupported("a merge of host tensors is copied to the device, not timed there");
  }
  return time_calls([this] { run(); }, options);
}

}  // namespace vecina::cli
