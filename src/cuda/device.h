// SPDX-License-Identifier: MIT
// One GPU: its primary context (the one that PyTorch and the CUDA runtime use), facts, memory.
#ifndef VECINA_CUDA_DEVICE_H_
#define VECINA_CUDA_DEVICE_H_

#include <memory>
#include <string>
#include <string_view>

#include "core/status.h"
#include "cuda/driver.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

// A typical device of a compute capability, to plan for one that is not here.
DeviceFacts imagined_facts(int compute_capability);

// What VECINA_CUDA_TARGET names, on a GPU of compute capability `own`: that of a GPU whose kernels
// run on it too, for tests.
Status read_target(std::string_view text, int own, int* target);
// Problems are planned as for a GPU of that compute capability: one with little shared memory has
// no more here either, for long rows have other shapes there; others have the device's own.
void set_target(int target, DeviceFacts* facts);

class Device {
 public:
  static Status open(int index, std::unique_ptr<Device>* device);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  int index() const { return index_; }
  const std::string& name() const { return name_; }
  // By which problems are planned: those of the device, but for the compute capability where
  // VECINA_CUDA_TARGET names an older one: set_target().
  const DeviceFacts& facts() const { return facts_; }
  int compute_capability() const { return compute_capability_; }

  // Makes this device's context current on the calling thread for the guard's life.
  class Current {
   public:
    explicit Current(const Device& device);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
    Status status() const { return status_; }

   private:
    bool is_pushed_ = false;
    Status status_;
  };

 private:
  Device() = default;
  int index_ = 0;
  DeviceHandle handle_ = 0;
  ContextHandle context_ = nullptr;
  std::string name_;
  DeviceFacts facts_;
  int compute_capability_ = 0;
};

// Device memory that frees itself.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;

  static Status allocate(const Device& device, size_t bytes, DeviceMemory* memory);
  DevicePointer address() const { return address_; }

 private:
  const Device* device_ = nullptr;
  DevicePointer address_ = 0;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_DEVICE_H_
