// SPDX-License-Identifier: MIT
#include "core/log.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <string_view>

namespace vecina::internal {
namespace {

constexpr std::string_view kAreas[] = {"plan", "cache"};

struct Log {
  std::mutex mutex;
  void (*function)(void* user, int severity, const char* line) = nullptr;
  void* user = nullptr;
  std::string areas;  // VECINA_LOG, with commas around each area

  bool names(const char* area) const {
    return areas.find(fmt::format(",{},", area)) != std::string::npos;
  }
};

Log& log_state() {
  static Log* log = [] {
    auto* made = new Log;  // never destroyed: threads may log while the process ends
    const char* areas = std::getenv("VECINA_LOG");
    made->areas = fmt::format(",{},", areas ? areas : "");
    return made;
  }();
  return *log;
}

}  // namespace

std::string wrong_log_areas() {
  const char* given = std::getenv("VECINA_LOG");
  std::string_view rest = given ? given : "";
  while (!rest.empty()) {
    const size_t end = std::min(rest.find(','), rest.size());
    const std::string_view area = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (std::find(std::begin(kAreas), std::end(kAreas), area) != std::end(kAreas)) continue;
    return fmt::format("VECINA_LOG is '{}'; it can be {}, with commas between.", given,
                       fmt::join(kAreas, " or "));
  }
  return {};
}

void set_log(void (*function)(void* user, int severity, const char* line), void* user) {
  Log& log = log_state();
  const std::lock_guard lock(log.mutex);
  log.function = function;
  log.user = user;
}

bool is_logged(const char* area) {
  Log& log = log_state();
  const std::lock_guard lock(log.mutex);
  return log.function != nullptr || log.names(area);
}

void log_line(const char* area, int severity, const std::string& line) {
  Log& log = log_state();
  void (*function)(void* user, int severity, const char* line) = nullptr;
  void* user = nullptr;
  bool is_named = false;
  {
    const std::lock_guard lock(log.mutex);
    function = log.function;
    user = log.user;
    is_named = log.names(area);
  }
  if (function != nullptr) {
    function(user, severity, line.c_str());
  } else if (is_named) {  // the function may be gone since is_logged()
    std::fprintf(stderr, "vecina %s: %s\n", area, line.c_str());
  }
}

}  // namespace vecina::internal
