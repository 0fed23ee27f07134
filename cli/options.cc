// SPDX-License-Identifier: MIT
// Options that several subcommands share.
#include <fmt/format.h>

#include "cli/commands.h"

namespace vecina::cli {

CLI::Option* add_line_option(CLI::App& app, std::vector<std::string>& words) {
  return add_option(app, "line", words, "...",
                    "Problem line, as 2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32");
}

void add_backend_option(CLI::App& app, std::string& backend) {
  add_option(app, "--backend", backend, "NAME",
             "Backend, see `vecina info` (VECINA_BACKEND, else the best here)");
}

void add_threads_option(CLI::App& app, int& threads) {
  add_option(app, "--threads", threads, "N",
             "Threads (VECINA_NUM_THREADS, else the cores this process may use)")
      ->check(CLI::Range(1, 4096));
}

CLI::Option* add_time_limit_option(CLI::App& app, double& seconds, const std::string& text) {
  // CLI::PositiveNumber names its range with the largest double, in 309 digits.
  const auto above_zero = [](const std::string& given) {
    double value = 0.0;
    if (CLI::detail::lexical_cast(given, value) && value > 0.0) return std::string();
    return fmt::format("it needs a number of seconds above 0, not {}", given);
  };
  return add_option(app, "--time-limit", seconds, "SECONDS", text)->check(above_zero);
}

}  // namespace vecina::cli
