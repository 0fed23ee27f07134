// SPDX-License-Identifier: MIT
// Problems for tests of plans, and runs that have no more than a plan reads of them.
#ifndef VECINA_TESTS_PLAN_CASES_H_
#define VECINA_TESTS_PLAN_CASES_H_

#include <algorithm>
#include <iterator>

#include "vecina/vecina.h"

namespace vecina::tests {

// One for each family of CUDA's kernels: lanes, fragments, halo, tiles, Hopper's.
inline constexpr const char* kCallLines[] = {
    "1d 64 kernel_size 7 batch 2 heads 4 heads_kv 2 head_dim 32 additional 2",
    "1d 41 kernel_size 5 dilation 3 causal heads 2 head_dim 12 bias",
    "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32",
    "2d 32x32 kernel_size 5 batch 16 heads 4 head_dim 32 dtype bf16",
    "2d 48x48 kernel_size 21 heads 2 head_dim 64 dtype f16 additional 1",
    "2d 40x40 kernel_size 17 heads 2 head_dim 64 head_dim_value 48 dtype bf16",
    "3d 6x7x8 kernel_size 3x4x5 causal 1x0x0 heads 2 head_dim 16 dtype f64",
    "attention 50x70 batch 2 heads 2 head_dim 32 dtype f16",
};

// A tensor of a run: only where it is counts, the rest is the plan's.
enum class Rest { is_missing, is_misleading };
inline vecina_tensor address_alone(const vecina_tensor& tensor, Rest rest) {
  vecina_tensor alone = {};
  alone.data = tensor.data;
  alone.byte_offset = tensor.byte_offset;
  if (tensor.data == nullptr || rest == Rest::is_missing) return alone;
  alone.dtype = VECINA_I64;
  alone.device = VECINA_METAL;
  alone.device_index = 7;
  alone.ndim = static_cast<int32_t>(std::size(alone.shape));
  std::fill(std::begin(alone.shape), std::end(alone.shape), 3);
  std::fill(std::begin(alone.strides), std::end(alone.strides), -5);
  return alone;
}

}  // namespace vecina::tests
#endif  // VECINA_TESTS_PLAN_CASES_H_
