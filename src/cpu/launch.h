// SPDX-License-Identifier: MIT
// What every plan of this backend needs to run: the threads and the working memory of its context,
// the kernels of a dtype, and the addresses in a call's arguments.
#ifndef VECINA_CPU_LAUNCH_H_
#define VECINA_CPU_LAUNCH_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/backend.h"
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"
#include "vecina/vecina.h"

namespace vecina::internal::cpu {

struct Resources {
  ThreadPool threads;
  ScratchPool scratch;
  ScratchPool shared;  // what the threads of one call hand to each other

  explicit Resources(const BackendOptions& options) : threads(options) {}

  // Units that a forward call is cut into if there are fewer.
  int64_t enough_units() const { return threads.threads() > 1 ? 3 * threads.threads() : 0; }
  // A call of that many floating-point operations.
  ThreadPool::Call call(double flops);

  // A member of a plan's description: what calls back to back take that take alone_ms on one
  // thread.
  std::string prediction(double alone_ms, double flops, int64_t units) const;
};

ForwardKernel forward_kernel(int32_t dtype);
BackwardKernel backward_kernel(int32_t dtype);
double backward_flops(const Problem& problem);

ForwardPointers pointers_of(const vecina_forward_args& args);
BackwardPointers pointers_of(const vecina_backward_args& args, void* shared);

Status no_memory(size_t bytes);

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_LAUNCH_H_
