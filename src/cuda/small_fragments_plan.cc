// SPDX-License-Identifier: MIT
// Numbers were chosen from measurements on an H200 (benchmarks/results): f32 splits a box's keys
// over as many warps as it takes to fill the device, 16 bits only where registers demand it; a
// block has two boxes where neither is split. Where heads share keys, f32 gains from twice as many
// warps again.
#include "cuda/small_fragments_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/tensor.h"
#include "cuda/folded_axes.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::SmallFragmentsConfig;

constexpr int kRows = 16;  // of a warp
constexpr int kThreadsOfWarp = 32;
constexpr int kTileKeys = 8;          // of one product
constexpr int kMaxThreads = 256;      // of a block
constexpr int kMaxSplit = 8;          // warps that share a box's keys
constexpr int kPaddedColumns = 4;     // of partial sums in shared memory
constexpr double kMaxUnion = 1024.0;  // keys that a box may meet; far beyond what is taken
// Of products whose keys are not neighbours along the innermost axis: where each key lies is
// computed in the kernel.
constexpr double kCutTileCost = 1.1;
// Tiles of keys that a warp has registers for, by bytes of a row.
int max_tiles(int32_t dtype, int head_dim) {
  const int tiles = dtype == VECINA_F32 ? 8 : 14;
  return tiles * 32 / head_dim;
}

// Why the problem or its strides do not suit, before any box is chosen.
std::string unsuitable(const Problem& problem, const vecina_forward_args& example) {
  if (problem.lengths() != VECINA_LENGTHS_EQUAL) return "lengths of samples";
  if (problem.dtype() == VECINA_F64) return "f64";
  if (problem.has_bias()) return "relative position bias";
  if (problem.head_dim() != problem.head_dim_value()) return "head_dim_value is not head_dim";
  if (problem.head_dim() != 32 && problem.head_dim() != 64) return "head_dim is not 32 or 64";
  if (problem.dtype() != VECINA_F32 && !(problem.scale() > 0.0)) return "a scale of 0 or less";
  for (int a = 0; a < problem.rank(); ++a) {
    if (problem.axis(a).output_stride > 1) return "output_stride";
  }
  for (const vecina_tensor* tensor :
       {&example.query, &example.key, &example.value, &example.additional_key,
        &example.additional_value, &example.output, &example.lse}) {
    for (int d = 0; given(*tensor) && d < tensor->ndim; ++d) {
      if (tensor->strides[d] < 0 && tensor->shape[d] > 1) return "a negative stride";
    }
  }
  if (visible_keys(problem) < kMinTensorCoreKeys) return "few keys in a window";
  if (visible_keys(problem) > kMaxUnion) return "many keys in a window";
  const int whole_loads = 16 / static_cast<int>(dtype_bytes(problem.dtype()));
  if (vector_elements({&example.query, &example.key, &example.value, &example.additional_key,
                       &example.additional_value, &example.output},
                      problem.head_dim(), 16) < whole_loads) {
    return "strides or addresses that are no multiples of 16 bytes";
  }
  if (has_wide_offsets(example)) return "a sample of 2^31 bytes or more";
  return {};
}

// Boxes along an axis, of all its dilation groups.
int64_t count_boxes(const Axis& axis, int box) {
  return axis.dilation * divide_up(divide_up(axis.num_queries(), axis.dilation), box);
}

// A box of queries and the keys that it meets.
struct Shape {
  std::array<int, 3> box = {1, 1, 1};
  std::array<int64_t, 3> union_size = {1, 1, 1};
  double list = 0.0, cost = 0.0;
};

// The keys along the innermost axis are as they are, or filled up to whole tiles of keys.
Shape make_shape(const Problem& problem, const std::array<int, 3>& box, bool has_whole_tiles) {
  Shape shape;
  shape.box = box;
  shape.list = 1.0;
  double boxes = 1.0;
  for (size_t a = 0; a < 3; ++a) {
    const Axis axis = small_axis(problem, static_cast<int>(a));
    shape.union_size[a] = union_size(axis, box[a]);
    if (a == 2 && has_whole_tiles) {
      shape.union_size[a] = kTileKeys * divide_up(shape.union_size[a], kTileKeys);
    }
    shape.list *= static_cast<double>(shape.union_size[a]);
    boxes *= static_cast<double>(count_boxes(axis, box[a]));
  }
  shape.list += static_cast<double>(problem.additional_tokens());
  shape.cost = boxes * std::ceil(shape.list / kTileKeys);
  if (shape.union_size[2] % kTileKeys != 0) shape.cost *= kCutTileCost;
  return shape;
}

// The cheapest box of `positions` queries.
Shape choose_box(const Problem& problem, int positions) {
  Shape best;
  for (int x = 1; x <= positions; x *= 2) {
    for (int y = 1; x * y <= positions; y *= 2) {
      if ((x > 1 && problem.rank() < 3) || (y > 1 && problem.rank() < 2)) continue;
      for (const bool has_whole_tiles : {true, false}) {
        const Shape shape = make_shape(problem, {x, y, positions / (x * y)}, has_whole_tiles);
        if (best.list == 0.0 || shape.cost < best.cost) best = shape;
      }
    }
  }
  return best;
}

}  // namespace

int64_t union_size(const Axis& axis, int box) {
  const int64_t steps = axis.is_causal ? box - 1 : axis.stride * divide_up(box - 1, axis.stride);
  return std::min(divide_up(axis.extent, axis.dilation), axis.kernel_size + steps);
}

