// SPDX-License-Identifier: MIT
#include "cuda/tiles_shape.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "core/window.h"
#include "cuda/gather_common.h"
#include "cuda/owners.h"
#include "cuda/small_common.h"
#include "cuda/value_parts.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::HaloParams;
using vecina::cuda::TilesConfig;

constexpr int kStages = 2;        // of tiles in shared memory
constexpr int kMaxPartners = 64;  // of a tile: bits of a mask
constexpr int kRowsOfWarpgroup = 64;
constexpr int kTableBytes = 64 * 16 + 3 * 65 * 8 + 72 + 1100;  // and 24 for each owner

// The cost model, in cycles of a multiprocessor, fitted by hand to nine times of large
// windows on an H200 (benchmarks/results/h200-tiles.json). Of a warp: a product of 16 rows, 16
// columns and 16 partners; the rest of a step of 16 partners; the rest of a tile. Bytes that reach
// shared memory in a cycle. How much of a warp's skipped tiles is spent waiting for the block's
// other warps.
constexpr double kCyclesPerProduct = 10.0, kCyclesPerStep = 40.0, kCyclesPerTile = 170.0;
constexpr double kBytesPerCycle = 64.0, kWait = 0.8;
// Warps of a multiprocessor; fewer wait for themselves. The forward's are measured in
// benchmarks/results/h200-tiles-forward.json.
constexpr double kBusyWarps = 8.0, kBusyForwardWarps = 12.0;
// The same of a warpgroup with 64 rows: not its own cycles, but so that the sum of both gradients'
// costs has the measured ratio to that of warps with 16 rows, in 2-D of
// benchmarks/results/h200-tiles-gradients.json.
constexpr double kCyclesPerGroupProduct = 30.0, kCyclesPerGroupStep = 110.0, kBusyWarpgroups = 2.0;
// The same of a warp whose rows of value stay in registers, one load of five less: with it what
// eight such warps cost beside four, or eight others, is within 2 % of what was measured in
// benchmarks/results/h200-tiles-mma.json.
constexpr double kCyclesPerKeptProduct = 9.0;
// The same of a warp with 32 rows, whose products wait for the step before them.
constexpr double kCyclesPerWideProduct = 10.5, kCyclesPerWideStep = 200.0, kBusyWideWarps = 8.0;
// A guess: of 32 differences of positions in a tile, for which a warp adds up gradients of logits.
constexpr double kCyclesPerDifferences = 20.0;

int rows_of(const TilesConfig& config) { return config.box[0] * config.box[1] * config.box[2]; }

bool is_of_keys(TilesKernel kernel) {
  return kernel == TilesKernel::gradient_key || kernel == TilesKernel::gradient_key_alone ||
         kernel == TilesKernel::gradient_value_alone || kernel == TilesKernel::gradient_all;
}

}  // namespace

int padded_columns(int columns) { return static_cast<int>(divide_up(columns, 16)) * 16; }

// Delta may be grad_output . output: what rounding of output does to it is small beside that of the
// weights where a query sees many keys. 64 is a guess, and counts the window, not what the first
// queries of a causal axis see; large problems had at most 0.81 of the error that is allowed
// (benchmarks/results/h200-tiles-gradients.json and h200-tiles-fields.json).
bool gives_delta(const Problem& problem) {
  constexpr double kManyKeys = 64.0;
  const bool are_keys_known = !problem.is_attention() || problem.lengths() == VECINA_LENGTHS_EQUAL;
  return are_keys_known && visible_keys(problem) >= kManyKeys;
}

bool has_own_queries(const Problem& problem) {
  const bool is_longer =
      problem.is_attention() && (problem.lengths() != VECINA_LENGTHS_EQUAL ||
                                 problem.axis(0).query_extent != problem.axis(0).extent);
  bool has_output_stride = false;
  for (int a = 0; a < problem.rank(); ++a) {
    has_output_stride = has_output_stride || problem.axis(a).output_stride > 1;
  }
  return is_longer || has_output_stride;
}

int part_of_key(const Problem& problem, TilesKernel kernel) {
  const bool has_two = kernel == TilesKernel::gradient_query && !gives_delta(problem);
  return part_of(problem.head_dim(), has_two ? kMaxSummedColumns / 2 : kMaxSummedColumns);
}

