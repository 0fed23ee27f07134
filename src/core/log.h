// SPDX-License-Identifier: MIT
// Lines about what the library decides: to the caller's function, or to stderr with VECINA_LOG.
#ifndef VECINA_CORE_LOG_H_
#define VECINA_CORE_LOG_H_

#include <string>

namespace vecina::internal {

void set_log(void (*log)(void* user, int severity, const char* line), void* user);
// What is wrong with VECINA_LOG, which may name areas alone: another name would be silence that
// looks like nothing to say. Empty if nothing is.
std::string wrong_log_areas();
// True if someone listens to `area` ("plan", "cache"); ask before building a line.
bool is_logged(const char* area);
// The caller's function is called without a lock: it may call the library.
void log_line(const char* area, int severity, const std::string& line);

}  // namespace vecina::internal
#endif  // VECINA_CORE_LOG_H_
