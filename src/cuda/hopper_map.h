// SPDX-License-Identifier: MIT
// Tensors as Hopper's copy engine sees them: boxes of tokens and columns at coordinates.
#ifndef VECINA_CUDA_HOPPER_MAP_H_
#define VECINA_CUDA_HOPPER_MAP_H_

#include <array>
#include <cstdint>

#include "core/status.h"
#include "cuda/kernels/hopper_params.h"
#include "vecina/vecina.h"

namespace vecina::internal::cuda {

// Which of a map's dimensions counts the heads: columns, of which each has as many; axis 0, with
// fewer than three axes; the batch, with one sample.
enum class HopperHeads { columns, axis0, batch };

// Dimensions innermost first: columns, axes 2, 1, 0, batch.
struct HopperMapPlan {
  int dtype = 0;  // vecina_dtype
  std::array<uint64_t, 5> extents = {};
  std::array<uint64_t, 4> byte_strides = {};  // of all dimensions but the innermost
  std::array<uint32_t, 5> box = {}, steps = {};
  int head_stride = 0;  // in elements
};

// `tensor` is [batch, `rank` axes, heads, columns]; a box has `tokens` tokens along each of three
// axes, `steps` apart. UNSUPPORTED if the tensor's rows cannot be copied so.
Status make_map(const char* name, const vecina_tensor& tensor, int rank, HopperHeads heads_are,
                const std::array<int, 3>& tokens, const std::array<int, 3>& steps,
                HopperMapPlan* plan);

// For a run's tensor.
Status encode_map(const HopperMapPlan& plan, const vecina_tensor& tensor,
                  vecina::cuda::HopperMap* map);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_HOPPER_MAP_H_
