// SPDX-License-Identifier: MIT
#include "cuda/tiles_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/tensor.h"
#include "cuda/gather_common.h"
#include "cuda/gradient_plan.h"
#include "cuda/kernels/tiles_config.h"
#include "cuda/owners.h"
#include "cuda/small_common.h"
#include "cuda/value_parts.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::HaloParams;
using vecina::cuda::TilesConfig;

constexpr int kMaxRow = 512;  // columns; longer ones leave shared memory too few partners

std::string print(const TilesConfig& c) {
  return fmt::format(
      "{{.dtype = {}, .rank = {}, .head_dim = {}, .head_dim_value = {}, .first_column = {}, "
      ".end_column = {}, .of_keys = {}, "
      ".heads = {}, .head_group = {}, .items_of_block = {}, .box = {}, .boxes = {}, "
      ".partner_box = {}, .partners = {}, .kernel_size = {}, .stride = {}, .dilation = {}, "
      ".output_stride = {}, .is_causal = {{{}, {}, {}}}, .additional_tokens = {}, "
      ".shares_key = {}, .shares_value = {}, .shared_bytes = {}, .blocks = {}, .has_grad_lse = {}, "
      ".has_bias = {}, .lengths = {}, .is_attention = {}, "
      ".is_delta_given = {}, .adds_key = {}, .adds_value = {}, .adds_queries = {}, .of_bias = {}}}",
      c.dtype, c.rank, c.head_dim, c.head_dim_value, c.first_column, c.end_column, c.of_keys,
      c.heads, c.head_group, c.items_of_block, braces(c.box), braces(c.boxes),
      braces(c.partner_box), c.partners, braces(c.kernel_size), braces(c.stride),
      braces(c.dilation), braces(c.output_stride), c.is_causal[0], c.is_causal[1], c.is_causal[2],
      c.additional_tokens, c.shares_key, c.shares_value, c.shared_bytes, c.blocks, c.has_grad_lse,
      c.has_bias, c.lengths, c.is_attention, c.is_delta_given, c.adds_key, c.adds_value,
      c.adds_queries, c.of_bias);
}

std::string unsuitable(const Problem& problem) {
  if (std::string why = unsuitable_owners(problem); !why.empty()) return why;
  for (const int columns : {problem.head_dim(), problem.head_dim_value()}) {
    if (columns % 8 != 0 || columns > kMaxRow) {
      return fmt::format("head_dim or head_dim_value is not a multiple of 8 up to {}", kMaxRow);
    }
  }
  return {};
}

// Of what its kernel holds in registers.
std::string unsuitable_bias_gradient(const Problem& problem) {
  if (std::string why = unsuitable(problem); !why.empty()) return why;
  if (std::max(problem.head_dim(), problem.head_dim_value()) > kMaxSummedColumns) {
    return fmt::format("head_dim or head_dim_value above {}", kMaxSummedColumns);
  }
  return {};
}

// One kernel may add up all gradients.
bool may_add(const Problem& problem) {
  constexpr int kMostColumns = 128;  // of either row, whose sums then have the same owner
  return std::max(problem.head_dim(), problem.head_dim_value()) <= kMostColumns &&
         has_plain_queries(problem) && (problem.flags() & VECINA_NONDETERMINISTIC_BACKWARD) != 0 &&
         unsuitable(problem).empty() && problem.additional_tokens() == 0 && gives_delta(problem);
}
size_t workspace_bytes(const Problem& problem, TilesKernel kernel) {
  return gradient_facts_bytes(problem) +
         (kernel == TilesKernel::gradient_all    ? tiles_sums_bytes(problem)
          : kernel == TilesKernel::gradient_bias ? tiles_bias_bytes(problem)
                                                 : 0);
}

