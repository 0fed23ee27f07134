// SPDX-License-Identifier: MIT
// The forward kernels for f16 and bf16 tensors, for every instruction set. They share a source as
// much of both is the same to the compiler.
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/forward_half.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/forward-inl.h"
#include "cpu/matrix_tiles.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
static ForwardKernel f16_kernel() { return make_forward_kernel<float16>(); }
static ForwardKernel bf16_kernel() {
  ForwardKernel kernel = make_forward_kernel<bfloat16>();
#if HWY_TARGET == HWY_AVX3
  kernel.has_pair_products = __builtin_cpu_supports("avx512bf16");
  // Sapphire Rapids does not: there one takes as long as four multiply-adds of floats.
  kernel.has_fast_pair_products = kernel.has_pair_products && __builtin_cpu_is("amd");
  const MatrixTiles tiles = chosen_matrix_tiles();
  kernel.run_matrix = matrix_function(tiles);
  kernel.matrix_target = name_of(tiles);
  kernel.matrix_everywhere = tiles == MatrixTiles::emulated;  // to test it
#endif
  return kernel;
}
}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::internal::cpu {
HWY_EXPORT(f16_kernel);
HWY_EXPORT(bf16_kernel);
ForwardKernel forward_kernel_f16() { return HWY_DYNAMIC_DISPATCH(f16_kernel)(); }
ForwardKernel forward_kernel_bf16() { return HWY_DYNAMIC_DISPATCH(bf16_kernel)(); }
}  // namespace vecina::internal::cpu
#endif  // HWY_ONCE
