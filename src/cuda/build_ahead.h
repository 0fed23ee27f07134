// SPDX-License-Identifier: MIT
// Kernels compiled before anybody calls for them.
#ifndef VECINA_CUDA_BUILD_AHEAD_H_
#define VECINA_CUDA_BUILD_AHEAD_H_

#include <nlohmann/json.hpp>

#include "core/backend.h"
#include "core/problem.h"
#include "core/status.h"
#include "cuda/disk_cache.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

// Those of a problem whose tensors are contiguous and aligned, for a GPU of a compute capability:
// to disk, unless they are there. Adds an object for each to `list`, and one with "why" for each
// pass that there is none of. Needs no device.
Status build_ahead(const Problem& problem, const KernelParts& parts, const DeviceFacts& facts,
                   int compute_capability, const DiskCache& cache, nlohmann::ordered_json* list);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_BUILD_AHEAD_H_
