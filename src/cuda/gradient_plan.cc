// SPDX-License-Identifier: MIT
// The query's gradient first, always: its launch leaves the facts of each query in the workspace.
// Then one for each other kind that is wanted, or two where parts of the queries are added up:
// key with value; those of additional tokens; bias. The first two run on tensor cores where
// halo_plan.h or tiles_plan.h takes the problem, the last with the latter; of few keys they are
// one launch (gradient_span_plan.h), which keeps facts if others follow. Which form takes a problem
// does not depend on the gradients that are wanted, so their bits do not either; unless they may
// differ from run to run anyway (VECINA_NONDETERMINISTIC_BACKWARD), where the one kernel of tiles
// that adds up all of them wants two of them at least (tiles_plan.h).
#include "cuda/gradient_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numbers>

#include "core/tensor.h"
#include "cuda/gather_common.h"
#include "cuda/gradient_span_plan.h"
#include "cuda/halo_plan.h"
#include "cuda/kernels/gradient_config.h"
#include "cuda/kernels/gradient_params.h"
#include "cuda/small_common.h"
#include "cuda/tiles_plan.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::GradientConfig;
using vecina::cuda::GradientParams;

std::string print(const GradientConfig& c) {
  return fmt::format(
      "{{.dtype = {}, .rank = {}, .head_dim = {}, .head_dim_value = {}, .vector = {}, .piece = {}, "
      ".warps = {}, .lanes = {}, .query_groups = {}, .key_groups = {}, .lengths = {}, "
      ".has_bias = {}, .has_grad_lse = {}, .is_stored = {}, .keeps_facts = {}, "
      ".of_additional = {}, .of_part = {}, .has_wide_number = {}}}",
      c.dtype, c.rank, c.head_dim, c.head_dim_value, c.vector, c.piece, c.warps, c.lanes,
      c.query_groups, c.key_groups, c.lengths, c.has_bias, c.has_grad_lse, c.is_stored,
      c.keeps_facts, c.of_additional, c.of_part, c.has_wide_number);
}

GradientConfig make_config(const Problem& problem, const vecina_backward_args& example) {
  GradientConfig config = {};
  config.dtype = problem.dtype();
  config.rank = problem.rank();
  config.head_dim = problem.head_dim();
  config.head_dim_value = problem.head_dim_value();
  config.vector = std::min(row_vector(config.dtype, config.head_dim, kLoadBytes),
                           row_vector(config.dtype, config.head_dim_value, kLoadBytes));
  const auto piece = [&](int head_dim) {
    return vector_elements({&example.query, &example.key, &example.value, &example.additional_key,
                            &example.additional_value, &example.output, &example.grad_output,
                            &example.grad_query, &example.grad_key, &example.grad_value,
                            &example.grad_additional_key, &example.grad_additional_value},
                           head_dim, kLoadBytes);
  };
  config.piece = std::min(piece(config.head_dim), piece(config.head_dim_value));
  config.lanes = gather_lanes(std::max(config.head_dim, config.head_dim_value), config.vector);
  config.query_groups = config.key_groups = 32 / config.lanes;
  config.lengths = problem.lengths();
  config.has_bias = problem.has_bias();
  config.has_grad_lse = given(example.grad_lse);
  return config;
}

GradientParams make_gradient_params(const Problem& problem, const vecina_backward_args& example) {
  GradientParams params = {};
  const int rank = token_rank(problem);
  params.query = token_rows(example.query, rank);
  params.key = token_rows(example.key, rank);
  params.value = token_rows(example.value, rank);
  params.additional_key = token_rows(example.additional_key, 1);
  params.additional_value = token_rows(example.additional_value, 1);
  params.bias = bias_rows(example.bias, problem.rank());
  params.output = token_rows(example.output, rank);
  params.grad_output = token_rows(example.grad_output, rank);
  params.grad_lse = token_rows(example.grad_lse, rank);
  params.grad_query = token_rows(example.grad_query, rank);
  params.grad_bias = bias_rows(example.grad_bias, problem.rank());
  params.geometry = gather_geometry(problem);
  params.geometry.lengths = sample_lengths(problem, example);
  params.facts_bytes = static_cast<long long>(gradient_facts_bytes(problem));
  params.scale = problem.scale();
  params.scale_to_powers = problem.scale() * std::numbers::log2e;
  return params;
}

// Which tensors a launch writes; the rest it reads.
struct Written {
  vecina_tensor vecina_backward_args::*query = nullptr;
  vecina_tensor vecina_backward_args::*key = nullptr;
  vecina_tensor vecina_backward_args::*value = nullptr;
  vecina_tensor vecina_backward_args::*bias = nullptr;
};

