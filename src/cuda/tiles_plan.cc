// SPDX-License-Identifier: MIT
#include "cuda/tiles_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <optional>
#include <utility>

#include "core/tensor.h"
#include "core/window.h"
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

constexpr int kStages = 2;        // of tiles in shared memory
constexpr int kMaxPartners = 64;  // of a tile: bits of a mask
constexpr int kRowsOfWarpgroup = 64;
constexpr int kMaxColumns = 256;  // whose sums fit a thread's registers
constexpr int kMaxRow = 512;      // columns; longer ones leave shared memory too few partners
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
// The same of a warp with 32 rows, whose products wait for the step before them.
constexpr double kCyclesPerWideProduct = 10.5, kCyclesPerWideStep = 200.0, kBusyWideWarps = 8.0;
// A guess: of 32 differences of positions in a tile, for which a warp adds up gradients of logits.
constexpr double kCyclesPerDifferences = 20.0;

int padded(int columns) { return static_cast<int>(divide_up(columns, 16)) * 16; }
int rows_of(const TilesConfig& config) { return config.box[0] * config.box[1] * config.box[2]; }

bool is_of_keys(TilesKernel kernel) {
  return kernel == TilesKernel::gradient_key || kernel == TilesKernel::gradient_key_alone ||
         kernel == TilesKernel::gradient_value_alone || kernel == TilesKernel::gradient_all;
}

// Delta may be grad_output . output: what rounding of output does to it is small beside that of the
// weights where a query sees many keys. 64 is a guess, and counts the window, not what the first
// queries of a causal axis see; large problems had at most 0.81 of the error that is allowed
// (benchmarks/results/h200-tiles-gradients.json and h200-tiles-fields.json).
bool gives_delta(const Problem& problem) {
  constexpr double kManyKeys = 64.0;
  const bool are_keys_known = !problem.is_attention() || problem.lengths() == VECINA_LENGTHS_EQUAL;
  return are_keys_known && visible_keys(problem) >= kManyKeys;
}

// Queries and keys are not the same tokens, or not one window.
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

// Of head_dim, in a gradient's kernel. Where delta is not given, two sums make that of query.
int part_of_key(const Problem& problem, TilesKernel kernel) {
  const bool has_two = kernel == TilesKernel::gradient_query && !gives_delta(problem);
  return part_of(problem.head_dim(), has_two ? kMaxColumns / 2 : kMaxColumns);
}

