// SPDX-License-Identifier: MIT
// How much of the machine this process may use.
#ifndef VECINA_CPU_CORES_H_
#define VECINA_CPU_CORES_H_

#include <cstdint>
#include <string>

namespace vecina::internal {

// Cores by affinity mask and cgroup quota (rounded up), at least 1; not what the machine has.
int usable_cores();
// The core that this thread runs on, -1 if unknown.
int current_core();
// Bytes of the data or unified cache of a level (1 to 3), 0 if unknown.
int64_t cache_bytes(int level);
std::string cpu_model();  // as the system calls it; may be empty

}  // namespace vecina::internal
#endif  // VECINA_CPU_CORES_H_
