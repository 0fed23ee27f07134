// SPDX-License-Identifier: MIT
// Many small windows in 16 bits, on tensor cores with the tokens of a tile's windows in shared
// memory: forward, and gradients of query, key and value. Needs no device.
#ifndef VECINA_CUDA_HALO_PLAN_H_
#define VECINA_CUDA_HALO_PLAN_H_

#include <array>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/problem.h"
#include "core/status.h"
#include "cuda/kernels/halo_config.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

enum class HaloKernel { forward, gradient_query, gradient_key };

// How owners (queries; of gradient_key, keys) are cut.
struct HaloShape {
  std::array<int, 3> box = {1, 1, 1};    // of a warp
  std::array<int, 3> boxes = {1, 1, 1};  // of a block
  int items_of_block = 1;                // which a block walks
};

// Why the kernels do not take the problem, whatever the strides; empty if they do.
std::string halo_why_not(const Problem& problem, Pass pass, const DeviceFacts& facts);

// The shape with the least estimated cost; without boxes if none fits the device.
HaloShape choose_halo_shape(const Problem& problem, HaloKernel kernel, const DeviceFacts& facts);

// UNSUPPORTED: strides or addresses do not suit.
Status halo_plan_forward(const Problem& problem, const vecina_forward_args& example,
                         const DeviceFacts& facts, std::vector<ForwardLaunch>* launches);
ForwardLaunch halo_forward_launch(const Problem& problem, const vecina_forward_args& example,
                                  const DeviceFacts& facts, const HaloShape& shape);

// Gradients of additional tokens are left to the family `gradient`, whose workspace is used.
Status halo_plan_backward(const Problem& problem, const vecina_backward_args& example,
                          const DeviceFacts& facts, std::vector<BackwardLaunch>* launches);
BackwardLaunch halo_gradient_launch(const Problem& problem, HaloKernel kernel,
                                    const vecina_backward_args& example, const DeviceFacts& facts,
                                    const HaloShape& shape);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_HALO_PLAN_H_
