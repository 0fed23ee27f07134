// SPDX-License-Identifier: MIT
#include "cuda/plans.h"

#include <fmt/format.h>

#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "cuda/families.h"
#include "cuda/staging.h"

namespace vecina::internal::cuda {
namespace {

// Calls in one graph when timing: dependent, as in a network, and enough that the replay's own
// start is a small part.
constexpr int kCallsInGraph = 20;

template <typename Args>
class LaunchPlan : public Plan {
 public:
  LaunchPlan(std::shared_ptr<const DeviceState> state, const char* family,
             std::vector<KernelLaunch<Args>> launches)
      : state_(std::move(state)), family_(family), launches_(std::move(launches)) {}

  Status prepare() {
    kernels_.resize(launches_.size());
    for (size_t i = 0; i < launches_.size(); ++i) {
      VECINA_RETURN_IF_ERROR(
          state_->kernels->get(launches_[i].source, launches_[i].shared_bytes, &kernels_[i]));
    }
    return {};
  }

  using Plan::run;
  Status run(const Args& args, void* queue) const override {
    const Device::Current current(*state_->device);
    VECINA_RETURN_IF_ERROR(current.status());
    for (size_t i = 0; i < launches_.size(); ++i) {
      VECINA_RETURN_IF_ERROR(launch(launches_[i], kernels_[i], args, queue));
    }
    return {};
  }

  using Plan::measure;
  Status measure(const Args& args, int repeats, std::vector<double>* times_us) const override;

  std::string describe() const override {
    nlohmann::ordered_json kernels = nlohmann::ordered_json::array();
    for (size_t i = 0; i < launches_.size(); ++i) {
      const KernelLaunch<Args>& launch = launches_[i];
      nlohmann::ordered_json kernel = {
          {"kernel", launch.source.entry},
          {"config", launch.source.config},
          {"grid", {launch.grid[0], launch.grid[1], launch.grid[2]}},
          {"threads", launch.block[0] * launch.block[1] * launch.block[2]},
          {"shared_bytes", launch.shared_bytes},
          {"registers", kernels_[i].resources.registers},
          {"spill_bytes", kernels_[i].resources.spill_bytes}};
      kernel.update(nlohmann::ordered_json::parse("{" + launch.description + "}"));
      kernels.push_back(std::move(kernel));
    }
    return nlohmann::ordered_json{
        {"family", family_}, {"device", state_->device->name()}, {"kernels", kernels}}
        .dump();
  }

 private:
  static Status launch(const KernelLaunch<Args>& launch, const Kernel& kernel, const Args& args,
                       void* queue) {
    alignas(128) char params[kMaxParamsBytes];
    VECINA_RETURN_IF_ERROR(launch.fill(args, params));
    LaunchAttribute attribute = {kProgrammaticStreamSerialization, {}, {}};
    attribute.value.is_allowed = 1;
    const LaunchConfig config = {{launch.grid[0], launch.grid[1], launch.grid[2]},
                                 {launch.block[0], launch.block[1], launch.block[2]},
                                 launch.shared_bytes,
                                 static_cast<StreamHandle>(queue),
                                 &attribute,
                                 launch.is_programmatic ? 1u : 0u};
    void* pointers[] = {params};
    VECINA_CUDA_RETURN_IF_ERROR(Driver::get(), cuLaunchKernelEx,
                                (&config, kernel.function, pointers, nullptr));
    return {};
  }

  const std::shared_ptr<const DeviceState> state_;
  const char* family_;
  std::vector<KernelLaunch<Args>> launches_;
  std::vector<Kernel> kernels_;
};

// Handles of one measurement, released in every case.
struct Timer {
  const Driver& driver = Driver::get();
  StreamHandle stream = nullptr;
  EventHandle begin = nullptr, end = nullptr;
  GraphHandle graph = nullptr;
  GraphExecHandle exec = nullptr;

  ~Timer() {
    if (exec != nullptr) driver.cuGraphExecDestroy(exec);
    if (graph != nullptr) driver.cuGraphDestroy(graph);
    if (begin != nullptr) driver.cuEventDestroy_v2(begin);
    if (end != nullptr) driver.cuEventDestroy_v2(end);
    if (stream != nullptr) driver.cuStreamDestroy_v2(stream);
  }

