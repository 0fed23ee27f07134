// SPDX-License-Identifier: MIT
#include "cuda/split_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/tensor.h"
#include "cuda/gather_common.h"
#include "cuda/kernels/split_config.h"
#include "cuda/kernels/split_params.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::SplitConfig;
using vecina::cuda::SplitParams;
using Args = vecina_split_args;

std::string print(const SplitConfig& c) {
  return fmt::format(
      "{{.dtype = {}, .rank = {}, .columns = {}, .vector = {}, .piece = {}, .warps = {}, "
      ".lanes = {}, .of_qk = {}, .of_additional = {}, .has_bias = {}, .right_aligned = {}, "
      ".has_wide_number = {}}}",
      c.dtype, c.rank, c.columns, c.vector, c.piece, c.warps, c.lanes, c.of_qk, c.of_additional,
      c.has_bias, c.right_aligned, c.has_wide_number);
}

// One launch: its kernel, and which tensors play which part in kernels/split.cuh.
struct Work {
  const char* kernel;
  double rows;
  vecina_tensor Args::*query, Args::*key, Args::*additional, Args::*bias;  // nullptr: none
  vecina_tensor Args::*weights, Args::*result;
  bool of_additional = false, owns_block = false;
};

const vecina_tensor& tensor(const Args& args, vecina_tensor Args::*of) {
  static constexpr vecina_tensor kNotGiven = {};
  return of == nullptr ? kNotGiven : args.*of;
}

std::vector<Work> works_of(const Problem& problem, Pass pass) {
  const RowCounts rows = count_rows(problem);
  const double outputs = query_rows(problem);
  switch (pass) {
    case Pass::qk:
      return {{"split_weights", outputs, &Args::query, &Args::key, &Args::additional_key,
               &Args::bias, &Args::weights, nullptr}};
    case Pass::av:
      return {{"split_rows", outputs, nullptr, &Args::value, &Args::additional_value, nullptr,
               &Args::weights, &Args::output}};
    case Pass::qk_backward:
      return {{"split_rows", rows.query, nullptr, &Args::key, &Args::additional_key, nullptr,
               &Args::grad_weights, &Args::grad_query},
              {"split_keys", rows.key, &Args::query, nullptr, nullptr, nullptr, &Args::grad_weights,
               &Args::grad_key},
              {"split_keys", rows.additional, &Args::query, nullptr, nullptr, nullptr,
               &Args::grad_weights, &Args::grad_additional_key, true, true},
              {"split_bias", rows.bias, nullptr, nullptr, nullptr, nullptr, &Args::grad_weights,
               &Args::grad_bias, false, true}};
    default:
      return {{"split_weights", outputs, &Args::grad_output, &Args::value, &Args::additional_value,
               nullptr, &Args::grad_weights, nullptr},
              {"split_keys", rows.key, &Args::grad_output, nullptr, nullptr, nullptr,
               &Args::weights, &Args::grad_value},
              {"split_keys", rows.additional, &Args::grad_output, nullptr, nullptr, nullptr,
               &Args::weights, &Args::grad_additional_value, true, true}};
  }
}

SplitConfig make_config(const Problem& problem, const SplitArgs& example, const Work& work) {
  const bool of_bias = work.result == &Args::grad_bias;
  SplitConfig config = {};
  config.dtype = problem.dtype();
  config.rank = problem.rank();
  config.of_qk = example.pass == Pass::qk || example.pass == Pass::qk_backward;
  config.columns = config.of_qk ? problem.head_dim() : problem.head_dim_value();
  config.vector = row_vector(config.dtype, config.columns, kLoadBytes);
  const vecina_tensor& result = tensor(example.c, work.result);
  config.piece =
      of_bias ? 1
              : vector_elements({&tensor(example.c, work.query), &tensor(example.c, work.key),
                                 &tensor(example.c, work.additional), &result},
                                config.columns, kLoadBytes);
  config.lanes = of_bias ? 1 : gather_lanes(config.columns, config.vector);
  config.warps = work.owns_block ? most_gather_warps(config.dtype, config.columns) : kGatherWarps;
  if (work.of_additional) {
    config.warps = meeting_warps(config.warps, config.dtype, config.vector, {config.columns});
  }
  config.of_additional = work.of_additional;
  config.has_bias = work.bias != nullptr && problem.has_bias();
  config.right_aligned = example.c.right_aligned != 0;
  config.has_wide_number = work.rows > kMaxNumber;
  return config;
}

SplitParams make_params(const Problem& problem, const SplitArgs& example, const Work& work,
                        const SplitConfig& config) {
  const bool is_qk = example.pass == Pass::qk;
  const int rank = problem.rank();
  SplitParams params = {};
  params.query = token_rows(tensor(example.c, work.query), rank);
  params.key = token_rows(tensor(example.c, work.key), rank);
  params.additional = token_rows(tensor(example.c, work.additional), 1);
  params.bias = bias_rows(tensor(example.c, work.bias), rank);
  params.weights = token_rows(tensor(example.c, work.weights), rank);
  params.result = work.result == &Args::grad_bias
                      ? bias_rows(tensor(example.c, work.result), rank)
                      : token_rows(tensor(example.c, work.result), work.of_additional ? 1 : rank);
  params.geometry = gather_geometry(problem);
  params.geometry.num_rows = static_cast<long long>(work.rows);
  params.window_slots = problem.num_slots() - problem.additional_tokens();
  params.scale = config.of_qk ? problem.scale() : 1.0;
  params.empty = is_qk ? -std::numeric_limits<double>::infinity() : 0.0;
  return params;
}

}  // namespace

std::string split_why_not(const Problem& problem) { return too_many_rows(problem); }

Status split_plan(const Problem& problem, const SplitArgs& example, const DeviceFacts& facts,
                  std::vector<SplitLaunch>* launches) {
  for (const Work& work : works_of(problem, example.pass)) {
    if (work.rows == 0.0) continue;
    if (!given(tensor(example.c, work.result == nullptr ? work.weights : work.result))) continue;
    const SplitConfig config = make_config(problem, example, work);
    const SplitParams params = make_params(problem, example, work, config);
    SplitLaunch launch;
    launch.source = {fmt::format("{}.cu", work.kernel), work.kernel, "split_config.h",
                     "SplitConfig", print(config)};
    launch.grid[0] = static_cast<uint32_t>(
        divide_up(params.geometry.num_rows, work.owns_block ? 1 : kGatherWarps));
    launch.block[0] = static_cast<uint32_t>(32 * config.warps);
    launch.is_programmatic = facts.compute_capability >= 90;
    launch.params_bytes = sizeof(SplitParams);
    launch.fill = [params, work](const SplitArgs& args, void* memory) -> Status {
      SplitParams filled = params;
      filled.query.data = pointer(tensor(args.c, work.query));
      filled.key.data = pointer(tensor(args.c, work.key));
      filled.additional.data = pointer(tensor(args.c, work.additional));
      filled.bias.data = pointer(tensor(args.c, work.bias));
      filled.weights.data = pointer(tensor(args.c, work.weights));
      filled.result.data = pointer(tensor(args.c, work.result));
      std::memcpy(memory, &filled, sizeof filled);
      return {};
    };
    launch.description = fmt::format(R"("rows": {})", params.geometry.num_rows);
    launches->push_back(std::move(launch));
  }
  return {};
}

}  // namespace vecina::internal::cuda
