// SPDX-License-Identifier: MIT
#include "api/info.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <nlohmann/json.hpp>

#include "api/registry.h"

namespace vecina::internal {
namespace {

using nlohmann::ordered_json;

constexpr int kMaxTuned = 100;  // ways to compute a problem; each takes a fifth of a second

// "list", "clear" or "build CAPABILITY [PARTS] LINE".
struct KernelsCommand {
  enum class Action { list, clear, build } action = Action::list;
  int compute_capability = 0;
  KernelParts parts;
  Problem problem;
};

// "forward,split": those and no others.
Status parse_parts(std::string_view text, KernelParts* parts) {
  *parts = {false, false, false, false};
  while (!text.empty()) {
    const std::string_view name = text.substr(0, text.find(','));
    bool* part = name == "forward"    ? &parts->forward
                 : name == "backward" ? &parts->backward
                 : name == "split"    ? &parts->split
                 : name == "merge"    ? &parts->merge
                                      : nullptr;
    if (part == nullptr) {
      return invalid(fmt::format(
          "'{}' is none of forward, backward, split, merge, of which kernels are built.", name));
    }
    *part = true;
    text.remove_prefix(std::min(text.size(), name.size() + 1));
  }
  return {};
}

Status parse_kernels_command(std::string_view text, KernelsCommand* command) {
  constexpr std::string_view kBuild = "build ";
  if (text == "list") {
    command->action = KernelsCommand::Action::list;
    return {};
  }
  if (text == "clear") {
    command->action = KernelsCommand::Action::clear;
    return {};
  }
  if (!text.starts_with(kBuild)) {
    return invalid(fmt::format(
        "kernels '{}'; \"list\", \"clear\" or \"build CAPABILITY [PARTS] LINE\".", text));
  }
  command->action = KernelsCommand::Action::build;
  text.remove_prefix(kBuild.size());
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), command->compute_capability);
  if (error != std::errc()) {
    return invalid(fmt::format(
        "'{}' does not begin with a compute capability, for example 90 for 9.0.", text));
  }
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  text.remove_prefix(std::min(text.size(), text.find_first_not_of(' ')));
  const std::string_view parts = text.substr(0, text.find(' '));
  // A line begins with its rank, a digit, or with this word.
  if (!parts.empty() && std::isalpha(static_cast<unsigned char>(parts.front())) != 0 &&
      parts != "attention") {
    VECINA_RETURN_IF_ERROR(parse_parts(parts, &command->parts));
    text.remove_prefix(parts.size());
  }
  return Problem::parse(text, &command->problem);
}

Status run_kernels_command(const KernelsCommand& command, const Backend& backend,
                           std::string* json) {
  switch (command.action) {
    case KernelsCommand::Action::list:
      return backend.list_kernels(json);
    case KernelsCommand::Action::clear:
      return backend.clear_kernels(json);
    case KernelsCommand::Action::build:
      break;
  }
  return backend.build_kernels(command.compute_capability, command.problem, command.parts, json);
}

// The answer of the first backend that has one; else what `there_is` none of, and why.
template <typename Ask>
Status ask_backends(const Context& context, const char* there_is, Ask ask) {
  std::string sentences;
  for (const auto& backend : context.backends()) {
    Status status = ask(*backend);
    if (status.code() != VECINA_UNSUPPORTED) return status;
    if (is_hidden(backend->name())) continue;
    sentences +=
        fmt::format("{}{}: {}", sentences.empty() ? "" : "; ", backend->name(), status.message());
  }
  return unsupported(fmt::format("{}: {}.", there_is, sentences));
}

// Of the one backend that compiles kernels at run time.
Status ask_for_kernels(const Context& context, std::string_view text, std::string* json) {
  KernelsCommand command;
  VECINA_RETURN_IF_ERROR(parse_kernels_command(text, &command));
  return ask_backends(context, "no kernels", [&](const Backend& backend) {
    return run_kernels_command(command, backend, json);
  });
}

