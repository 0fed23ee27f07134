// SPDX-License-Identifier: MIT
// The CUDA backend: kernels compiled at run time for the GPU at hand.
#ifndef VECINA_CUDA_CUDA_H_
#define VECINA_CUDA_CUDA_H_

#include <memory>

#include "core/backend.h"

namespace vecina::internal {

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace vecina::internal
#endif  // VECINA_CUDA_CUDA_H_
