// SPDX-License-Identifier: MIT
#include "cpu/cores.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "core/file.h"

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

// The lines of a text, without their ends.
std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

// Cores that a quota and a period grant, both in microseconds; infinity if unlimited ("max", -1).
double granted(const char* quota_text, const char* period_text) {
  char* end = nullptr;
  const double quota = std::strtod(quota_text, &end);
  const double period = std::strtod(period_text, nullptr);
  return end == quota_text || quota <= 0.0 || period <= 0.0 ? INFINITY : quota / period;
}

// "QUOTA PERIOD", as in cpu.max of cgroup v2.
double granted_v2(const std::string& text) {
  const size_t space = text.find(' ');
  return granted(text.c_str(), space == std::string::npos ? "100000" : text.c_str() + space);
}

// The tightest quota from this process's cgroup up to the root.
double cgroup_cores() {
  double cores = INFINITY;
  for (const std::string& line : lines_of(read_file("/proc/self/cgroup"))) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool is_v2 = controllers.empty();
    if (!is_v2 && controllers.find("cpu") == std::string::npos) continue;
    const std::string root = is_v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controllers;
    while (true) {
      cores =
          std::min(cores, is_v2 ? granted_v2(read_file(root + path + "/cpu.max"))
                                : granted(read_file(root + path + "/cpu.cfs_quota_us").c_str(),
                                          read_file(root + path + "/cpu.cfs_period_us").c_str()));
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

int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

#if defined(__linux__)

void ThreadCores::read() {
  thread_ = pthread_self();
  if (pthread_getaffinity_np(thread_, sizeof(cores_), &cores_) != 0) CPU_ZERO(&cores_);
}

bool ThreadCores::avoid(const std::array<int, 2>& cores) {
  cpu_set_t left = cores_;
  for (const int core : cores) {
    if (core >= 0 && core < CPU_SETSIZE) CPU_CLR(core, &left);
  }
  if (CPU_COUNT(&left) == 0 || CPU_EQUAL(&left, &cores_)) return false;
  return pthread_setaffinity_np(thread_, sizeof(left), &left) == 0;
}

void ThreadCores::restore() { pthread_setaffinity_np(thread_, sizeof(cores_), &cores_); }

#else

void ThreadCores::read() {}
bool ThreadCores::avoid(const std::array<int, 2>&) { return false; }
void ThreadCores::restore() {}

#endif

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
  for (const std::string& line : lines_of(read_file("/proc/cpuinfo"))) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    return colon == std::string::npos ? "" : line.substr(colon + 2);
  }
  return "";
}

}  // namespace vecina::internal
