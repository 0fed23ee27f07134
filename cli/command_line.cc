// SPDX-License-Identifier: MIT
// The command line tool: one file for each subcommand (commands.h); here they are put together,
// and whatever a command throws becomes a sentence on standard error and an exit code.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage or something needed is missing.
#include "cli/command_line.h"

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <iostream>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/errors.h"

namespace vecina::cli {
namespace {

constexpr int kFailed = 1, kWrongUsage = 2;

int report(const std::string& command, const std::string& sentence, int code) {
  fmt::print(stderr, "vecina{}{}: {}\n", command.empty() ? "" : " ", command, sentence);
  return code;
}

int run_command(const Command& command) {
  const std::string name = command.app->get_name();
  try {
    return command.run();
  } catch (const UsageError& error) {
    return report(name, error.what(), kWrongUsage);
  } catch (const std::invalid_argument& error) {
    return report(name, error.what(), kWrongUsage);
  } catch (const std::bad_alloc&) {
    return report(name, "this needs more memory than there is.", kFailed);
  } catch (const std::exception& error) {
    return report(name, error.what(), kFailed);
  }
}

// The subcommand that was being read; empty if it did not come to that.
std::string parsed_name(const CLI::App& root) {
  const auto parsed = root.get_subcommands();
  return parsed.empty() ? "" : parsed.front()->get_name();
}

int run(int argc, char** argv) {
  CLI::App root("Neighborhood attention: benchmark, check, run and look inside", "vecina");
  root.set_version_flag("--version", fmt::format("vecina {}", vecina_version()));
  root.footer(
      "Start with `vecina bench`. Every command has --help with an example.\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage or something needed is missing.");
  const std::vector<Command> commands = {add_bench(root),      add_run(root),     add_check(root),
                                         add_info(root),       add_plan(root),    add_window(root),
                                         add_profile(root),    add_kernels(root), add_tune(root),
                                         add_completion(root), add_man(root)};
  root.require_subcommand(0, 1);
  root.get_formatter()->column_width(32);
  try {
    root.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return root.exit(success);
  } catch (const CLI::ParseError& error) {
    const std::string name = parsed_name(root);
    return report(
        name,
        fmt::format("{}. See `vecina {}{}--help`.", error.what(), name, name.empty() ? "" : " "),
        kWrongUsage);
  }
  for (const Command& command : commands) {
    if (command.app->parsed()) return run_command(command);
  }
  fmt::print(stderr, "{}", root.help());
  return kWrongUsage;
}

}  // namespace

int run_command_line(int argc, char** argv) {
  try {
    const int code = run(argc, argv);
    std::cout.flush();
    const bool is_written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0 && std::cout;
    if (code != 0 || is_written) return code;
    return report("", "writing to standard output failed.", kFailed);
  } catch (const std::exception& error) {
    return report("", error.what(), kFailed);
  }
}

}  // namespace vecina::cli
