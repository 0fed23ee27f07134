// SPDX-License-Identifier: MIT
// Reads tests/cases.json.
#include "cases.h"

#include <cctype>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "cli/conformance.h"

namespace vecina::tests {
namespace {

std::vector<Case> read_cases() {
  const std::string path = tests_path("cases.json");
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<Case> cases;
  const auto table = nlohmann::ordered_json::parse(file);
  for (const auto& [name, line] : table.items()) {
    const auto text = line.get<std::string>();
    cases.push_back({name, text, cli::parse_problem(text)});
  }
  return cases;
}

// Dot products of the reference: an upper bound, windows taken as full.
double pairs_of(const vecina_problem& problem) {
  double pairs = static_cast<double>(problem.batch) * problem.heads;
  for (int a = 0; a < problem.rank; ++a) {
    const bool is_attention = problem.kind == VECINA_ATTENTION;
    const int64_t queries =
        is_attention && problem.query_extent[a] != 0 ? problem.query_extent[a] : problem.extent[a];
    pairs *= static_cast<double>(queries);
    pairs *= static_cast<double>(is_attention ? problem.extent[a] : problem.kernel_size[a]);
  }
  return pairs;
}

}  // namespace

const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = read_cases();
  return cases;
}

std::vector<Case> small_cases(double pairs) {
  std::vector<Case> cases;
  for (const Case& row : all_cases()) {
    if (pairs_of(row.problem) <= pairs) cases.push_back(row);
  }
  return cases;
}

std::string test_name(const std::string& name) {
  std::string text;
  for (char c : name) {
    const bool is_plain = std::isalnum(static_cast<unsigned char>(c)) != 0;
    if (is_plain) {
      text += c;
    } else if (!text.empty() && text.back() != '_') {
      text += '_';
    }
  }
  return text;
}

std::string tests_path(const std::string& relative) {
  return std::string(VECINA_TESTS_DIR) + "/" + relative;
}

}  // namespace vecina::tests
