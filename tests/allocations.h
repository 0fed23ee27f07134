// SPDX-License-Identifier: MIT
// Counts allocations of the executable it is linked to. The sanitizers bring their own operators:
// beside them there is no count.
#ifndef VECINA_TESTS_ALLOCATIONS_H_
#define VECINA_TESTS_ALLOCATIONS_H_

#include <cstdint>

namespace vecina::tests {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kCountsAllocations = false;
#else
inline constexpr bool kCountsAllocations = true;
#endif
// Of the calling thread so far.
int64_t num_allocations();

}  // namespace vecina::tests
#endif  // VECINA_TESTS_ALLOCATIONS_H_
