// SPDX-License-Identifier: MIT
// vecina run: attention on a user's .npy arrays, forward and, with --grad-out, backward. The
// problem follows from the shapes of the arrays and the options.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/calls.h"
#include "cli/commands.h"
#include "cli/conformance.h"
#include "cli/dtypes.h"
#include "cli/errors.h"
#include "cli/npy.h"
#include "cli/text.h"

namespace vecina::cli {
namespace {

struct RunOptions {
  int rank = 0;  // 0: from the shape of query
  std::string query, key, value, additional_key, additional_value, output, lse;
  std::vector<int64_t> kernel_size, stride, output_stride, dilation;
  std::vector<int32_t> causal;
  std::optional<double> scale;
  std::string dtype, backend;
  int threads = 0;
  std::string grad_output, grad_lse;
  std::string grad_query, grad_key, grad_value, grad_additional_key, grad_additional_value;

  bool wants_gradients() const {
    return !(grad_query + grad_key + grad_value + grad_additional_key + grad_additional_value)
                .empty();
  }
};

// Not given if there is no path.
HostTensor read_optional(const std::string& path, int32_t dtype) {
  return path.empty() ? HostTensor() : read_npy(path, dtype);
}

Inputs read_inputs(const RunOptions& options) {
  int32_t dtype = -1;  // each file's own; the library says which one does not fit
  if (!options.dtype.empty()) {
    dtype = find_dtype(options.dtype);
    if (dtype == -1) {
      throw UsageError(
          fmt::format("--dtype '{}' is not one of f32, f64, f16, bf16.", options.dtype));
    }
  }
  Inputs inputs;
  inputs.query = read_npy(options.query, dtype);
  inputs.key = read_npy(options.key, dtype);
  inputs.value = read_npy(options.value, dtype);
  inputs.additional_key = read_optional(options.additional_key, dtype);
  inputs.additional_value = read_optional(options.additional_value, dtype);
  inputs.grad_output = read_optional(options.grad_output, dtype);
  inputs.grad_lse = read_optional(options.grad_lse, lse_dtype(inputs.query.dtype()));
  return inputs;
}

// One value stands for all axes.
template <typename Value, typename Field>
void set_axes(const char* name, const std::vector<Value>& values, int rank, Field* field) {
  if (values.empty()) return;
  if (values.size() != 1 && static_cast<int>(values.size()) != rank) {
    throw UsageError(fmt::format("{} has {} values, but the arrays have {} token axes.", name,
                                 values.size(), rank));
  }
  for (int a = 0; a < rank; ++a) field[a] = values[values.size() == 1 ? 0 : static_cast<size_t>(a)];
}

vecina_problem problem_of(const RunOptions& options, const Inputs& inputs) {
  const std::vector<int64_t>& query = inputs.query.shape();
  const int rank = options.rank > 0 ? options.rank : static_cast<int>(query.size()) - 3;
  for (const auto& [name, tensor] :
       {std::pair{"query", &inputs.query}, {"key", &inputs.key}, {"value", &inputs.value}}) {
    if (rank < 1 || rank > 3 || static_cast<int>(tensor->shape().size()) != rank + 3) {
      throw UsageError(fmt::format(
          "{} has {} axes; it needs {} ([batch, tokens of 1 to 3 axes, heads, head_dim]).", name,
          tensor->shape().size(), rank < 1 || rank > 3 ? "4 to 6" : fmt::format("{}", rank + 3)));
    }
  }
  const size_t heads_at = static_cast<size_t>(rank) + 1, dim_at = heads_at + 1;
  vecina_problem problem;
  vecina_problem_init(&problem, sizeof(problem), rank);
  problem.batch = query[0];
  for (int a = 0; a < rank; ++a) problem.extent[a] = query[static_cast<size_t>(a) + 1];
  problem.heads = static_cast<int32_t>(query[heads_at]);
  problem.head_dim = static_cast<int32_t>(query[dim_at]);
  problem.heads_kv = static_cast<int32_t>(inputs.key.shape()[heads_at]);
  problem.head_dim_value = static_cast<int32_t>(inputs.value.shape()[dim_at]);
  problem.dtype = inputs.query.dtype();
  if (inputs.additional_key.given() && inputs.additional_key.shape().size() > 1) {
    problem.additional_tokens = inputs.additional_key.shape()[1];
  }
  problem.has_scale = options.scale.has_value();
  problem.scale = options.scale.value_or(0.0);
  set_axes("--kernel-size", options.kernel_size, rank, problem.kernel_size);
  set_axes("--stride", options.stride, rank, problem.stride);
  set_axes("--output-stride", options.output_stride, rank, problem.output_stride);
  set_axes("--dilation", options.dilation, rank, problem.dilation);
  set_axes("--causal", options.causal, rank, problem.is_causal);
  throw_if_failed(vecina_problem_check(&problem));
  return problem;
}

// A file to write and the option that names it; the tensor once it is computed.
struct Written {
  const char* option;
  const std::string& path;
  const HostTensor& tensor;
};
std::vector<Written> written_files(const RunOptions& options, const Outputs& outputs,
                                   const Gradients& gradients) {
  std::vector<Written> files;
  for (const Written& file :
       {Written{"--out", options.output, outputs.output},
        {"--lse", options.lse, outputs.lse},
        {"--grad-query", options.grad_query, gradients.query},
        {"--grad-key", options.grad_key, gradients.key},
        {"--grad-value", options.grad_value, gradients.value},
        {"--grad-additional-key", options.grad_additional_key, gradients.additional_key},
        {"--grad-additional-value", options.grad_additional_value, gradients.additional_value}}) {
    if (!file.path.empty()) files.push_back(file);
  }
  return files;
}

// Where writing to a path makes a file that is not there; empty if that cannot be told.
std::filesystem::path place_of(std::filesystem::path path) {
  namespace fs = std::filesystem;
  constexpr int kMostLinks = 40;
  std::error_code error;
  for (int i = 0; i < kMostLinks && fs::is_symlink(path, error); ++i) {
    path = path.parent_path() / fs::read_symlink(path, error);  // an absolute one replaces all
  }
  const fs::path place = fs::weakly_canonical(path, error);
  return error ? fs::path() : place;
}

bool is_same_file(const std::string& a, const std::string& b) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (fs::exists(a, ignored) && fs::exists(b, ignored)) {
    return fs::equivalent(a, b, ignored) && !fs::is_character_file(a, ignored);  // /dev/null
  }
  const fs::path place = place_of(a);
  return !place.empty() && place == place_of(b);
}

// Nothing is written over something that was read, or written before.
void check_files(const RunOptions& options, const std::vector<Written>& files) {
  std::vector<std::pair<const char*, std::string>> others = {
      {"--query", options.query},
      {"--key", options.key},
      {"--value", options.value},
      {"--additional-key", options.additional_key},
      {"--additional-value", options.additional_value},
      {"--grad-out", options.grad_output},
      {"--grad-lse", options.grad_lse}};
  for (const Written& file : files) {
    for (const auto& [option, path] : others) {
      if (path.empty() || !is_same_file(path, file.path)) continue;
      throw UsageError(fmt::format("{} and {} name one file, {}; give each its own.", option,
                                   file.option, file.path));
    }
    expect_writable(file.path);
    others.emplace_back(file.option, file.path);
  }
}

Gradients run_backward(vecina_context* context, const vecina_problem& problem,
                       const RunOptions& options, const Inputs& inputs, const Outputs& outputs) {
  Gradients gradients = make_gradients(problem);
  if (options.grad_query.empty()) gradients.query = {};
  if (options.grad_key.empty()) gradients.key = {};
  if (options.grad_value.empty()) gradients.value = {};
  if (options.grad_additional_key.empty()) gradients.additional_key = {};
  if (options.grad_additional_value.empty()) gradients.additional_value = {};
  BackwardCall(context, problem, inputs, outputs, gradients).run();
  return gradients;
}

void check_what_is_asked_for(const RunOptions& options) {
  if (options.output.empty() && options.lse.empty() && !options.wants_gradients()) {
    throw UsageError("nothing is asked for; give --out, --lse or a gradient to write.");
  }
  if (!options.grad_output.empty() && !options.wants_gradients()) {
    throw UsageError(
        "--grad-out is given, but no gradient to write; give --grad-query, --grad-key or "
        "--grad-value.");
  }
  if (!options.additional_key.empty()) return;
  for (const std::string& path : {options.grad_additional_key, options.grad_additional_value}) {
    if (path.empty()) continue;
    throw UsageError(fmt::format("{} cannot be written: there are no additional tokens.", path));
  }
}

int run_run(const RunOptions& options) {
  check_what_is_asked_for(options);
  Outputs outputs;
  Gradients gradients;
  check_files(options, written_files(options, outputs, gradients));
  const Inputs inputs = read_inputs(options);
  const vecina_problem problem = problem_of(options, inputs);
  const ContextPtr context = make_context(options.backend, options.threads);
  outputs = make_outputs(problem);
  if (options.lse.empty() && !options.wants_gradients()) outputs.lse = {};
  ForwardCall(context.get(), problem, inputs, outputs).run();
  if (options.wants_gradients()) {
    gradients = run_backward(context.get(), problem, options, inputs, outputs);
  }
  // Only now: a call that is refused leaves no file, and old ones as they were.
  for (const Written& file : written_files(options, outputs, gradients)) {
    write_npy(file.path, file.tensor);
  }
  return 0;
}

void add_gradient_options(CLI::App& app, RunOptions& options) {
  CLI::Option* grad_output =
      add_option(app, "--grad-out", options.grad_output, "FILE",
                 "Gradient of the output, [batch, queries..., heads, head_dim_value]")
          ->check(CLI::ExistingFile);
  add_option(app, "--grad-lse", options.grad_lse, "FILE", "Gradient of lse")
      ->check(CLI::ExistingFile)
      ->needs(grad_output);
  const auto add = [&](const std::string& tensor, std::string& path) {
    std::string name = "--grad-" + tensor;
    std::replace(name.begin(), name.end(), '_', '-');
    add_option(app, name, path, "FILE", "Write the gradient of " + tensor)->needs(grad_output);
  };
  add("query", options.grad_query);
  add("key", options.grad_key);
  add("value", options.grad_value);
  add("additional_key", options.grad_additional_key);
  add("additional_value", options.grad_additional_value);
}

void add_axis_options(CLI::App& app, RunOptions& options) {
  const auto add = [&](const char* name, auto& values, const char* text) {
    return add_option(app, name, values, "N,...", text)->delimiter(',')->expected(1, 3);
  };
  add("--kernel-size", options.kernel_size, "Window, one number or one for each axis: 7,7")
      ->required();
  add("--stride", options.stride, "Queries that share a window (1)");
  add("--output-stride", options.output_stride, "Only every N-th token is a query (1)");
  add("--dilation", options.dilation, "Dilation (1)");
  add("--causal", options.causal, "0 or 1 for each axis (0)");
}

}  // namespace