int columns_of_sums(const Problem& problem, TilesKernel kernel) {
  const int key = padded_columns(problem.head_dim()),
            value = padded_columns(problem.head_dim_value());
  const int part = padded_columns(part_of_key(problem, kernel));
  switch (kernel) {
    case TilesKernel::gradient_query:
      return gives_delta(problem) ? part : 2 * part;
    case TilesKernel::gradient_key:
    case TilesKernel::gradient_all:
      return key + value;
    case TilesKernel::gradient_key_alone:
      return part;
    case TilesKernel::gradient_value_alone:
      return value;
    case TilesKernel::forward:
    case TilesKernel::gradient_bias:
      return 0;
  }
  return 0;
}

bool has_plain_queries(const Problem& problem) {
  return !has_own_queries(problem) && !problem.has_bias() &&
         problem.lengths() == VECINA_LENGTHS_EQUAL;
}

namespace {

constexpr int kMaxColumnsOfRows = 160;  // of both, beside many sums

int boxes_of(const TilesConfig& config) {
  return config.boxes[0] * config.boxes[1] * config.boxes[2];
}

// Long rows of value stay in registers beside sums of both gradients. A thread has room for them in
// a block of eight warps: in one of four it copies twice as much of a tile, and spilled; so did one
// of eight with a bias, lengths, output strides, dilation or columns that pad rows. `boxes` of a
// block are its warps; of warpgroups there are two at most.
constexpr int kWarpsThatKeepValues = 8;
bool keeps_values(const Problem& problem, TilesKernel kernel, int boxes) {
  constexpr int kMostColumns = 128;  // of either row
  if (kernel != TilesKernel::gradient_key || boxes != kWarpsThatKeepValues) return false;
  for (int a = 0; a < problem.rank(); ++a) {
    if (problem.axis(a).dilation > 1) return false;
  }
  const int key = problem.head_dim(), value = problem.head_dim_value();
  return key % 16 == 0 && value % 16 == 0 && std::max(key, value) <= kMostColumns &&
         key + value > kMaxColumnsOfRows && has_plain_queries(problem);
}

// Which of an owner's rows shall leave their registers to sums: so that nothing is spilled.
void share_rows(const Problem& problem, TilesKernel kernel, TilesConfig* config) {
  constexpr int kMaxRegisters = 160;  // of sums and a thread's part of rows of head_dim columns
  const int key = padded_columns(problem.head_dim()),
            value = padded_columns(problem.head_dim_value());
  const int sums = columns_of_sums(problem, kernel);
  if (kernel == TilesKernel::forward) {
    config->shares_key = rows_of(*config) > 16 || key + value > 256;
    return;
  }
  const bool has_many_sums = config->of_keys || (!config->is_delta_given && !config->of_bias);
  config->shares_value = kernel != TilesKernel::gradient_value_alone && !config->of_bias &&
                         !keeps_values(problem, kernel, boxes_of(*config)) &&
                         key + value > (has_many_sums ? kMaxColumnsOfRows : 256);
  const bool is_part = config->adds_key || !config->of_keys
                           ? part_of_key(problem, kernel) < problem.head_dim()
                           : false;
  config->shares_key = sums / 2 + key / 4 > kMaxRegisters || key > kMaxSummedColumns || is_part;
}

}  // namespace

bool has_warpgroups(const TilesConfig& config) { return rows_of(config) == kRowsOfWarpgroup; }
int tiles_warps(const TilesConfig& config) {
  return boxes_of(config) * (has_warpgroups(config) ? 4 : 1);
}

