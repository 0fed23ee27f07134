// SPDX-License-Identifier: MIT
#include "cuda/halo_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/tensor.h"
#include "cuda/gradient_plan.h"
#include "cuda/owners.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::HaloConfig;
using vecina::cuda::HaloParams;

constexpr int kRows = 16;       // of a warp
constexpr int kMaxWarps = 8;    // of a block
constexpr int kMaxTiles = 16;   // of 8 partners, as in halo.cuh
constexpr double kSetup = 1.2;  // of a block, in items
constexpr int kMaxItems = 32;   // of a block
constexpr int kMaxGradientColumns = 64;
constexpr int kLongColumns = 128;  // of rows that halo.cuh pads and boxes of two planes may have

int row_heads(const Problem& problem, HaloKernel kernel) {
  if (kernel != HaloKernel::forward) return 1;
  return problem.head_group() % 4 == 0 ? 4 : problem.head_group() % 2 == 0 ? 2 : 1;
}

HaloConfig make_config(const Problem& problem, HaloKernel kernel, const HaloShape& shape) {
  HaloConfig config = {};
  config.dtype = problem.dtype();
  config.rank = problem.rank();
  config.head_dim = problem.head_dim();
  config.head_dim_value = problem.head_dim_value();
  config.of_keys = kernel == HaloKernel::gradient_key;
  config.heads = row_heads(problem, kernel);
  config.head_group = problem.head_group();
  config.items_of_block = shape.items_of_block;
  for (int a = 0; a < 3; ++a) {
    const auto i = static_cast<size_t>(a);
    const Axis axis = small_axis(problem, a);
    config.box[a] = shape.box[i];
    config.boxes[a] = shape.boxes[i];
    config.union_size[a] = most_partners(axis, config.of_keys, shape.box[i]);
    config.halo_size[a] = most_partners(axis, config.of_keys, shape.box[i] * shape.boxes[i]);
    config.kernel_size[a] = static_cast<int>(axis.kernel_size);
    config.stride[a] = static_cast<int>(axis.stride);
    config.dilation[a] = static_cast<int>(axis.dilation);
    config.is_causal[a] = axis.is_causal;
  }
  config.additional_tokens = config.of_keys ? 0 : static_cast<int>(problem.additional_tokens());
  config.stages = config.halo_size[0] > 1 || shape.items_of_block > 1 || config.of_keys ? 2 : 1;
  return config;
}

int tiles_of(const HaloConfig& config) {
  const int list = config.union_size[1] * config.union_size[2] + config.additional_tokens;
  return static_cast<int>(divide_up(list, 16)) * 2;
}
int stage_rows(const HaloConfig& config) {
  return config.halo_size[1] * config.halo_size[2] + config.additional_tokens;
}
int warps_of(const HaloConfig& config) {
  return config.boxes[0] * config.boxes[1] * config.boxes[2];
}
int stage_bytes(const HaloConfig& config) {
  const int facts = config.of_keys ? 16 : 0;  // of each row
  const int padding = config.head_dim == kLongColumns ? 2 * 16 : 0;
  return stage_rows(config) * (4 * config.head_dim + padding + facts);
}
int table_bytes(const HaloConfig& config) { return stage_rows(config) * 12; }

// Registers that a thread needs, roughly: sums, rows, places and the rest.
int registers_of(const HaloConfig& config, HaloKernel kernel) {
  const int tiles = tiles_of(config), columns = config.head_dim;
  switch (kernel) {
    case HaloKernel::forward:
      return columns == kLongColumns ? 240 : 45 + 4 * tiles + columns * 3 / 4;
    case HaloKernel::gradient_query:
      return 80 + 8 * tiles + columns;
    case HaloKernel::gradient_key:
      return 52 + 4 * tiles + columns * 3 / 2;
  }
  return 255;
}

// Blocks that a multiprocessor has room for; 0 if not one.
int blocks_of(const HaloConfig& config, HaloKernel kernel, const DeviceFacts& facts) {
  const int shared = config.stages * stage_bytes(config) + table_bytes(config) + 1024;
  const int registers = static_cast<int>(divide_up(std::min(registers_of(config, kernel), 255), 8));
  const int warps = 4 * (512 / (8 * registers));  // of a multiprocessor, from its four parts
  return std::min(
      {facts.shared_bytes_per_block / shared, std::max(warps / warps_of(config), 1), 8});
}

