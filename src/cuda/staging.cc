// SPDX-License-Identifier: MIT
#include "cuda/staging.h"

#include <utility>

#include "core/arguments.h"
#include "core/tensor.h"

namespace vecina::internal::cuda {
namespace {

constexpr size_t kAlignment = 16;  // what a plan may rely on, or not

void set_workspace(vecina_forward_args& args, void* memory, size_t bytes) {
  args.workspace = memory;
  args.workspace_bytes = bytes;
}
void set_workspace(vecina_backward_args& args, void* memory, size_t bytes) {
  args.workspace = memory;
  args.workspace_bytes = bytes;
}
void set_workspace(SplitArgs&, void*, size_t) {}  // needs none

}  // namespace

Status StagedTensors::add(const Device& device, bool is_output, vecina_tensor* tensor) {
  const ByteRange range = byte_range(*tensor);
  const size_t offset = reinterpret_cast<uintptr_t>(range.begin) % kAlignment;
  Copy copy;
  copy.bytes = static_cast<size_t>(range.end - range.begin);
  copy.is_output = is_output;
  VECINA_RETURN_IF_ERROR(DeviceMemory::allocate(device, copy.bytes + kAlignment, &copy.memory));
  copy.address = copy.memory.address() + offset;
  copy.first = static_cast<size_t>(address(*tensor) - range.begin);
  tensor->data = reinterpret_cast<void*>(copy.address + copy.first);
  tensor->byte_offset = 0;
  tensor->device = VECINA_CUDA;
  tensor->device_index = device.index();
  copies_.push_back(std::move(copy));
  return {};
}

Status StagedTensors::copy_in(size_t index, const vecina_tensor& host) const {
  const Copy& copy = copies_[index];
  VECINA_CUDA_RETURN_IF_ERROR(Driver::get(), cuMemcpyHtoD_v2,
                              (copy.address, address(host) - copy.first, copy.bytes));
  return {};
}

Status StagedTensors::copy_out(size_t index, const vecina_tensor& host) const {
  const Copy& copy = copies_[index];
  if (!copy.is_output) return {};
  VECINA_CUDA_RETURN_IF_ERROR(Driver::get(), cuMemcpyDtoH_v2,
                              (address(host) - copy.first, copy.address, copy.bytes));
  return {};
}

template <typename Args>
Status StagedCall<Args>::make(const Device& device, const Args& host, StagedCall* call) {
  call->device_args_ = host;
  NamedTensor list[kMaxTensors];
  const int count = list_tensors(call->device_args_, list);
  for (int i = 0; i < count; ++i) {
    if (!given(*list[i].tensor)) continue;
    auto* tensor = const_cast<vecina_tensor*>(list[i].tensor);  // a member of device_args_
    VECINA_RETURN_IF_ERROR(call->tensors_.add(device, list[i].is_output, tensor));
    call->given_.push_back(i);
  }
  return {};
}

template <typename Args>
Status StagedCall<Args>::add_workspace(const Device& device, size_t bytes) {
  if (bytes == 0) return {};
  VECINA_RETURN_IF_ERROR(DeviceMemory::allocate(device, bytes, &workspace_));
  set_workspace(device_args_, reinterpret_cast<void*>(workspace_.address()), bytes);
  return {};
}

template <typename Args>
Status StagedCall<Args>::copy_in(const Args& host) const {
  NamedTensor list[kMaxTensors];
  list_tensors(host, list);
  for (size_t i = 0; i < given_.size(); ++i) {
    VECINA_RETURN_IF_ERROR(tensors_.copy_in(i, *list[given_[i]].tensor));
  }
  return {};
}

template <typename Args>
Status StagedCall<Args>::copy_out(const Args& host) const {
  NamedTensor list[kMaxTensors];
  list_tensors(host, list);
  for (size_t i = 0; i < given_.size(); ++i) {
    VECINA_RETURN_IF_ERROR(tensors_.copy_out(i, *list[given_[i]].tensor));
  }
  return {};
}

template class StagedCall<vecina_forward_args>;
template class StagedCall<vecina_backward_args>;
template class StagedCall<SplitArgs>;

}  // namespace vecina::internal::cuda
