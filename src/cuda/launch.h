// SPDX-License-Identifier: MIT
// What a family of kernels answers for one problem: which embedded file to compile for which
// constants, and how to start it. Plain data, made without a device, so that tests on a machine
// without a GPU see and compile every kernel that a user would run.
#ifndef VECINA_CUDA_LAUNCH_H_
#define VECINA_CUDA_LAUNCH_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/status.h"
#include "vecina/vecina.h"

namespace vecina::internal::cuda {

class TunedCuts;

// What planning depends on. The defaults are an H100, for planning where there is none.
struct DeviceFacts {
  int compute_capability = 90;  // 10 * major + minor
  int multiprocessors = 132;
  int shared_bytes_per_block = 227 * 1024;  // with opt-in
  int l2_bytes = 50 * 1024 * 1024;
  const TunedCuts* tuned = nullptr;  // what was measured there before, if any
  int nvrtc = 0;  // the compiler: 100 * major + minor; 0: not known, taken for new enough
};

// One compiled kernel: an entry of an embedded file with its constants.
struct KernelSource {
  std::string file;           // "small_lanes.cu"
  std::string entry;          // "small_lanes_forward"
  std::string config_header;  // "small_lanes_config.h"
  std::string config_type;    // "SmallLanesConfig"
  std::string config;         // the aggregate's initialiser, "{.head_dim = 32, ...}"
  // Uses instructions of that architecture alone (wgmma, setmaxnreg): compiled for sm_90a, not
  // sm_90.
  bool is_architecture_specific = false;

  friend bool operator==(const KernelSource&, const KernelSource&) = default;
};

// Writes the kernel's one parameter, a struct of KernelLaunch::params_bytes, for the tensors of a
// run: pointers, and what was decided when planning. Allocates nothing.
template <typename Args>
using FillParams = std::function<Status(const Args& args, void* params)>;

template <typename Args>
struct KernelLaunch {
  KernelSource source;
  uint32_t grid[3] = {1, 1, 1};
  uint32_t block[3] = {1, 1, 1};
  uint32_t shared_bytes = 0;  // dynamic
  // The kernel begins with griddepcontrol.wait: it may start while the one before it ends.
  bool is_programmatic = false;
  size_t params_bytes = 0;  // at most kMaxParamsBytes
  FillParams<Args> fill;
  // Of the caller's device memory; the launches of one call share it.
  size_t workspace_bytes = 0;
  std::string description;  // members of a JSON object, without braces: tiles, work, why
};
using ForwardLaunch = KernelLaunch<vecina_forward_args>;
using BackwardLaunch = KernelLaunch<vecina_backward_args>;

// Indices of launches, those of one kernel together, in the order of their first.
template <typename Args>
std::vector<std::vector<size_t>> group_by_kernel(const std::vector<KernelLaunch<Args>>& launches) {
  std::vector<std::vector<size_t>> groups;
  for (size_t i = 0; i < launches.size(); ++i) {
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const auto& group) {
      return launches[group.front()].source == launches[i].source;
    });
    if (same == groups.end()) {
      groups.push_back({i});
    } else {
      same->push_back(i);
    }
  }
  return groups;
}

inline constexpr size_t kMaxParamsBytes = 4096;  // of a kernel, before CUDA 12.1

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_LAUNCH_H_
