// SPDX-License-Identifier: MIT
// vecina plan: which backend and kernel a problem gets, and why; --measure also runs it.
#include <fmt/format.h>

#include <memory>

#include "cli/calls.h"
#include "cli/commands.h"
#include "cli/conformance.h"
#include "cli/json_text.h"
#include "cli/machine.h"
#include "cli/prediction.h"
#include "cli/text.h"
#include "cli/timing.h"

namespace vecina::cli {
namespace {

struct PlanOptions {
  std::vector<std::string> line;
  std::string backend;
  int threads = 0;
  bool is_json = false, is_backward = false, is_measured = false;
};

constexpr int kWarmup = 3, kRepeats = 20;
constexpr double kLimitSeconds = 5.0;

template <typename Call>
nlohmann::ordered_json describe(const Call& call, bool is_measured) {
  nlohmann::ordered_json plan = call.describe();
  if (is_measured) {
    const Times times = call.time({kWarmup, kRepeats, kLimitSeconds});
    plan["measured_us"] = times.median_ms * 1000.0;
    plan["measured_best_us"] = times.min_ms * 1000.0;
    add_prediction_error(times.median_ms, &plan);
  }
  return plan;
}

int run_plan(const PlanOptions& options) {
  const vecina_problem problem = parse_problem(join(options.line, " "));
  const ContextPtr context = make_context(options.backend, options.threads);
  if (options.is_measured) context_info(context.get(), "peak");  // what predictions need
  const Placement placement = {.is_reserved = !options.is_measured};
  const Inputs inputs = random_inputs(problem, /*seed=*/1, placement);
  const Outputs outputs = make_outputs(problem, placement);
  nlohmann::ordered_json plan;
  if (options.is_backward) {
    if (options.is_measured) ForwardCall(context.get(), problem, inputs, outputs).run();
    const Gradients gradients = make_gradients(problem, placement);
    plan = describe(BackwardCall(context.get(), problem, inputs, outputs, gradients),
                    options.is_measured);
  } else {
    plan = describe(ForwardCall(context.get(), problem, inputs, outputs), options.is_measured);
  }
  fmt::print("{}", options.is_json ? plan.dump(2) + "\n" : format_json(plan));
  return 0;
}

}  // namespace

Command add_plan(CLI::App& root) {
  CLI::App* app =
      root.add_subcommand("plan", "Show which backend and kernel a problem gets, and why");
  const auto options = std::make_shared<PlanOptions>();
  add_line_option(*app, options->line)->required();
  app->add_flag("--json", options->is_json, "Print JSON");
  app->add_flag("--backward", options->is_backward, "The plan of the backward pass");
  app->add_flag("--measure", options->is_measured, "Also run it and show the time it takes");
  add_backend_option(*app, options->backend);
  add_threads_option(*app, options->threads);
  app->footer("Example:\n  vecina plan \"2d 56x56 kernel_size 7 heads 8 head_dim 64 dtype bf16\"");
  return {app, [options] { return run_plan(*options); }};
}

}  // namespace vecina::cli
