// SPDX-License-Identifier: MIT
// For what takes a second each: compiling kernels.
#ifndef VECINA_CUDA_PARALLEL_H_
#define VECINA_CUDA_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace vecina::internal::cuda {

// f(0) ... f(count - 1), on the caller's thread and as many more as there may be, up to `threads`
// in all. When all have ended, the first that threw does so again.
template <typename Function>
void run_parallel(size_t count, size_t threads, const Function& f) {
  std::atomic<size_t> next{0};
  std::vector<std::exception_ptr> exceptions(count);
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) {
      try {
        f(i);
      } catch (...) {
        exceptions[i] = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> others;
    try {
      for (size_t i = 1; i < std::min(threads, count); ++i) others.emplace_back(work);
    } catch (const std::system_error&) {
      // No more threads can be had; those that run do the rest.
    }
    work();
  }
  for (const std::exception_ptr& exception : exceptions) {
    if (exception != nullptr) std::rethrow_exception(exception);
  }
}

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_PARALLEL_H_
