// SPDX-License-Identifier: MIT
// Sizes were chosen from measurements on an H200 (benchmarks/results): 16 queries of 8 threads a
// block for f32 rows of 32 columns, half as many where blocks are few; two query heads a thread
// where they share their keys, or two neighbouring queries.
#include "cuda/small_lanes_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/tensor.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::SmallLanesConfig;

constexpr int kThreads = 128;    // of a block
constexpr int kFewThreads = 64;  // where those would not reach every multiprocessor
constexpr int kMaxLanes = 32;
constexpr int kMaxColumns = 16;  // elements of a row that a thread holds
constexpr int kMaxVectors = 8;   // in so many loads
// Logits that a thread holds: those of all its keys and heads if they are not more.
constexpr int64_t kMaxLogits = 64;
constexpr int kLoadsAtOnce = 16;  // of keys, with a running maximum

int round_up_to_power(int64_t n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// Vectors that a thread may hold.
int most_vectors(int vector) { return std::min(kMaxVectors, kMaxColumns / vector); }

// Enough threads that none holds more; up to 8 that hold one vector.
int choose_lanes(int64_t vectors, int vector) {
  int lanes = std::min(8, round_up_to_power(vectors));
  while (lanes < kMaxLanes && divide_up(vectors, lanes) > most_vectors(vector)) lanes *= 2;
  return lanes;
}

int columns_of(int64_t vectors, int vector, int lanes) {
  return static_cast<int>(std::min<int64_t>(divide_up(vectors, lanes), most_vectors(vector)));
}

// Whether windows of neighbouring queries along the last axis differ by one key at most, and share
// more than they do not.
bool neighbors_share_windows(const Problem& problem) {
  const Axis& axis = problem.axis(problem.rank() - 1);
  return axis.kernel_size >= 3 && axis.stride == 1 && axis.dilation == 1 &&
         axis.output_stride == 1 && !axis.is_causal && !problem.has_bias() &&
         problem.lengths() == VECINA_LENGTHS_EQUAL;
}

// Lses of a token's heads share a sector of memory, and blocks that store into one wait for each
// other: 3 % of a kernel of 2 us. Two heads a warp avoid half of that, but load more keys where
// neighbouring queries share theirs, which costs 2 % without lse and more with long rows. In 16
// bits, one row a thread, they are faster anyway, but not where queries share more.
bool heads_belong_beside(const Problem& problem, const SmallLanesConfig& config, bool has_lse) {
  constexpr int64_t kRowBytes = 128;
  const int64_t bytes = dtype_bytes(problem.dtype());
  if (!config.is_unrolled || problem.head_group() > 1 || problem.heads() % 2 != 0 ||
      problem.lengths() != VECINA_LENGTHS_EQUAL) {
    return false;
  }
  if (config.neighbors > 1) {
    return has_lse && std::max(problem.head_dim(), problem.head_dim_value()) * bytes <= kRowBytes;
  }
  return bytes == 2 && problem.rank() == 1 &&
         2 * problem.axis(0).kernel_size <= problem.axis(0).extent;
}

}  // namespace

std::string print(const SmallLanesConfig& c) {
  return fmt::format(
      "{{.dtype = {}, .rank = {}, .head_dim = {}, .head_dim_value = {}, .key_vector = {}, "
      ".value_vector = {}, .key_piece = {}, .value_piece = {}, .lanes = {}, .key_columns = {}, "
      ".value_columns = {}, .heads = {}, .neighbors = {}, .heads_beside = {}, "
      ".tile = {}, .keys_at_once = {}, .is_unrolled = {}, .kernel_size = {}, .stride = {}, "
      ".dilation = {}, .output_stride = {}, .is_causal = {{{}, {}, {}}}, .additional_tokens = {}, "
      ".has_bias = {}, .lengths = {}, .has_wide_offsets = {}, .has_flat_grid = {}}}",
      c.dtype, c.rank, c.head_dim, c.head_dim_value, c.key_vector, c.value_vector, c.key_piece,
      c.value_piece, c.lanes, c.key_columns, c.value_columns, c.heads, c.neighbors, c.heads_beside,
      braces(c.tile), c.keys_at_once, c.is_unrolled, braces(c.kernel_size), braces(c.stride),
      braces(c.dilation), braces(c.output_stride), c.is_causal[0], c.is_causal[1], c.is_causal[2],
      c.additional_tokens, c.has_bias, c.lengths, c.has_wide_offsets, c.has_flat_grid);
}

double lanes_blocks(const Problem& problem) {
  SmallTiles tiles = make_tiles(problem, spread_queries(problem, kThreads / kMaxLanes));
  tiles.column_tiles = divide_up(problem.head_dim_value(), kMaxLanes * kMaxVectors);
  return count_blocks(problem, tiles);
}

