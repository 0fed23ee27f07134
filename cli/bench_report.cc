// SPDX-License-Identifier: MIT
// Results of the benchmark as a table, as JSON, and against an earlier JSON.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "cli/bench.h"
#include "cli/conformance.h"
#include "cli/dtypes.h"
#include "cli/errors.h"
#include "cli/table.h"
#include "cli/text.h"

namespace vecina::cli {
namespace {

using nlohmann::ordered_json;

constexpr int kFeatureWidth = 13;
constexpr int kConfigWidth = 22;
constexpr int kTimeWidth = 9;

std::optional<double> old_ms(const OldResults& old, const std::string& name,
                             const std::string& backend) {
  const auto row = old.find(name);
  if (row == old.end()) return std::nullopt;
  const auto time = row->second.find(backend + "_ms");
  if (time == row->second.end() || !time->is_number()) return std::nullopt;
  return time->get<double>();
}

int config_width(const std::vector<BenchResult>& results) {
  size_t width = kConfigWidth;
  for (const BenchResult& result : results) width = std::max(width, result.row.config.size());
  return static_cast<int>(width);
}

int time_width(const std::string& title) {
  return std::max(kTimeWidth, static_cast<int>(title.size()));
}

std::string threads_text(const BenchSetup& setup) {
  std::vector<std::string> texts;
  for (size_t b = 0; b < setup.backends.size(); ++b) {
    if (setup.threads[b] > 0) {
      texts.push_back(fmt::format("{} {}", setup.backends[b], setup.threads[b]));
    }
  }
  return texts.empty() ? "default" : join(texts, ", ");
}

// Each reason once: "n/a on cpu: sentence".
std::string format_refusals(const BenchSetup& setup, const std::vector<BenchResult>& results) {
  std::set<std::string> seen;
  std::string text;
  for (const BenchResult& result : results) {
    for (size_t b = 0; b < setup.backends.size(); ++b) {
      const std::string& why_not = result.backends[b].why_not;
      if (why_not.empty() || !seen.insert(setup.backends[b] + why_not).second) continue;
      text += fmt::format("n/a on {}: {}\n", setup.backends[b], why_not);
    }
  }
  return text;
}

}  // namespace

std::optional<size_t> BenchResult::winner() const {
  std::optional<size_t> fastest;
  int ran = 0;
  for (size_t b = 0; b < backends.size(); ++b) {
    if (!backends[b].times) continue;
    ++ran;
    if (!fastest || backends[b].times->median_ms < backends[*fastest].times->median_ms) fastest = b;
  }
  return ran >= 2 ? fastest : std::nullopt;
}

std::optional<double> BenchResult::ratio() const {
  const std::optional<size_t> fastest = winner();
  if (!fastest) return std::nullopt;
  double slowest_ms = 0.0;
  for (const BackendResult& backend : backends) {
    if (backend.times) slowest_ms = std::max(slowest_ms, backend.times->median_ms);
  }
  return slowest_ms / backends[*fastest].times->median_ms;
}

std::string format_table(const BenchSetup& setup, const std::vector<BenchResult>& results) {
  std::vector<Table::Column> columns = {{"Feature", kFeatureWidth},
                                        {"Config", config_width(results)}};
  for (const std::string& backend : setup.backends) {
    columns.push_back({backend, time_width(backend), true});
  }
  columns.push_back({"Ratio", 7, true});
  columns.push_back({"Winner", kTimeWidth});
  const Table table(columns);

  std::string text = table.header(), last_title;
  for (const BenchResult& result : results) {
    const BenchRow& row = result.row;
    std::vector<std::string> cells = {row.title == last_title ? "" : row.title, row.config};
    last_title = row.title;
    for (const BackendResult& backend : result.backends) {
      cells.push_back(backend.times ? format_ms(backend.times->median_ms) : "n/a");
    }
    const std::optional<double> ratio = result.ratio();
    cells.push_back(ratio ? fmt::format("{:.1f}x", *ratio) : "n/a");
    cells.push_back(ratio ? setup.backends[*result.winner()] : "");
    text += table.row(cells);
  }
  text += format_refusals(setup, results);
  text += fmt::format(
      "\n{}; backends {}; threads {}; {} warm-up calls, median of {} repeats; vecina {}\n",
      setup.device, join(setup.backends, ", "), threads_text(setup), setup.warmup, setup.repeats,
      vecina_version());
  return text;
}

ordered_json to_json(const BenchSetup& setup, const std::vector<BenchResult>& results) {
  ordered_json list = ordered_json::array();
  for (const BenchResult& result : results) {
    const auto optional = [](const auto& value) {
      return value ? ordered_json(*value) : ordered_json(nullptr);
    };
    const vecina_problem problem = parse_problem(result.row.problem);
    ordered_json object = {{"name", result.row.name},
                           {"feature", result.row.feature},
                           {"dim", fmt::format("{}d", problem.rank)}};
    for (size_t b = 0; b < setup.backends.size(); ++b) {
      const std::optional<Times>& times = result.backends[b].times;
      object[setup.backends[b] + "_ms"] = times ? ordered_json(times->median_ms) : nullptr;
    }
    const std::optional<size_t> winner = result.winner();
    object["ratio"] = optional(result.ratio());
    object["winner"] = winner ? ordered_json(setup.backends[*winner]) : ordered_json(nullptr);
    for (size_t b = 0; b < setup.backends.size(); ++b) {
      const std::optional<Times>& times = result.backends[b].times;
      object[setup.backends[b] + "_min_ms"] = times ? ordered_json(times->min_ms) : nullptr;
      object[setup.backends[b] + "_spread"] = times ? ordered_json(times->spread) : nullptr;
    }
    object["dtype"] = dtype_name(problem.dtype);
    object["problem"] = print_problem(problem);
    object["device"] = setup.device;
    object["version"] = vecina_version();
    list.push_back(object);
  }
  return list;
}

OldResults read_results(const std::string& path, const BenchSetup& setup,
                        const std::vector<BenchRow>& rows) {
  const ordered_json list =
      ordered_json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) {
    throw UsageError("the file of --compare is not a list of results that `bench --json` wrote.");
  }
  OldResults old;
  for (const ordered_json& row : list) {
    if (row.is_object() && row.contains("name") && row["name"].is_string()) {
      old[row["name"].get<std::string>()] = row;
    }
  }
  for (const BenchRow& row : rows) {
    for (const std::string& backend : setup.backends) {
      if (old_ms(old, row.name, backend)) return old;
    }
  }
  throw UsageError("the file of --compare has no row and backend in common with this run.");
}

std::string format_comparison(const BenchSetup& setup, const std::vector<BenchResult>& results,
                              const OldResults& old_rows) {
  int width = kConfigWidth;
  for (const BenchResult& result : results) {
    width = std::max(width, static_cast<int>(result.row.name.size()));
  }
  const Table table({{"Name", width},
                     {"Backend", kTimeWidth},
                     {"Old", kTimeWidth, true},
                     {"New", kTimeWidth, true},
                     {"Old/new", 7, true}});
  std::string text;
  for (const BenchResult& result : results) {
    for (size_t b = 0; b < setup.backends.size(); ++b) {
      const std::optional<double> old = old_ms(old_rows, result.row.name, setup.backends[b]);
      const std::optional<Times>& times = result.backends[b].times;
      if (!old || !times) continue;
      text +=
          table.row({result.row.name, setup.backends[b], format_ms(*old),
                     format_ms(times->median_ms), fmt::format("{:.2f}x", *old / times->median_ms)});
    }
  }
  return table.header() + text + "(above 1x: faster than before)\n";
}

}  // namespace vecina::cli
