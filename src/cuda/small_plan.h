// SPDX-License-Identifier: MIT
// The kernels for small problems: one launch, no workspace. Which of their forms computes a
// problem, with which tiles. Needs no device.
//   fragments  tensor cores on fragments straight from global memory: windows of some 20 to some
//              hundred keys
//   halo       tensor cores on the windows of a tile in shared memory: many queries, 16 bits
//   tiles      tensor cores on boxes of keys that pass through shared memory: large windows
//              in 16 bits
//   lanes      no tensor cores; every problem of the definition
#ifndef VECINA_CUDA_SMALL_PLAN_H_
#define VECINA_CUDA_SMALL_PLAN_H_

#include <string>
#include <vector>

#include "core/backend.h"
#include "core/problem.h"
#include "core/status.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

// Why they do not take the problem; empty if they do, whatever the strides.
std::string small_why_not(const Problem& problem, Pass pass, const DeviceFacts& facts);

// No launch at all where there is nothing to compute.
Status small_plan_forward(const Problem& problem, const vecina_forward_args& example,
                          const DeviceFacts& facts, std::vector<ForwardLaunch>* launches);

// All branches in one launch, of merging or of its gradients; up to kMaxSmallMerge of them.
inline constexpr int kMaxSmallMerge = 16;
Status small_plan_merge(const MergeArgs& example, const DeviceFacts& facts,
                        std::vector<KernelLaunch<MergeArgs>>* launches);
Status small_plan_merge(const MergeBackwardArgs& example, const DeviceFacts& facts,
                        std::vector<KernelLaunch<MergeBackwardArgs>>* launches);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_SMALL_PLAN_H_
