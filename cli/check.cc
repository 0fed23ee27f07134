// SPDX-License-Identifier: MIT
// vecina check: a backend against the reference on random or given problems. Every case has its
// own seed, which it prints when it fails, together with the problem.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>

#include "cli/commands.h"
#include "cli/conformance.h"
#include "cli/errors.h"
#include "cli/machine.h"
#include "cli/progress.h"

namespace vecina::cli {
namespace {

struct CheckOptions {
  std::string backend, problem;
  int cases = 0;  // 0: the default
  uint64_t seed = 1;
  double time_limit_s = 0.0;  // 0: none
  int threads = 0;
  bool is_backward = false, is_split = false;

  const char* pass_option() const {
    return is_split ? " --split" : is_backward ? " --backward" : "";
  }
};

constexpr int kDefaultCases = 500;

struct Tally {
  int checked = 0, failed = 0, not_taken = 0;
  double worst = 0.0;
  std::string last_refusal;

  void refuse(const std::string& why_not) {
    ++not_taken;
    last_refusal = why_not;
  }
};

// The problem of a case: the given one, else a random one, else (lengths and bias are not taken by
// every backend) a random one without those.
vecina_problem problem_of_case(const CheckOptions& options, const Checker& checker, uint64_t seed) {
  if (!options.problem.empty()) return parse_problem(options.problem);
  Random random(seed);
  vecina_problem problem = random_problem(random, /*everything=*/true);
  if (options.is_split) {  // has no lengths
    problem.lengths = VECINA_LENGTHS_EQUAL;
    problem.samples = 0;
    return problem;
  }
  return checker.why_not(problem).empty() ? problem : random_problem(random);
}

void check_case(const CheckOptions& options, Checker& checker, uint64_t seed, Tally& tally,
                Progress& progress) {
  const vecina_problem problem = problem_of_case(options, checker, seed);
  const std::string why_not = checker.why_not(problem);
  if (!why_not.empty()) return tally.refuse(why_not);
  Verdict verdict;
  try {
    verdict = options.is_split      ? checker.check_split(problem, seed)
              : options.is_backward ? checker.check_backward(problem, seed)
                                    : checker.check_forward(problem, seed);
  } catch (const Unsupported& refusal) {
    return tally.refuse(refusal.what());
  }
  ++tally.checked;
  tally.worst = std::max(tally.worst, verdict.worst);
  if (verdict.passed) return;
  ++tally.failed;
  const std::string line = print_problem(problem);
  progress.clear();
  fmt::print("FAILED  {}\n        seed {}: {}\n", line, seed, verdict.detail);
  fmt::print("        again: vecina check --backend {}{} --seed {} --problem \"{}\"\n",
             checker.backend(), options.pass_option(), seed, line);
  std::fflush(stdout);
}

std::string default_backend() {
  const char* chosen = std::getenv("VECINA_BACKEND");
  if (chosen != nullptr && chosen[0] != '\0') return chosen;
  const std::vector<std::string> usable = usable_backends();
  if (usable.empty()) throw UsageError("no backend is usable here; see `vecina info`.");
  return usable.front();
}

int run_check(const CheckOptions& options) {
  const std::string backend = options.backend.empty() ? default_backend() : options.backend;
  Checker checker(backend, options.threads);

  const int cases = options.cases > 0 ? options.cases : options.problem.empty() ? kDefaultCases : 1;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed_s = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  Tally tally;
  Progress progress;
  for (int i = 0; i < cases; ++i) {
    if (options.time_limit_s > 0.0 && elapsed_s() > options.time_limit_s) break;
    if (i % 20 == 0) progress.show(fmt::format("[{}/{}] failures {}", i, cases, tally.failed));
    check_case(options, checker, options.seed + static_cast<uint64_t>(i), tally, progress);
  }
  progress.clear();
  if (tally.checked == 0 && tally.not_taken > 0) throw Unsupported(tally.last_refusal);

  if (tally.not_taken > 0) {
    fmt::print("not taken by {}: {} (for example: {})\n", backend, tally.not_taken,
               tally.last_refusal);
  }
  fmt::print("{}{}: cases {}, failures {}, worst error {:.2f} of what is allowed\n", backend,
             options.is_split      ? " split"
             : options.is_backward ? " backward"
                                   : "",
             tally.checked, tally.failed, tally.worst);
  return tally.failed > 0 ? 1 : 0;
}

}  // namespace

Command add_check(CLI::App& root) {
  CLI::App* app =
      root.add_subcommand("check", "Compare a backend with the reference on random problems");
  const auto options = std::make_shared<CheckOptions>();
  add_backend_option(*app, options->backend);
  add_option(*app, "--cases", options->cases, "N", "How many problems (500; 1 with --problem)")
      ->check(CLI::Range(1, 1000000000));
  add_option(*app, "--seed", options->seed, "S",
             "Seed of the first case (1); the next one has S + 1, and so on");
  add_time_limit_option(*app, options->time_limit_s, "Stop after this time");
  add_option(*app, "--problem", options->problem, "LINE", "Check this problem, not random ones");
  app->add_flag("--backward", options->is_backward, "Check the gradients instead of the output");
  app->add_flag("--split", options->is_split,
                "Check the split form, qk and av with their gradients, instead of the output")
      ->excludes("--backward");
  add_threads_option(*app, options->threads);
  app->footer(
      "An error counts as a share of what is allowed: twice the error of the same maths carried "
      "out\nplainly in the problem's dtype, plus 1e-6 (f64: 1e-13) of the largest magnitude. "
      "Before a\nresult fails, up to seven other draws of numbers say what plain maths errs by.\n\n"
      "Example:\n"
      "  vecina check --backend cpu --cases 2000 --seed 7");
  return {app, [options] { return run_check(*options); }};
}

}  // namespace vecina::cli
