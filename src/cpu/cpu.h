// SPDX-License-Identifier: MIT
// The CPU backend: SIMD kernels (Highway, chosen at run time) on the library's own threads.
#ifndef VECINA_CPU_CPU_H_
#define VECINA_CPU_CPU_H_

#include <memory>

#include "core/backend.h"

namespace vecina::internal {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

}  // namespace vecina::internal
#endif  // VECINA_CPU_CPU_H_
