// SPDX-License-Identifier: MIT
#include "cli/prediction.h"

namespace vecina::cli {

void add_prediction_error(double measured_ms, nlohmann::ordered_json* plan) {
  const nlohmann::ordered_json& details = (*plan)["details"];
  if (!details.contains("kernels") || details["kernels"].size() != 1) return;
  const nlohmann::ordered_json& kernel = details["kernels"][0];
  if (!kernel.contains("predicted_ms")) return;
  const double predicted_ms = kernel["predicted_ms"].get<double>() * kernel.value("launches", 1);
  (*plan)["prediction_error"] = predicted_ms / measured_ms - 1.0;
}

}  // namespace vecina::cli
