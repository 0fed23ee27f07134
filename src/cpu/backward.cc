// SPDX-License-Identifier: MIT
// The backward kernels of every dtype, for every instruction set. One source, because half of its
// time to compile goes into Highway.
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/backward.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/backward-inl.h"
#include "cpu/matrix_tiles.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
static BackwardKernel f32_kernel() { return make_backward_kernel<float>(); }
static BackwardKernel f64_kernel() { return make_backward_kernel<double>(); }
static BackwardKernel f16_kernel() { return make_backward_kernel<float16>(); }
static BackwardKernel bf16_kernel() {
  BackwardKernel kernel = make_backward_kernel<bfloat16>();
#if HWY_TARGET == HWY_AVX3
  const MatrixTiles tiles = chosen_matrix_tiles();
  kernel.run_matrix = matrix_backward_function(tiles);
  kernel.matrix_target = name_of(tiles);
  kernel.matrix_everywhere = tiles == MatrixTiles::emulated;  // to test it
#endif
  return kernel;
}
}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::internal::cpu {
HWY_EXPORT(f32_kernel);
HWY_EXPORT(f64_kernel);
HWY_EXPORT(f16_kernel);
HWY_EXPORT(bf16_kernel);
BackwardKernel backward_kernel_f32() { return HWY_DYNAMIC_DISPATCH(f32_kernel)(); }
BackwardKernel backward_kernel_f64() { return HWY_DYNAMIC_DISPATCH(f64_kernel)(); }
BackwardKernel backward_kernel_f16() { return HWY_DYNAMIC_DISPATCH(f16_kernel)(); }
BackwardKernel backward_kernel_bf16() { return HWY_DYNAMIC_DISPATCH(bf16_kernel)(); }
}  // namespace vecina::internal::cpu
#endif  // HWY_ONCE
