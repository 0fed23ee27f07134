// SPDX-License-Identifier: MIT
// Plans for samples of different lengths.
#ifndef VECINA_CPU_SAMPLE_PLANS_H_
#define VECINA_CPU_SAMPLE_PLANS_H_

#include <memory>

#include "core/backend.h"
#include "cpu/launch.h"

namespace vecina::internal::cpu {

std::unique_ptr<Plan> make_samples_plan(const Problem& problem, const vecina_forward_args& example,
                                        Resources* resources);
std::unique_ptr<Plan> make_samples_plan(const Problem& problem, const vecina_backward_args& example,
                                        Resources* resources);

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_SAMPLE_PLANS_H_
