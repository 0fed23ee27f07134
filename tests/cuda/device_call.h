// SPDX-License-Identifier: MIT
// Calls on device memory that a test owns: every tensor and the workspace in an allocation of its
// own between guard zones. Tests that need a GPU derive from OnDevice, which skips without one.
#ifndef VECINA_TESTS_CUDA_DEVICE_CALL_H_
#define VECINA_TESTS_CUDA_DEVICE_CALL_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/arguments.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "vecina/vecina.h"

namespace vecina::internal::cuda {

// Calls of the driver that tests alone need.
struct TestDriver {
  static const TestDriver& get();
  Result (*cuCtxCreate_v2)(ContextHandle* context, unsigned flags, DeviceHandle device) = nullptr;
  Result (*cuCtxDestroy_v2)(ContextHandle context) = nullptr;
  Result (*cuLaunchHostFunc)(StreamHandle stream, void (*function)(void*), void* user) = nullptr;
  Result (*cuMemGetInfo_v2)(size_t* free_bytes, size_t* total_bytes) = nullptr;
  Result (*cuMemcpyDtoD_v2)(DevicePointer to, DevicePointer from, size_t bytes) = nullptr;
  Result (*cuMemsetD8_v2)(DevicePointer to, unsigned char value, size_t bytes) = nullptr;
  Result (*cuStreamQuery)(StreamHandle stream) = nullptr;
};

// VECINA_TESTS_BARE=1, for compute-sanitizer: memory without guard zones, so that it sees the first
// byte beyond a tensor, and nothing in what the library has to write, so that it sees who reads it.
bool is_bare();

class OnDevice : public testing::Test {
 protected:
  void SetUp() override;
  const Device& device() const { return *device_; }

 private:
  std::unique_ptr<Device> device_;
  std::optional<Device::Current> current_;
};

// A stream that does not wait for others.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  StreamHandle get() const { return stream_; }
  void wait() const;  // until all that was enqueued is done

 private:
  StreamHandle stream_ = nullptr;
};

// Device memory between two guard zones; the address is `offset` beyond a multiple of 256.
class GuardedMemory {
 public:
  GuardedMemory(const Device& device, size_t bytes, size_t offset = 0);
  DevicePointer address() const { return address_; }
  bool is_intact() const;  // the zones hold what they held

 private:
  DeviceMemory memory_;
  size_t bytes_ = 0;
  DevicePointer address_ = 0, end_ = 0;
};

// The device's twin of a host call. Args is vecina_forward_args or vecina_backward_args; the host's
// tensors must outlive it.
template <typename Args>
class DeviceCall {
 public:
  DeviceCall(const Device& device, const Args& host, size_t workspace_bytes);

  Args args;              // may be edited; upload and download still mean the first tensors
  void upload() const;    // every tensor as the host has it, the workspace all NaN
  void download() const;  // the outputs, with what lies between their rows
  // What is wrong with memory that the call must not have changed; empty if nothing is.
  std::string damage() const;

 private:
  struct Twin {
    const char* name;
    bool is_output;
    char* host;
    size_t bytes;
    GuardedMemory memory;
  };
  std::vector<Twin> twins_;
  std::optional<GuardedMemory> workspace_;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_TESTS_CUDA_DEVICE_CALL_H_
