// SPDX-License-Identifier: MIT
// What one core of this machine can do, and which instruction set the kernels use.
#ifndef VECINA_CPU_PEAK_H_
#define VECINA_CPU_PEAK_H_

#include <string>

namespace vecina::internal::cpu {

// Restricts the instruction sets to VECINA_CPU_TARGET (sse4, avx2, avx3 or neon, as Highway names
// them) if that is set. target_problem() is a sentence if this CPU or build has no such set.
void choose_target();
std::string target_problem();

// Measures one thread for about half a second. JSON object: fma_gflops_per_core_f32, exp_gops
// (2^x of the softmax), l1_gbs and l2_gbs (reads), target.
std::string measure_peak();

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_PEAK_H_
