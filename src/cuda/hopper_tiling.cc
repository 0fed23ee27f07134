// SPDX-License-Identifier: MIT
#include "cuda/hopper_tiling.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "core/window.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::hopper_layout;
using vecina::cuda::kHopperRows;

constexpr int kMaxBox = 256;  // tokens that a copy may span along an axis
constexpr int kMaxStages = 4;
constexpr int kMaxTileKeys = 192;
constexpr int kMinTileKeys = 48;
constexpr int kMaxPaddedKeys = 8;  // of a tile
constexpr int kMinQueries = 48;    // of a box, where the problem has as many
constexpr size_t kMaxQueryBoxes = 12;
// Registers for sums, logits and weights that compile without spills; tests look.
constexpr int kMaxSums = 196, kMaxSumsOfThree = 128;
// Below, warpgroups that take turns wait more than they gain (measured on an H200).
constexpr double kPingPongTiles = 10.0;

int divide_up(int n, int d) { return (n + d - 1) / d; }

// Keys from a block's first on: those that some query of a box sees, and those that all see.
struct Seen {
  int begin, end;
  int whole_begin, whole_end;
  friend bool operator==(const Seen&, const Seen&) = default;
};
// Blocks along one axis that are alike: what each warpgroup sees (one, but on the pair axis).
struct BlockKind {
  std::vector<Seen> warpgroups;  // without those that have no queries
  double blocks = 0;
};

struct AxisSums {
  double blocks = 0, tiles = 0, whole = 0, loaded = 0, warpgroups = 0;
};

// One axis, cut into boxes of `box` queries, `warpgroups` to a block.
std::vector<BlockKind> block_kinds(const Axis& axis, int box, int warpgroups) {
  std::vector<BlockKind> kinds;
  const auto dilation = static_cast<int>(axis.dilation);
  const int shortest = static_cast<int>(axis.extent) / dilation;
  for (int extent = shortest; extent <= shortest + 1; ++extent) {
    const int longer = static_cast<int>(axis.extent) % dilation;
    const int groups = extent == shortest ? dilation - longer : longer;
    if (groups == 0) continue;
    const int queries = dilation > 1 ? extent : static_cast<int>(axis.num_queries());
    const NaAxis dense = {extent, static_cast<int>(axis.kernel_size),
                          static_cast<int>(axis.stride), axis.is_causal};
    const auto window = [&](int query) {
      const int i =
          na_query_to_axis(std::min(query, queries - 1), static_cast<int>(axis.output_stride));
      return std::pair{na_window_begin(dense, i), std::min(na_window_end(dense, i), extent)};
    };
    for (int first = 0; first < queries; first += box * warpgroups) {
      const int origin = window(first).first;
      BlockKind kind;
      for (int w = 0; w < warpgroups && first + w * box < queries; ++w) {
        const auto low = window(first + w * box), high = window(first + (w + 1) * box - 1);
        kind.warpgroups.push_back({low.first - origin, high.second - origin, high.first - origin,
                                   low.second - origin});
      }
      if (kinds.empty() || kinds.back().warpgroups != kind.warpgroups) kinds.push_back(kind);
      kinds.back().blocks += groups;
    }
  }
  return kinds;
}

AxisSums sum_kinds(const std::vector<BlockKind>& kinds, int key_box) {
  AxisSums sums;
  for (const BlockKind& kind : kinds) {
    int loaded = 0;
    for (const Seen& seen : kind.warpgroups) {
      const int last = (seen.end - 1) / key_box;
      loaded = last + 1;
      sums.tiles += kind.blocks * (last - seen.begin / key_box + 1);
      sums.whole += kind.blocks * std::max(0, seen.whole_end / key_box -
                                                  divide_up(seen.whole_begin, key_box));
      sums.warpgroups += kind.blocks;
    }
    sums.loaded += kind.blocks * loaded;
    sums.blocks += kind.blocks;
  }
  return sums;
}

HopperWork work_of(const Problem& problem, const HopperConfig& config,
                   const std::array<AxisSums, 3>& sums) {
  const HopperLayout layout = hopper_layout(config);
  const double heads = static_cast<double>(problem.batch()) * problem.heads();
  const auto product = [&](double AxisSums::*member) {
    return heads * sums[0].*member * sums[1].*member * sums[2].*member;
  };
  const int additional_tiles =
      divide_up(static_cast<int>(problem.additional_tokens()), layout.key_rows);
  HopperWork work;
  work.blocks = product(&AxisSums::blocks);
  work.tiles = product(&AxisSums::tiles) + additional_tiles * product(&AxisSums::warpgroups);
  work.whole_tiles = layout.key_rows == layout.tile_keys ? product(&AxisSums::whole) : 0.0;
  work.loaded_tiles = product(&AxisSums::loaded) + additional_tiles * work.blocks;
  work.flops = work.tiles * 2.0 * kHopperRows * layout.tile_keys *
               (problem.head_dim() + problem.head_dim_value());
  work.useful_share = work.flops > 0 ? problem.forward_flops() / work.flops : 0.0;
  return work;
}

