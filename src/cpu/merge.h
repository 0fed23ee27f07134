// SPDX-License-Identifier: MIT
// Merging attention outputs by their lse, on the CPU.
#ifndef VECINA_CPU_MERGE_H_
#define VECINA_CPU_MERGE_H_

#include "core/backend.h"
#include "cpu/thread_pool.h"

namespace vecina::internal::cpu {

// output = sum of softmax(lses)_i * outputs_i, lse = log sum exp; any strides, any count.
void merge(const MergeArgs& args, ThreadPool* threads);

// grad_outputs_i = weight_i * grad_output,
// grad_lses_i = weight_i * (grad_output . (output_i - output) + grad_lse); each if wanted.
void merge_backward(const MergeBackwardArgs& args, ThreadPool* threads);

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_MERGE_H_