// Columns that a thread of a gradient's kernel has sums of in registers.
int columns_of_sums(const Problem& problem, TilesKernel kernel) {
  const int key = padded(problem.head_dim()), value = padded(problem.head_dim_value());
  const int part = padded(part_of_key(problem, kernel));
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

// Which of an owner's rows shall leave their registers to sums: so that nothing is spilled.
void share_rows(const Problem& problem, TilesKernel kernel, TilesConfig* config) {
  constexpr int kMaxColumnsOfRows = 160;  // of both, beside many sums
  constexpr int kMaxRegisters = 160;      // of sums and a thread's part of rows of head_dim columns
  const int key = padded(problem.head_dim()), value = padded(problem.head_dim_value());
  const int sums = columns_of_sums(problem, kernel);
  if (kernel == TilesKernel::forward) {
    config->shares_key = rows_of(*config) > 16 || key + value > 256;
    return;
  }
  const bool has_many_sums = config->of_keys || (!config->is_delta_given && !config->of_bias);
  config->shares_value = kernel != TilesKernel::gradient_value_alone && !config->of_bias &&
                         key + value > (has_many_sums ? kMaxColumnsOfRows : 256);
  const bool is_part = config->adds_key || !config->of_keys
                           ? part_of_key(problem, kernel) < problem.head_dim()
                           : false;
  config->shares_key = sums / 2 + key / 4 > kMaxRegisters || key > kMaxColumns || is_part;
}

int boxes_of(const TilesConfig& config) {
  return config.boxes[0] * config.boxes[1] * config.boxes[2];
}
// A box of 64 is a warpgroup's, whose kernels run on Hopper alone.
bool has_warpgroups(const TilesConfig& config) { return rows_of(config) == kRowsOfWarpgroup; }
int warps_of(const TilesConfig& config) {
  return boxes_of(config) * (has_warpgroups(config) ? 4 : 1);
}
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
  const int row = 2 * padded(config.head_dim) + 16,
            value_row = 2 * padded(config.head_dim_value) + 16;
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

TilesConfig make_config(const Problem& problem, TilesKernel kernel, const TilesShape& shape) {
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

int table_bytes(const TilesConfig& config) {
  constexpr int kOwnQueriesBytes = 36, kSampleBytes = sizeof(HaloParams) + 12;
  return kTableBytes + 24 * owners_of(config) + (has_own_queries(config) ? kOwnQueriesBytes : 0) +
         (config.lengths != 0 ? kSampleBytes : 0) +
         (config.has_bias ? 4 * (owners_of(config) + kMaxPartners) : 0);
}
// Registers that a thread needs, roughly: sums, rows and the rest.
int registers_of(const Problem& problem, const TilesConfig& config, TilesKernel kernel) {
  if (has_warpgroups(config)) return 255;
  const int key = padded(config.head_dim), value = padded(config.head_dim_value);
  if (kernel == TilesKernel::forward) {
    const int query = rows_of(config) == 16 && config.shares_key ? 24 : key / 4;
    return rows_of(config) / 16 * (query + value / 2 + 16) + 48;
  }
  const int sums = config.of_bias ? 32 : columns_of_sums(problem, kernel);
  return sums / 2 + (config.shares_key ? 0 : (key + value) / 4) + 64;
}
// Blocks that a multiprocessor has room for; 0 if not one.
int blocks_of(const Problem& problem, const TilesConfig& config, TilesKernel kernel,
              const DeviceFacts& facts) {
  const int shared = shared_bytes(config) + table_bytes(config) + 1024;
  const int registers =
      static_cast<int>(divide_up(std::min(registers_of(problem, config, kernel), 255), 8)) * 8;
  const int warps = 4 * (512 / registers);  // of a multiprocessor, from its four parts
  return std::min({facts.shared_bytes_per_block / shared, warps / warps_of(config), 8});
}

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

std::string print(const TilesConfig& c) {
  const auto ints = [](const int(&v)[3]) { return braces({v[0], v[1], v[2]}); };
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
      c.heads, c.head_group, c.items_of_block, ints(c.box), ints(c.boxes), ints(c.partner_box),
      c.partners, ints(c.kernel_size), ints(c.stride), ints(c.dilation), ints(c.output_stride),
      c.is_causal[0], c.is_causal[1], c.is_causal[2], c.additional_tokens, c.shares_key,
      c.shares_value, c.shared_bytes, c.blocks, c.has_grad_lse, c.has_bias, c.lengths,
      c.is_attention, c.is_delta_given, c.adds_key, c.adds_value, c.adds_queries, c.of_bias);
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
  if (std::max(problem.head_dim(), problem.head_dim_value()) > kMaxColumns) {
    return fmt::format("head_dim or head_dim_value above {}", kMaxColumns);
  }
  return {};
}

// Kernels that are given facts of queries, or add to their gradients, take no more than that.
bool has_plain_queries(const Problem& problem) {
  return !has_own_queries(problem) && !problem.has_bias() &&
         problem.lengths() == VECINA_LENGTHS_EQUAL;
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

// Windows of few keys in 3-D on any architecture, where warps meet tiles in part: their steps are
// counted. Others keep the shapes that were measured, by tiles.
constexpr double kFewKeys = 128.0;
bool counts_steps(const Problem& problem, TilesKernel kernel, const DeviceFacts& facts) {
  return problem.rank() == 3 && visible_keys(problem) <= kFewKeys &&
         kernel != TilesKernel::gradient_all && !suits_warpgroups(problem, kernel, facts);
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
    const std::vector<int> warps =
        counts_steps(problem, kernel, facts) ? std::vector<int>{4} : std::vector<int>{4, 8};
    std::vector<Choice> choices = {{16, warps, kCyclesPerProduct, kCyclesPerStep, kBusyWarps}};
    if (suits_warpgroups(problem, kernel, facts)) {
      // Of two, each waits while the other has tiles that it does not see: with 125 keys in 3-D one
      // alone took 0.75 of the time (benchmarks/results/h200-small-windows.json). Windows of more
      // keys, of which two share most tiles, were not measured so.
      std::vector<int> warpgroups = {2};
      if (kernel != TilesKernel::gradient_all && visible_keys(problem) <= kFewKeys) {
        warpgroups.push_back(1);
      }
      choices.push_back({kRowsOfWarpgroup, warpgroups, kCyclesPerGroupProduct, kCyclesPerGroupStep,
                         kBusyWarpgroups});
    }
    return choices;
  }
  std::vector<Choice> choices = {
      {16, {4, 6, 8}, kCyclesPerProduct, kCyclesPerStep, kBusyForwardWarps}};
  if (problem.head_dim_value() <= kMaxColumns / 2) {
    choices.push_back({32, {4, 8}, kCyclesPerWideProduct, kCyclesPerWideStep, kBusyWideWarps});
  }
  return choices;
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
  launch.block[0] = static_cast<uint32_t>(32 * warps_of(config));
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

TilesShape choose_tiles_shape(const Problem& problem, TilesKernel kernel,
                              const DeviceFacts& facts) {
  TilesShape best;
  double least = 0.0;
  const bool of_keys = is_of_keys(kernel);
  WorkTable works(problem, of_keys, counts_steps(problem, kernel, facts));
  const double columns = padded(problem.head_dim()) + padded(problem.head_dim_value());
  const double key_columns = padded(problem.head_dim());
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
    TilesConfig config = make_config(problem, kernel, shape);
    int blocks = blocks_of(problem, config, kernel, facts);
    for (const auto& partner_box : boxes_of_partners) {
      shape.partner_box = partner_box;
      if (config.of_bias) {  // its shared memory depends on the differences of positions
        std::copy(partner_box.begin(), partner_box.end(), config.partner_box);
        blocks = blocks_of(problem, config, kernel, facts);
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

ForwardLaunch tiles_forward_launch(const Problem& problem, const vecina_forward_args& example,
                                   const DeviceFacts& facts, const TilesShape& shape) {
  TilesConfig config = make_config(problem, TilesKernel::forward, shape);
  config.blocks = blocks_of(problem, config, TilesKernel::forward, facts);
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
  const bool is_in_parts = problem.head_dim_value() > kMaxColumns;
  return !is_taken && visible_keys(problem) < (is_in_parts ? kLeastKeysOfParts : kLeastKeys) &&
         multiply_adds(problem) < kLittleWork;
}

// The same of gradients in parts. Head_dim 512: 2,048 queries with 25 keys took 210 us instead of
// 86; 256: 16,384 with 3 keys 93 instead of 67; but 192, in fewer parts, 53 instead of 66 with 25
// keys (same file). That of the bias is slow by row.
bool are_gradients_faster_by_row(const Problem& problem) {
  constexpr double kLittleWork = 1 << 26, kLeastKeys = 96.0;  // guesses
  const bool has_many_parts =
      std::max(problem.head_dim(), problem.head_dim_value()) > kMaxColumns ||
      (problem.head_dim() > kMaxColumns / 2 && visible_keys(problem) < kMinTensorCoreKeys);
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
  for_value_parts(problem, example, kMaxColumns,
                  [&](const Problem& part, const vecina_forward_args& args, int first) {
                    const TilesShape shape = choose_tiles_shape(part, TilesKernel::forward, facts);
                    if (shape.partners == 0) why = "rows that shared memory cannot hold";
                    if (!why.empty()) return;
                    parts.push_back(tiles_forward_launch(part, args, facts, shape));
                    fill_of_value_columns(part, first, &parts.back());
                  });
  if (why.empty()) std::move(parts.begin(), parts.end(), std::back_inserter(*launches));
  return why;
}

BackwardLaunch tiles_gradient_launch(const Problem& problem, TilesKernel kernel,
                                     const vecina_backward_args& example, const DeviceFacts& facts,
                                     const TilesShape& shape, int first_column) {
  TilesConfig config = make_config(problem, kernel, shape);
  config.first_column = first_column;
  config.end_column = std::min(first_column + part_of_key(problem, kernel), problem.head_dim());
  config.blocks = blocks_of(problem, config, kernel, facts);
  config.has_grad_lse = given(example.grad_lse);
  const char* file = has_warpgroups(config) ? "hopper_gradient"
                     : config.of_keys       ? "tiles_gradient_key"
                     : config.of_bias       ? "tiles_gradient_bias"
                                            : "tiles_gradient_query";
  BackwardLaunch launch = make_launch(problem, example, file, file, config, facts);
  // What a launch does not add up is not its own to store either.
  if (config.of_keys && !(config.adds_key && config.adds_value)) {
    launch.fill = [fill = std::move(launch.fill), config](const vecina_backward_args& args,
                                                          void* memory) -> Status {
      vecina_backward_args own = args;
      if (!config.adds_key) own.grad_key = {};
      if (!config.adds_value) own.grad_value = {};
      return fill(own, memory);
    };
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
  TilesConfig config = make_config(problem, TilesKernel::gradient_query, shape);
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
         static_cast<size_t>(padded(problem.head_dim())) * sizeof(float);
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
  if (columns_of_sums(problem, TilesKernel::gradient_key) <= kMaxColumns) {
    if (is_of_key) add(problem, TilesKernel::gradient_key, example, true);
  } else {
    if (given(example.grad_key)) add(problem, TilesKernel::gradient_key_alone, example, true);
    if (given(example.grad_value)) {
      for_value_parts(problem, example, kMaxColumns,
                      [&](const Problem& part, const vecina_backward_args& args, int first) {
                        add(part, TilesKernel::gradient_value_alone, args, false);
                        if (has_shapes) fill_of_value_columns(part, first, &found.back());
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
