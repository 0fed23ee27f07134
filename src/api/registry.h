// SPDX-License-Identifier: MIT
// The backends of this build, in order of preference.
#ifndef VECINA_API_REGISTRY_H_
#define VECINA_API_REGISTRY_H_

#include <memory>
#include <span>
#include <string_view>

#include "core/backend.h"

namespace vecina::internal {

struct BackendRow {
  const char* name;
  std::unique_ptr<Backend> (*make)(const BackendOptions& options);
  bool is_hidden;  // only used when asked for by name
};
std::span<const BackendRow> backend_rows();
// Whether the backend of a name is only used when asked for.
bool is_hidden(std::string_view name);

}  // namespace vecina::internal
#endif  // VECINA_API_REGISTRY_H_