std::string print(const SmallFragmentsConfig& c) {
  const auto bools = [](const bool(&v)[3]) {
    return fmt::format("{{{}, {}, {}}}", v[0], v[1], v[2]);
  };
  return fmt::format(
      "{{.dtype = {}, .rank = {}, .head_dim = {}, .box = {}, .heads = {}, .boxes = {}, "
      ".warps_per_box = {}, .kernel_size = {}, .stride = {}, .dilation = {}, .is_causal = {}, "
      ".union_size = {}, .is_full = {}, .is_cut = {}, .additional_tokens = {}, "
      ".has_flat_grid = {}}}",
      c.dtype, c.rank, c.head_dim, braces(c.box), c.heads, braces(c.boxes), c.warps_per_box,
      braces(c.kernel_size), braces(c.stride), braces(c.dilation), bools(c.is_causal),
      braces(c.union_size), bools(c.is_full), bools(c.is_cut), c.additional_tokens,
      c.has_flat_grid);
}

std::string plan_fragments(const Problem& given_problem, const vecina_forward_args& given_example,
                           const DeviceFacts& facts, ForwardLaunch* launch) {
  const auto [problem, example] = fold_axes(given_problem, given_example);
  if (std::string why = unsuitable(problem, example); !why.empty()) return why;
  SmallFragmentsConfig config = {};
  config.dtype = problem.dtype();
  config.rank = problem.rank();
  config.head_dim = problem.head_dim();
  config.heads = problem.head_group() % 4 == 0 ? 4 : problem.head_group() % 2 == 0 ? 2 : 1;
  const Shape shape = choose_box(problem, kRows / config.heads);
  if (shape.list > kMaxUnion) return "many keys in a window";

  const int most = max_tiles(problem.dtype(), config.head_dim);
  const int tiles = static_cast<int>(std::ceil(shape.list / kTileKeys));
  double boxes = static_cast<double>(problem.batch()) * (problem.heads() / config.heads);
  for (int a = 0; a < 3; ++a) {
    boxes *=
        static_cast<double>(count_boxes(small_axis(problem, a), shape.box[static_cast<size_t>(a)]));
  }
  const bool is_f32 = problem.dtype() == VECINA_F32;
  int split = static_cast<int>(divide_up(tiles, most));
  const double warps_of_multiprocessor = !is_f32 ? 2.0 : config.heads > 1 ? 12.0 : 3.5;
  const double enough = facts.multiprocessors * warps_of_multiprocessor;
  const int least = is_f32 ? 2 : 4;  // tiles of a warp
  while (2 * split <= kMaxSplit && boxes * split < enough && divide_up(tiles, 2 * split) >= least) {
    split *= 2;
  }
  if (split > kMaxSplit) return "many keys in a window";
  config.warps_per_box = split;

  std::array<int, 3> boxes_of_block = {1, 1, 1};
  for (int a = 2; a >= 3 - problem.rank() && config.heads == 1 && split == 1; --a) {
    const auto i = static_cast<size_t>(a);
    const Axis axis = small_axis(problem, a);
    if (2 * shape.box[i] > divide_up(axis.num_queries(), axis.dilation)) continue;
    boxes_of_block[i] = 2;
    break;
  }
  SmallTiles cut;
  cut.heads = config.heads;
  for (int a = 0; a < 3; ++a) {
    const auto i = static_cast<size_t>(a);
    const Axis axis = small_axis(problem, a);
    config.box[a] = shape.box[i];
    config.boxes[a] = boxes_of_block[i];
    config.kernel_size[a] = static_cast<int>(axis.kernel_size);
    config.stride[a] = static_cast<int>(axis.stride);
    config.dilation[a] = static_cast<int>(axis.dilation);
    config.is_causal[a] = axis.is_causal;
    config.union_size[a] = static_cast<int>(shape.union_size[i]);
    config.is_full[a] =
        axis.kernel_size == axis.extent && !axis.is_causal && config.union_size[a] == axis.extent;
    config.is_cut[a] = axis.extent / axis.dilation < config.union_size[a];
    cut.tile[i] = shape.box[i] * boxes_of_block[i];
    cut.count[i] = count_boxes(axis, cut.tile[i]);
  }
  config.additional_tokens = static_cast<int>(problem.additional_tokens());

  const double blocks = count_blocks(problem, cut);
  if (blocks > kMaxBlocks) return "more than 2^31 - 1 blocks of threads";
  const int warps = boxes_of_block[0] * boxes_of_block[1] * boxes_of_block[2] * split;
  if (32 * warps > kMaxThreads) return "more threads than a block has registers for";
  config.has_flat_grid = set_grid(problem, cut, launch);
  launch->source = {"small_fragments.cu", "small_fragments_forward", "small_fragments_config.h",
                    "SmallFragmentsConfig", print(config)};
  set_launch(make_params(problem, example, cut), problem.rank(), false,
             static_cast<uint32_t>(32 * warps), facts, launch);
  // Outputs, maxima and sums that warps hand each other; of two, each half.
  int numbers = 0;
  if (split == 2) numbers = (kRows / 2) * config.head_dim + 2 * kThreadsOfWarp;
  if (split > 2) numbers = kRows * (config.head_dim + kPaddedColumns + 2);
  launch->shared_bytes = static_cast<uint32_t>(warps * numbers) * uint32_t{sizeof(float)};
  launch->description = fmt::format(
      R"("form": "fragments", "box": [{}, {}, {}], "heads_of_box": {}, "keys_of_box": {}, )"
      R"("boxes_of_block": [{}, {}, {}], "warps_per_box": {}, "blocks": {}, "useful": {:.2f}, )"
      R"("why": "a window's keys suit tensor cores, and need no staging")",
      config.box[0], config.box[1], config.box[2], config.heads, shape.list, boxes_of_block[0],
      boxes_of_block[1], boxes_of_block[2], split, blocks,
      visible_keys(problem) / (kTileKeys * tiles));
  return {};
}

}  // namespace vecina::internal::cuda