// Everything of the configuration that does not depend on the cut.
HopperConfig base_config(const Problem& problem) {
  HopperConfig config = {};
  config.dtype = problem.dtype();
  config.rank = problem.rank();
  config.head_dim = problem.head_dim();
  config.head_dim_value = problem.head_dim_value();
  for (int a = 0; a < 3; ++a) {
    const Axis axis = hopper_axis(problem, a);
    config.is_causal = config.is_causal || axis.is_causal;
    config.is_strided = config.is_strided || axis.stride > 1;
    config.is_dilated = config.is_dilated || axis.dilation > 1;
    config.query_box[a] = config.key_box[a] = 1;
  }
  config.has_additional = problem.additional_tokens() > 0;
  return config;
}

// Stages and output buffer that fit: the buffer first, if two stages remain. False: nothing does.
bool fit_memory(const DeviceFacts& facts, HopperConfig* config) {
  for (const bool has_buffer : {true, false}) {
    config->has_output_buffer = has_buffer;
    for (config->stages = kMaxStages; config->stages >= 2; --config->stages) {
      if (hopper_layout(*config).bytes <= facts.shared_bytes_per_block) return true;
    }
  }
  return false;
}

bool fits_registers(const HopperConfig& config) {
  const int sums = hopper_layout(config).tile_keys * 3 / 4 + config.head_dim_value / 2;
  return sums <= (config.warpgroups == 3 ? kMaxSumsOfThree : kMaxSums);
}

// Boxes of tokens, outermost axis first, with at least `least` and at most `most` of them, no
// longer along an axis than `longest`.
void add_boxes(int a, int least, int most, const std::array<int, 3>& longest,
               std::array<int, 3> box, std::vector<std::array<int, 3>>* boxes) {
  if (a == 3) {
    if (box[0] * box[1] * box[2] >= least) boxes->push_back(box);
    return;
  }
  const auto i = static_cast<size_t>(a);
  for (int size = 1; size <= std::min(most, longest[i]); ++size) {
    box[i] = size;
    add_boxes(a + 1, least, most / size, longest, box, boxes);
  }
}

class Search {
 public:
  Search(const Problem& problem, const DeviceFacts& facts) : problem_(problem), facts_(facts) {
    for (int a = 0; a < 3; ++a) axes_[static_cast<size_t>(a)] = hopper_axis(problem, a);
  }

  HopperChoice run() {
    const bool may_have_three = problem_.head_dim() <= 64 && problem_.head_dim_value() <= 64;
    const std::vector<std::array<int, 3>> key_boxes = list_key_boxes();
    for (const auto& query_box : list_query_boxes()) {
      for (int warpgroups = 2; warpgroups <= (may_have_three ? 3 : 2); ++warpgroups) {
        for (int pair_axis = 3 - problem_.rank(); pair_axis < 3; ++pair_axis) {
          for (const auto& key_box : key_boxes) {
            consider(query_box, key_box, warpgroups, pair_axis);
          }
        }
      }
    }
    return best_;
  }

 private:
  // Those that see the fewest keys for their number of queries.
  std::vector<std::array<int, 3>> list_query_boxes() {
    std::array<int, 3> longest = {};
    double all = 1.0;
    for (size_t a = 0; a < 3; ++a) {
      const Axis& axis = axes_[a];
      const int64_t queries = divide_up(static_cast<int>(axis.num_queries()),
                                        static_cast<int>(axis.dilation));
      const int64_t step = std::max(axis.dilation, axis.output_stride);
      longest[a] = static_cast<int>(std::min(queries, kMaxBox / step));
      all *= longest[a];
    }
    std::vector<std::array<int, 3>> boxes;
    const int least = all < kMinQueries ? 1 : kMinQueries;
    add_boxes(0, least, kHopperRows, longest, {1, 1, 1}, &boxes);
    const auto keys = [&](const std::array<int, 3>& box) {
      double seen = 1.0;
      for (size_t a = 0; a < 3; ++a) seen *= sums(a, box[a], 1, 1).tiles;
      return seen;
    };
    std::vector<std::pair<double, std::array<int, 3>>> ranked;
    for (const auto& box : boxes) ranked.emplace_back(keys(box), box);
    std::sort(ranked.begin(), ranked.end());
    if (ranked.size() > kMaxQueryBoxes) ranked.resize(kMaxQueryBoxes);
    boxes.clear();
    for (const auto& [seen, box] : ranked) boxes.push_back(box);
    return boxes;
  }