// What a problem costs with this shape, in cycles of a multiprocessor, roughly; 0: it does not fit.
double cost_of(const Problem& problem, HaloKernel kernel, const HaloConfig& config,
               const DeviceFacts& facts) {
  const int blocks = blocks_of(config, kernel, facts);
  if (tiles_of(config) > kMaxTiles || blocks == 0) return 0.0;
  double tiles = 1.0;
  for (int a = 0; a < 3; ++a) {
    tiles *= static_cast<double>(
        count_owner_tiles(small_axis(problem, a), config.of_keys, config.box[a] * config.boxes[a]));
  }
  const int planes = config.halo_size[0];
  // Rows of a union that do not follow one another in the halo meet in banks: the forward of 56x56
  // was slower so (benchmarks/results/h200-small-windows.json).
  const bool is_forward = kernel == HaloKernel::forward;
  const bool is_run =
      config.union_size[2] == config.halo_size[2] || config.head_dim == kLongColumns;
  const double rest = !is_forward ? config.union_size[1] * config.union_size[2] / 64.0
                      : is_run    ? 0.0
                                  : 1.0;
  // Rows skip planes that they do not see, but wait for those that do.
  const double products =
      warps_of(config) * (tiles_of(config) + rest) * (32.0 + config.head_dim) / 4.0 *
      (is_forward ? 1.0 : 2.0) *
      (config.box[0] > 1 ? config.union_size[0]
                         : static_cast<double>(small_axis(problem, 0).kernel_size));
  const double loads = planes * stage_rows(config) * config.head_dim * 0.08;
  const double busy = std::min(1.0, blocks * warps_of(config) / 16.0);
  const double barriers = is_forward ? 1.0 + 0.03 * warps_of(config) : 1.0;
  // Warps of a block alone wait for copies of long rows together.
  const double alone = is_forward && config.head_dim == kLongColumns && blocks == 1 ? 1.05 : 1.0;
  return tiles * (products + loads) * barriers * alone / std::sqrt(busy);
}

std::string unsuitable(const Problem& problem) {
  if (std::string why = unsuitable_owners(problem); !why.empty()) return why;
  if (problem.lengths() != VECINA_LENGTHS_EQUAL) return "lengths of samples";
  if (problem.has_bias()) return "relative position bias";
  for (int a = 0; a < problem.rank(); ++a) {
    const Axis& axis = problem.axis(a);
    if (axis.output_stride > 1) return "output_stride";
    if (axis.query_extent != axis.extent) return "queries that are not as many as keys";
  }
  if (problem.head_dim() != problem.head_dim_value()) return "head_dim_value is not head_dim";
  if (problem.head_dim() != 32 && problem.head_dim() != 64 && problem.head_dim() != 128) {
    return "head_dim is not 32, 64 or 128";
  }
  if (!(problem.scale() > 0.0)) return "a scale of 0 or less";
  if (problem.additional_tokens() > 64) return "more than 64 additional tokens";
  for (int a = 0; a < problem.rank(); ++a) {
    const Axis& axis = problem.axis(a);
    if (axis.kernel_size > 8 * kMaxTiles) return "many keys in a window";
    if (a == 0 && problem.rank() == 3 && axis.extent > 1 && problem.additional_tokens() > 0) {
      return "additional tokens in 3-D";
    }
  }
  if (visible_keys(problem) < kMinTensorCoreKeys) return "few keys in a window";
  return {};
}

std::string print(const HaloConfig& c) {
  return fmt::format(
      "{{.dtype = {}, .rank = {}, .head_dim = {}, .head_dim_value = {}, .of_keys = {}, "
      ".heads = {}, .head_group = {}, .items_of_block = {}, .box = {}, .boxes = {}, "
      ".union_size = {}, .halo_size = {}, .kernel_size = {}, "
      ".stride = {}, .dilation = {}, .is_causal = {{{}, {}, {}}}, "
      ".additional_tokens = {}, .stages = {}, .blocks = {}, .has_grad_lse = {}}}",
      c.dtype, c.rank, c.head_dim, c.head_dim_value, c.of_keys, c.heads, c.head_group,
      c.items_of_block, braces(c.box), braces(c.boxes), braces(c.union_size), braces(c.halo_size),
      braces(c.kernel_size), braces(c.stride), braces(c.dilation), c.is_causal[0], c.is_causal[1],
      c.is_causal[2], c.additional_tokens, c.stages, c.blocks, c.has_grad_lse);
}

int items_of_sample(const Problem& problem, const HaloConfig& config) {
  return (config.of_keys ? problem.heads_kv() : problem.heads()) / config.heads;
}

