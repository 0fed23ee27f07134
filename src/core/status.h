// SPDX-License-Identifier: MIT
// What a call came to: a code, and for failures one sentence in the caller's terms.
// No exception crosses a layer; c_api.cc turns a Status into the C code and the thread's last
// error.
#ifndef VECINA_CORE_STATUS_H_
#define VECINA_CORE_STATUS_H_

#include <string>
#include <utility>

#include "vecina/vecina.h"

namespace vecina::internal {

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(vecina_status code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == VECINA_OK; }
  vecina_status code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  vecina_status code_ = VECINA_OK;
  std::string message_;
};

// The caller's mistake: what was given, the rule, the way out.
inline Status invalid(std::string message) { return {VECINA_INVALID_ARGUMENT, std::move(message)}; }
// Valid, but not here: which backend can, or why none does.
inline Status unsupported(std::string message) { return {VECINA_UNSUPPORTED, std::move(message)}; }
inline Status out_of_memory(std::string message) {
  return {VECINA_OUT_OF_MEMORY, std::move(message)};
}

#define VECINA_RETURN_IF_ERROR(expression)                    \
  do {                                                        \
    ::vecina::internal::Status vecina_status_ = (expression); \
    if (!vecina_status_.ok()) return vecina_status_;          \
  } while (0)

}  // namespace vecina::internal
#endif  // VECINA_CORE_STATUS_H_
