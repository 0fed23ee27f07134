// SPDX-License-Identifier: MIT
// Kernels that were compiled and loaded for a device, started one after another on a stream.
#ifndef VECINA_CUDA_LAUNCH_SEQUENCE_H_
#define VECINA_CUDA_LAUNCH_SEQUENCE_H_

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/backend.h"
#include "cuda/device.h"
#include "cuda/kernel_store.h"
#include "cuda/launch.h"
#include "cuda/tuned_cuts.h"

namespace vecina::internal::cuda {

// One GPU with its kernels, shared by what runs on it. Its stores hold the backend's DiskCache.
struct DeviceState {
  std::unique_ptr<Device> device;
  std::unique_ptr<KernelStore> kernels;
  std::unique_ptr<TunedCuts> tuned;
  int nvrtc = 0;  // DeviceFacts::nvrtc

  DeviceFacts facts() const {
    DeviceFacts facts = device->facts();
    facts.tuned = tuned.get();
    facts.nvrtc = nvrtc;
    return facts;
  }
};

// A list, one object for each launch. Those that follow an equal one are counted in its "launches";
// what it predicts is of one of them.
template <typename Args>
nlohmann::ordered_json describe_launches(const std::vector<KernelLaunch<Args>>& launches,
                                         const std::vector<Kernel>& kernels);

// Args is vecina_forward_args, vecina_backward_args, SplitArgs, MergeArgs or MergeBackwardArgs.
template <typename Args>
class LaunchSequence {
 public:
  // Compiles or loads the kernels.
  static Status make(std::shared_ptr<const DeviceState> state,
                     std::vector<KernelLaunch<Args>> launches, LaunchSequence* sequence);

  const Device& device() const { return *state_->device; }
  size_t workspace_bytes() const { return workspace_bytes_; }
  Status run(const Args& args, void* queue) const;
  // Times of `repeats` runs by the device's clock: replays of a graph of dependent runs.
  Status measure(const Args& args, int repeats, std::vector<double>* times_us) const;
  // Mean time of a run, one after another for so many seconds, of which the second half counts:
  // the clock of a GPU that is not hot yet is up to 15% higher.
  Status measure_steady(const Args& args, double seconds, double* run_us) const;
  nlohmann::ordered_json describe() const;  // as above
  const std::vector<Kernel>& kernels() const { return kernels_; }

 private:
  std::shared_ptr<const DeviceState> state_;
  std::vector<KernelLaunch<Args>> launches_;
  std::vector<Kernel> kernels_;  // of the launches
  size_t workspace_bytes_ = 0;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_LAUNCH_SEQUENCE_H_
