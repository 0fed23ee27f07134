// SPDX-License-Identifier: MIT
#include "cuda/launch_sequence.h"

#include <algorithm>
#include <utility>

#include "cuda/driver.h"
#include "cuda/parallel.h"

namespace vecina::internal::cuda {
namespace {

// Runs in one graph when timing: dependent, as in a network, and enough that the replay's own
// start is a small part.
constexpr int kRunsInGraph = 20;
// Replays of a short graph that are timed together. One more precedes them: else the time until the
// host has launched the first would count.
constexpr double kReplaysInTurn = 5.0, kTurnUs = 1000.0;
// Of a graph whose replays follow one another without a pause to speak of.
constexpr double kSteadyGraphUs = 5000.0;
constexpr double kMaxRunsInGraph = 200;

// Handles of one measurement, released in every case.
struct Timer {
  const Driver& driver = Driver::get();
  StreamHandle stream = nullptr;
  EventHandle begin = nullptr, end = nullptr;
  GraphHandle graph = nullptr;
  GraphExecHandle exec = nullptr;
  int runs = 0;  // in the graph

  ~Timer() {
    if (exec != nullptr) driver.cuGraphExecDestroy(exec);
    if (graph != nullptr) driver.cuGraphDestroy(graph);
    if (begin != nullptr) driver.cuEventDestroy_v2(begin);
    if (end != nullptr) driver.cuEventDestroy_v2(end);
    if (stream != nullptr) driver.cuStreamDestroy_v2(stream);
  }

  // Captures `count` runs of `run(stream)`.
  template <typename Run>
  Status capture(int count, Run run) {
    runs = count;
    constexpr unsigned kNonBlocking = 1;
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuStreamCreate, (&stream, kNonBlocking));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventCreate, (&begin, 0));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventCreate, (&end, 0));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuStreamBeginCapture_v2, (stream, kCaptureThreadLocal));
    Status status;
    for (int i = 0; i < runs && status.ok(); ++i) status = run(stream);
    const Result ended = driver.cuStreamEndCapture(stream, &graph);
    VECINA_RETURN_IF_ERROR(status);
    VECINA_RETURN_IF_ERROR(driver.status("cuStreamEndCapture", ended));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuGraphInstantiateWithFlags, (&exec, graph, 0));
    return {};
  }

  // Time of one run in some replays of the graph, before which others keep the GPU busy.
  Status replay(int replays, double* run_us, int replays_before = 0) {
    float milliseconds = 0.0f;
    for (int i = 0; i < replays_before; ++i) {
      VECINA_CUDA_RETURN_IF_ERROR(driver, cuGraphLaunch, (exec, stream));
    }
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventRecord, (begin, stream));
    for (int i = 0; i < replays; ++i) {
      VECINA_CUDA_RETURN_IF_ERROR(driver, cuGraphLaunch, (exec, stream));
    }
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventRecord, (end, stream));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventSynchronize, (end));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuEventElapsedTime, (&milliseconds, begin, end));
    *run_us = 1000.0 * static_cast<double>(milliseconds) / (runs * replays);
    return {};
  }
};

template <typename Args>
Status start(const KernelLaunch<Args>& launch, const Kernel& kernel, const Args& args,
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

template <typename Args>
bool are_equal_but_for_params(const KernelLaunch<Args>& a, const KernelLaunch<Args>& b) {
  return a.source == b.source && std::equal(a.grid, a.grid + 3, b.grid) &&
         std::equal(a.block, a.block + 3, b.block) && a.shared_bytes == b.shared_bytes &&
         a.description == b.description;
}

}  // namespace

template <typename Args>
nlohmann::ordered_json describe_launches(const std::vector<KernelLaunch<Args>>& launches,
                                         const std::vector<Kernel>& kernels) {
  using Json = nlohmann::ordered_json;
  Json list = Json::array();
  for (size_t i = 0, end = 0; i < launches.size(); i = end) {
    const KernelLaunch<Args>& launch = launches[i];
    for (end = i + 1; end < launches.size(); ++end) {
      if (!are_equal_but_for_params(launch, launches[end])) break;
    }
    Json kernel = {{"kernel", launch.source.entry},
                   {"config", launch.source.config},
                   {"grid", {launch.grid[0], launch.grid[1], launch.grid[2]}},
                   {"threads", launch.block[0] * launch.block[1] * launch.block[2]},
                   {"shared_bytes", launch.shared_bytes},
                   {"registers", kernels[i].resources.registers},
                   {"spill_bytes", kernels[i].resources.spill_bytes}};
    if (end - i > 1) kernel["launches"] = end - i;
    kernel.update(Json::parse("{" + launch.description + "}"));
    list.push_back(std::move(kernel));
  }
  return list;
}

