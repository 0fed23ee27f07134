// SPDX-License-Identifier: MIT
// Plans of kernels/small_lanes.cu.
#ifndef VECINA_CUDA_SMALL_LANES_PLAN_H_
#define VECINA_CUDA_SMALL_LANES_PLAN_H_

#include <string>

#include "core/problem.h"
#include "core/status.h"
#include "cuda/kernels/small_lanes_config.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

// The aggregate's initialiser.
std::string print(const vecina::cuda::SmallLanesConfig& config);

ForwardLaunch plan_lanes(const Problem& problem, const vecina_forward_args& example,
                         const DeviceFacts& facts);
// Blocks that plan_lanes would launch at most, whatever the strides.
double lanes_blocks(const Problem& problem);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_SMALL_LANES_PLAN_H_
