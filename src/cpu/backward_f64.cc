// SPDX-License-Identifier: MIT
// The backward kernels for f64 tensors, for every instruction set.
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/backward_f64.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/backward-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
static BackwardKernel backward_kernel() { return make_backward_kernel<double>(); }
}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::internal::cpu {
HWY_EXPORT(backward_kernel);
BackwardKernel backward_kernel_f64() { return HWY_DYNAMIC_DISPATCH(backward_kernel)(); }
}  // namespace vecina::internal::cpu
#endif  // HWY_ONCE
