// SPDX-License-Identifier: MIT
// Names are padded to the longest of their object, so that values line up.
#include "cli/json_text.h"

#include <fmt/format.h>

#include <algorithm>

namespace vecina::cli {
namespace {

using nlohmann::ordered_json;

constexpr int kStep = 2;

std::string format_scalar(const ordered_json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_null()) return "n/a";
  if (value.is_number_float()) return fmt::format("{:.6g}", value.get<double>());
  return value.dump();
}

bool is_flat(const ordered_json& value) {
  if (!value.is_structured()) return true;
  return value.is_array() && std::none_of(value.begin(), value.end(), [](const ordered_json& item) {
           return item.is_structured();
         });
}

std::string format_flat(const ordered_json& value) {
  if (!value.is_array()) return format_scalar(value);
  std::string text;
  for (const ordered_json& item : value) text += (text.empty() ? "" : ", ") + format_scalar(item);
  return text.empty() ? "none" : text;
}

std::string format_object(const ordered_json& object, int indent) {
  size_t width = 0;
  for (const auto& [name, value] : object.items()) width = std::max(width, name.size());
  std::string text;
  for (const auto& [name, value] : object.items()) {
    if (is_flat(value)) {
      const std::string shown = format_flat(value);
      if (shown.empty()) continue;
      text += fmt::format("{:{}}{:{}}  {}\n", "", indent, name, width, shown);
    } else if (!value.empty()) {
      text += fmt::format("{:{}}{}\n", "", indent, name) + format_json(value, indent + kStep);
    }
  }
  return text;
}

}  // namespace

std::string format_json(const ordered_json& json, int indent) {
  if (json.is_object()) return format_object(json, indent);
  if (is_flat(json)) return fmt::format("{:{}}{}\n", "", indent, format_flat(json));
  std::string text;
  for (const ordered_json& item : json) {
    // The first line of an item begins with a dash instead of two spaces.
    std::string lines = format_json(item, indent + kStep);
    if (lines.size() > static_cast<size_t>(indent)) lines[static_cast<size_t>(indent)] = '-';
    text += lines;
  }
  return text;
}

}  // namespace vecina::cli
