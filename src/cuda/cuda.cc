// SPDX-License-Identifier: MIT
// The CUDA backend's face. Devices are opened when first used: a process that never does pays
// nothing, and machines without a GPU can plan and compile all the same.
#include "cuda/cuda.h"

#include <fmt/format.h>

#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "core/arguments.h"
#include "cuda/build_ahead.h"
#include "cuda/compiler.h"
#include "cuda/device.h"
#include "cuda/disk_cache.h"
#include "cuda/families.h"
#include "cuda/hopper_tuner.h"
#include "cuda/kernel_store.h"
#include "cuda/merges.h"
#include "cuda/plans.h"
#include "cuda/tuned_cuts.h"

namespace vecina::internal {
namespace {

using cuda::DeviceFacts;
using cuda::DeviceState;
using nlohmann::ordered_json;

ordered_json describe_entry(const cuda::CacheEntry& entry) {
  return {{"kernel", entry.file},
          {"config", entry.config},
          {"architecture", entry.architecture},
          {"compiler", entry.compiler_version},
          {"bytes", entry.bytes},
          {"registers", entry.resources.registers},
          {"stack_bytes", entry.resources.stack_bytes},
          {"spill_bytes", entry.resources.spill_bytes},
          {"current", entry.is_current}};
}

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options)
      : device_index_(options.device_index), cache_(options.cache_dir) {}

  const char* name() const override { return "cuda"; }
  vecina_device device() const override { return VECINA_CUDA; }
  bool stages_host_tensors() const override { return true; }

  std::string why_not() const override { return cuda::Driver::get().why_not; }

  std::string why_not(const Problem& problem, Pass pass) const override {
    std::shared_ptr<const DeviceState> state;
    const Status status = open(device_index_, &state);
    if (!status.ok() && cuda::Driver::get().why_not.empty()) return status.message();
    return cuda::why_not(problem, pass, status.ok() ? state->facts() : DeviceFacts());
  }

  Status plan(const Problem& problem, const vecina_forward_args& example,
              std::unique_ptr<Plan>* plan) override {
    return make_plan(problem, example, plan);
  }
  Status plan(const Problem& problem, const vecina_backward_args& example,
              std::unique_ptr<Plan>* plan) override {
    return make_plan(problem, example, plan);
  }
  Status plan(const Problem& problem, const SplitArgs& example,
              std::unique_ptr<Plan>* plan) override {
    return make_plan(problem, example, plan);
  }

  size_t workspace_bytes(const Problem& problem, Pass pass) const override {
    return cuda::workspace_bytes(problem, pass);
  }

  Status merge(const MergeArgs& args, void* queue) override { return merge(args, queue, &merges_); }
  Status merge_backward(const MergeBackwardArgs& args, void* queue) override {
    return merge(args, queue, &merge_gradients_);
  }

  Status list_kernels(std::string* json) const override {
    ordered_json entries = ordered_json::array();
    for (const cuda::CacheEntry& entry : cache_.list()) entries.push_back(describe_entry(entry));
    *json = ordered_json{{"folder", cache_.folder().string()}, {"kernels", entries}}.dump();
    return {};
  }

  Status clear_kernels(std::string* json) const override {
    *json = ordered_json{{"folder", cache_.folder().string()}, {"removed", cache_.clear()}}.dump();
    return {};
  }

  Status build_kernels(int compute_capability, const Problem& problem, const KernelParts& parts,
                       std::string* json) const override {
    DeviceFacts facts = cuda::imagined_facts(compute_capability);
    facts.nvrtc = cuda::nvrtc_version(cache_);
    if (compute_capability == 0) {
      std::shared_ptr<const DeviceState> state;
      VECINA_RETURN_IF_ERROR(open(device_index_, &state));
      facts = state->facts();
      compute_capability = state->device->compute_capability();
    }
    ordered_json built = ordered_json::array();
    VECINA_RETURN_IF_ERROR(
        cuda::build_ahead(problem, parts, facts, compute_capability, cache_, &built));
    *json = ordered_json{{"problem", problem.line()}, {"kernels", built}}.dump();
    return {};
  }

  Status tune(const Problem& problem, int count, std::string* json) override {
    std::shared_ptr<const DeviceState> state;
    VECINA_RETURN_IF_ERROR(open(device_index_, &state));
    ordered_json tuned;
    VECINA_RETURN_IF_ERROR(cuda::tune_hopper(problem, count, std::move(state), &tuned));
    *json = tuned.dump();
    return {};
  }

  Status clear_tuned(std::string* json) const override {
    const int removed = cuda::TunedCuts::clear(cache_);
    *json = ordered_json{{"folder", cache_.folder().string()}, {"removed", removed}}.dump();
    return {};
  }

  std::string info() const override {
    ordered_json devices = ordered_json::array();
    for (int i = 0; i < cuda::Driver::get().num_devices; ++i) {
      std::shared_ptr<const DeviceState> state;
      const Status status = open(i, &state);
      devices.push_back(status.ok() ? describe_device(*state->device)
                                    : ordered_json{{"why", status.message()}});
    }
    return ordered_json{{"driver_cuda", cuda::Driver::get().version},
                        {"nvrtc", cuda::Compiler::path()},
                        {"cache", cache_.folder().string()},
                        {"devices", devices}}
        .dump();
  }

 private:
  static ordered_json describe_device(const cuda::Device& device) {
    return {{"name", device.name()},
            {"compute_capability", device.compute_capability()},
            {"multiprocessors", device.facts().multiprocessors},
            {"shared_bytes_per_block", device.facts().shared_bytes_per_block},
            {"l2_bytes", device.facts().l2_bytes}};
  }

  Status open(int index, std::shared_ptr<const DeviceState>* state) const {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<const DeviceState>& found = devices_[index];
    if (found == nullptr) {
      auto opened = std::make_shared<DeviceState>();
      VECINA_RETURN_IF_ERROR(cuda::Device::open(index, &opened->device));
      opened->kernels = std::make_unique<cuda::KernelStore>(*opened->device, cache_);
      opened->tuned = std::make_unique<cuda::TunedCuts>(cache_, opened->device->name());
      opened->nvrtc = cuda::nvrtc_version(cache_);
      found = std::move(opened);
    }
    *state = found;
    return {};
  }

  template <typename Args>
  Status make_plan(const Problem& problem, const Args& example, std::unique_ptr<Plan>* plan) {
    std::shared_ptr<const DeviceState> state;
    const vecina_tensor& first = first_tensor(example);
    VECINA_RETURN_IF_ERROR(
        open(first.device == VECINA_CPU ? device_index_ : first.device_index, &state));
    return cuda::make_plan(problem, example, std::move(state), plan);
  }

  template <typename Args>
  Status merge(const Args& args, void* queue, cuda::Merges<Args>* merges) {
    const vecina_tensor& first = args.outputs[0];
    std::shared_ptr<const DeviceState> state;
    VECINA_RETURN_IF_ERROR(
        open(first.device == VECINA_CPU ? device_index_ : first.device_index, &state));
    return merges->run(args, std::move(state), queue);
  }

  const int device_index_;
  const cuda::DiskCache cache_;
  cuda::Merges<MergeArgs> merges_;
  cuda::Merges<MergeBackwardArgs> merge_gradients_;
  mutable std::mutex mutex_;  // guards devices_
  mutable std::map<int, std::shared_ptr<const DeviceState>> devices_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace vecina::internal