template <typename Args>
KernelLaunch<Args> make_launch(const Problem& problem, const Args& example, const char* kernel,
                               const HaloConfig& config, const DeviceFacts& facts) {
  double blocks = 0.0;
  Owners owners;
  owners.of_keys = config.of_keys;
  owners.items_of_sample = items_of_sample(problem, config);
  owners.items_of_block = config.items_of_block;
  for (size_t a = 0; a < 3; ++a) owners.box[a] = config.box[a] * config.boxes[a];
  const HaloParams params = owner_params(problem, example, owners, &blocks);
  KernelLaunch<Args> launch;
  launch.source = {fmt::format("{}.cu", kernel), kernel, "halo_config.h", "HaloConfig",
                   print(config)};
  launch.grid[0] = static_cast<uint32_t>(blocks);
  launch.block[0] = static_cast<uint32_t>(32 * warps_of(config));
  launch.shared_bytes = static_cast<uint32_t>(config.stages * stage_bytes(config));
  launch.is_programmatic = facts.compute_capability >= 90;
  launch.params_bytes = sizeof(HaloParams);
  launch.fill = fill_params<Args>(params);
  launch.description = fmt::format(
      R"("form": "halo", "box": [{}, {}, {}], "boxes_of_block": [{}, {}, {}], )"
      R"("items_of_block": {}, "tokens_of_box": {}, "tokens_of_block": {}, "blocks": {}, )"
      R"("why": "neighbouring windows share their tokens in shared memory")",
      config.box[0], config.box[1], config.box[2], config.boxes[0], config.boxes[1],
      config.boxes[2], config.items_of_block, 8 * tiles_of(config),
      stage_rows(config) * config.halo_size[0], blocks);
  return launch;
}

}  // namespace

int most_partners(const Axis& axis, bool of_keys, int owners) {
  int most = 0;
  const auto scan = [&](const NaAxis& dense, int from, int to) {
    for (int first = from / owners * owners; first < to; first += owners) {
      const int last = std::min(first + owners, dense.extent) - 1;
      const int size = of_keys ? na_query_end(dense, last) - na_query_begin(dense, first)
                               : std::min(na_window_end(dense, last), dense.extent) -
                                     na_window_begin(dense, first);
      most = std::max(most, size);
    }
  };
  for (const int64_t group : {int64_t{0}, axis.dilation - 1}) {  // the longest and the shortest
    const NaAxis dense = {na_group_length(static_cast<int>(axis.extent),
                                          static_cast<int>(axis.dilation), static_cast<int>(group)),
                          static_cast<int>(axis.kernel_size), static_cast<int>(axis.stride),
                          axis.is_causal};
    // Both ends, and all that repeats between them.
    const int ends = 4 * (dense.kernel_size + dense.stride) + owners * dense.stride;
    const int middle = std::min(dense.extent, ends);
    scan(dense, 0, middle);
    scan(dense, std::max(middle, dense.extent - middle), dense.extent);
  }
  return most;
}

HaloShape choose_halo_shape(const Problem& problem, HaloKernel kernel, const DeviceFacts& facts) {
  HaloShape best;
  best.box = {0, 0, 0};
  double least = 0.0;
  const int heads = row_heads(problem, kernel);
  const int positions = kRows / heads;
  const bool is_3d = problem.rank() == 3;
  const bool has_two_planes =
      is_3d && kernel == HaloKernel::forward && problem.head_dim() == kLongColumns && positions > 1;
  for (int x = 1; x <= (has_two_planes ? 2 : 1); ++x) {
    for (int y = 1; y <= (problem.rank() >= 2 ? positions / x : 1); y *= 2) {
      for (int x0 = 1; x0 <= (is_3d ? 2 / x : 1); ++x0) {
        for (int y0 = 1; y0 <= (problem.rank() >= 2 ? kMaxWarps : 1); ++y0) {
          for (int z0 = 1; x0 * y0 * z0 <= kMaxWarps; ++z0) {
            HaloShape shape;
            shape.box = {x, y, positions / (x * y)};
            shape.boxes = {x0, y0, z0};
            const HaloConfig config = make_config(problem, kernel, shape);
            if (x > 1 && config.halo_size[0] == 1) continue;  // there are no two
            const double cost = cost_of(problem, kernel, config, facts);
            if (cost > 0.0 && (least == 0.0 || cost < least)) {
              least = cost;
              best = shape;
            }
          }
        }
      }
    }
  }
  if (least == 0.0) return best;
  // A block's setup wants many items, an even load of the device many blocks.
  const HaloConfig config = make_config(problem, kernel, best);
  const double items = static_cast<double>(problem.batch()) * items_of_sample(problem, config);
  double tiles = 1.0;
  for (int a = 0; a < 3; ++a) {
    tiles *= static_cast<double>(
        count_owner_tiles(small_axis(problem, a), config.of_keys, config.box[a] * config.boxes[a]));
  }
  double least_time = 0.0;
  for (int count = 1; count <= std::min<double>(kMaxItems, items); ++count) {
    HaloShape shape = best;
    shape.items_of_block = count;
    const int resident = blocks_of(make_config(problem, kernel, shape), kernel, facts);
    if (resident == 0) continue;
    const double waves =
        std::ceil(tiles * std::ceil(items / count) / (resident * facts.multiprocessors));
    const double time = waves * resident * (count + kSetup);
    if (least_time == 0.0 || time < least_time) {
      least_time = time;
      best = shape;
    }
  }
  return best;
}

