// SPDX-License-Identifier: MIT
// Planned calls that can be repeated: what bench, profile, plan and run time and execute.
#ifndef VECINA_CLI_CALLS_H_
#define VECINA_CLI_CALLS_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/conformance.h"
#include "cli/errors.h"
#include "cli/timing.h"
#include "vecina/vecina.h"

namespace vecina::cli {

// Useful operations of a backward pass for each of its forward: five products (recompute, dP, dQ,
// dK, dV) where that has two.
inline constexpr double kBackwardFactor = 2.5;

// A plan with the workspace that it needs.
class HeldPlan {
 public:
  explicit HeldPlan(vecina_plan* plan);
  const vecina_plan* get() const { return plan_.get(); }
  void* workspace() const { return workspace_; }
  size_t workspace_bytes() const { return workspace_bytes_; }
  nlohmann::ordered_json describe() const;  // of vecina_plan_describe
  // Times of `call`, which runs the plan on `args`: by the device's clock where the plan has one
  // (without copies of host tensors), else of the call.
  Times time(const void* args, const std::function<void()>& call,
             const TimingOptions& options) const;

 private:
  std::unique_ptr<vecina_plan, void (*)(vecina_plan*)> plan_;
  std::unique_ptr<std::byte[]> memory_;  // not touched before a call
  void* workspace_ = nullptr;            // within memory_, aligned as vecina.h asks
  size_t workspace_bytes_ = 0;
};

// One pass on given tensors, which must outlive it. Both constructors throw Unsupported if the
// context's backend does not take the problem.
class ForwardCall {
 public:
  ForwardCall(vecina_context* context, const vecina_problem& problem, const Inputs& inputs,
              const Outputs& outputs);
  void run() const { throw_if_failed(vecina_run_forward(plan_.get(), &args_, nullptr)); }
  Times time(const TimingOptions& options) const {
    return plan_.time(
        &args_, [this] { run(); }, options);
  }
  nlohmann::ordered_json describe() const { return plan_.describe(); }

 private:
  vecina_forward_args args_;
  HeldPlan plan_;
};

class BackwardCall {
 public:
  BackwardCall(vecina_context* context, const vecina_problem& problem, const Inputs& inputs,
               const Outputs& outputs, const Gradients& gradients);
  void run() const { throw_if_failed(vecina_run_backward(plan_.get(), &args_, nullptr)); }
  Times time(const TimingOptions& options) const {
    return plan_.time(
        &args_, [this] { run(); }, options);
  }
  nlohmann::ordered_json describe() const { return plan_.describe(); }

 private:
  vecina_backward_args args_;
  HeldPlan plan_;
};

// Two passes and their merge, the whole chain on the same inputs.
class MergeCall {
 public:
  MergeCall(vecina_context* context, const vecina_problem& problem, const Inputs& inputs);
  void run() const;
  // Throws Unsupported where host tensors are copied to a device for a call.
  Times time(const TimingOptions& options) const;

 private:
  vecina_context* context_;
  Outputs parts_[2], merged_;
  ForwardCall passes_[2];
};

}  // namespace vecina::cli
#endif  // VECINA_CLI_CALLS_H_