namespace {

bool has_own_queries(const TilesConfig& config) {
  return config.is_attention || config.output_stride[0] > 1 || config.output_stride[1] > 1 ||
         config.output_stride[2] > 1;
}
int owners_of(const TilesConfig& config) { return rows_of(config) * boxes_of(config); }
// Of positions, key - query, between the queries of a warp and the keys of a tile.
double differences_of(const TilesConfig& config) {
  double count = 1.0;
  for (int a = 0; a < 3; ++a) {
    const int step =
        config.output_stride[a] / std::gcd(config.output_stride[a], config.dilation[a]);
    count *= (config.box[a] - 1.0) * step + config.partner_box[a];
  }
  return count;
}
int shared_bytes(const TilesConfig& config) {
  const int facts = config.of_keys ? 16 : 0;
  if (has_warpgroups(config)) {
    const int row = 2 * (config.head_dim + config.head_dim_value);
    return kStages * config.partners * (row + facts) + owners_of(config) * row +
           (config.adds_queries ? owners_of(config) * 2 * 128 : 0);
  }
  const int row = 2 * padded_columns(config.head_dim) + 16,
            value_row = 2 * padded_columns(config.head_dim_value) + 16;
  constexpr double kMost = 1 << 20;  // do not fit
  const int differences =
      config.of_bias ? static_cast<int>(std::min(differences_of(config), kMost)) : 0;
  return kStages * config.partners * (row + value_row + facts) +
         // Gradients of logits, their sums in two tiles, and where they are.
         (config.of_bias ? 4 * owners_of(config) * (config.partners + 8) : 0) +
         8 * differences * (boxes_of(config) + 1) +
         (config.shares_value ? owners_of(config) * value_row : 0) +
         (config.shares_key || config.adds_queries ? owners_of(config) * row : 0) +
         // Gradients of logits of two tiles.
         (config.adds_queries ? owners_of(config) * 2 * (2 * config.partners + 16) : 0);
}

}  // namespace

TilesConfig make_tiles_config(const Problem& problem, TilesKernel kernel, const TilesShape& shape) {
  TilesConfig config = {};
  config.dtype = problem.dtype();
  config.rank = problem.rank();
  config.head_dim = problem.head_dim();
  config.head_dim_value = problem.head_dim_value();
  config.end_column = config.head_dim;
  config.of_keys = is_of_keys(kernel);
  config.adds_queries = kernel == TilesKernel::gradient_all;
  config.is_delta_given = kernel == TilesKernel::gradient_query && gives_delta(problem);
  config.heads = 1;
  config.head_group = problem.head_group();
  config.items_of_block = 1;
  config.partners = shape.partners;
  for (int a = 0; a < 3; ++a) {
    const auto i = static_cast<size_t>(a);
    const Axis axis = small_axis(problem, a);
    config.box[a] = shape.box[i];
    config.boxes[a] = shape.boxes[i];
    config.partner_box[a] = shape.partner_box[i];
    config.kernel_size[a] = static_cast<int>(axis.kernel_size);
    config.stride[a] = static_cast<int>(axis.stride);
    config.dilation[a] = static_cast<int>(axis.dilation);
    config.output_stride[a] = static_cast<int>(axis.output_stride);
    config.is_causal[a] = axis.is_causal;
  }
  config.has_bias = problem.has_bias();
  config.lengths = problem.lengths();
  config.is_attention = problem.is_attention() && has_own_queries(problem);
  config.of_bias = kernel == TilesKernel::gradient_bias;
  config.adds_key = config.of_keys && kernel != TilesKernel::gradient_value_alone;
  config.adds_value = config.of_keys && kernel != TilesKernel::gradient_key_alone;
  share_rows(problem, kernel, &config);
  config.shared_bytes = shared_bytes(config);
  config.additional_tokens =
      config.of_keys || config.of_bias ? 0 : static_cast<int>(problem.additional_tokens());
  return config;
}

namespace {

int table_bytes(const TilesConfig& config) {
  constexpr int kOwnQueriesBytes = 36, kSampleBytes = sizeof(HaloParams) + 12;
  return kTableBytes + 24 * owners_of(config) + (has_own_queries(config) ? kOwnQueriesBytes : 0) +
         (config.lengths != 0 ? kSampleBytes : 0) +
         (config.has_bias ? 4 * (owners_of(config) + kMaxPartners) : 0);
}
// Registers that a thread needs, roughly: sums, rows and the rest.
int registers_of(const Problem& problem, const TilesConfig& config, TilesKernel kernel) {
  if (has_warpgroups(config)) return 255;
  const int key = padded_columns(config.head_dim), value = padded_columns(config.head_dim_value);
  if (kernel == TilesKernel::forward) {
    const int query = rows_of(config) == 16 && config.shares_key ? 24 : key / 4;
    return rows_of(config) / 16 * (query + value / 2 + 16) + 48;
  }
  const int sums = config.of_bias ? 32 : columns_of_sums(problem, kernel);
  const int of_queries = config.adds_queries ? 48 : 0;  // sums and their factors
  return sums / 2 + (config.shares_key ? 0 : (key + value) / 4) + of_queries + 64;
}
}  // namespace

