// SPDX-License-Identifier: MIT
#include "cuda/staging.h"

#include "core/arguments.h"
#include "core/tensor.h"

namespace vecina::internal::cuda {
namespace {

constexpr size_t kAlignment = 16;  // what a plan may rely on, or not

}  // namespace

template <typename Args>
Status Staging<Args>::make(const Device& device, const Args& host, size_t workspace_bytes,
                           Staging* staging) {
  staging->device_args_ = host;
  NamedTensor list[kMaxTensors];
  const int count = list_tensors(staging->device_args_, list);
  for (int i = 0; i < count; ++i) {
    if (!given(*list[i].tensor)) continue;
    vecina_tensor& tensor = const_cast<vecina_tensor&>(*list[i].tensor);  // ours: device_args_
    const ByteRange range = byte_range(tensor);
    const auto bytes = static_cast<size_t>(range.end - range.begin);
    const size_t offset = reinterpret_cast<uintptr_t>(range.begin) % kAlignment;
    DeviceMemory memory;
    VECINA_RETURN_IF_ERROR(DeviceMemory::allocate(device, bytes + kAlignment, &memory));
    const DevicePointer at = memory.address() + offset;
    staging->copies_.push_back({i, bytes, list[i].is_output, at});
    staging->memory_.push_back(std::move(memory));
    tensor.data = reinterpret_cast<void*>(at + static_cast<size_t>(address(tensor) - range.begin));
    tensor.byte_offset = 0;
    tensor.device = VECINA_CUDA;
    tensor.device_index = device.index();
  }
  if (workspace_bytes > 0) {
    DeviceMemory memory;
    VECINA_RETURN_IF_ERROR(DeviceMemory::allocate(device, workspace_bytes, &memory));
    staging->device_args_.workspace = reinterpret_cast<void*>(memory.address());
    staging->device_args_.workspace_bytes = workspace_bytes;
    staging->memory_.push_back(std::move(memory));
  }
  return {};
}

template <typename Args>
Status Staging<Args>::copy_in(const Args& host) const {
  NamedTensor list[kMaxTensors];
  list_tensors(host, list);
  for (const Copy& copy : copies_) {
    VECINA_CUDA_RETURN_IF_ERROR(
        Driver::get(), cuMemcpyHtoD_v2,
        (copy.address, byte_range(*list[copy.index].tensor).begin, copy.bytes));
  }
  return {};
}

template <typename Args>
Status Staging<Args>::copy_out(const Args& host) const {
  NamedTensor list[kMaxTensors];
  list_tensors(host, list);
  for (const Copy& copy : copies_) {
    if (!copy.is_output) continue;
    VECINA_CUDA_RETURN_IF_ERROR(
        Driver::get(), cuMemcpyDtoH_v2,
        (byte_range(*list[copy.index].tensor).begin, copy.address, copy.bytes));
  }
  return {};
}

template class Staging<vecina_forward_args>;
template class Staging<vecina_backward_args>;

}  // namespace vecina::internal::cuda
