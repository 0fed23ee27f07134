// SPDX-License-Identifier: MIT
// The 21 configurations, from bench_rows.json, which `python -m vecina.bench` reads too.
#include <algorithm>

#include "cli/bench.h"
#include "cli/bench_rows_json.h"  // made by CMake

namespace vecina::cli {

NLOHMANN_JSON_SERIALIZE_ENUM(BenchKind, {{BenchKind::output, "output"},
                                         {BenchKind::with_lse, "with_lse"},
                                         {BenchKind::merge, "merge"}})
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(BenchRow, name, feature, title, config, problem, kind)

namespace {

const nlohmann::json& file() {
  static const nlohmann::json kFile = nlohmann::json::parse(kBenchRowsJson);
  return kFile;
}

const std::vector<BenchRow>& all_rows() {
  static const auto kRows = file().at("rows").get<std::vector<BenchRow>>();
  return kRows;
}

}  // namespace

const std::vector<std::string>& bench_features() {
  static const auto kFeatures = file().at("features").get<std::vector<std::string>>();
  return kFeatures;
}

std::vector<BenchRow> bench_rows(const std::vector<std::string>& features) {
  if (features.empty()) return all_rows();
  std::vector<BenchRow> rows;
  for (const BenchRow& row : all_rows()) {
    if (std::find(features.begin(), features.end(), row.feature) != features.end()) {
      rows.push_back(row);
    }
  }
  return rows;
}

}  // namespace vecina::cli
