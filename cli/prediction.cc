// SPDX-License-Identifier: MIT
#include "cli/prediction.h"

namespace vecina::cli {

std::optional<double> predicted_ms(const nlohmann::ordered_json& plan) {
  const nlohmann::ordered_json& details = plan.at("details");
  if (details.contains("predicted_ms")) return details["predicted_ms"].get<double>();
  if (!details.contains("kernels") || details["kernels"].size() != 1) return std::nullopt;
  const nlohmann::ordered_json& kernel = details["kernels"][0];
  if (!kernel.contains("predicted_ms")) return std::nullopt;
  return kernel["predicted_ms"].get<double>() * kernel.value("launches", 1);
}

void add_prediction_error(double measured_ms, nlohmann::ordered_json* plan) {
  const std::optional<double> predicted = predicted_ms(*plan);
  if (predicted && *predicted > 0.0) (*plan)["prediction_error"] = *predicted / measured_ms - 1.0;
}

}  // namespace vecina::cli