int tiles_blocks(const Problem& problem, const TilesConfig& config, TilesKernel kernel,
                 const DeviceFacts& facts) {
  const int shared = shared_bytes(config) + table_bytes(config) + 1024;
  const int registers =
      static_cast<int>(divide_up(std::min(registers_of(problem, config, kernel), 255), 8)) * 8;
  const int warps = 4 * (512 / registers);  // of a multiprocessor, from its four parts
  return std::min({facts.shared_bytes_per_block / shared, warps / tiles_warps(config), 8});
}

namespace {

// Along one axis, all dilation groups: tiles that blocks load, tiles that warps meet, and tiles
// that those warps of blocks meet that meet most, each counted as if the other axes had one.
struct AxisWork {
  double tiles = 0, warp_tiles = 0, longest_tiles = 0;
};
// What part of a tile a warp takes that meets part of it.
struct TileSteps {
  int layer = 0;  // partners from one place along the axis to the next; 0: they are not in order
  int rows = 16;  // of a warp, which takes as many partners at once

  double part(int from, int to, int partner_box) const {
    if (from >= to) return 0.0;
    if (layer == 0) return 1.0;
    const int steps = (to * layer - 1) / rows - from * layer / rows + 1;
    return steps / static_cast<double>(divide_up(partner_box * layer, rows));
  }
  bool operator==(const TileSteps&) const = default;
};
AxisWork work_along(const Axis& axis, bool of_keys, int box, int boxes, int partner_box,
                    const std::optional<TileSteps>& steps) {
  AxisWork work;
  const NaAxis dense = {
      na_group_length(static_cast<int>(axis.extent), static_cast<int>(axis.dilation), 0),
      static_cast<int>(axis.kernel_size), static_cast<int>(axis.stride), axis.is_causal};
  const QueryGroups queries = query_groups(axis);
  const auto step = static_cast<int>(queries.position);
  const auto num_queries = static_cast<int>(queries.length);
  const auto queries_before = [&](int position) {
    return std::min(static_cast<int>(divide_up(position, step)), num_queries);
  };
  const auto begin = [&](int i) {
    if (of_keys) return queries_before(na_query_begin(dense, i));
    return na_window_begin(dense, i * step);
  };
  const auto end = [&](int i) {
    if (!of_keys) return std::min(na_window_end(dense, i * step), dense.extent);
    const int to = na_query_end(dense, i);  // beyond the keys there may be more queries
    return to == dense.extent ? num_queries : queries_before(to);
  };
  const int owners = of_keys ? dense.extent : num_queries;
  for (int first = 0; first < owners; first += box * boxes) {
    const int origin = begin(first);
    const int last = std::min(first + box * boxes, owners) - 1;
    const auto tiles = static_cast<int>(divide_up(std::max(end(last) - origin, 1), partner_box));
    work.tiles += tiles;
    if (!steps) {
      work.longest_tiles += tiles;
      for (int owner = first; owner <= last; owner += box) {
        const int to = std::max(end(std::min(owner + box, owners) - 1) - origin - 1, 0);
        work.warp_tiles += to / partner_box - std::min(begin(owner) - origin, to) / partner_box + 1;
      }
      continue;
    }
    for (int at = origin; at < origin + tiles * partner_box; at += partner_box) {
      double longest = 0.0;
      for (int owner = first; owner <= last; owner += box) {
        const double part = steps->part(
            std::max(begin(owner) - at, 0),
            std::min(end(std::min(owner + box, owners) - 1) - at, partner_box), partner_box);
        work.warp_tiles += part;
        longest = std::max(longest, part);
      }
      work.longest_tiles += longest;
    }
  }
  const auto groups = static_cast<double>(of_keys ? axis.dilation : queries.count);
  work.tiles *= groups;
  work.warp_tiles *= groups;
  work.longest_tiles *= groups;
  return work;
}

// The same of each shape, computed once.
class WorkTable {
 public:
  WorkTable(const Problem& problem, bool of_keys, bool counts_steps)
      : problem_(problem),
        of_keys_(of_keys),
        counts_steps_(counts_steps),
        works_(3 * kBoxes * kBoxesOfBlock * kPartnerBoxes) {}