template <typename Args>
Status LaunchSequence<Args>::make(std::shared_ptr<const DeviceState> state,
                                  std::vector<KernelLaunch<Args>> launches,
                                  LaunchSequence* sequence) {
  sequence->state_ = std::move(state);
  sequence->launches_ = std::move(launches);
  sequence->kernels_.resize(sequence->launches_.size());
  const auto groups = group_by_kernel(sequence->launches_);
  std::vector<Status> statuses(groups.size());
  run_parallel(groups.size(), groups.size(), [&](size_t g) {
    uint32_t shared_bytes = 0;
    for (const size_t i : groups[g]) {
      shared_bytes = std::max(shared_bytes, sequence->launches_[i].shared_bytes);
    }
    Kernel kernel;
    const KernelSource& source = sequence->launches_[groups[g].front()].source;
    statuses[g] = sequence->state_->kernels->get(source, shared_bytes, &kernel);
    for (const size_t i : groups[g]) sequence->kernels_[i] = kernel;
  });
  for (const Status& status : statuses) VECINA_RETURN_IF_ERROR(status);
  for (const KernelLaunch<Args>& launch : sequence->launches_) {
    sequence->workspace_bytes_ = std::max(sequence->workspace_bytes_, launch.workspace_bytes);
  }
  return {};
}

template <typename Args>
Status LaunchSequence<Args>::run(const Args& args, void* queue) const {
  const Device::Current current(device());
  VECINA_RETURN_IF_ERROR(current.status());
  for (size_t i = 0; i < launches_.size(); ++i) {
    VECINA_RETURN_IF_ERROR(start(launches_[i], kernels_[i], args, queue));
  }
  return {};
}

template <typename Args>
Status LaunchSequence<Args>::measure(const Args& args, int repeats,
                                     std::vector<double>* times_us) const {
  const Device::Current current(device());
  VECINA_RETURN_IF_ERROR(current.status());
  Timer timer;
  VECINA_RETURN_IF_ERROR(timer.capture(
      kRunsInGraph, [&](StreamHandle stream) { return run(args, static_cast<void*>(stream)); }));
  double run_us = 0.0;
  // The first uploads the graph.
  for (int i = 0; i < 2; ++i) VECINA_RETURN_IF_ERROR(timer.replay(1, &run_us));
  const auto replays =
      static_cast<int>(std::clamp(kTurnUs / (run_us * timer.runs), 1.0, kReplaysInTurn));
  for (int i = 0; i < repeats; ++i) {
    VECINA_RETURN_IF_ERROR(timer.replay(replays, &run_us, /*replays_before=*/replays > 1 ? 1 : 0));
    times_us->push_back(run_us);
  }
  return {};
}

template <typename Args>
Status LaunchSequence<Args>::measure_steady(const Args& args, double seconds,
                                            double* run_us) const {
  const Device::Current current(device());
  VECINA_RETURN_IF_ERROR(current.status());
  const auto one = [&](StreamHandle stream) { return run(args, static_cast<void*>(stream)); };
  double first_us = 0.0;
  {
    Timer timer;
    VECINA_RETURN_IF_ERROR(timer.capture(1, one));
    for (int i = 0; i < 2; ++i) VECINA_RETURN_IF_ERROR(timer.replay(1, &first_us));
  }
  Timer timer;
  VECINA_RETURN_IF_ERROR(timer.capture(
      static_cast<int>(std::clamp(kSteadyGraphUs / first_us, 1.0, kMaxRunsInGraph)), one));
  double elapsed_us = 0.0, counted_us = 0.0;
  int counted = 0;
  while (elapsed_us < seconds * 1e6 || counted == 0) {
    double replay_us = 0.0;
    VECINA_RETURN_IF_ERROR(timer.replay(1, &replay_us));
    if (elapsed_us >= seconds * 0.5e6) {
      counted_us += replay_us;
      ++counted;
    }
    elapsed_us += replay_us * timer.runs;
  }
  *run_us = counted_us / counted;
  return {};
}

template <typename Args>
nlohmann::ordered_json LaunchSequence<Args>::describe() const {
  return describe_launches(launches_, kernels_);
}

template nlohmann::ordered_json describe_launches(const std::vector<ForwardLaunch>& launches,
                                                  const std::vector<Kernel>& kernels);
template class LaunchSequence<vecina_forward_args>;
template class LaunchSequence<vecina_backward_args>;
template class LaunchSequence<SplitArgs>;
template class LaunchSequence<MergeArgs>;
template class LaunchSequence<MergeBackwardArgs>;

}  // namespace vecina::internal::cuda
