// SPDX-License-Identifier: MIT
#include "cpu/cores.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace vecina::internal {
namespace {

int affinity_cores() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

// Cores that "QUOTA PERIOD" (cgroup v2 cpu.max; "max" for no limit) grants; infinity if unlimited.
double granted(const std::string& quota_text, double period) {
  std::istringstream text(quota_text);
  double quota = 0.0;
  if (!(text >> quota) || quota <= 0.0 || period <= 0.0) return INFINITY;
  return quota / period;
}

// The tightest quota from this process's cgroup up to the root.
double cgroup_cores() {
  double cores = INFINITY;
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool is_v2 = controllers.empty();
    if (!is_v2 && controllers.find("cpu") == std::string::npos) continue;
    const std::string root = is_v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controllers;
    while (true) {
      std::string quota, period = "100000";
      if (is_v2) {
        std::ifstream(root + path + "/cpu.max") >> quota >> period;
      } else {
        std::ifstream(root + path + "/cpu.cfs_quota_us") >> quota;
        std::ifstream(root + path + "/cpu.cfs_period_us") >> period;
      }
      cores = std::min(cores, granted(quota, std::strtod(period.c_str(), nullptr)));
      if (path.empty() || path == "/") break;
      path.resize(path.rfind('/'));
    }
  }
  return cores;
}

}  // namespace

int usable_cores() {
  const double quota = std::ceil(cgroup_cores());
  const int affinity = std::max(affinity_cores(), 1);
  return quota < affinity ? std::max(static_cast<int>(quota), 1) : affinity;
}

int64_t cache_bytes(int level) {
#if defined(__linux__) && defined(_SC_LEVEL1_DCACHE_SIZE)
  constexpr int kNames[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
  return std::max<int64_t>(sysconf(kNames[level - 1]), 0);
#else
  static_cast<void>(level);
  return 0;
#endif
}

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  std::string line;
  while (std::getline(info, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    return colon == std::string::npos ? "" : line.substr(colon + 2);
  }
  return "";
}

}  // namespace vecina::internal
