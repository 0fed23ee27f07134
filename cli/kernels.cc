// SPDX-License-Identifier: MIT
// vecina kernels: what the backends compile at run time: listed, built ahead, removed.
#include <fmt/format.h>

#include <memory>

#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/conformance.h"
#include "cli/machine.h"
#include "cli/progress.h"
#include "cli/table.h"
#include "cli/text.h"

namespace vecina::cli {
namespace {

using Json = nlohmann::ordered_json;

struct KernelsOptions {
  std::string action = "list";
  std::vector<std::string> line;
  int capability = 0;
  std::string parts = "forward,backward";
  bool is_json = false;
};

std::string kilobytes(const Json& kernel) {
  return fmt::format("{:.0f} kB", kernel.value("bytes", 0.0) / 1000.0);
}

std::string number(const Json& kernel, const char* name) {
  return fmt::format("{}", kernel.value(name, 0));
}

void print_list(const Json& answer) {
  const Table table({{"kernel", 22},
                     {"architecture", 12},
                     {"registers", 9, true},
                     {"spills", 6, true},
                     {"size", 7, true},
                     {"constants", 10}});
  fmt::print("{}", table.header());
  for (const Json& kernel : answer.at("kernels")) {
    fmt::print("{}", table.row({kernel.value("kernel", ""), kernel.value("architecture", ""),
                                number(kernel, "registers"), number(kernel, "spill_bytes"),
                                kilobytes(kernel), kernel.value("config", "")}));
  }
  fmt::print("{} kernels in {}\n", answer.at("kernels").size(), answer.value("folder", ""));
}

// The given problem, else those of the seed's benchmark.
std::vector<std::string> chosen_lines(const KernelsOptions& options) {
  if (!options.line.empty()) return {print_problem(parse_problem(join(options.line, " ")))};
  std::vector<std::string> lines;
  for (const BenchRow& row : bench_rows({})) lines.push_back(row.problem);
  return lines;
}

int build(vecina_context* context, const KernelsOptions& options) {
  Json answers = Json::array();
  Progress progress;
  const std::vector<std::string> lines = chosen_lines(options);
  for (const std::string& line : lines) {
    progress.show(fmt::format("[{}/{}] {} ...", answers.size() + 1, lines.size(), line));
    answers.push_back(context_info(
        context, fmt::format("kernels build {} {} {}", options.capability, options.parts, line)));
  }
  progress.clear();
  if (options.is_json) {
    fmt::print("{}\n", answers.dump(2));
    return 0;
  }
  for (const Json& answer : answers) {
    fmt::print("{}\n", answer.value("problem", ""));
    for (const Json& kernel : answer.at("kernels")) {
      if (kernel.contains("why")) {
        fmt::print("  {:<14} none: {}\n", kernel.value("pass", ""), kernel.value("why", ""));
        continue;
      }
      fmt::print("  {:<14} {} {}: {} registers, {} bytes spilled, {}, {}\n",
                 kernel.value("pass", ""), kernel.value("kernel", ""),
                 kernel.value("architecture", ""), kernel.value("registers", 0),
                 kernel.value("spill_bytes", 0), kilobytes(kernel),
                 kernel.value("was_on_disk", false)
                     ? std::string("was built before")
                     : fmt::format("built in {:.2f} s", kernel.value("compile_ms", 0.0) / 1000.0));
    }
  }
  return 0;
}

int run_kernels(const KernelsOptions& options) {
  const ContextPtr context = make_context("");
  if (options.action == "build") return build(context.get(), options);
  const Json answer = context_info(context.get(), "kernels " + options.action);
  if (options.is_json) {
    fmt::print("{}\n", answer.dump(2));
  } else if (options.action == "list") {
    print_list(answer);
  } else {
    fmt::print("removed {} kernels from {}\n", answer.value("removed", 0),
               answer.value("folder", ""));
  }
  return 0;
}

}  // namespace

Command add_kernels(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "kernels", "List, build ahead or remove the kernels that are compiled at run time");
  const auto options = std::make_shared<KernelsOptions>();
  add_option(*app, "action", options->action, "list|build|clear",
             "list: those on disk; build: compile those of a problem; clear: remove all")
      ->check(CLI::IsMember({"list", "build", "clear"}));
  add_option(*app, "problem", options->line, "LINE",
             "build: the problem (those of `vecina bench`)");
  add_option(*app, "--capability", options->capability, "N",
             "build: for a GPU of this compute capability, 90 for 9.0 (the GPU here); no GPU need "
             "be there")
      ->check(CLI::Range(80, 999));
  add_option(*app, "--parts", options->parts, "A,B",
             "build: which of forward, backward, split (qk, av, their gradients) and merge (of two "
             "attentions, and its gradients)");
  app->add_flag("--json", options->is_json, "Print JSON");
  app->footer(
      "Kernels lie in $VECINA_CACHE_DIR, else in $XDG_CACHE_HOME/vecina, else in ~/.cache/vecina.\n"
      "\n"
      "Examples:\n"
      "  vecina kernels list\n"
      "  vecina kernels build --capability 90 2d 32x32 kernel_size 7 heads 4 head_dim 32\n"
      "  vecina kernels build --parts split,merge 2d 32x32 kernel_size 7 heads 4 head_dim 32");
  return {app, [options] { return run_kernels(*options); }};
}

}  // namespace vecina::cli
