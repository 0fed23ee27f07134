// SPDX-License-Identifier: MIT
#ifndef VECINA_CLI_PREDICTION_H_
#define VECINA_CLI_PREDICTION_H_

#include <nlohmann/json.hpp>
#include <optional>

namespace vecina::cli {

// What a plan's description says that a call takes, if it does: of one thread's or several threads'
// plan, or of the launches of the only kernel of a GPU's plan. The cpu backend predicts once this
// process has asked for the "peak".
std::optional<double> predicted_ms(const nlohmann::ordered_json& plan);
// Adds "prediction_error" to the description: how far that lies above the measured time, as a share
// of it.
void add_prediction_error(double measured_ms, nlohmann::ordered_json* plan);

}  // namespace vecina::cli
#endif  // VECINA_CLI_PREDICTION_H_