  std::vector<std::array<int, 3>> list_key_boxes() const {
    std::array<int, 3> longest = {};
    for (size_t a = 0; a < 3; ++a) {
      const Axis& axis = axes_[a];
      const int64_t extent =
          divide_up(static_cast<int>(axis.extent), static_cast<int>(axis.dilation));
      longest[a] = static_cast<int>(std::min(extent, kMaxBox / axis.dilation));
    }
    std::vector<std::array<int, 3>> boxes, kept;
    add_boxes(0, 1, kMaxTileKeys, longest, {1, 1, 1}, &boxes);
    int most = 0;
    for (const auto& box : boxes) most = std::max(most, box[0] * box[1] * box[2]);
    const int least = std::min(kMinTileKeys, most);
    for (const auto& box : boxes) {
      const int keys = box[0] * box[1] * box[2];
      const int padding = vecina::cuda::hopper_round_up(keys, 16) - keys;
      if (keys >= least && (padding <= kMaxPaddedKeys || keys == most)) kept.push_back(box);
    }
    return kept;
  }

  void consider(const std::array<int, 3>& query_box, const std::array<int, 3>& key_box,
                int warpgroups, int pair_axis) {
    HopperConfig config = base_config(problem_);
    config.warpgroups = warpgroups;
    config.pair_axis = pair_axis;
    std::array<AxisSums, 3> axis_sums;
    for (size_t a = 0; a < 3; ++a) {
      config.query_box[a] = query_box[a];
      config.key_box[a] = key_box[a];
      axis_sums[a] =
          sums(a, query_box[a], static_cast<int>(a) == pair_axis ? warpgroups : 1, key_box[a]);
    }
    if (!fits_registers(config)) return;
    const HopperWork work = work_of(problem_, config, axis_sums);
    config.is_ping_pong = work.tiles >= kPingPongTiles * work.blocks * warpgroups;
    const double ms = predict_hopper_ms(problem_, config, work, facts_);
    if (best_.predicted_ms > 0 && ms >= best_.predicted_ms) return;
    if (!fit_memory(facts_, &config)) return;
    best_ = {config, work, ms};
  }

  AxisSums sums(size_t a, int box, int warpgroups, int key_box) {
    std::vector<AxisSums>& of_box = sums_[a][static_cast<size_t>(box)][static_cast<size_t>(warpgroups)];
    std::vector<BlockKind>& kinds = kinds_[a][static_cast<size_t>(box)][static_cast<size_t>(warpgroups)];
    if (kinds.empty()) kinds = block_kinds(axes_[a], box, warpgroups);
    if (of_box.size() <= static_cast<size_t>(key_box)) {
      of_box.resize(static_cast<size_t>(key_box) + 1);
    }
    AxisSums& sums = of_box[static_cast<size_t>(key_box)];
    if (sums.blocks == 0) sums = sum_kinds(kinds, key_box);
    return sums;
  }

  const Problem& problem_;
  const DeviceFacts& facts_;
  std::array<Axis, 3> axes_;
  template <typename T>
  using ByBox = std::array<std::array<std::array<T, 4>, kHopperRows + 1>, 3>;  // axis, box, groups
  ByBox<std::vector<AxisSums>> sums_;
  ByBox<std::vector<BlockKind>> kinds_;
  HopperChoice best_;
};

}  // namespace

Axis hopper_axis(const Problem& problem, int a) {
  const int axis = a - (3 - problem.rank());
  return axis < 0 ? Axis() : problem.axis(axis);
}

HopperWork count_hopper_work(const Problem& problem, const HopperConfig& config) {
  std::array<AxisSums, 3> sums;
  for (int a = 0; a < 3; ++a) {
    sums[static_cast<size_t>(a)] =
        sum_kinds(block_kinds(hopper_axis(problem, a), config.query_box[a],
                              a == config.pair_axis ? config.warpgroups : 1),
                  config.key_box[a]);
  }
  return work_of(problem, config, sums);
}

double predict_hopper_ms(const Problem& problem, const HopperConfig& config,
                         const HopperWork& work, const DeviceFacts& facts) {
  const HopperLayout layout = hopper_layout(config);
  // Cycles of a multiprocessor, fitted to measurements on an H200 (benchmarks/hopper.md).
  const double columns = problem.head_dim() + problem.head_dim_value();
  const double product = 2.0 * kHopperRows * layout.tile_keys * columns / 4096.0;
  const double tile = product + 0.9 * layout.tile_keys + 100.0;
  const double masked = 0.8 * layout.tile_keys;
  const double cycles = work.tiles * tile + (work.tiles - work.whole_tiles) * masked +
                        work.blocks * 1000.0;
  const double per_block = cycles / work.blocks;
  const double rounds = std::ceil(work.blocks / facts.multiprocessors);
  constexpr double kCyclesPerMs = 1.6e6;
  return 0.003 + rounds * per_block / kCyclesPerMs;
}

HopperChoice choose_hopper_tiling(const Problem& problem, const DeviceFacts& facts) {
  return Search(problem, facts).run();
}

}  // namespace vecina::internal::cuda
