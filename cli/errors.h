// SPDX-License-Identifier: MIT
// How a command ends early: UsageError gives exit code 2, any other exception 1.
#ifndef VECINA_CLI_ERRORS_H_
#define VECINA_CLI_ERRORS_H_

#include <stdexcept>

#include "vecina/vecina.h"

namespace vecina::cli {

// Wrong usage, or something that the command needs is missing.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// No usable backend takes the problem.
class Unsupported : public UsageError {
 public:
  using UsageError::UsageError;
};

// Throws with the library's sentence: UsageError if the caller can do something about it.
inline void throw_if_failed(vecina_status status) {
  if (status == VECINA_OK) return;
  const char* sentence = vecina_last_error();
  if (status == VECINA_UNSUPPORTED) throw Unsupported(sentence);
  if (status == VECINA_INVALID_ARGUMENT) throw UsageError(sentence);
  throw std::runtime_error(sentence);
}

}  // namespace vecina::cli
#endif  // VECINA_CLI_ERRORS_H_
