// SPDX-License-Identifier: MIT
// The JSON texts of vecina_info, vecina_plan_describe and vecina_profile.
#ifndef VECINA_API_INFO_H_
#define VECINA_API_INFO_H_

#include <string>
#include <string_view>
#include <vector>

#include "api/context.h"

namespace vecina::internal {

// What vecina_info answers: one of the next two, or a backend's word on its kernels.
Status read_info(Context& context, std::string_view what, std::string* json);
// {"version", "backends": [{"name", "usable", "why", "details"}]}
std::string describe_context(const Context& context);
// {"cpu": {...}}: what each backend measures of its machine.
std::string measure_peak(Context& context);
// {"backend", "problem", "pass", "visible_pairs", "forward_flops", "workspace_bytes", "details"}
std::string describe_plan(const PlanRecord& record);
// {"repeats", "best_us", "median_us", "best_gflops", "median_gflops"}; times must not be empty.
std::string describe_profile(const PlanRecord& record, std::vector<double> times_us);

}  // namespace vecina::internal
#endif  // VECINA_API_INFO_H_
