// SPDX-License-Identifier: MIT
// Many small windows in 16 bits, on tensor cores with the tokens of a tile's windows in shared
// memory: forward, and gradients of query, key and value. Needs no device.
#ifndef VECINA_CUDA_HALO_PLAN_H_
#define VECINA_CUDA_HALO_PLAN_H_

#include <array>
#include <string>
#include <vector>

#include "core/problem.h"
#include "cuda/kernels/halo_config.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

enum class HaloKernel { forward, gradient_query, gradient_key };

// How owners (queries; of gradient_key, keys) are cut.
struct HaloShape {
  std::array<int, 3> box = {1, 1, 1};    // of a warp
  std::array<int, 3> boxes = {1, 1, 1};  // of a block
  int items_of_block = 1;                // heads of samples, which a block walks

  bool is_possible() const { return box[2] > 0; }
};

// Partners along an axis that neighbouring owners of a box meet together, at most: keys of queries,
// or queries of keys.
int most_partners(const Axis& axis, bool of_keys, int owners);

// The shape with the least estimated cost; not possible if none fits the device.
HaloShape choose_halo_shape(const Problem& problem, HaloKernel kernel, const DeviceFacts& facts);

// Whether the forward's tokens in shared memory save more than barriers cost. In 1-D neighbouring
// windows find their keys in the cache.
bool pays_for_halo(const Problem& problem);
// Whether it is faster than Hopper's own instructions: in 2-D, where windows and rows are short.
bool halo_beats_hopper(const Problem& problem, const DeviceFacts& facts);
// Sets *launch, or says why the form does not take the problem with these strides.
std::string plan_halo_forward(const Problem& problem, const vecina_forward_args& example,
                              const DeviceFacts& facts, ForwardLaunch* launch);
ForwardLaunch halo_forward_launch(const Problem& problem, const vecina_forward_args& example,
                                  const DeviceFacts& facts, const HaloShape& shape);

// Adds the launches of the gradients of query, key and value; the first leaves the facts of each
// query in the workspace, as gradient_query does.
std::string plan_halo_backward(const Problem& problem, const vecina_backward_args& example,
                               const DeviceFacts& facts, std::vector<BackwardLaunch>* launches);
BackwardLaunch halo_gradient_launch(const Problem& problem, HaloKernel kernel,
                                    const vecina_backward_args& example, const DeviceFacts& facts,
                                    const HaloShape& shape);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_HALO_PLAN_H_