  const AxisWork& along(size_t a, const TilesShape& shape) {
    const auto box = static_cast<size_t>(shape.box[a]), boxes = static_cast<size_t>(shape.boxes[a]),
               partner_box = static_cast<size_t>(shape.partner_box[a]);
    std::vector<Entry>& entries =
        works_[((a * kBoxes + box) * kBoxesOfBlock + boxes) * kPartnerBoxes + partner_box];
    const std::optional<TileSteps> steps =
        counts_steps_ ? std::optional(steps_along(a, shape)) : std::nullopt;
    for (const Entry& entry : entries) {
      if (entry.steps == steps) return entry.work;
    }
    entries.push_back(
        {steps, work_along(small_axis(problem_, static_cast<int>(a)), of_keys_, shape.box[a],
                           shape.boxes[a], shape.partner_box[a], steps)});
    return entries.back().work;
  }

 private:
  struct Entry {
    std::optional<TileSteps> steps;
    AxisWork work;
  };
  // A tile's partners are in order along its first axis that is longer than 1.
  static TileSteps steps_along(size_t a, const TilesShape& shape) {
    TileSteps steps;
    steps.rows = shape.box[0] * shape.box[1] * shape.box[2];
    if (shape.partner_box[a] == 1) return steps;
    steps.layer = 1;
    for (size_t b = 0; b < 3; ++b) {
      if (b < a && shape.partner_box[b] > 1) steps.layer = 0;
      if (b > a) steps.layer *= shape.partner_box[b];
    }
    return steps;
  }