ForwardLaunch plan_lanes(const Problem& problem, const vecina_forward_args& example,
                         const DeviceFacts& facts) {
  SmallLanesConfig config = {};
  config.dtype = problem.dtype();
  config.rank = problem.rank();
  config.head_dim = problem.head_dim();
  config.head_dim_value = problem.head_dim_value();
  config.key_vector = row_vector(config.dtype, config.head_dim, kLoadBytes);
  config.value_vector = row_vector(config.dtype, config.head_dim_value, kLoadBytes);
  config.key_piece = vector_elements({&example.query, &example.key, &example.additional_key},
                                     config.head_dim, kLoadBytes);
  config.value_piece = vector_elements({&example.value, &example.additional_value, &example.output},
                                       config.head_dim_value, kLoadBytes);
  const int64_t key_vectors = config.head_dim / config.key_vector;
  const int64_t value_vectors = config.head_dim_value / config.value_vector;
  config.lanes = std::max(choose_lanes(key_vectors, config.key_vector),
                          choose_lanes(value_vectors, config.value_vector));
  config.key_columns = columns_of(key_vectors, config.key_vector, config.lanes);
  config.value_columns = columns_of(value_vectors, config.value_vector, config.lanes);

  const auto keys = static_cast<int64_t>(std::min(visible_keys(problem), 1e9));
  // A thread's registers: half as many numbers in f64.
  const int64_t logits = problem.dtype() == VECINA_F64 ? kMaxLogits / 2 : kMaxLogits;
  config.lengths = problem.lengths();
  config.is_unrolled =
      keys * std::max(config.key_columns, config.value_columns) <= logits &&  // and as many loads
      !(problem.is_attention() && config.lengths != VECINA_LENGTHS_EQUAL);
  const int columns =
      std::max(config.key_columns * config.key_vector, config.value_columns * config.value_vector);
  const bool fits_twice = 2 * columns <= kMaxColumns && (!config.is_unrolled || 2 * keys <= logits);
  config.heads = problem.head_group() % 2 == 0 && fits_twice ? 2 : 1;
  config.keys_at_once =
      std::clamp(kLoadsAtOnce / std::max(config.key_columns, config.value_columns), 4, 16);
  config.has_bias = problem.has_bias();
  config.has_wide_offsets = has_wide_offsets(example);
  for (int a = 0; a < 3 && config.is_unrolled; ++a) {
    const Axis axis = small_axis(problem, a);
    config.kernel_size[a] = static_cast<int>(axis.kernel_size);
    config.stride[a] = static_cast<int>(axis.stride);
    config.dilation[a] = static_cast<int>(axis.dilation);
    config.output_stride[a] = static_cast<int>(axis.output_stride);
    config.is_causal[a] = axis.is_causal;
  }
  if (config.is_unrolled) config.additional_tokens = static_cast<int>(problem.additional_tokens());

  int threads = kThreads;
  config.neighbors = config.heads_beside = 1;
  const auto cut = [&] {
    const int rows = config.neighbors * threads / config.lanes;
    SmallTiles tiles = make_tiles(problem, spread_queries(problem, rows / config.heads_beside));
    tiles.heads = config.heads * config.heads_beside;
    tiles.column_tiles = divide_up(value_vectors, int64_t{config.lanes} * config.value_columns);
    return tiles;
  };
  SmallTiles tiles = cut();
  // Each neighbour's lse has a lane. A multiprocessor with one block has too few warps to give some
  // up.
  if (config.is_unrolled && config.heads == 1 && config.lanes > 1 && fits_twice &&
      neighbors_share_windows(problem) && count_blocks(problem, tiles) > facts.multiprocessors &&
      tiles.tile[2] % 2 == 0) {
    config.neighbors = 2;
    const SmallTiles of_neighbors = cut();
    if (count_blocks(problem, of_neighbors) < count_blocks(problem, tiles)) {
      tiles = of_neighbors;
    } else {  // axes are so short that half of the threads would have no query
      config.neighbors = 1;
    }
  }
  if (count_blocks(problem, tiles) < facts.multiprocessors) {
    threads = kFewThreads;
    tiles = cut();
  }
  constexpr double kFewBlocks = 2.0;  // of a multiprocessor
  if (count_blocks(problem, tiles) <= kFewBlocks * facts.multiprocessors &&
      heads_belong_beside(problem, config, given(example.lse))) {
    config.heads_beside = 2;
    tiles = cut();
  }
  std::copy(tiles.tile.begin(), tiles.tile.end(), config.tile);

  const double blocks = count_blocks(problem, tiles);
  ForwardLaunch launch;
  config.has_flat_grid = set_grid(problem, tiles, &launch);
  launch.source = {"small_lanes.cu", "small_lanes_forward", "small_lanes_config.h",
                   "SmallLanesConfig", print(config)};
  set_launch(make_params(problem, example, tiles), problem.rank(), config.has_wide_offsets,
             static_cast<uint32_t>(threads), facts, &launch);
  launch.description = fmt::format(
      R"("form": "lanes", "queries_per_block": [{}, {}, {}], "threads_per_query": {}, )"
      R"("heads_per_thread": {}, "queries_per_thread": {}, "heads_per_block": {}, "blocks": {}, )"
      R"("keys": "{}", )"
      R"("why": "{}")",
      tiles.tile[0], tiles.tile[1], tiles.tile[2], config.lanes, config.heads, config.neighbors,
      tiles.heads, blocks, config.is_unrolled ? "all at once" : "running maximum",
      "takes every problem");
  return launch;
}

}  // namespace vecina::internal::cuda
