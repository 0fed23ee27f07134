// SPDX-License-Identifier: MIT
// Large windows in 16 bits on tensor cores of any architecture, boxes of partners passing through
// shared memory: forward, and gradients of query, key and value. Needs no device.
#ifndef VECINA_CUDA_TILES_PLAN_H_
#define VECINA_CUDA_TILES_PLAN_H_

#include <string>
#include <vector>

#include "core/problem.h"
#include "cuda/launch.h"
#include "cuda/tiles_shape.h"

namespace vecina::internal::cuda {

// The forward is faster than the forms for small windows, if it takes the problem.
bool pays_for_tiles(const Problem& problem);
// Adds the launches of the forward: of many columns of values, one for each part of them, which
// finds the weights anew. Or says why the form does not take the problem with these strides.
std::string plan_tiles_forward(const Problem& problem, const vecina_forward_args& example,
                               const DeviceFacts& facts, std::vector<ForwardLaunch>* launches);
ForwardLaunch tiles_forward_launch(const Problem& problem, const vecina_forward_args& example,
                                   const DeviceFacts& facts, const TilesShape& shape);

// Adds the launches of the gradients of query, key and value; the first leaves the facts of each
// query in the workspace, as gradient_query does. Gradients of many columns are added up in parts,
// each by a launch. Where the problem allows that its bits differ from run to run, and that of
// query and another are wanted: one kernel, between two small ones. Or says why the form does not
// take the problem with these strides.
std::string plan_tiles_backward(const Problem& problem, const vecina_backward_args& example,
                                const DeviceFacts& facts, std::vector<BackwardLaunch>* launches);
BackwardLaunch tiles_gradient_launch(const Problem& problem, TilesKernel kernel,
                                     const vecina_backward_args& example, const DeviceFacts& facts,
                                     const TilesShape& shape, int first_column = 0);
// Device memory that such a kernel adds in, if the problem allows it; else 0.
size_t tiles_sums_bytes(const Problem& problem);

// Adds the launch that adds up the gradient of the bias in parts of the queries, each of which has
// its sums in device memory after the facts: tiles_bias_bytes() for tiles_bias_parts() of them.
// Wants facts that plan_tiles_backward's launches left. Or says why not.
std::string plan_tiles_bias(const Problem& problem, const vecina_backward_args& example,
                            const DeviceFacts& facts, std::vector<BackwardLaunch>* launches);
int tiles_bias_parts(const Problem& problem);
size_t tiles_bias_bytes(const Problem& problem);  // 0 if the problem has none

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_TILES_PLAN_H_
