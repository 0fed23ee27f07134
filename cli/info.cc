// SPDX-License-Identifier: MIT
// vecina info: what this build can do here, and with --peak how fast the machine is.
#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/conformance.h"
#include "cli/json_text.h"
#include "cli/machine.h"

namespace vecina::cli {
namespace {

struct InfoOptions {
  bool is_json = false, measures_peak = false;
};

int run_info(const InfoOptions& options) {
  const ContextPtr context = make_context("");
  nlohmann::ordered_json info = context_info(context.get(), "info");
  info["machine"] = cpu_model();
  if (options.measures_peak) info["peak"] = context_info(context.get(), "peak");
  fmt::print("{}", options.is_json ? info.dump(2) + "\n" : format_json(info));
  return 0;
}

}  // namespace

Command add_info(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "info", "Show the version, each backend and why it is usable or not, and the machine");
  const auto options = std::make_shared<InfoOptions>();
  app->add_flag("--json", options->is_json, "Print JSON");
  app->add_flag("--peak", options->measures_peak,
                "Also measure multiply-add, exp and memory speed (takes a few seconds)");
  app->footer("Example:\n  vecina info --peak");
  return {app, [options] { return run_info(*options); }};
}

}  // namespace vecina::cli
