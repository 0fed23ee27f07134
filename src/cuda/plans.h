// SPDX-License-Identifier: MIT
// Plans of the CUDA backend: launches on the caller's stream, or around copies of host tensors.
#ifndef VECINA_CUDA_PLANS_H_
#define VECINA_CUDA_PLANS_H_

#include <memory>

#include "core/backend.h"
#include "cuda/launch_sequence.h"

namespace vecina::internal::cuda {

// Compiles or loads the kernels for tensors like the example's, on the device or (copied there and
// back by each run, which returns when done) on the host.
Status make_plan(const Problem& problem, const vecina_forward_args& example,
                 std::shared_ptr<const DeviceState> state, std::unique_ptr<Plan>* plan);
Status make_plan(const Problem& problem, const vecina_backward_args& example,
                 std::shared_ptr<const DeviceState> state, std::unique_ptr<Plan>* plan);
Status make_plan(const Problem& problem, const SplitArgs& example,
                 std::shared_ptr<const DeviceState> state, std::unique_ptr<Plan>* plan);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_PLANS_H_
