// SPDX-License-Identifier: MIT
// vecina tune: measures ways to compute a problem on the device and keeps the fastest for later.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

#include "cli/commands.h"
#include "cli/conformance.h"
#include "cli/errors.h"
#include "cli/machine.h"
#include "cli/progress.h"
#include "cli/table.h"
#include "cli/text.h"

namespace vecina::cli {
namespace {

using Json = nlohmann::ordered_json;

struct TuneOptions {
  std::vector<std::string> line;
  int count = 16;
  bool is_json = false, is_clear = false;
};

// The sizes along the problem's axes: "8x20".
std::string box(const Json& sizes, int rank) {
  const auto of_axes = sizes.get<std::vector<int>>();
  return fmt::format("{}", fmt::join(of_axes.end() - rank, of_axes.end(), "x"));
}

std::string milliseconds(const Json& cut, const char* name) {
  return fmt::format("{:.4g} ms", cut.value(name, 0.0));
}

// What the warpgroups of a block do together, and output.
std::string how(const Json& cut) {
  std::vector<std::string> words;
  if (cut.value("ping_pong", false)) words.push_back("turns");
  if (cut.value("chained", false)) words.push_back("chained");
  if (cut.value("output_buffer", false)) words.push_back("buffer");
  return words.empty() ? "plain" : join(words, " ");
}

void print_cuts(const Json& answer, int rank) {
  const Table table({{"queries", 9},
                     {"keys", 9},
                     {"heads", 5, true},
                     {"warpgroups", 10, true},
                     {"axis", 4, true},
                     {"stages", 6, true},
                     {"how", 20},
                     {"predicted", 9, true},
                     {"measured", 8, true},
                     {"registers", 9, true},
                     {"spills", 6, true},
                     {"", 13}});
  fmt::print("{}, {}\n{}", answer.value("problem", ""), answer.value("device", ""), table.header());
  for (const Json& cut : answer.at("cuts")) {
    const bool is_planned = cut.at("is_planned"), is_kept = cut.at("is_kept");
    fmt::print("{}", table.row({box(cut.at("queries_per_warpgroup"), rank),
                                box(cut.at("keys_per_tile"), rank),
                                fmt::format("{}", cut.value("packed_heads", 1)),
                                fmt::format("{}", cut.value("warpgroups", 0)),
                                fmt::format("{}", cut.value("pair_axis", 0)),
                                fmt::format("{}", cut.value("stages", 0)), how(cut),
                                milliseconds(cut, "predicted_ms"), milliseconds(cut, "measured_ms"),
                                fmt::format("{}", cut.value("registers", 0)),
                                fmt::format("{}", cut.value("spill_bytes", 0)),
                                is_planned && is_kept ? "planned, kept"
                                : is_planned          ? "planned"
                                : is_kept             ? "kept"
                                                      : ""}));
  }
}

int run_tune(const TuneOptions& options) {
  const ContextPtr context = make_context("");
  if (options.is_clear) {
    const Json answer = context_info(context.get(), "tune clear");
    if (options.is_json) {
      fmt::print("{}\n", answer.dump(2));
    } else {
      fmt::print("removed {} from {}\n", answer.value("removed", 0), answer.value("folder", ""));
    }
    return 0;
  }
  if (options.line.empty()) throw UsageError("give a problem line, or --clear.");
  const vecina_problem problem = parse_problem(join(options.line, " "));
  Progress progress;
  progress.show(fmt::format("measuring {} and more ...", options.count));
  const Json answer =
      context_info(context.get(), fmt::format("tune {} {}", options.count, print_problem(problem)));
  progress.clear();
  if (options.is_json) {
    fmt::print("{}\n", answer.dump(2));
  } else {
    print_cuts(answer, problem.rank);
  }
  return 0;
}

}  // namespace

Command add_tune(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "tune", "Measure ways to compute a problem on the GPU and keep the fastest for later");
  const auto options = std::make_shared<TuneOptions>();
  CLI::Option* line = add_line_option(*app, options->line);
  add_option(*app, "--cuts", options->count, "N",
             "Measure so many that are predicted fastest, and variants of the best (16)")
      ->check(CLI::Range(1, 100));
  app->add_flag("--clear", options->is_clear, "Forget what was kept, of all problems")
      ->excludes(line);
  app->add_flag("--json", options->is_json, "Print JSON");
  app->footer(
      "What is kept lies beside the kernels (`vecina kernels --help`); `vecina plan` says "
      "\"tuned\"\n"
      "where it is taken. Of a problem with lengths, padded or packed, as many samples are\n"
      "measured that all have the longest extents; what is kept serves all lengths.\n"
      "\n"
      "Example:\n"
      "  vecina tune \"2d 256x256 kernel_size 32 heads 24 head_dim 128 dtype bf16\"");
  return {app, [options] { return run_tune(*options); }};
}

}  // namespace vecina::cli
