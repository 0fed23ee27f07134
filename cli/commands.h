// SPDX-License-Identifier: MIT
// The subcommands. Each add_ function describes its options to CLI11 and returns what to run once
// the command line was parsed; run() returns the exit code or throws (errors.h).
#ifndef VECINA_CLI_COMMANDS_H_
#define VECINA_CLI_COMMANDS_H_

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

namespace vecina::cli {

struct Command {
  CLI::App* app;
  std::function<int()> run;
};

Command add_bench(CLI::App& root);
Command add_run(CLI::App& root);
Command add_check(CLI::App& root);
Command add_info(CLI::App& root);
Command add_plan(CLI::App& root);
Command add_window(CLI::App& root);
Command add_profile(CLI::App& root);
Command add_kernels(CLI::App& root);
Command add_tune(CLI::App& root);
// Generated from root as it is when they run, so that nothing is listed twice.
Command add_completion(CLI::App& root);
Command add_man(CLI::App& root);

// An option whose help shows `placeholder` instead of CLI11's type, range and default.
template <typename Value>
CLI::Option* add_option(CLI::App& app, const std::string& names, Value& value,
                        const std::string& placeholder, const std::string& text) {
  return app.add_option(names, value, text)->option_text(placeholder);
}

// The problem line as positional words, quoted or not: `vecina plan 2d 32x32 kernel_size 7`.
CLI::Option* add_line_option(CLI::App& app, std::vector<std::string>& words);
void add_backend_option(CLI::App& app, std::string& backend);
void add_threads_option(CLI::App& app, int& threads);
// --time-limit, in seconds.
CLI::Option* add_time_limit_option(CLI::App& app, double& seconds, const std::string& text);

}  // namespace vecina::cli
#endif  // VECINA_CLI_COMMANDS_H_