void set_pointers(const vecina_backward_args& args, const Written& written,
                  GradientParams* params) {
  const auto of = [&](vecina_tensor vecina_backward_args::*tensor) {
    return tensor == nullptr ? nullptr : pointer(args.*tensor);
  };
  params->query.data = pointer(args.query);
  params->key.data = pointer(args.key);
  params->value.data = pointer(args.value);
  params->additional_key.data = pointer(args.additional_key);
  params->additional_value.data = pointer(args.additional_value);
  params->bias.data = pointer(args.bias);
  params->output.data = pointer(args.output);
  params->grad_output.data = pointer(args.grad_output);
  params->grad_lse.data = pointer(args.grad_lse);
  params->grad_query.data = of(written.query);
  params->grad_key.data = of(written.key);
  params->grad_value.data = of(written.value);
  params->grad_bias.data = of(written.bias);
  params->facts = static_cast<char*>(args.workspace);
  params->sums = params->facts == nullptr ? nullptr : params->facts + params->facts_bytes;
  set_lengths(args, &params->geometry.lengths);
}

class LaunchList {
 public:
  LaunchList(const GradientConfig& config, const GradientParams& params, const DeviceFacts& facts,
             std::vector<BackwardLaunch>* launches)
      : config_(config), params_(params), facts_(facts), launches_(launches) {}

  // `sums_bytes`: that it leaves or reads after the facts. `parts`: of the queries, each with
  // blocks and sums of its own.
  void add(const char* kernel, double rows, int rows_of_block, const Written& written,
           size_t sums_bytes = 0, bool of_additional = false, int parts = 1) {
    if (rows == 0.0) return;
    GradientConfig config = config_;
    config.of_part = parts > 1;
    config.is_stored = written.query != nullptr;
    config.of_additional = of_additional;
    config.warps = kGatherWarps;
    if (of_additional) {
      config.warps = meeting_warps(
          most_gather_warps(config.dtype, std::max(config.head_dim, config.head_dim_value)),
          config.dtype, config.vector, {config.head_dim, config.head_dim_value});
    }
    config.has_wide_number = rows > kMaxNumber;
    GradientParams params = params_;
    params.geometry.num_rows = static_cast<long long>(rows);
    BackwardLaunch launch = make(kernel, config, params, written);
    launch.grid[0] = static_cast<uint32_t>(divide_up(params.geometry.num_rows, rows_of_block));
    launch.grid[1] = static_cast<uint32_t>(parts);
    launch.workspace_bytes = static_cast<size_t>(params.facts_bytes) + sums_bytes;
    const int threads_per_row = std::max(32 * config.warps / rows_of_block, 1);
    launch.description = fmt::format(
        R"("rows": {}, "threads_per_row": {}, "why": "{}")", params.geometry.num_rows,
        threads_per_row,
        threads_per_row == 1 ? "adds up what parts of the queries left" : "takes every problem");
    launches_->push_back(std::move(launch));
  }

  // Gradients of query, key and value at once. `keeps_facts`: other launches follow.
  void add_span(const Problem& problem, const GradientSpan& span, const Written& written,
                bool keeps_facts) {
    GradientConfig config = config_;
    config.query_groups = span.query_groups;
    config.key_groups = span.key_groups;
    config.is_stored = written.query != nullptr;
    config.keeps_facts = keeps_facts;
    config.warps = kSpanWarps;
    GradientParams params = params_;
    params.spans = static_cast<int>(span.spans);
    params.span_keys = static_cast<int>(span.keys);
    params.span_queries = static_cast<int>(span.queries);
    BackwardLaunch launch = make("gradient_span", config, params, written);
    launch.grid[0] = static_cast<uint32_t>(span.spans * problem.num_samples() * problem.heads_kv());
    launch.shared_bytes = static_cast<uint32_t>(span.facts_bytes);
    launch.workspace_bytes = keeps_facts ? static_cast<size_t>(params.facts_bytes) : 0;
    launch.description = fmt::format(
        R"("keys": {}, "queries": {}, "threads_per_query": {}, "threads_per_key": {}, )"
        R"("why": "few keys: neighbours' queries found again cost less than two launches")",
        span.keys, span.seeing_queries, config.lanes * span.query_groups,
        config.lanes * span.key_groups);
    launches_->push_back(std::move(launch));
  }

 private:
  // All but grid, workspace and description.
  BackwardLaunch make(const char* kernel, const GradientConfig& config,
                      const GradientParams& params, const Written& written) const {
    BackwardLaunch launch;
    launch.source = {fmt::format("{}.cu", kernel), kernel, "gradient_config.h", "GradientConfig",
                     print(config)};
    launch.block[0] = static_cast<uint32_t>(32 * config.warps);
    launch.is_programmatic = facts_.compute_capability >= 90;
    launch.params_bytes = sizeof(GradientParams);
    launch.fill = [params, written](const vecina_backward_args& args, void* memory) -> Status {
      GradientParams filled = params;
      set_pointers(args, written, &filled);
      std::memcpy(memory, &filled, sizeof filled);
      return {};
    };
    return launch;
  }

  const GradientConfig& config_;
  const GradientParams& params_;
  const DeviceFacts& facts_;
  std::vector<BackwardLaunch>* launches_;
};

