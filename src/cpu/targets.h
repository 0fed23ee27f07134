// SPDX-License-Identifier: MIT
// The instruction sets that kernels are compiled for: one family each of SSE4, AVX2, AVX-512 and
// NEON. Every file that uses Highway's dynamic dispatch includes this first.
#ifndef VECINA_CPU_TARGETS_H_
#define VECINA_CPU_TARGETS_H_

#include <hwy/detect_targets.h>

// Newer Highway knows members of these families that we have not measured; each would cost another
// copy of every kernel.
#undef HWY_DISABLED_TARGETS
#if defined(HWY_AVX3_ZEN4) && defined(HWY_AVX3_SPR)
#if defined(HWY_AVX10_2)
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR | HWY_AVX10_2)
#else
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR)
#endif
#else
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)
#endif

#endif  // VECINA_CPU_TARGETS_H_
