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
// {"backend", "device", "problem", "pass", "visible_pairs", "forward_flops", "workspace_bytes",
// "details"}
std::string describe_plan(const PlanRecord& record);
struct PlanTimes {
  const char* clock = "device";  // or "host": the call from start to return
  std::vector<double> times_us;
};
// {"clock", "repeats", "best_us", "median_us", "spread", "best_gflops", "median_gflops"}; spread is
// the middle half of the times over the median. There must be times.
std::string describe_profile(const PlanRecord& record, PlanTimes times);

}  // namespace vecina::internal
#endif  // VECINA_API_INFO_H_