// "clear" or "COUNT LINE".
Status tune(Context& context, std::string_view text, std::string* json) {
  if (text == "clear") {
    VECINA_RETURN_IF_ERROR(ask_backends(
        context, "nothing was tuned", [&](Backend& backend) { return backend.clear_tuned(json); }));
  } else {
    int count = 0;
    Problem problem;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    if (error != std::errc() || count < 1 || count > kMaxTuned) {
      return invalid(fmt::format("tune '{}'; \"clear\" or \"COUNT LINE\", COUNT from 1 to {}.",
                                 text, kMaxTuned));
    }
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    VECINA_RETURN_IF_ERROR(Problem::parse(text, &problem));
    VECINA_RETURN_IF_ERROR(ask_backends(context, "nothing to tune", [&](Backend& backend) {
      return backend.tune(problem, count, json);
    }));
  }
  context.forget_plans();
  return {};
}

}  // namespace

Status read_info(Context& context, std::string_view what, std::string* json) {
  constexpr std::string_view kKernels = "kernels ", kTune = "tune ";
  if (what == "info") {
    *json = describe_context(context);
  } else if (what == "peak") {
    *json = measure_peak(context);
  } else if (what.starts_with(kKernels)) {
    return ask_for_kernels(context, what.substr(kKernels.size()), json);
  } else if (what.starts_with(kTune)) {
    return tune(context, what.substr(kTune.size()), json);
  } else {
    return invalid(fmt::format(
        "what is '{}'; \"info\", \"peak\", \"kernels COMMAND\" or \"tune COMMAND\".", what));
  }
  return {};
}

std::string describe_context(const Context& context) {
  ordered_json backends = ordered_json::array();
  for (const auto& backend : context.backends()) {
    if (is_hidden(backend->name())) continue;
    const std::string why = backend->why_not();
    backends.push_back({{"name", backend->name()},
                        {"usable", why.empty()},
                        {"why", why},
                        {"details", ordered_json::parse(backend->info())}});
  }
  return ordered_json{{"version", VECINA_VERSION}, {"backends", backends}}.dump();
}

std::string measure_peak(Context& context) {
  ordered_json peak = ordered_json::object();
  for (const auto& backend : context.backends()) {
    const ordered_json measured = ordered_json::parse(backend->peak());
    if (!measured.empty()) peak[backend->name()] = measured;
  }
  return peak.dump();
}

std::string describe_plan(const PlanRecord& record) {
  constexpr const char* kDevices[] = {"host", "cuda", "vulkan", "metal"};
  return ordered_json{{"backend", record.backend},
                      {"device", kDevices[record.device]},
                      {"problem", record.problem.line()},
                      {"pass", record.pass == Pass::forward ? "forward" : "backward"},
                      {"visible_pairs", record.problem.visible_pairs()},
                      {"forward_flops", record.problem.forward_flops()},
                      {"workspace_bytes", record.plan->workspace_bytes()},
                      {"details", ordered_json::parse(record.plan->describe())}}
      .dump();
}

std::string describe_profile(const PlanRecord& record, PlanTimes times) {
  std::vector<double>& times_us = times.times_us;
  std::sort(times_us.begin(), times_us.end());
  const size_t count = times_us.size();
  const double best = times_us.front(), median = times_us[count / 2];
  const double middle_half = times_us[count * 3 / 4] - times_us[count / 4];
  // Backward: five products where forward has two (recompute, dP, dQ, dK, dV).
  const double flops = record.problem.forward_flops() * (record.pass == Pass::forward ? 1.0 : 2.5);
  return ordered_json{{"clock", times.clock},
                      {"repeats", count},
                      {"best_us", best},
                      {"median_us", median},
                      {"spread", median > 0.0 ? middle_half / median : 0.0},
                      {"best_gflops", flops / best * 1e-3},
                      {"median_gflops", flops / median * 1e-3}}
      .dump();
}

}  // namespace vecina::internal
