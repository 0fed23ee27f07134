// SPDX-License-Identifier: MIT
// JSON as indented text for people: the same content whatever a backend puts in.
#ifndef VECINA_CLI_JSON_TEXT_H_
#define VECINA_CLI_JSON_TEXT_H_

#include <nlohmann/json.hpp>
#include <string>

namespace vecina::cli {

// One line for each value, "name  value"; objects and lists of objects are indented.
std::string format_json(const nlohmann::ordered_json& json, int indent = 0);

}  // namespace vecina::cli
#endif  // VECINA_CLI_JSON_TEXT_H_
