// SPDX-License-Identifier: MIT
// How much of the machine this process may use.
#ifndef VECINA_CPU_CORES_H_
#define VECINA_CPU_CORES_H_

#include <array>
#include <cstdint>
#include <string>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace vecina::internal {

// Cores by affinity mask and cgroup quota (rounded up), at least 1; not what the machine has.
int usable_cores();
// The core that this thread runs on, -1 if unknown.
int current_core();

// The cores that a thread may run on, of which another thread takes some for a while.
class ThreadCores {
 public:
  // By the thread itself: reads what it may use now. Others call avoid() only after that.
  void read();
  // Takes cores (-1 is none). False, and nothing is changed, if the thread uses none of them, no
  // other would be left, or the system has no such thing.
  bool avoid(const std::array<int, 2>& cores);
  // Gives back what avoid() took.
  void restore();

#if defined(__linux__)
 private:
  pthread_t thread_{};
  cpu_set_t cores_{};
#endif
};

// Bytes of the data or unified cache of a level (1 to 3), 0 if unknown.
int64_t cache_bytes(int level);
std::string cpu_model();  // as the system calls it; may be empty

}  // namespace vecina::internal
#endif  // VECINA_CPU_CORES_H_