template <typename Args>
KernelLaunch<Args> make_launch(const Problem& problem, const Args& example, const char* file,
                               const char* entry, const TilesConfig& config,
                               const DeviceFacts& facts) {
  Owners owners;
  owners.of_keys = config.of_keys;
  owners.items_of_sample = config.of_keys ? problem.heads_kv() : problem.heads();
  for (size_t a = 0; a < 3; ++a) owners.box[a] = config.box[a] * config.boxes[a];
  double blocks = 0.0;
  const HaloParams params = owner_params(problem, example, owners, &blocks);
  if (config.of_bias) blocks = static_cast<double>(tiles_bias_parts(problem)) * problem.heads();
  KernelLaunch<Args> launch;
  launch.source = {fmt::format("{}.cu", file), entry, "tiles_config.h", "TilesConfig",
                   print(config)};
  launch.grid[0] = static_cast<uint32_t>(blocks);
  launch.block[0] = static_cast<uint32_t>(32 * tiles_warps(config));
  launch.shared_bytes = static_cast<uint32_t>(config.shared_bytes);
  launch.is_programmatic = facts.compute_capability >= 90;
  launch.params_bytes = sizeof(HaloParams);
  launch.fill = fill_params<Args>(params);
  launch.description = fmt::format(
      R"("form": "tiles", "box": [{}, {}, {}], "boxes_of_block": [{}, {}, {}], )"
      R"("partner_box": [{}, {}, {}], "blocks": {}, )"
      R"("why": "large windows pass through shared memory")",
      config.box[0], config.box[1], config.box[2], config.boxes[0], config.boxes[1],
      config.boxes[2], config.partner_box[0], config.partner_box[1], config.partner_box[2], blocks);
  return launch;
}

}  // namespace

ForwardLaunch tiles_forward_launch(const Problem& problem, const vecina_forward_args& example,
                                   const DeviceFacts& facts, const TilesShape& shape) {
  TilesConfig config = make_tiles_config(problem, TilesKernel::forward, shape);
  config.blocks = tiles_blocks(problem, config, TilesKernel::forward, facts);
  return make_launch(problem, example, "tiles_forward", "tiles_forward", config, facts);
}

bool pays_for_tiles(const Problem& problem) {
  // Measured with 128 and 169 keys and some 100,000 queries.
  constexpr double kManyKeys = 128.0, kManyQueries = 65536.0;
  return visible_keys(problem) >= kManyKeys && query_rows(problem) >= kManyQueries;
}

namespace {

double multiply_adds(const Problem& problem) {
  return query_rows(problem) * visible_keys(problem) *
         (problem.head_dim() + problem.head_dim_value());
}

// Of what other kernels of tensor cores refuse: 8,192 queries with 25 and 49 keys took twice as
// long as row by row, 2,048 of 64x64 with an output_stride of 2 2.4 times, 100,352 with 49 keys 0.8
// (benchmarks/results/h200-tiles-fields.json). Measured of fields alone: that
// it holds of head dims above 128 too is a guess.
bool is_faster_by_row(const Problem& problem) {
  constexpr double kLeastKeys = 64.0, kLittleWork = 1 << 27;
  constexpr double kLeastKeysOfParts = 96.0;  // a query's warp walks them alone
  constexpr int kMostColumns = 128;           // of those kernels
  const bool is_taken = has_plain_queries(problem) &&
                        std::max(problem.head_dim(), problem.head_dim_value()) <= kMostColumns;
  // In parts: 2,048 queries with 81 keys and head_dim 384 took 68 us instead of 59
  // (benchmarks/results/h200-tiles-long-rows.json).
  const bool is_in_parts = problem.head_dim_value() > kMaxSummedColumns;
  return !is_taken && visible_keys(problem) < (is_in_parts ? kLeastKeysOfParts : kLeastKeys) &&
         multiply_adds(problem) < kLittleWork;
}

// The same of gradients in parts. Head_dim 512: 2,048 queries with 25 keys took 210 us instead of
// 86; 256: 16,384 with 3 keys 93 instead of 67; but 192, in fewer parts, 53 instead of 66 with 25
// keys (same file). That of the bias is slow by row.
bool are_gradients_faster_by_row(const Problem& problem) {
  constexpr double kLittleWork = 1 << 26, kLeastKeys = 96.0;  // guesses
  const bool has_many_parts =
      std::max(problem.head_dim(), problem.head_dim_value()) > kMaxSummedColumns ||
      (problem.head_dim() > kMaxSummedColumns / 2 && visible_keys(problem) < kMinTensorCoreKeys);
  return has_many_parts && !problem.has_bias() && visible_keys(problem) < kLeastKeys &&
         multiply_adds(problem) < kLittleWork;
}

}  // namespace

