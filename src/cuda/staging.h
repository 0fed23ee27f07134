// SPDX-License-Identifier: MIT
// Device copies of a call's host tensors, with their strides and alignment, so that the command
// line and the tests give this backend the tensors that they give every other.
#ifndef VECINA_CUDA_STAGING_H_
#define VECINA_CUDA_STAGING_H_

#include <vector>

#include "core/status.h"
#include "cuda/device.h"
#include "vecina/vecina.h"

namespace vecina::internal::cuda {

template <typename Args>
class Staging {
 public:
  static Status make(const Device& device, const Args& host, size_t workspace_bytes,
                     Staging* staging);

  // The same call with its tensors on the device; valid as long as this object.
  const Args& device_args() const { return device_args_; }
  Status copy_in(const Args& host) const;   // every tensor: what lies between rows is kept
  Status copy_out(const Args& host) const;  // the outputs

 private:
  struct Copy {
    int index = 0;  // in list_tensors
    size_t bytes = 0;
    bool is_output = false;
    DevicePointer address = 0;
  };
  Args device_args_ = {};
  std::vector<Copy> copies_;
  std::vector<DeviceMemory> memory_;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_STAGING_H_
