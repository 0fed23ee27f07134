// SPDX-License-Identifier: MIT
// The forward kernels for bf16 tensors, for every instruction set.
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/forward_bf16.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/forward-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
static ForwardKernel forward_kernel() { return make_forward_kernel<bfloat16>(); }
}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::internal::cpu {
HWY_EXPORT(forward_kernel);
ForwardKernel forward_kernel_bf16() { return HWY_DYNAMIC_DISPATCH(forward_kernel)(); }
}  // namespace vecina::internal::cpu
#endif  // HWY_ONCE
