// SPDX-License-Identifier: MIT
#include "cpu/launch.h"

#include <fmt/format.h>

#include "core/tensor.h"

namespace vecina::internal::cpu {
namespace {

// What a thread does at least, as a rule.
constexpr double kFlopsOfMicrosecond = 3e4;

constexpr double kBackwardProducts = 5.0;  // where forward has two

char* pointer(const vecina_tensor& tensor) { return given(tensor) ? address(tensor) : nullptr; }

}  // namespace

ThreadPool::Call Resources::call(double flops) {
  return ThreadPool::Call(&threads, flops / kFlopsOfMicrosecond);
}

std::string Resources::prediction(double alone_ms, double flops, int64_t units) const {
  const int64_t count = threads.threads();
  double share = 1.0;  // of the thread that has most units
  if (units > 0 && flops / kFlopsOfMicrosecond >= ThreadPool::kLeastShared) {
    share = static_cast<double>((units + count - 1) / count) / static_cast<double>(units);
  }
  return fmt::format(R"("predicted_ms": {:.4g}, )", alone_ms * share);
}

ForwardKernel forward_kernel(int32_t dtype) {
  switch (dtype) {
    case VECINA_F64:
      return forward_kernel_f64();
    case VECINA_F16:
      return forward_kernel_f16();
    case VECINA_BF16:
      return forward_kernel_bf16();
    default:
      return forward_kernel_f32();
  }
}

BackwardKernel backward_kernel(int32_t dtype) {
  switch (dtype) {
    case VECINA_F64:
      return backward_kernel_f64();
    case VECINA_F16:
      return backward_kernel_f16();
    case VECINA_BF16:
      return backward_kernel_bf16();
    default:
      return backward_kernel_f32();
  }
}

double backward_flops(const Problem& problem) {
  return kBackwardProducts / 2.0 * problem.forward_flops();
}

ForwardPointers pointers_of(const vecina_forward_args& args) {
  return {pointer(args.query),
          pointer(args.key),
          pointer(args.value),
          pointer(args.additional_key),
          pointer(args.additional_value),
          pointer(args.bias),
          pointer(args.output),
          pointer(args.lse)};
}

BackwardPointers pointers_of(const vecina_backward_args& args, void* shared) {
  return {pointer(args.query),
          pointer(args.key),
          pointer(args.value),
          pointer(args.additional_key),
          pointer(args.additional_value),
          pointer(args.bias),
          pointer(args.output),
          pointer(args.lse),
          pointer(args.grad_output),
          pointer(args.grad_lse),
          pointer(args.grad_query),
          pointer(args.grad_key),
          pointer(args.grad_value),
          pointer(args.grad_additional_key),
          pointer(args.grad_additional_value),
          pointer(args.grad_bias),
          shared};
}

Status no_memory(size_t bytes) {
  return out_of_memory(
      fmt::format("the host has no {} bytes of working memory for a thread.", bytes));
}

}  // namespace vecina::internal::cpu
