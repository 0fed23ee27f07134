// SPDX-License-Identifier: MIT
// What the library and the system say about this machine.
#ifndef VECINA_CLI_MACHINE_H_
#define VECINA_CLI_MACHINE_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "vecina/vecina.h"

namespace vecina::cli {

std::string cpu_model();  // "Intel(R) Xeon(R) ..."; "unknown CPU" where the system does not say

// vecina_info(context, what). Throws UsageError with the library's sentence where it is no answer.
nlohmann::ordered_json context_info(vecina_context* context, const std::string& what);

// "NVIDIA H200": the first device that the backend works on; empty for the processor.
std::string device_name(const nlohmann::ordered_json& info, const std::string& backend);

// Threads that the backend works with, or 0 if it does not say.
int backend_threads(const nlohmann::ordered_json& info, const std::string& backend);

// Backends that can run here, in order of preference.
std::vector<std::string> usable_backends();

}  // namespace vecina::cli
#endif  // VECINA_CLI_MACHINE_H_
