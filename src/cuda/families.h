// SPDX-License-Identifier: MIT
// The families of kernels, in order of preference: the first that takes a problem gets it. The
// split form has one family of its own (split_plan.h).
#ifndef VECINA_CUDA_FAMILIES_H_
#define VECINA_CUDA_FAMILIES_H_

#include <span>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/problem.h"
#include "core/status.h"
#include "cuda/launch.h"
#include "cuda/split_plan.h"

namespace vecina::internal::cuda {

struct Family {
  const char* name;
  // Why it does not take the problem; empty if it does, whatever the strides.
  std::string (*why_not)(const Problem& problem, Pass pass, const DeviceFacts& facts);
  // What to launch, one after another; strides and alignment are those of the example.
  // UNSUPPORTED (they do not suit it): the next family is asked. nullptr: none, and why_not says
  // so.
  Status (*plan_forward)(const Problem& problem, const vecina_forward_args& example,
                         const DeviceFacts& facts, std::vector<ForwardLaunch>* launches);
  Status (*plan_backward)(const Problem& problem, const vecina_backward_args& example,
                          const DeviceFacts& facts, std::vector<BackwardLaunch>* launches);
  int oldest_nvrtc_for_lengths;  // as DeviceFacts::nvrtc; 0: any
};
std::span<const Family> families();

// Why no family takes the problem, empty if one does.
std::string why_not(const Problem& problem, Pass pass, const DeviceFacts& facts);
// Device memory that a call needs at most, whatever the strides and the device.
size_t workspace_bytes(const Problem& problem, Pass pass);
// From the first family that takes the problem with these strides; `family` is its name.
Status plan_launches(const Problem& problem, const vecina_forward_args& example,
                     const DeviceFacts& facts, const char** family,
                     std::vector<ForwardLaunch>* launches);
Status plan_launches(const Problem& problem, const vecina_backward_args& example,
                     const DeviceFacts& facts, const char** family,
                     std::vector<BackwardLaunch>* launches);
Status plan_launches(const Problem& problem, const SplitArgs& example, const DeviceFacts& facts,
                     const char** family, std::vector<SplitLaunch>* launches);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_FAMILIES_H_
