// SPDX-License-Identifier: MIT
// The main benchmark: 21 configurations on two backends, measured and named as
// benchmarks/bench_new_features.py of natten-mps does, so that the numbers can be set side by side.
#ifndef VECINA_CLI_BENCH_H_
#define VECINA_CLI_BENCH_H_

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/timing.h"

namespace vecina::cli {

enum class BenchKind {
  output,    // forward without lse
  with_lse,  // forward with lse
  merge      // two forwards with lse on the same tensors, then vecina_merge_attentions
};

struct BenchRow {
  std::string name;     // the seed's name, for example baseline_1d_L256_K7
  std::string feature;  // what --features takes
  std::string title;    // the feature as the table shows it
  std::string config;   // the configuration as the table shows it
  std::string problem;  // problem line
  BenchKind kind = BenchKind::output;
};

// The 21 configurations in order; those of `features` only, unless it is empty.
std::vector<BenchRow> bench_rows(const std::vector<std::string>& features);
const std::vector<std::string>& bench_features();

struct BackendResult {
  std::optional<Times> times;  // none: the backend cannot run the row
  std::string why_not;
};

struct BenchResult {
  BenchRow row;
  std::vector<BackendResult> backends;  // in the order of BenchSetup::backends

  // Slowest / fastest and the index of the fastest, if two or more ran.
  std::optional<double> ratio() const;
  std::optional<size_t> winner() const;
};

struct BenchSetup {
  std::vector<std::string> backends;
  std::vector<int> threads;  // of each backend; 0 if it does not say
  std::string device;
  int warmup = 5;
  int repeats = 30;
};

std::string format_table(const BenchSetup& setup, const std::vector<BenchResult>& results);
// One object for each row; the format of `--json` and `--compare`.
nlohmann::ordered_json to_json(const BenchSetup& setup, const std::vector<BenchResult>& results);
// The rows of an earlier file by name. Throws UsageError if it is none, or has no row and backend
// in common with what is going to be measured.
using OldResults = std::map<std::string, nlohmann::ordered_json>;
OldResults read_results(const std::string& path, const BenchSetup& setup,
                        const std::vector<BenchRow>& rows);
// Old, new and old / new for every row and backend that both have.
std::string format_comparison(const BenchSetup& setup, const std::vector<BenchResult>& results,
                              const OldResults& old_rows);
// Bars on a logarithmic time axis.
std::string draw_chart(const BenchSetup& setup, const std::vector<BenchResult>& results);

}  // namespace vecina::cli
#endif  // VECINA_CLI_BENCH_H_
