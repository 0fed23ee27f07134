// SPDX-License-Identifier: MIT
// Measures cuts of a problem with kernels/hopper_forward.cu on the device and keeps the fastest.
#ifndef VECINA_CUDA_HOPPER_TUNER_H_
#define VECINA_CUDA_HOPPER_TUNER_H_

#include <memory>
#include <string>

#include "core/problem.h"
#include "core/status.h"
#include "cuda/launch_sequence.h"

namespace vecina::internal::cuda {

// The `count` cuts that are predicted fastest; then the fastest of them with every other way to
// take turns, to chain and to let output leave; then what came out best again, in turns. On
// contiguous tensors of normally distributed numbers, which are made for it. `json`: what
// vecina_info says.
Status tune_hopper(const Problem& problem, int count, std::shared_ptr<const DeviceState> state,
                   nlohmann::ordered_json* json);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_HOPPER_TUNER_H_