Command add_run(CLI::App& root) {
  CLI::App* app = root.add_subcommand("run", "Compute attention on arrays in .npy files");
  const auto options = std::make_shared<RunOptions>();
  const auto add_input = [&](const char* name, std::string& path, const char* text) {
    return add_option(*app, name, path, "FILE", text)->check(CLI::ExistingFile);
  };
  add_option(*app, "--rank", options->rank, "R", "Token axes (those of query - 3)")
      ->check(CLI::Range(1, 3));
  add_input("--query", options->query, "[batch, tokens..., heads, head_dim]")->required();
  add_input("--key", options->key, "[batch, tokens..., heads_kv, head_dim]")->required();
  add_input("--value", options->value, "[batch, tokens..., heads_kv, head_dim_value]")->required();
  CLI::Option* additional_key = add_input("--additional-key", options->additional_key,
                                          "[batch, additional tokens, heads_kv, head_dim]");
  CLI::Option* additional_value = add_input("--additional-value", options->additional_value,
                                            "[batch, additional tokens, heads_kv, head_dim_value]");
  additional_key->needs(additional_value);
  additional_value->needs(additional_key);
  add_axis_options(*app, *options);
  add_option(*app, "--scale", options->scale, "X", "Multiplies query . key (head_dim^-0.5)");
  add_option(*app, "--dtype", options->dtype, "NAME",
             "Convert to f32, f64, f16 or bf16; uint16 arrays are the bits of bf16");
  add_option(*app, "--out", options->output, "FILE", "Write the output");
  add_option(*app, "--lse", options->lse, "FILE", "Write the log of the sum of exp(logits)");
  add_gradient_options(*app, *options);
  add_backend_option(*app, options->backend);
  add_threads_option(*app, options->threads);
  app->footer(
      "Example:\n"
      "  vecina run --query q.npy --key k.npy --value v.npy --kernel-size 7,7 --out o.npy");
  return {app, [options] { return run_run(*options); }};
}

}  // namespace vecina::cli
