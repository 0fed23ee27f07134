// SPDX-License-Identifier: MIT
#include "cuda/plans.h"

#include <mutex>
#include <utility>
#include <vector>

#include "cuda/families.h"
#include "cuda/staging.h"

namespace vecina::internal::cuda {
namespace {

template <typename Args>
class LaunchPlan : public Plan {
 public:
  LaunchPlan(const char* family, LaunchSequence<Args> sequence)
      : family_(family), sequence_(std::move(sequence)) {}

  size_t workspace_bytes() const override { return sequence_.workspace_bytes(); }
  using Plan::run;
  Status run(const Args& args, void* queue) const override { return sequence_.run(args, queue); }
  using Plan::measure;
  Status measure(const Args& args, int repeats, std::vector<double>* times_us) const override {
    return sequence_.measure(args, repeats, times_us);
  }
  std::string describe() const override {
    return nlohmann::ordered_json{{"family", family_},
                                  {"device", sequence_.device().name()},
                                  {"kernels", sequence_.describe()}}
        .dump();
  }

 private:
  const char* family_;
  const LaunchSequence<Args> sequence_;
};

template <typename Args>
class StagedPlan : public Plan {
 public:
  StagedPlan(std::shared_ptr<const DeviceState> state, StagedCall<Args> call,
             std::unique_ptr<Plan> plan)
      : state_(std::move(state)), call_(std::move(call)), plan_(std::move(plan)) {}

  using Plan::run;
  Status run(const Args& host, void*) const override {
    const std::lock_guard lock(mutex_);  // the device's copies are this plan's
    const Device::Current current(*state_->device);
    VECINA_RETURN_IF_ERROR(current.status());
    VECINA_RETURN_IF_ERROR(call_.copy_in(host));
    VECINA_RETURN_IF_ERROR(plan_->run(call_.device_args(), nullptr));
    VECINA_CUDA_RETURN_IF_ERROR(Driver::get(), cuStreamSynchronize, (nullptr));
    return call_.copy_out(host);
  }

  using Plan::measure;
  Status measure(const Args& host, int repeats, std::vector<double>* times_us) const override {
    const std::lock_guard lock(mutex_);
    const Device::Current current(*state_->device);
    VECINA_RETURN_IF_ERROR(current.status());
    VECINA_RETURN_IF_ERROR(call_.copy_in(host));
    return plan_->measure(call_.device_args(), repeats, times_us);
  }

  std::string describe() const override { return plan_->describe(); }

 private:
  const std::shared_ptr<const DeviceState> state_;
  const StagedCall<Args> call_;
  const std::unique_ptr<Plan> plan_;
  mutable std::mutex mutex_;
};

template <typename Args>
Status make(const Problem& problem, const Args& example, std::shared_ptr<const DeviceState> state,
            std::unique_ptr<Plan>* plan) {
  const bool is_staged = first_tensor(example).device == VECINA_CPU;
  StagedCall<Args> call;
  if (is_staged) VECINA_RETURN_IF_ERROR(StagedCall<Args>::make(*state->device, example, &call));
  const char* family = nullptr;
  std::vector<KernelLaunch<Args>> launches;
  VECINA_RETURN_IF_ERROR(plan_launches(problem, is_staged ? call.device_args() : example,
                                       state->facts(), &family, &launches));
  LaunchSequence<Args> sequence;
  VECINA_RETURN_IF_ERROR(LaunchSequence<Args>::make(state, std::move(launches), &sequence));
  auto made = std::make_unique<LaunchPlan<Args>>(family, std::move(sequence));
  if (is_staged) {
    VECINA_RETURN_IF_ERROR(call.add_workspace(*state->device, made->workspace_bytes()));
    *plan = std::make_unique<StagedPlan<Args>>(std::move(state), std::move(call), std::move(made));
  } else {
    *plan = std::move(made);
  }
  return {};
}

}  // namespace

Status make_plan(const Problem& problem, const vecina_forward_args& example,
                 std::shared_ptr<const DeviceState> state, std::unique_ptr<Plan>* plan) {
  return make(problem, example, std::move(state), plan);
}

Status make_plan(const Problem& problem, const vecina_backward_args& example,
                 std::shared_ptr<const DeviceState> state, std::unique_ptr<Plan>* plan) {
  return make(problem, example, std::move(state), plan);
}

Status make_plan(const Problem& problem, const SplitArgs& example,
                 std::shared_ptr<const DeviceState> state, std::unique_ptr<Plan>* plan) {
  return make(problem, example, std::move(state), plan);
}

}  // namespace vecina::internal::cuda
