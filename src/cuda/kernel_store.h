// SPDX-License-Identifier: MIT
// From a kernel's source to a kernel that can be launched: this process, the disk, the compiler.
#ifndef VECINA_CUDA_KERNEL_STORE_H_
#define VECINA_CUDA_KERNEL_STORE_H_

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "core/status.h"
#include "cuda/compiler.h"
#include "cuda/device.h"
#include "cuda/disk_cache.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

struct Built {
  Compiled compiled;
  std::string architecture;
  bool was_on_disk = false;
  double compile_ms = 0.0;  // 0 if it was on disk
};

// Reads a kernel from disk or compiles it and writes it there. Needs no device.
Status build_kernel(const KernelSource& source, int compute_capability, const DiskCache& cache,
                    Built* built);

// Of NVRTC: 100 * major + minor; 0 if there is none. Does not load it where it was noted on disk.
int nvrtc_version(const DiskCache& cache);

struct Kernel {
  FunctionHandle function = nullptr;
  Resources resources;
};

// The kernels of one device. Threads that want different kernels compile at the same time, those
// that want the same one wait for the first.
class KernelStore {
 public:
  KernelStore(const Device& device, const DiskCache& cache) : device_(device), cache_(cache) {}
  ~KernelStore();
  KernelStore(const KernelStore&) = delete;
  KernelStore& operator=(const KernelStore&) = delete;

  // `shared_bytes`: the most dynamic shared memory that a launch will ask for.
  Status get(const KernelSource& source, uint32_t shared_bytes, Kernel* kernel);

 private:
  struct Slot {
    std::mutex mutex;
    bool is_loaded = false;
    LibraryHandle library = nullptr;
    uint32_t shared_bytes = 0;
    Kernel kernel;
  };
  Status load(const KernelSource& source, Slot* slot) const;

  const Device& device_;
  const DiskCache& cache_;
  std::mutex mutex_;  // guards slots_, not the slots
  std::unordered_map<std::string, std::unique_ptr<Slot>> slots_;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_KERNEL_STORE_H_