std::string plan_tiles_forward(const Problem& problem, const vecina_forward_args& example,
                               const DeviceFacts& facts, std::vector<ForwardLaunch>* launches) {
  if (std::string why = unsuitable(problem); !why.empty()) return why;
  if (visible_keys(problem) < kMinTensorCoreKeys) return "few keys in a window";
  if (is_faster_by_row(problem)) return "little work";
  std::string why = unsuitable_strides(
      problem, {&example.query, &example.key, &example.additional_key}, problem.head_dim());
  if (why.empty()) {
    why = unsuitable_strides(problem, {&example.value, &example.additional_value, &example.output},
                             problem.head_dim_value());
  }
  if (why.empty()) why = unsuitable_offsets(problem, {&example.lse});
  if (why.empty()) why = unsuitable_bias(problem, example.bias);
  if (!why.empty()) return why;
  std::vector<ForwardLaunch> parts;
  for_value_parts(problem, example, kMaxSummedColumns,
                  [&](const Problem& columns, const vecina_forward_args& own,
                      const PartOfCall<vecina_forward_args>& part) {
                    const TilesShape shape =
                        choose_tiles_shape(columns, TilesKernel::forward, facts);
                    if (shape.partners == 0) why = "rows that shared memory cannot hold";
                    if (!why.empty()) return;
                    parts.push_back(tiles_forward_launch(columns, own, facts, shape));
                    fill_part(part, &parts.back());
                  });
  if (why.empty()) std::move(parts.begin(), parts.end(), std::back_inserter(*launches));
  return why;
}

BackwardLaunch tiles_gradient_launch(const Problem& problem, TilesKernel kernel,
                                     const vecina_backward_args& example, const DeviceFacts& facts,
                                     const TilesShape& shape, int first_column) {
  TilesConfig config = make_tiles_config(problem, kernel, shape);
  config.first_column = first_column;
  config.end_column = std::min(first_column + part_of_key(problem, kernel), problem.head_dim());
  config.blocks = tiles_blocks(problem, config, kernel, facts);
  config.has_grad_lse = given(example.grad_lse);
  const char* file = has_warpgroups(config) ? "hopper_gradient"
                     : config.of_keys       ? "tiles_gradient_key"
                     : config.of_bias       ? "tiles_gradient_bias"
                                            : "tiles_gradient_query";
  BackwardLaunch launch = make_launch(problem, example, file, file, config, facts);
  // What a launch does not add up is not its own to store either.
  if (config.of_keys && !(config.adds_key && config.adds_value)) {
    PartOfCall<vecina_backward_args> part;
    if (!config.adds_key) part.leave_out(&vecina_backward_args::grad_key);
    if (!config.adds_value) part.leave_out(&vecina_backward_args::grad_value);
    fill_part(part, &launch);
  }
  launch.source.is_architecture_specific = has_warpgroups(config);
  launch.workspace_bytes = workspace_bytes(problem, kernel);
  return launch;
}

namespace {

// One of the small kernels beside the one that adds up all gradients.
BackwardLaunch make_rows_launch(const Problem& problem, const char* entry, TilesKernel beside,
                                const vecina_backward_args& example, const DeviceFacts& facts) {
  constexpr int kRowsOfBlock = 32;  // 8 threads each
  const TilesShape shape = {{1, 1, 16}, {1, 1, 8}, {1, 1, 16}, 16};
  TilesConfig config = make_tiles_config(problem, TilesKernel::gradient_query, shape);
  config.has_grad_lse = given(example.grad_lse);
  config.adds_queries = beside == TilesKernel::gradient_all;
  BackwardLaunch launch =
      make_launch(problem, example, "tiles_gradient_rows", entry, config, facts);
  launch.grid[0] =
      static_cast<uint32_t>(divide_up(static_cast<int64_t>(query_rows(problem)), kRowsOfBlock));
  launch.shared_bytes = 0;
  launch.workspace_bytes = workspace_bytes(problem, beside);
  launch.description =
      fmt::format(R"("rows": {}, "why": "what the large kernel is given, or gives")",
                  static_cast<int64_t>(query_rows(problem)));
  return launch;
}

}  // namespace

size_t tiles_sums_bytes(const Problem& problem) {
  if (!may_add(problem)) return 0;
  return static_cast<size_t>(query_rows(problem)) *
         static_cast<size_t>(padded_columns(problem.head_dim())) * sizeof(float);
}