// Of the queries that an additional token sees. As many as keep large GPUs busy, each large enough
// to pay for its sums.
int additional_parts(const Problem& problem) {
  constexpr double kEnoughBlocks = 528.0, kLeastQueries = 1024.0;
  const double rows = count_rows(problem).additional;
  if (rows == 0.0) return 1;
  const double queries = static_cast<double>(problem.num_queries()) * problem.head_group();
  return std::max(static_cast<int>(std::min(kEnoughBlocks / rows, queries / kLeastQueries)), 1);
}
double additional_elements(const Problem& problem) {
  return count_rows(problem).additional * (problem.head_dim() + problem.head_dim_value());
}
size_t additional_bytes(const Problem& problem) {
  const int parts = additional_parts(problem);
  if (parts == 1) return 0;
  return static_cast<size_t>(parts) * static_cast<size_t>(additional_elements(problem)) *
         static_cast<size_t>(dtype_bytes(lse_dtype(problem.dtype())));
}

// The list reads *params.
void add_additional(const Problem& problem, const vecina_backward_args& example,
                    GradientParams* params, LaunchList* list) {
  using Args = vecina_backward_args;
  if (!given(example.grad_additional_key) && !given(example.grad_additional_value)) return;
  params->grad_key = token_rows(example.grad_additional_key, 1);
  params->grad_value = token_rows(example.grad_additional_value, 1);
  const Written written = {.key = &Args::grad_additional_key,
                           .value = &Args::grad_additional_value};
  const int parts = additional_parts(problem);
  const size_t sums_bytes = additional_bytes(problem);
  params->parts = parts;
  list->add("gradient_key", count_rows(problem).additional, 1, written, sums_bytes,
            /*of_additional=*/true, parts);
  if (parts == 1) return;
  list->add("gradient_key_sum", additional_elements(problem), 32 * kGatherWarps, written,
            sums_bytes);
}

}  // namespace

std::string gradient_why_not(const Problem& problem, Pass pass, const DeviceFacts&) {
  if (pass == Pass::forward) return "computes gradients alone";
  if (problem.has_e4m3()) return e4m3_why_not(problem, pass);
  return too_many_rows(problem);
}

size_t gradient_facts_bytes(const Problem& problem) {
  return facts_bytes_of_query(problem) *
         static_cast<size_t>(problem.num_samples() * problem.heads() * problem.num_queries());
}

size_t gradient_workspace_bytes(const Problem& problem) {
  // One after the other, in the same place.
  return gradient_facts_bytes(problem) +
         std::max(
             {tiles_sums_bytes(problem), tiles_bias_bytes(problem), additional_bytes(problem)});
}

Status gradient_plan_backward(const Problem& problem, const vecina_backward_args& example,
                              const DeviceFacts& facts, std::vector<BackwardLaunch>* launches) {
  using Args = vecina_backward_args;
  const GradientConfig config = make_config(problem, example);
  GradientParams params = make_gradient_params(problem, example);
  const RowCounts rows = count_rows(problem);
  LaunchList list(config, params, facts, launches);
  const bool may_need_facts = problem.has_bias() || problem.additional_tokens() > 0;
  const bool is_of_key = given(example.grad_key) || given(example.grad_value);
  const bool needs_facts = given(example.grad_additional_key) ||
                           given(example.grad_additional_value) || given(example.grad_bias);
  const bool is_of_halos = plan_halo_backward(problem, example, facts, launches).empty();
  GradientSpan span;
  if (!is_of_halos && !may_need_facts) span = choose_gradient_span(problem, config, facts);
  const bool is_of_tiles = !is_of_halos && !span.is_taken() &&
                           plan_tiles_backward(problem, example, facts, launches).empty();
  if (!is_of_halos && !is_of_tiles) {
    if (may_need_facts) span = choose_gradient_span(problem, config, facts);
    Written written;
    if (given(example.grad_query)) written.query = &Args::grad_query;
    if (!span.is_taken()) list.add("gradient_query", rows.query, kGatherWarps, written);
    if (is_of_key) {
      params.grad_key = token_rows(example.grad_key, token_rank(problem));
      params.grad_value = token_rows(example.grad_value, token_rank(problem));
      written.key = &Args::grad_key;
      written.value = &Args::grad_value;
    }
    if (span.is_taken()) {
      list.add_span(problem, span, written, needs_facts);
    } else if (is_of_key) {
      written.query = nullptr;
      list.add("gradient_key", rows.key, kGatherWarps, written);
    }
  }
  add_additional(problem, example, &params, &list);
  if (given(example.grad_bias)) {
    if (is_of_tiles && plan_tiles_bias(problem, example, facts, launches).empty()) {
      params.parts = tiles_bias_parts(problem);
      list.add("gradient_bias_sum", rows.bias, 32 * kGatherWarps, {.bias = &Args::grad_bias},
               tiles_bias_bytes(problem));
    } else {
      list.add("gradient_bias", rows.bias, 1, {.bias = &Args::grad_bias});
    }
  }
  return {};
}

}  // namespace vecina::internal::cuda
