// SPDX-License-Identifier: MIT
// Plans of kernels/small_fragments.cu.
#ifndef VECINA_CUDA_SMALL_FRAGMENTS_PLAN_H_
#define VECINA_CUDA_SMALL_FRAGMENTS_PLAN_H_

#include <string>

#include "core/problem.h"
#include "cuda/kernels/small_fragments_config.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

// The aggregate's initialiser.
std::string print(const vecina::cuda::SmallFragmentsConfig& config);

// Sets *launch, or says why the form does not take the problem with these strides.
std::string plan_fragments(const Problem& problem, const vecina_forward_args& example,
                           const DeviceFacts& facts, ForwardLaunch* launch);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_SMALL_FRAGMENTS_PLAN_H_
