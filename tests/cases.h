// SPDX-License-Identifier: MIT
// The one table of problems, tests/cases.json: each named by what it breaks.
#ifndef VECINA_TESTS_CASES_H_
#define VECINA_TESTS_CASES_H_

#include <ostream>
#include <string>
#include <vector>

#include "vecina/vecina.h"

namespace vecina::tests {

struct Case {
  std::string name, line;
  vecina_problem problem;
};
// GoogleTest prints this where a row fails.
inline void PrintTo(const Case& row, std::ostream* out) { *out << row.name << ": " << row.line; }

// In the order of the file. Throws if a line does not parse.
const std::vector<Case>& all_cases();

// Rows whose reference result takes less than about `pairs` dot products.
std::vector<Case> small_cases(double pairs);

// A test name made of a case's name: letters, digits and underscores.
std::string test_name(const std::string& name);

// Path of a file below tests/, which the build was told.
std::string tests_path(const std::string& relative);

}  // namespace vecina::tests
#endif  // VECINA_TESTS_CASES_H_
