// SPDX-License-Identifier: MIT
// Plans of kernels/hopper_forward.cu: large problems in 16 bits on Hopper's tensor cores, one
// launch, no workspace. Needs no device.
#ifndef VECINA_CUDA_HOPPER_PLAN_H_
#define VECINA_CUDA_HOPPER_PLAN_H_

#include <string>
#include <vector>

#include "core/backend.h"
#include "core/problem.h"
#include "core/status.h"
#include "cuda/hopper_tiling.h"
#include "cuda/launch.h"
#include "cuda/part_of_call.h"

namespace vecina::internal::cuda {

// Why they do not take the problem; empty if they do.
std::string hopper_why_not(const Problem& problem, Pass pass, const DeviceFacts& facts);

// Lengths are data of a run: what is planned counts on samples that are all as long as the longest.
// Without lengths the problem itself.
Problem with_longest_samples(const Problem& problem);

// UNSUPPORTED if rows are not 16-byte aligned. No launch at all where there is nothing to compute.
Status hopper_plan_forward(const Problem& problem, const vecina_forward_args& example,
                           const DeviceFacts& facts, std::vector<ForwardLaunch>* launches);

// The same with a given cut, for tests and measurements.
Status hopper_launch(const Problem& problem, const vecina_forward_args& example,
                     const DeviceFacts& facts, const HopperChoice& choice,
                     std::vector<ForwardLaunch>* launches);

// The example of that sample alone, and where it begins in a call's tensors.
vecina_forward_args args_of_sample(const vecina_forward_args& example, int64_t sample,
                                   PartOfCall<vecina_forward_args>* part);

size_t hopper_workspace_bytes(const Problem& problem);  // 0 without lengths

// Members of a JSON object, without braces: boxes, warpgroups, stages and how they work together.
std::string describe_cut(const HopperConfig& config);

// The aggregate's initialiser.
std::string print(const HopperConfig& config);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_HOPPER_PLAN_H_
