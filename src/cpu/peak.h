// SPDX-License-Identifier: MIT
// What one core of this machine can do, and which instruction set the kernels use.
#ifndef VECINA_CPU_PEAK_H_
#define VECINA_CPU_PEAK_H_

#include <optional>
#include <string>

namespace vecina::internal::cpu {

// Restricts the instruction sets to VECINA_CPU_TARGET (sse4, avx2, avx3 or neon, as Highway names
// them, or amx or amx_emulated: avx3 with tiles of matrices) if that is set; if not, all are taken
// that this CPU has. target_problem() is a sentence if this CPU or build has no such set.
void choose_target();
std::string target_problem();

// What one thread reaches, a nanosecond.
struct Peak {
  double fma_gflops = 0.0;  // multiplications and additions of f32
  double exp_gops = 0.0;    // 2^x of the softmax, f32
  double l1_gbs = 0.0, l2_gbs = 0.0, l3_gbs = 0.0, memory_gbs = 0.0;  // bytes read
  double tile_gflops = 0.0;  // multiplications and additions of tiles of bf16; 0: has none
};
// Takes less than a second. Afterwards this process knows it.
Peak measure_peak();
std::optional<Peak> known_peak();
// JSON object: fma_gflops_per_core_f32, the others by their names, target; with tiles of matrices
// tile_gflops_per_core_bf16.
std::string json_of(const Peak& peak);

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_PEAK_H_
