// SPDX-License-Identifier: MIT
// vecina bench: measures as the seed does. Inputs are drawn once for a configuration and shared by
// the backends; 5 calls to warm up, 30 timed one by one, forward only, on held plans.
#include "cli/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/calls.h"
#include "cli/commands.h"
#include "cli/conformance.h"
#include "cli/errors.h"
#include "cli/machine.h"
#include "cli/progress.h"
#include "cli/text.h"

namespace vecina::cli {
namespace {

constexpr uint64_t kInputSeed = 1;

struct BenchOptions {
  std::vector<std::string> features, backends;
  std::string json, plot, compare, problem;
  int warmup = 5, repeats = 30, threads = 0;
};

Times measure(vecina_context* context, const BenchSetup& setup, const BenchRow& row,
              const vecina_problem& problem, const Inputs& inputs) {
  const auto time = [&](const auto& call) { return call.time({setup.warmup, setup.repeats}); };
  if (row.kind == BenchKind::merge) return time(MergeCall(context, problem, inputs));
  Outputs outputs = make_outputs(problem);
  if (row.kind == BenchKind::output) outputs.lse = {};
  return time(ForwardCall(context, problem, inputs, outputs));
}

BenchResult measure_row(const std::vector<ContextPtr>& contexts, const BenchSetup& setup,
                        const BenchRow& row) {
  const vecina_problem problem = parse_problem(row.problem);
  const Inputs inputs = random_inputs(problem, kInputSeed);
  BenchResult result = {row, {}};
  for (const ContextPtr& context : contexts) {
    BackendResult& backend = result.backends.emplace_back();
    try {
      backend.times = measure(context.get(), setup, row, problem, inputs);
    } catch (const Unsupported& error) {
      backend.why_not = error.what();
    }
  }
  return result;
}

std::vector<BenchResult> measure_all(const std::vector<ContextPtr>& contexts,
                                     const BenchSetup& setup, const std::vector<BenchRow>& rows) {
  Progress progress;
  std::vector<BenchResult> results;
  for (const BenchRow& row : rows) {
    progress.show(fmt::format("[{}/{}] {} ...", results.size() + 1, rows.size(), row.name));
    results.push_back(measure_row(contexts, setup, row));
  }
  return results;
}

std::vector<std::string> default_backends() {
  std::vector<std::string> backends = usable_backends();
  if (backends.size() > 2) backends.resize(2);
  if (backends.empty()) throw UsageError("no backend is usable here; see `vecina info`.");
  return backends;
}

std::vector<BenchRow> chosen_rows(const BenchOptions& options) {
  if (options.problem.empty()) return bench_rows(options.features);
  const std::string line = print_problem(parse_problem(options.problem));
  return {{line, "problem", "Problem", line, line, BenchKind::output}};
}

void check_distinct(const std::vector<std::string>& backends) {
  for (size_t i = 0; i < backends.size(); ++i) {
    if (std::count(backends.begin(), backends.end(), backends[i]) == 1) continue;
    throw UsageError(fmt::format("--backends names {} twice.", backends[i]));
  }
}

int run_bench(const BenchOptions& options) {
  BenchSetup setup;
  setup.backends = options.backends.empty() ? default_backends() : options.backends;
  check_distinct(setup.backends);
  setup.device = cpu_model();
  setup.warmup = options.warmup;
  setup.repeats = options.repeats;
  const std::vector<BenchRow> rows = chosen_rows(options);
  // Before the measurements, so that a wrong name does not cost them.
  const OldResults old =
      options.compare.empty() ? OldResults() : read_results(options.compare, setup, rows);
  for (const std::string& path : {options.json, options.plot}) {
    if (!path.empty()) expect_writable(path);
  }

  std::vector<ContextPtr> contexts;
  for (const std::string& backend : setup.backends) {
    contexts.push_back(make_context(backend, options.threads));
    const nlohmann::ordered_json info = context_info(contexts.back().get(), "info");
    setup.threads.push_back(backend_threads(info, backend));
    const std::string device = device_name(info, backend);
    if (!device.empty()) setup.device += "; " + device;
  }
  const std::vector<BenchResult> results = measure_all(contexts, setup, rows);

  // With --json - standard output holds JSON and nothing else.
  std::FILE* shown = options.json == "-" ? stderr : stdout;
  fmt::print(shown, "{}", format_table(setup, results));
  if (!options.json.empty()) write_file(options.json, to_json(setup, results).dump(2) + "\n");
  if (!options.plot.empty()) write_file(options.plot, draw_chart(setup, results));
  if (!options.compare.empty()) {
    fmt::print(shown, "\n{}", format_comparison(setup, results, old));
  }
  return 0;
}

}  // namespace

Command add_bench(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "bench", "Time the 21 configurations of the seed benchmark on two backends side by side");
  const auto options = std::make_shared<BenchOptions>();
  add_option(*app, "--features", options->features, "NAME ...",
             "Only some of " + join(bench_features(), " "))
      ->delimiter(',')
      ->check(CLI::IsMember(bench_features()));
  add_option(*app, "--backends", options->backends, "A,B",
             "Backends to compare (the best two here)")
      ->delimiter(',');
  add_option(*app, "--json", options->json, "FILE",
             "Write JSON; - is standard output, the table then goes to standard error");
  add_option(*app, "--plot", options->plot, "FILE.svg", "Draw the results as bars");
  add_option(*app, "--compare", options->compare, "OLD.json",
             "Print old, new and their ratio against an earlier --json file");
  add_option(*app, "--problem", options->problem, "LINE",
             "Time this problem instead of the 21 configurations")
      ->excludes("--features");
  add_option(*app, "--warmup", options->warmup, "N", "Untimed calls first (5)")
      ->check(CLI::Range(0, 1000000));
  add_option(*app, "--repeats", options->repeats, "N", "Timed calls; the upper median counts (30)")
      ->check(CLI::Range(1, 1000000));
  add_threads_option(*app, options->threads);
  app->footer(
      "Example:\n"
      "  vecina bench --features baseline gqa --backends cpu,reference --json now.json");
  return {app, [options] { return run_bench(*options); }};
}

}  // namespace vecina::cli