  static constexpr size_t kBoxes = 65, kBoxesOfBlock = 9, kPartnerBoxes = kMaxPartners + 1;
  const Problem& problem_;
  const bool of_keys_, counts_steps_;
  std::vector<std::vector<Entry>> works_;
};

// Boxes of `count` things together, along the problem's axes.
std::vector<std::array<int, 3>> whole_boxes(int rank, int count) {
  std::vector<std::array<int, 3>> boxes;
  for (int x = 1; x <= (rank == 3 ? count : 1); ++x) {
    if (count % x != 0) continue;
    for (int y = 1; x * y <= (rank >= 2 ? count : 1); ++y) {
      if (count / x % y == 0) boxes.push_back({x, y, count / x / y});
    }
  }
  return boxes;
}

// Boxes that nearly fill a tile of `partners` and do not reach beyond an axis.
std::vector<std::array<int, 3>> partner_boxes(const Problem& problem, bool of_keys, int partners) {
  std::array<int, 3> longest = {1, 1, 1};
  double all = 1.0;
  for (size_t a = 0; a < 3; ++a) {
    const Axis axis = small_axis(problem, static_cast<int>(a));
    const int64_t length =
        of_keys ? query_groups(axis).length : divide_up(axis.extent, axis.dilation);
    longest[a] = static_cast<int>(std::min<int64_t>(length, partners));
    all *= longest[a];
  }
  const double least = std::min<double>(all, partners - 8) / 2;
  std::vector<std::array<int, 3>> boxes;
  for (int x = 1; x <= longest[0]; ++x) {
    for (int y = 1; y <= longest[1] && x * y <= partners; ++y) {
      const int z = std::min(longest[2], partners / (x * y));
      if (x * y * z >= least) boxes.push_back({x, y, z});
      // A shorter one may divide the windows better.
      for (int shorter = z - 1; shorter > 0 && x * y * shorter >= partners - 8; --shorter) {
        boxes.push_back({x, y, shorter});
      }
    }
  }
  return boxes;
}

// Products of warpgroups take the problem's gradients.
bool suits_warpgroups(const Problem& problem, TilesKernel kernel, const DeviceFacts& facts) {
  if (kernel == TilesKernel::gradient_bias || facts.compute_capability != 90 ||
      !gives_delta(problem) || problem.additional_tokens() > 0 || !has_plain_queries(problem)) {
    return false;
  }
  const auto suits = [](int columns) { return columns == 64 || columns == 128; };
  return suits(problem.head_dim()) && suits(problem.head_dim_value()) &&
         (kernel != TilesKernel::gradient_all || problem.head_dim() == 128);
}

// In 3-D on any architecture warps meet tiles in part: steps are counted, of windows of few keys
// and of gradients. Others keep the shapes that were measured, by tiles.
constexpr double kFewKeys = 128.0;
bool has_few_keys(const Problem& problem) { return visible_keys(problem) <= kFewKeys; }
bool counts_steps(const Problem& problem, TilesKernel kernel, const DeviceFacts& facts) {
  if (problem.rank() < 3 || suits_warpgroups(problem, kernel, facts)) return false;
  const bool is_gradient = kernel != TilesKernel::forward && kernel != TilesKernel::gradient_bias;
  return has_few_keys(problem) ? kernel != TilesKernel::gradient_all : is_gradient;
}

// Eight warps may be faster for the rows of value that they keep, though they wait more for each
// other than four do: with 9x9x9 keys and 99 KiB they lost 15 %, with 16 and more along each axis
// they gained. Not measured where blocks of four are needed to give all multiprocessors work. Eight
// that are chosen for other reasons keep them too.
bool gains_by_kept_values(const Problem& problem, TilesKernel kernel, const DeviceFacts& facts) {
  constexpr int kOwnersOfBlock = 16 * kWarpsThatKeepValues, kFewestKeysOfAxis = 16;
  for (int a = 0; a < problem.rank(); ++a) {
    if (problem.axis(a).kernel_size < kFewestKeysOfAxis) return false;
  }
  return keeps_values(problem, kernel, kWarpsThatKeepValues) && !has_few_keys(problem) &&
         count_rows(problem).key >= static_cast<double>(facts.multiprocessors) * kOwnersOfBlock;
}

// What a warp's rows may be, and what they cost.
struct Choice {
  int rows;                // of a warp, or of a warpgroup
  std::vector<int> boxes;  // of a block: warps, or warpgroups
  double cycles_per_product, cycles_per_step, busy_warps;
};
std::vector<Choice> choices_of(const Problem& problem, TilesKernel kernel,
                               const DeviceFacts& facts) {
  if (kernel != TilesKernel::forward) {
    // Of eight warps more wait for each other: where steps are counted, 1.15 instead of 1.11 ms.
    // What adds to queries does so half as often for it; eight that keep rows of value are below.
    const bool is_four =
        counts_steps(problem, kernel, facts) && kernel != TilesKernel::gradient_all;
    const std::vector<int> warps = is_four ? std::vector<int>{4} : std::vector<int>{4, 8};
    std::vector<Choice> choices = {{16, warps, kCyclesPerProduct, kCyclesPerStep, kBusyWarps}};
    if (gains_by_kept_values(problem, kernel, facts)) {
      choices.push_back(
          {16, {kWarpsThatKeepValues}, kCyclesPerKeptProduct, kCyclesPerStep, kBusyWarps});
    }
    if (suits_warpgroups(problem, kernel, facts)) {
      // Of two, each waits while the other has tiles that it does not see: with 125 keys in 3-D one
      // alone took 0.75 of the time (benchmarks/results/h200-small-windows.json). Windows of more
      // keys, of which two share most tiles, were not measured so.
      std::vector<int> warpgroups = {2};
      if (kernel != TilesKernel::gradient_all && has_few_keys(problem)) {
        warpgroups.push_back(1);
      }
      choices.push_back({kRowsOfWarpgroup, warpgroups, kCyclesPerGroupProduct, kCyclesPerGroupStep,
                         kBusyWarpgroups});
    }
    return choices;
  }
  std::vector<Choice> choices = {
      {16, {4, 6, 8}, kCyclesPerProduct, kCyclesPerStep, kBusyForwardWarps}};
  if (problem.head_dim_value() <= kMaxSummedColumns / 2) {
    choices.push_back({32, {4, 8}, kCyclesPerWideProduct, kCyclesPerWideStep, kBusyWideWarps});
  }
  return choices;
}

}  // namespace

