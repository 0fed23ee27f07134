// SPDX-License-Identifier: MIT
// Neighbouring axes along which every query sees every key are one axis where the tensors have them
// so in memory: dense attention of 16x16 tokens is that of 256, with fewer numbers to compute.
#ifndef VECINA_CUDA_FOLDED_AXES_H_
#define VECINA_CUDA_FOLDED_AXES_H_

#include "core/problem.h"
#include "vecina/vecina.h"

namespace vecina::internal::cuda {

// The same computation, on the same memory.
struct FoldedAxes {
  Problem problem;
  vecina_forward_args example;  // shapes and strides of its tensors
};
FoldedAxes fold_axes(const Problem& problem, const vecina_forward_args& example);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_FOLDED_AXES_H_
