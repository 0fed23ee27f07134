// SPDX-License-Identifier: MIT
#include "cuda/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>
#include <utility>

namespace vecina::internal::cuda {
namespace {

constexpr int kOldestCapability = 80;  // mma.sync with bf16, cp.async

Status read_facts(DeviceHandle device, DeviceFacts* facts) {
  const Driver& driver = Driver::get();
  const auto read = [&](DeviceAttribute attribute, int* value) {
    return driver.status("cuDeviceGetAttribute",
                         driver.cuDeviceGetAttribute(value, static_cast<int>(attribute), device));
  };
  int major = 0, minor = 0;
  VECINA_RETURN_IF_ERROR(read(DeviceAttribute::compute_capability_major, &major));
  VECINA_RETURN_IF_ERROR(read(DeviceAttribute::compute_capability_minor, &minor));
  facts->compute_capability = 10 * major + minor;
  VECINA_RETURN_IF_ERROR(read(DeviceAttribute::multiprocessors, &facts->multiprocessors));
  VECINA_RETURN_IF_ERROR(
      read(DeviceAttribute::shared_bytes_per_block_optin, &facts->shared_bytes_per_block));
  return read(DeviceAttribute::l2_bytes, &facts->l2_bytes);
}

}  // namespace

DeviceFacts imagined_facts(int compute_capability) {
  DeviceFacts facts;
  facts.compute_capability = compute_capability;
  switch (compute_capability) {
    case 80:
    case 87:
      facts.shared_bytes_per_block = 163 * 1024;
      facts.multiprocessors = 108;
      break;
    case 86:
    case 89:
    case 120:
    case 121:
      facts.shared_bytes_per_block = 99 * 1024;
      break;
    default:
      break;
  }
  return facts;
}

Status read_target(std::string_view text, int own, int* target) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < kOldestCapability ||
      number > own) {
    return unsupported(fmt::format(
        "VECINA_CUDA_TARGET is '{}'; on this GPU a number from {} to {} is allowed: a compute "
        "capability times 10.",
        text, kOldestCapability, own));
  }
  if (number / 10 == 9 && own / 10 != 9) {
    return unsupported(fmt::format(
        "VECINA_CUDA_TARGET is '{}', but this GPU has compute capability {}.{}: kernels for Hopper "
        "(9.0) use instructions that no other GPU has.",
        text, own / 10, own % 10));
  }
  *target = number;
  return {};
}

void set_target(int target, DeviceFacts* facts) {
  constexpr int kLittle = 100 * 1024;
  facts->compute_capability = target;
  const int shared_bytes = imagined_facts(target).shared_bytes_per_block;
  if (shared_bytes <= kLittle) {
    facts->shared_bytes_per_block = std::min(facts->shared_bytes_per_block, shared_bytes);
  }
}

Status Device::open(int index, std::unique_ptr<Device>* device) {
  const Driver& driver = Driver::get();
  if (!driver.why_not.empty()) return unsupported(driver.why_not);
  if (index < 0 || index >= driver.num_devices) {
    return unsupported(fmt::format("device_index {}: this machine has {} CUDA device(s)", index,
                                   driver.num_devices));
  }
  auto opened = std::unique_ptr<Device>(new Device());
  opened->index_ = index;
  VECINA_CUDA_RETURN_IF_ERROR(driver, cuDeviceGet, (&opened->handle_, index));
  char name[256] = {};
  VECINA_CUDA_RETURN_IF_ERROR(driver, cuDeviceGetName, (name, sizeof(name), opened->handle_));
  opened->name_ = name;
  VECINA_RETURN_IF_ERROR(read_facts(opened->handle_, &opened->facts_));
  if (opened->facts_.compute_capability < kOldestCapability) {
    return unsupported(fmt::format(
        "{} has compute capability {}.{}; 8.0 (Ampere) or newer is needed", opened->name_,
        opened->facts_.compute_capability / 10, opened->facts_.compute_capability % 10));
  }
  opened->compute_capability_ = opened->facts_.compute_capability;
  const char* wanted = std::getenv("VECINA_CUDA_TARGET");
  if (wanted != nullptr && *wanted != '\0') {
    int target = 0;
    VECINA_RETURN_IF_ERROR(read_target(wanted, opened->compute_capability_, &target));
    set_target(target, &opened->facts_);
  }
  VECINA_CUDA_RETURN_IF_ERROR(driver, cuDevicePrimaryCtxRetain,
                              (&opened->context_, opened->handle_));
  *device = std::move(opened);
  return {};
}

Device::~Device() {
  if (context_ != nullptr) Driver::get().cuDevicePrimaryCtxRelease_v2(handle_);
}

Device::Current::Current(const Device& device) {
  const Driver& driver = Driver::get();
  ContextHandle current = nullptr;
  driver.cuCtxGetCurrent(&current);
  if (current == device.context_) return;
  status_ = driver.status("cuCtxPushCurrent", driver.cuCtxPushCurrent_v2(device.context_));
  is_pushed_ = status_.ok();
}

Device::Current::~Current() {
  ContextHandle popped = nullptr;
  if (is_pushed_) Driver::get().cuCtxPopCurrent_v2(&popped);
}

DeviceMemory::~DeviceMemory() {
  if (address_ == 0) return;
  const Device::Current current(*device_);
  Driver::get().cuMemFree_v2(address_);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : device_(other.device_), address_(std::exchange(other.address_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(address_, other.address_);
  return *this;
}

Status DeviceMemory::allocate(const Device& device, size_t bytes, DeviceMemory* memory) {
  const Driver& driver = Driver::get();
  const Device::Current current(device);
  VECINA_RETURN_IF_ERROR(current.status());
  DeviceMemory made;
  made.device_ = &device;
  const Result result = driver.cuMemAlloc_v2(&made.address_, bytes);
  if (result == kOutOfMemory) {
    return out_of_memory(fmt::format("{} has no {} bytes of free memory.", device.name(), bytes));
  }
  VECINA_RETURN_IF_ERROR(driver.status("cuMemAlloc", result));
  *memory = std::move(made);
  return {};
}

}  // namespace vecina::internal::cuda
