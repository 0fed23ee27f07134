// SPDX-License-Identifier: MIT
// The yardstick that anybody can write: a loop nest over queries, keys and head_dim, for the
// compiler to vectorise as it likes (benchmarks/CMakeLists.txt gives it -Ofast).
#ifndef VECINA_BENCHMARKS_CPU_LOOP_NEST_H_
#define VECINA_BENCHMARKS_CPU_LOOP_NEST_H_

#include <cstdint>

namespace vecina::benchmarks {

// Contiguous f32 tensors [batch, height, width, heads, head_dim]; a sequence has height 1.
struct LoopNest {
  const float *query, *key, *value;
  float* output;
  int batch, height, width, heads, head_dim;
  int kernel_height, kernel_width;
};

void run_loop_nest(const LoopNest& nest);

}  // namespace vecina::benchmarks
#endif  // VECINA_BENCHMARKS_CPU_LOOP_NEST_H_
