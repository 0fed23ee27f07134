// SPDX-License-Identifier: MIT
// Device copies of a call's host tensors, with their strides and alignment, so that the command
// line and the tests give this backend the tensors that they give every other.
#ifndef VECINA_CUDA_STAGING_H_
#define VECINA_CUDA_STAGING_H_

#include <vector>

#include "core/arguments.h"
#include "core/status.h"
#include "cuda/device.h"
#include "vecina/vecina.h"

namespace vecina::internal::cuda {

// Copies of single tensors. What lies between their rows is copied too, so that it is kept.
class StagedTensors {
 public:
  // Makes room for a host tensor and lets it point there. Tensors are known by their order from
  // then on.
  Status add(const Device& device, bool is_output, vecina_tensor* tensor);
  // Of `host` the address alone is read.
  Status copy_in(size_t index, const vecina_tensor& host) const;
  Status copy_out(size_t index, const vecina_tensor& host) const;  // does nothing for inputs
  size_t size() const { return copies_.size(); }

 private:
  struct Copy {
    size_t bytes = 0;
    size_t first = 0;  // of its bytes: where the tensor's first element is
    bool is_output = false;
    DevicePointer address = 0;
    DeviceMemory memory;
  };
  std::vector<Copy> copies_;
};

// Those of a whole call. Args is vecina_forward_args, vecina_backward_args or SplitArgs.
template <typename Args>
class StagedCall {
 public:
  static Status make(const Device& device, const Args& host, StagedCall* call);

  Status add_workspace(const Device& device, size_t bytes);

  // The same call with its tensors on the device; valid as long as this object.
  const Args& device_args() const { return device_args_; }
  Status copy_in(const Args& host) const;   // every tensor
  Status copy_out(const Args& host) const;  // the outputs

 private:
  Args device_args_ = {};
  std::vector<int> given_;  // in list_tensors, in the order of tensors_
  StagedTensors tensors_;
  DeviceMemory workspace_;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_STAGING_H_