ForwardLaunch halo_forward_launch(const Problem& problem, const vecina_forward_args& example,
                                  const DeviceFacts& facts, const HaloShape& shape) {
  HaloConfig config = make_config(problem, HaloKernel::forward, shape);
  config.blocks = blocks_of(config, HaloKernel::forward, facts);
  return make_launch(problem, example, "halo_forward", config, facts);
}

bool pays_for_halo(const Problem& problem) {
  constexpr double kManyQueries = 100000.0;
  return problem.rank() > 1 && query_rows(problem) >= kManyQueries;
}

bool halo_beats_hopper(const Problem& problem, const DeviceFacts& facts) {
  constexpr int kFewElements = 4096;  // of the partners of a box
  if (problem.rank() != 2 || !pays_for_halo(problem) || !unsuitable(problem).empty()) return false;
  const HaloShape shape = choose_halo_shape(problem, HaloKernel::forward, facts);
  if (!shape.is_possible()) return false;
  const HaloConfig config = make_config(problem, HaloKernel::forward, shape);
  return config.union_size[1] * config.union_size[2] * problem.head_dim() <= kFewElements;
}

std::string plan_halo_forward(const Problem& problem, const vecina_forward_args& example,
                              const DeviceFacts& facts, ForwardLaunch* launch) {
  if (std::string why = unsuitable(problem); !why.empty()) return why;
  std::string why =
      unsuitable_strides(problem,
                         {&example.query, &example.key, &example.value, &example.additional_key,
                          &example.additional_value, &example.output},
                         problem.head_dim());
  if (why.empty()) why = unsuitable_offsets(problem, {&example.lse});
  if (!why.empty()) return why;
  const HaloShape shape = choose_halo_shape(problem, HaloKernel::forward, facts);
  if (!shape.is_possible()) return "many keys in a window";
  *launch = halo_forward_launch(problem, example, facts, shape);
  return {};
}

BackwardLaunch halo_gradient_launch(const Problem& problem, HaloKernel kernel,
                                    const vecina_backward_args& example, const DeviceFacts& facts,
                                    const HaloShape& shape) {
  HaloConfig config = make_config(problem, kernel, shape);
  config.blocks = blocks_of(config, kernel, facts);
  config.has_grad_lse = given(example.grad_lse);
  const bool is_of_query = kernel == HaloKernel::gradient_query;
  BackwardLaunch launch = make_launch(
      problem, example, is_of_query ? "halo_gradient_query" : "halo_gradient_key", config, facts);
  launch.workspace_bytes = gradient_facts_bytes(problem);
  return launch;
}

std::string plan_halo_backward(const Problem& problem, const vecina_backward_args& example,
                               const DeviceFacts& facts, std::vector<BackwardLaunch>* launches) {
  if (std::string why = unsuitable(problem); !why.empty()) return why;
  // Of longer rows, sums fill the registers: on an H200, 1.25 ms instead of the 0.97 ms of
  // tiles_plan.h for 28x28 images, 2.23 instead of 1.14 in 3-D
  // (benchmarks/results/h200-tiles.json).
  if (problem.head_dim() > kMaxGradientColumns) return "long rows: sums fill the registers";
  std::string why =
      unsuitable_strides(problem,
                         {&example.query, &example.key, &example.value, &example.additional_key,
                          &example.additional_value, &example.output, &example.grad_output,
                          &example.grad_query, &example.grad_key, &example.grad_value},
                         problem.head_dim());
  if (why.empty()) why = unsuitable_offsets(problem, {&example.lse, &example.grad_lse});
  if (!why.empty()) return why;
  const HaloShape of_query = choose_halo_shape(problem, HaloKernel::gradient_query, facts);
  const HaloShape of_key = choose_halo_shape(problem, HaloKernel::gradient_key, facts);
  if (!of_query.is_possible() || !of_key.is_possible()) return "many keys in a window";
  launches->push_back(
      halo_gradient_launch(problem, HaloKernel::gradient_query, example, facts, of_query));
  if (given(example.grad_key) || given(example.grad_value)) {
    launches->push_back(
        halo_gradient_launch(problem, HaloKernel::gradient_key, example, facts, of_key));
  }
  return {};
}

}  // namespace vecina::internal::cuda
