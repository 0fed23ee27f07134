// SPDX-License-Identifier: MIT
#include "cuda/hopper_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/tensor.h"
#include "cuda/driver.h"
#include "cuda/kernels/hopper_config.h"

namespace vecina::internal::cuda {
namespace {

constexpr int kAlignment = 16;
constexpr uint32_t kMaxBox = 256;
constexpr uint64_t kMaxByteStride = uint64_t{1} << 40;

// The driver's numbers.
constexpr int kBytes = 0, kFloat16 = 6, kBfloat16 = 9;
constexpr int kNotInterleaved = 0, kPromote256Bytes = 3, kFillWithZeros = 0;

int swizzle(uint32_t box_bytes) { return box_bytes == 128 ? 3 : box_bytes == 64 ? 2 : 1; }

int type_of(int dtype) {
  return dtype == VECINA_E4M3 ? kBytes : dtype == VECINA_BF16 ? kBfloat16 : kFloat16;
}

}  // namespace

Status make_map(const char* name, const vecina_tensor& tensor, int rank, HopperHeads heads_are,
                const std::array<int, 3>& tokens, const std::array<int, 3>& steps,
                HopperMapPlan* plan) {
  if (reinterpret_cast<uintptr_t>(address(tensor)) % kAlignment != 0) {
    return unsupported(fmt::format("{} is not {}-byte aligned", name, kAlignment));
  }
  const auto element_bytes = static_cast<int>(dtype_bytes(tensor.dtype));
  const int64_t heads = tensor.shape[rank + 1], columns = tensor.shape[rank + 2];
  const int64_t head_stride = heads > 1 ? tensor.strides[rank + 1] : columns;
  const bool is_by_head = heads_are != HopperHeads::columns;
  const double width =
      static_cast<double>(is_by_head ? 0 : heads - 1) * static_cast<double>(head_stride) +
      static_cast<double>(columns);
  if (head_stride < columns || head_stride % (kAlignment / element_bytes) != 0 ||
      std::max(width, static_cast<double>(head_stride)) > 2147483647.0) {
    return unsupported(fmt::format("{} has heads {} elements apart", name, head_stride));
  }
  plan->dtype = tensor.dtype;
  plan->head_stride = static_cast<int>(head_stride);
  plan->extents[0] = static_cast<uint64_t>(width);
  const int padded = vecina::cuda::hopper_padded(static_cast<int>(columns), element_bytes);
  const int box_bytes = vecina::cuda::hopper_box_bytes(padded * element_bytes);
  plan->box[0] = static_cast<uint32_t>(box_bytes / element_bytes);
  plan->steps[0] = 1;
  uint64_t apart = kAlignment;  // for dimensions of one token
  for (size_t i = 1; i < 5; ++i) {
    const int a = 3 - static_cast<int>(i);  // -1: the batch
    const bool is_head =
        (heads_are == HopperHeads::axis0 && a == 0) || (heads_are == HopperHeads::batch && a < 0);
    const int dimension = is_head ? rank + 1 : a < 0 ? 0 : a - (3 - rank) + 1;
    const bool is_there = a < 0 || dimension >= 1;
    plan->extents[i] = is_there ? static_cast<uint64_t>(tensor.shape[dimension]) : 1;
    if (plan->extents[i] > 1) {
      const int64_t stride = tensor.strides[dimension] * element_bytes;
      if (stride <= 0 || stride % kAlignment != 0 ||
          static_cast<uint64_t>(stride) >= kMaxByteStride) {
        return unsupported(fmt::format("{} has stride {} in dimension {}", name,
                                       tensor.strides[dimension], dimension));
      }
      if (static_cast<double>(stride) < width * element_bytes) {
        return unsupported(is_by_head
                               ? fmt::format("rows of {} overlap", name)
                               : fmt::format("the heads of {} do not lie within its tokens", name));
      }
      apart = static_cast<uint64_t>(stride);
    }
    plan->byte_strides[i - 1] = apart;
    plan->steps[i] = a < 0 ? 1 : static_cast<uint32_t>(steps[static_cast<size_t>(a)]);
    const int token_count = a < 0 ? 1 : tokens[static_cast<size_t>(a)];
    plan->box[i] = static_cast<uint32_t>(token_count) * plan->steps[i];
    if (plan->box[i] > kMaxBox) {
      return unsupported(fmt::format("a box of {} spans {} tokens", name, plan->box[i]));
    }
  }
  return {};
}

Status encode_map(const HopperMapPlan& plan, const vecina_tensor& tensor,
                  vecina::cuda::HopperMap* map) {
  const Driver& driver = Driver::get();
  if (!driver.why_not.empty()) return unsupported(driver.why_not);  // there is nothing to call
  TensorMap encoded;
  VECINA_CUDA_RETURN_IF_ERROR(
      driver, cuTensorMapEncodeTiled,
      (&encoded, type_of(plan.dtype), 5, address(tensor), plan.extents.data(),
       plan.byte_strides.data(), plan.box.data(), plan.steps.data(), kNotInterleaved,
       swizzle(plan.box[0] * static_cast<uint32_t>(dtype_bytes(plan.dtype))), kPromote256Bytes,
       kFillWithZeros));
  static_assert(sizeof encoded == sizeof *map);
  std::memcpy(map, &encoded, sizeof encoded);
  return {};
}

}  // namespace vecina::internal::cuda