std::string plan_tiles_backward(const Problem& problem, const vecina_backward_args& example,
                                const DeviceFacts& facts, std::vector<BackwardLaunch>* launches) {
  if (std::string why = unsuitable(problem); !why.empty()) return why;
  std::string why = unsuitable_strides(problem,
                                       {&example.query, &example.key, &example.additional_key,
                                        &example.grad_query, &example.grad_key},
                                       problem.head_dim());
  if (why.empty()) {
    why = unsuitable_strides(problem,
                             {&example.value, &example.additional_value, &example.output,
                              &example.grad_output, &example.grad_value},
                             problem.head_dim_value());
  }
  if (why.empty()) why = unsuitable_offsets(problem, {&example.lse, &example.grad_lse});
  if (why.empty()) why = unsuitable_bias(problem, example.bias);
  if (!why.empty()) return why;
  if (are_gradients_faster_by_row(problem)) return "little work, and columns in parts";
  const bool is_of_key = given(example.grad_key) || given(example.grad_value);
  if (may_add(problem) && is_of_key && given(example.grad_query)) {
    const TilesShape of_all = choose_tiles_shape(problem, TilesKernel::gradient_all, facts);
    if (of_all.partners != 0) {
      constexpr TilesKernel kAll = TilesKernel::gradient_all;
      launches->push_back(make_rows_launch(problem, "tiles_gradient_facts", kAll, example, facts));
      launches->push_back(tiles_gradient_launch(problem, kAll, example, facts, of_all));
      launches->push_back(make_rows_launch(problem, "tiles_gradient_round", kAll, example, facts));
      return {};
    }
  }
  std::vector<BackwardLaunch> found;
  bool has_shapes = true;
  const auto add = [&](const Problem& part, TilesKernel kernel, const vecina_backward_args& args,
                       bool is_whole) {
    const TilesShape shape = choose_tiles_shape(part, kernel, facts);
    has_shapes = has_shapes && shape.partners != 0;
    const int columns = part_of_key(part, kernel);
    for (int first = 0; has_shapes && first < (is_whole ? part.head_dim() : 1); first += columns) {
      found.push_back(tiles_gradient_launch(part, kernel, args, facts, shape, first));
    }
  };
  add(problem, TilesKernel::gradient_query, example, given(example.grad_query));
  // With facts from a kernel of their own, that of the gradient is wanted for the gradient alone.
  if (has_shapes && found.front().source.is_architecture_specific) {
    if (!given(example.grad_query)) found.clear();
    found.insert(found.begin(), make_rows_launch(problem, "tiles_gradient_facts",
                                                 TilesKernel::gradient_query, example, facts));
  }
  if (columns_of_sums(problem, TilesKernel::gradient_key) <= kMaxSummedColumns) {
    if (is_of_key) add(problem, TilesKernel::gradient_key, example, true);
  } else {
    if (given(example.grad_key)) add(problem, TilesKernel::gradient_key_alone, example, true);
    if (given(example.grad_value)) {
      for_value_parts(problem, example, kMaxSummedColumns,
                      [&](const Problem& columns, const vecina_backward_args& own,
                          const PartOfCall<vecina_backward_args>& part) {
                        add(columns, TilesKernel::gradient_value_alone, own, false);
                        if (has_shapes) fill_part(part, &found.back());
                      });
    }
  }
  if (!has_shapes) return "rows that shared memory cannot hold";
  std::move(found.begin(), found.end(), std::back_inserter(*launches));
  return {};
}

std::string plan_tiles_bias(const Problem& problem, const vecina_backward_args& example,
                            const DeviceFacts& facts, std::vector<BackwardLaunch>* launches) {
  if (std::string why = unsuitable_bias_gradient(problem); !why.empty()) return why;
  const TilesShape shape = choose_tiles_shape(problem, TilesKernel::gradient_bias, facts);
  if (shape.partners == 0) return "rows that shared memory cannot hold";
  launches->push_back(
      tiles_gradient_launch(problem, TilesKernel::gradient_bias, example, facts, shape));
  return {};
}

int tiles_bias_parts(const Problem& problem) {
  // Blocks that keep large GPUs busy; queries that pay for a part's sums; bytes of all sums.
  constexpr double kEnoughBlocks = 528.0, kLeastQueries = 128.0, kMostBytes = 64 << 20;
  const RowCounts rows = count_rows(problem);
  const double parts = std::min({kEnoughBlocks / problem.heads(),
                                 query_rows(problem) / problem.heads() / kLeastQueries,
                                 kMostBytes / (rows.bias * sizeof(float))});
  return std::max(static_cast<int>(parts), 1);
}

size_t tiles_bias_bytes(const Problem& problem) {
  if (!problem.has_bias() || !unsuitable_bias_gradient(problem).empty()) return 0;
  return static_cast<size_t>(tiles_bias_parts(problem)) *
         static_cast<size_t>(count_rows(problem).bias) * sizeof(float);
}

}  // namespace vecina::internal::cuda
