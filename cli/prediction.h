// SPDX-License-Identifier: MIT
#ifndef VECINA_CLI_PREDICTION_H_
#define VECINA_CLI_PREDICTION_H_

#include <nlohmann/json.hpp>

namespace vecina::cli {

// Adds "prediction_error" to the description of a plan of one kernel, if its planner predicted a
// launch's time: how far that of its launches lies above the measured one, as a share of it.
void add_prediction_error(double measured_ms, nlohmann::ordered_json* plan);

}  // namespace vecina::cli
#endif  // VECINA_CLI_PREDICTION_H_