  // Captures kCallsInGraph calls of `call(stream)`.
  template <typename Call>
  Status capture(Call call) {
    constexpr unsigned kNonBlocking = 1;
    constexpr int kThreadLocal = 1;
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuStreamCreate, (&stream, kNonBlocking));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventCreate, (&begin, 0));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventCreate, (&end, 0));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuStreamBeginCapture_v2, (stream, kThreadLocal));
    Status status;
    for (int i = 0; i < kCallsInGraph && status.ok(); ++i) status = call(stream);
    const Result ended = driver.cuStreamEndCapture(stream, &graph);
    VECINA_RETURN_IF_ERROR(status);
    VECINA_RETURN_IF_ERROR(driver.status("cuStreamEndCapture", ended));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuGraphInstantiateWithFlags, (&exec, graph, 0));
    return {};
  }

  // Time of one call in one replay of the graph.
  Status replay(double* call_us) {
    float milliseconds = 0.0f;
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventRecord, (begin, stream));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuGraphLaunch, (exec, stream));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventRecord, (end, stream));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventSynchronize, (end));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventElapsedTime, (&milliseconds, begin, end));
    *call_us = 1000.0 * static_cast<double>(milliseconds) / kCallsInGraph;
    return {};
  }
};

template <typename Args>
Status LaunchPlan<Args>::measure(const Args& args, int repeats,
                                 std::vector<double>* times_us) const {
  const Device::Current current(*state_->device);
  VECINA_RETURN_IF_ERROR(current.status());
  Timer timer;
  VECINA_RETURN_IF_ERROR(
      timer.capture([&](StreamHandle stream) { return run(args, static_cast<void*>(stream)); }));
  for (int i = 0; i < repeats + 1; ++i) {  // the first replay uploads the graph
    double call_us = 0.0;
    VECINA_RETURN_IF_ERROR(timer.replay(&call_us));
    if (i > 0) times_us->push_back(call_us);
  }
  return {};
}

template <typename Args>
class StagedPlan : public Plan {
 public:
  StagedPlan(std::shared_ptr<const DeviceState> state, Staging<Args> staging,
             std::unique_ptr<Plan> plan)
      : state_(std::move(state)), staging_(std::move(staging)), plan_(std::move(plan)) {}

  using Plan::run;
  Status run(const Args& host, void*) const override {
    const std::lock_guard lock(mutex_);  // the device's copies are this plan's
    const Device::Current current(*state_->device);
    VECINA_RETURN_IF_ERROR(current.status());
    VECINA_RETURN_IF_ERROR(staging_.copy_in(host));
    VECINA_RETURN_IF_ERROR(plan_->run(staging_.device_args(), nullptr));
    VECINA_CUDA_RETURN_IF_ERROR(Driver::get(), cuStreamSynchronize, (nullptr));
    return staging_.copy_out(host);
  }

  using Plan::measure;
  Status measure(const Args& host, int repeats, std::vector<double>* times_us) const override {
    const std::lock_guard lock(mutex_);
    {
      const Device::Current current(*state_->device);
      VECINA_RETURN_IF_ERROR(current.status());
      VECINA_RETURN_IF_ERROR(staging_.copy_in(host));
    }
    return plan_->measure(staging_.device_args(), repeats, times_us);
  }

  std::string describe() const override { return plan_->describe(); }

 private:
  const std::shared_ptr<const DeviceState> state_;
  const Staging<Args> staging_;
  const std::unique_ptr<Plan> plan_;
  mutable std::mutex mutex_;
};

template <typename Args>
Status make(const Problem& problem, const Args& example, std::shared_ptr<const DeviceState> state,
            std::unique_ptr<Plan>* plan) {
  const bool is_staged = example.query.device == VECINA_CPU;
  Staging<Args> staging;
  if (is_staged) {
    VECINA_RETURN_IF_ERROR(Staging<Args>::make(*state->device, example, 0, &staging));
  }
  const char* family = nullptr;
  std::vector<KernelLaunch<Args>> launches;
  VECINA_RETURN_IF_ERROR(plan_launches(problem, is_staged ? staging.device_args() : example,
                                       state->device->facts(), &family, &launches));
  auto made = std::make_unique<LaunchPlan<Args>>(state, family, std::move(launches));
  VECINA_RETURN_IF_ERROR(made->prepare());
  if (is_staged) {
    *plan =
        std::make_unique<StagedPlan<Args>>(std::move(state), std::move(staging), std::move(made));
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

}  // namespace vecina::internal::cuda
