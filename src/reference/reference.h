// SPDX-License-Identifier: MIT
// The definition, carried out plainly: what every other backend is compared with.
#ifndef VECINA_REFERENCE_REFERENCE_H_
#define VECINA_REFERENCE_REFERENCE_H_

#include <memory>

#include "core/backend.h"

namespace vecina::internal {

// "reference": every field of the problem, double accumulation, forward, backward and merge.
std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options);
// "plain", hidden: the same loops in the problem's dtype, the yardstick of `vecina check`.
std::unique_ptr<Backend> make_plain_backend(const BackendOptions& options);

}  // namespace vecina::internal
#endif  // VECINA_REFERENCE_REFERENCE_H_