TilesShape choose_tiles_shape(const Problem& problem, TilesKernel kernel,
                              const DeviceFacts& facts) {
  TilesShape best;
  double least = 0.0;
  const bool of_keys = is_of_keys(kernel);
  WorkTable works(problem, of_keys, counts_steps(problem, kernel, facts));
  const double columns =
      padded_columns(problem.head_dim()) + padded_columns(problem.head_dim_value());
  const double key_columns = padded_columns(problem.head_dim());
  // Of products: those of both rows, and of sums.
  const double product_columns =
      kernel == TilesKernel::gradient_value_alone ? key_columns : columns;
  const double sum_columns = kernel == TilesKernel::forward ? 0.0  // counted above
                             : kernel == TilesKernel::gradient_all
                                 ? columns + key_columns
                                 : columns_of_sums(problem, kernel);
  const double bytes =
      columns * 2.0 + (kernel == TilesKernel::gradient_all ? key_columns * 4.0 : 0);
  const auto try_boxes = [&](const Choice& choice, int count, TilesShape shape,
                             const std::vector<std::array<int, 3>>& boxes_of_partners) {
    const double step =
        choice.cycles_per_product * (product_columns + sum_columns) / 16.0 + choice.cycles_per_step;
    const double load = shape.partners * bytes / kBytesPerCycle;
    TilesConfig config = make_tiles_config(problem, kernel, shape);
    int blocks = tiles_blocks(problem, config, kernel, facts);
    for (const auto& partner_box : boxes_of_partners) {
      shape.partner_box = partner_box;
      if (config.of_bias) {  // its shared memory depends on the differences of positions
        std::copy(partner_box.begin(), partner_box.end(), config.partner_box);
        blocks = tiles_blocks(problem, config, kernel, facts);
      }
      if (blocks == 0) continue;
      const double busy = std::min(1.0, blocks * count / choice.busy_warps);
      const double visit =
          shape.partners / 16.0 * step + kCyclesPerTile +
          (config.of_bias ? differences_of(config) / 32.0 * kCyclesPerDifferences : 0.0);
      double tiles = 1.0, warp_tiles = 1.0, longest_tiles = 1.0;
      for (size_t a = 0; a < 3; ++a) {
        const AxisWork& work = works.along(a, shape);
        tiles *= work.tiles;
        warp_tiles *= work.warp_tiles;
        longest_tiles *= work.longest_tiles;
      }
      const double visits = kWait * longest_tiles * count + (1.0 - kWait) * warp_tiles;
      const double cost = (visits * visit + tiles * load) / std::sqrt(busy);
      if (least == 0.0 || cost < least) {
        least = cost;
        best = shape;
      }
    }
  };
  const auto try_partners = [&](int partners, const std::vector<Choice>& choices) {
    const std::vector<std::array<int, 3>> boxes_of_partners =
        partner_boxes(problem, of_keys, partners);
    for (const Choice& choice : choices) {
      if (choice.rows == kRowsOfWarpgroup && partners != kMaxPartners) continue;
      for (const int count : choice.boxes) {
        for (const auto& box : whole_boxes(problem.rank(), choice.rows)) {
          for (const auto& boxes : whole_boxes(problem.rank(), count)) {
            try_boxes(choice, count, {box, boxes, {1, 1, 1}, partners}, boxes_of_partners);
          }
        }
      }
    }
  };
  for (const int partners : {kMaxPartners, kMaxPartners / 2}) {
    try_partners(partners, choices_of(problem, kernel, facts));
  }
  // Long rows where shared memory is small.
  if (best.partners == 0 && kernel != TilesKernel::gradient_all) {
    try_partners(16, {{16, {2, 4}, kCyclesPerProduct, kCyclesPerStep, kBusyWarps}});
  }
  return best;
}

}  // namespace vecina::internal::cuda
