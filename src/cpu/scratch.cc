// SPDX-License-Identifier: MIT
#include "cpu/scratch.h"

#include <new>

namespace vecina::internal::cpu {
namespace {

// A thread begins looking at its own place, so it meets the slice (and the cache) it used before.
int first_slice(int count) {
  static std::atomic<int> next{0};
  thread_local const int mine = next.fetch_add(1, std::memory_order_relaxed);
  return mine % count;
}

}  // namespace

void ScratchPool::Free::operator()(void* memory) const {
  ::operator delete (memory, std::align_val_t{kAlignment});
}

void* ScratchPool::allocate(size_t bytes) {
  return ::operator new (bytes, std::align_val_t{kAlignment}, std::nothrow);
}

ScratchPool::Lease::Lease(ScratchPool* pool, size_t bytes) : pool_(pool) {
  const int first = first_slice(kSlices);
  for (int i = 0; i < kSlices; ++i) {
    const int candidate = (first + i) % kSlices;
    Slice& slice = pool->slices_[static_cast<size_t>(candidate)];
    if (slice.taken.exchange(true, std::memory_order_acquire)) continue;
    slice_ = candidate;
    if (slice.bytes < bytes) {
      slice.memory.reset();
      slice.memory.reset(allocate(bytes));
      slice.bytes = slice.memory ? bytes : 0;
    }
    data_ = slice.memory.get();
    return;
  }
  data_ = allocate(bytes);
}

ScratchPool::Lease::~Lease() {
  if (slice_ < 0) {
    Free()(data_);
  } else {
    pool_->slices_[static_cast<size_t>(slice_)].taken.store(false, std::memory_order_release);
  }
}

}  // namespace vecina::internal::cpu
