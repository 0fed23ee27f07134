// SPDX-License-Identifier: MIT
// Working memory for whoever runs a chunk: grow-only slices that a context keeps between calls.
#ifndef VECINA_CPU_SCRATCH_H_
#define VECINA_CPU_SCRATCH_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>

namespace vecina::internal::cpu {

class ScratchPool {
 public:
  // A slice for as long as the lease lives. data() is nullptr if memory is exhausted.
  class Lease {
   public:
    Lease(ScratchPool* pool, size_t bytes);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    void* data() const { return data_; }

   private:
    ScratchPool* pool_;
    int slice_ = -1;  // -1: memory of its own, more callers than slices
    void* data_ = nullptr;
  };

 private:
  static constexpr int kSlices = 256;
  static constexpr size_t kAlignment = 64;  // a cache line and the widest vector

  struct Free {
    void operator()(void* memory) const;
  };
  struct Slice {
    std::atomic<bool> taken{false};
    size_t bytes = 0;
    std::unique_ptr<void, Free> memory;
  };
  static void* allocate(size_t bytes);

  std::array<Slice, kSlices> slices_;
};

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_SCRATCH_H_
