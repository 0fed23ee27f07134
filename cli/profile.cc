// SPDX-License-Identifier: MIT
// vecina profile: time and useful FLOP/s of one problem, beside dense attention of the same tokens.
// The problem is given as a line, or with the option names of NATTEN's profiler.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "cli/calls.h"
#include "cli/commands.h"
#include "cli/conformance.h"
#include "cli/dtypes.h"
#include "cli/errors.h"
#include "cli/machine.h"
#include "cli/prediction.h"
#include "cli/text.h"
#include "cli/timing.h"

namespace vecina::cli {
namespace {

// NATTEN's names and defaults (python -m natten.profiler --help).
struct NattenOptions {
  int64_t batch = 1;
  int32_t heads = 1, heads_kv = 0, dim = 64, dim_value = 0;
  std::vector<int64_t> input_size, window_size, stride, dilation;
  std::vector<std::string> causal;
  std::string dtype = "fp16";
  int64_t additional = 0;
};

struct ProfileOptions {
  std::vector<std::string> line;
  NattenOptions natten;
  std::string backend;
  int threads = 0, warmup = 5, repeats = 30;
  double time_limit_s = 10.0;
  bool is_backward = false, skips_dense = false;
};

// One value stands for all axes.
template <typename Value>
std::vector<Value> for_axes(const char* name, std::vector<Value> values, size_t rank) {
  if (values.size() == 1) values.resize(rank, values.front());
  if (!values.empty() && values.size() != rank) {
    throw UsageError(
        fmt::format("{} has {} values, but --input-size has {}.", name, values.size(), rank));
  }
  return values;
}

bool is_true(const std::string& word) {
  if (word == "1" || word == "True" || word == "true") return true;
  if (word == "0" || word == "False" || word == "false") return false;
  throw UsageError(fmt::format("--causal takes 0 or 1 for each axis, not '{}'.", word));
}

vecina_problem from_natten(const NattenOptions& given) {
  const size_t rank = given.input_size.size();
  vecina_problem problem;
  vecina_problem_init(&problem, sizeof(problem), static_cast<int32_t>(rank));
  problem.batch = given.batch;
  problem.heads = given.heads;
  problem.heads_kv = given.heads_kv;
  problem.head_dim = given.dim;
  problem.head_dim_value = given.dim_value;
  problem.additional_tokens = given.additional;
  problem.dtype = find_dtype(given.dtype);
  if (problem.dtype == -1) {
    throw UsageError(
        fmt::format("--dtype '{}' is not one of fp32, fp64, fp16, bf16.", given.dtype));
  }
  const auto window = for_axes("--window-size", given.window_size, rank);
  const auto stride = for_axes("--stride", given.stride, rank);
  const auto dilation = for_axes("--dilation", given.dilation, rank);
  const auto causal = for_axes("--causal", given.causal, rank);
  for (size_t a = 0; a < rank; ++a) {
    problem.extent[a] = given.input_size[a];
    problem.kernel_size[a] = window.empty() ? given.input_size[a] : window[a];
    problem.stride[a] = stride.empty() ? 1 : stride[a];
    problem.dilation[a] = dilation.empty() ? 1 : dilation[a];
    problem.is_causal[a] = !causal.empty() && is_true(causal[a]);
  }
  throw_if_failed(vecina_problem_check(&problem));
  return problem;
}

vecina_problem chosen_problem(const ProfileOptions& options) {
  if (!options.line.empty()) return parse_problem(join(options.line, " "));
  if (options.natten.input_size.empty()) {
    throw UsageError(
        "give a problem line, or --input-size. Example: vecina profile \"2d 56x56 "
        "kernel_size 7 heads 8 head_dim 64\"");
  }
  return from_natten(options.natten);
}

// Every token sees every token: what neighborhood attention saves from.
vecina_problem dense_problem(const vecina_problem& problem) {
  vecina_problem dense = problem;
  int64_t tokens = 1;
  for (int a = 0; a < problem.rank; ++a) tokens *= problem.extent[a];
  vecina_problem_init(&dense, sizeof(dense), 1);
  dense.kind = VECINA_ATTENTION;
  dense.batch = problem.batch;
  dense.heads = problem.heads;
  dense.heads_kv = problem.heads_kv;
  dense.head_dim = problem.head_dim;
  dense.head_dim_value = problem.head_dim_value;
  dense.dtype = problem.dtype;
  dense.extent[0] = tokens;
  return dense;
}

double dense_flops(const vecina_problem& dense, bool is_backward) {
  const double tokens = static_cast<double>(dense.extent[0]);
  const int value_dim = dense.head_dim_value == 0 ? dense.head_dim : dense.head_dim_value;
  return 2.0 * tokens * tokens * (dense.head_dim + value_dim) * static_cast<double>(dense.batch) *
         dense.heads * (is_backward ? kBackwardFactor : 1.0);
}

struct Measured {
  nlohmann::ordered_json plan;
  double flops = 0.0;
  Times times;
  double gflops() const { return flops / (times.median_ms * 1e6); }
};

Measured measure(vecina_context* context, const vecina_problem& problem,
                 const ProfileOptions& options) {
  const Inputs inputs = random_inputs(problem, /*seed=*/1);
  Outputs outputs = make_outputs(problem);
  const auto time = [&](const auto& call, double factor) {
    Measured measured;
    measured.plan = call.describe();
    measured.flops = factor * measured.plan.value("forward_flops", 0.0);
    measured.times = call.time({options.warmup, options.repeats, options.time_limit_s});
    return measured;
  };
  if (!options.is_backward) {
    outputs.lse = {};
    return time(ForwardCall(context, problem, inputs, outputs), 1.0);
  }
  ForwardCall(context, problem, inputs, outputs).run();
  const Gradients gradients = make_gradients(problem);
  return time(BackwardCall(context, problem, inputs, outputs, gradients), kBackwardFactor);
}

// What a core reaches at most, by the products that the plan's kernel is made of.
struct Limit {
  double gflops_per_core;
  const char* of;
};
std::optional<Limit> limit_of(const nlohmann::ordered_json& peak, const std::string& backend,
                              const nlohmann::ordered_json& plan, int32_t dtype) {
  if (!peak.contains(backend)) return std::nullopt;
  const nlohmann::ordered_json& rates = peak[backend];
  const auto rate = [&](const char* name) { return rates.value(name, 0.0); };
  const bool is_matrix = plan.at("details").value("kernel", "").ends_with("_matrix");
  if (is_matrix && rate("tile_gflops_per_core_bf16") > 0.0) {
    return Limit{rate("tile_gflops_per_core_bf16"), "products of tiles"};
  }
  if (rate("fma_gflops_per_core_f32") <= 0.0) return std::nullopt;
  // Half as many f64 lanes; f16 and bf16 are accumulated in f32.
  const double lanes = dtype == VECINA_F64 ? 0.5 : 1.0;
  return Limit{rate("fma_gflops_per_core_f32") * lanes, "multiply-adds"};
}

void print_measured(const char* title, const Measured& measured) {
  fmt::print("{:<9} median {}, best {}, spread {:.0f} % of {} calls\n", title,
             format_ms(measured.times.median_ms), format_ms(measured.times.min_ms),
             measured.times.spread * 100.0, measured.times.count);
  fmt::print("          {:.4g} useful GFLOP a call, {:.4g} GFLOP/s at the median\n",
             measured.flops * 1e-9, measured.gflops());
  if (const std::optional<double> predicted = predicted_ms(measured.plan)) {
    fmt::print("          predicted {}, {:+.0f} % of the median\n", format_ms(*predicted),
               100.0 * (*predicted / measured.times.median_ms - 1.0));
  }
}

void print_peak(const nlohmann::ordered_json& peak, const vecina_problem& problem,
                const std::string& backend, int threads, const Measured& measured) {
  const std::optional<Limit> of_core = limit_of(peak, backend, measured.plan, problem.dtype);
  if (!of_core) return;
  const double limit = of_core->gflops_per_core * std::max(threads, 1);
  fmt::print(
      "limit     {:.4g} GFLOP/s of {} on {} thread(s); reached {:.1f} %, {:.1f} % "
      "by the best call\n",
      limit, of_core->of, std::max(threads, 1), 100.0 * measured.gflops() / limit,
      100.0 * measured.flops / (measured.times.min_ms * 1e6) / limit);
}

void print_dense(vecina_context* context, const vecina_problem& problem,
                 const ProfileOptions& options, const Measured& measured) {
  const vecina_problem dense = dense_problem(problem);
  const double seconds = dense_flops(dense, options.is_backward) / (measured.gflops() * 1e9);
  if (seconds > options.time_limit_s) {
    fmt::print("dense     left out: a call would take about {:.0f} s (--time-limit allows it)\n",
               seconds);
    return;
  }
  try {
    const Measured other = measure(context, dense, options);
    print_measured("dense", other);
    fmt::print("          {}; takes {:.2f}x the time for {:.2f}x the work\n", print_problem(dense),
               other.times.median_ms / measured.times.median_ms, other.flops / measured.flops);
  } catch (const Unsupported& refusal) {
    fmt::print("dense     n/a: {}\n", refusal.what());
  }
}

int run_profile(const ProfileOptions& options) {
  const vecina_problem problem = chosen_problem(options);
  if (problem.batch == 0) throw UsageError("batch 0 leaves nothing to time.");
  const ContextPtr context = make_context(options.backend, options.threads);
  const nlohmann::ordered_json peak = context_info(context.get(), "peak");  // predictions need it
  const Measured measured = measure(context.get(), problem, options);
  const std::string backend = measured.plan.value("backend", "");
  int threads = backend_threads(context_info(context.get(), "info"), backend);
  if (threads == 0) threads = options.threads;

  fmt::print("problem   {}\n", print_problem(problem));
  fmt::print("machine   {}; backend {}{}\n", cpu_model(), backend,
             threads > 0 ? fmt::format(", {} thread(s)", threads) : "");
  print_measured(options.is_backward ? "backward" : "forward", measured);
  print_peak(peak, problem, backend, threads, measured);
  if (!options.skips_dense) print_dense(context.get(), problem, options, measured);
  return 0;
}

void add_natten_options(CLI::App& app, NattenOptions& natten, CLI::Option* line) {
  const std::string group = "Options named as in NATTEN's profiler, instead of a line";
  const auto add = [&](const std::string& names, auto& value, const std::string& placeholder,
                       const std::string& text) {
    return add_option(app, names, value, placeholder, text)->group(group)->excludes(line);
  };
  const auto add_axes = [&](const std::string& names, auto& values, const std::string& text) {
    add(names, values, "N ...", text)->delimiter(',')->expected(1, 3);
  };
  add_axes("-i,--input-size", natten.input_size, "Tokens of each axis, for example 56 56");
  add_axes("-w,--window-size", natten.window_size, "Window (the input size)");
  add_axes("-s,--stride", natten.stride, "Stride (1)");
  add_axes("--dilation", natten.dilation, "Dilation (1)");
  add_axes("-c,--causal", natten.causal, "0 or 1 for each axis (0)");
  add("-b,--batch-size", natten.batch, "N", "Batch (1)");
  add("-n,--heads", natten.heads, "N", "Query heads (1)");
  add("--heads-kv", natten.heads_kv, "N", "Key and value heads (--heads)");
  add("-d,--dim", natten.dim, "N", "Head dimension (64)");
  add("--dim-value", natten.dim_value, "N", "Head dimension of value (--dim)");
  add("--add-kv", natten.additional, "N", "Additional key and value tokens (0)");
  add("--dtype", natten.dtype, "NAME", "fp32, fp64, fp16 or bf16 (fp16)");
}

}  // namespace

Command add_profile(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "profile", "Time one problem: useful FLOP/s, share of the machine's limit, dense attention");
  const auto options = std::make_shared<ProfileOptions>();
  CLI::Option* line = add_line_option(*app, options->line);
  app->add_flag("--backward,--backprop", options->is_backward, "Time the backward pass");
  app->add_flag("--no-dense", options->skips_dense, "Leave out dense attention");
  add_option(*app, "--warmup,--warmup-steps", options->warmup, "N", "Untimed calls first (5)")
      ->check(CLI::Range(0, 1000000));
  add_option(*app, "--repeats", options->repeats, "N", "Timed calls (30)")
      ->check(CLI::Range(1, 1000000));
  add_time_limit_option(*app, options->time_limit_s,
                        "No more calls after this time, but 3 at least (10)");
  add_backend_option(*app, options->backend);
  add_threads_option(*app, options->threads);
  add_natten_options(*app, options->natten, line);
  app->footer(
      "Examples:\n"
      "  vecina profile \"2d 56x56 kernel_size 7 batch 2 heads 8 head_dim 64\"\n"
      "  vecina profile -b 2 -n 8 -d 64 -i 56 56 -w 7 7 --dtype fp32");
  return {app, [options] { return run_profile(*options); }};
}

}  // namespace vecina::cli
