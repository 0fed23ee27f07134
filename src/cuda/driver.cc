// SPDX-License-Identifier: MIT
#include "cuda/driver.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace vecina::internal::cuda {
namespace {

// cuLibraryLoadData and launches of its kernels came with it.
constexpr int kOldestVersion = 12000;

std::string open_driver(Driver* driver) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return "no NVIDIA driver (libcuda.so.1) on this machine";
  std::string missing;
  const auto find = [&](const char* name, auto* function) {
    void* symbol = dlsym(library, name);
    if (symbol == nullptr && missing.empty()) missing = name;
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(symbol);
  };
#define VECINA_CUDA_FIND(name, parameters) find(#name, &driver->name);
  VECINA_CUDA_DRIVER_CALLS(VECINA_CUDA_FIND)
#undef VECINA_CUDA_FIND

  if (driver->cuDriverGetVersion != nullptr) driver->cuDriverGetVersion(&driver->version);
  if (driver->version < kOldestVersion || !missing.empty()) {
    return fmt::format(
        "the NVIDIA driver speaks CUDA {}.{}{}; 12.0 or newer is needed (driver 525 or newer)",
        driver->version / 1000, driver->version % 1000 / 10,
        missing.empty() ? "" : " and lacks " + missing);
  }
  Result result = driver->cuInit(0);
  if (result == kSuccess) result = driver->cuDeviceGetCount(&driver->num_devices);
  if (result != kSuccess) return driver->status("cuInit", result).message();
  if (driver->num_devices == 0) return "no NVIDIA GPU on this machine";
  return {};
}

}  // namespace

const Driver& Driver::get() {
  static const Driver driver = [] {
    Driver opened;
    opened.why_not = open_driver(&opened);
    return opened;
  }();
  return driver;
}

Status Driver::status(const char* call, Result result) const {
  if (result == kSuccess) return {};
  const char *name = nullptr, *text = nullptr;
  cuGetErrorName(result, &name);
  cuGetErrorString(result, &text);
  std::string message = fmt::format("{} failed: {} ({})", call, text ? text : "unknown error",
                                    name ? name : fmt::format("{}", result).c_str());
  return {result == kOutOfMemory ? VECINA_OUT_OF_MEMORY : VECINA_DEVICE_ERROR, std::move(message)};
}

}  // namespace vecina::internal::cuda
