// SPDX-License-Identifier: MIT
// The processor's name from /proc/cpuinfo, everything else from the library.
#include "cli/machine.h"

#include <fstream>

#include "cli/conformance.h"
#include "cli/errors.h"
#include "cli/text.h"

namespace vecina::cli {

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown CPU";
}

nlohmann::ordered_json context_info(vecina_context* context, const std::string& what) {
  const std::string answer = read_text(
      [&](char* text, size_t size) { return vecina_info(context, what.c_str(), text, size); });
  nlohmann::ordered_json json =
      nlohmann::ordered_json::parse(answer, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) throw UsageError(answer);
  return json;
}

namespace {

// What the backend says of itself; an empty object if it is not there.
nlohmann::ordered_json details_of(const nlohmann::ordered_json& info, const std::string& backend) {
  for (const auto& row : info.value("backends", nlohmann::ordered_json::array())) {
    if (row.value("name", "") == backend && row.contains("details")) return row["details"];
  }
  return nlohmann::ordered_json::object();
}

}  // namespace

std::string device_name(const nlohmann::ordered_json& info, const std::string& backend) {
  const nlohmann::ordered_json devices =
      details_of(info, backend).value("devices", nlohmann::ordered_json::array());
  return devices.empty() ? std::string() : devices.front().value("name", "");
}

int backend_threads(const nlohmann::ordered_json& info, const std::string& backend) {
  return details_of(info, backend).value("threads", 0);
}

std::vector<std::string> usable_backends() {
  const ContextPtr context = make_context("");
  std::vector<std::string> names;
  for (int32_t i = 0; i < vecina_backend_count(); ++i) {
    const std::string name = vecina_backend_name(i);
    const std::string why_not = read_text([&](char* text, size_t size) {
      return vecina_backend_why_not(context.get(), name.c_str(), nullptr, text, size);
    });
    if (why_not.empty()) names.push_back(name);
  }
  return names;
}

}  // namespace vecina::cli
