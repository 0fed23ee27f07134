// SPDX-License-Identifier: MIT
#include "cuda/hopper_tiling.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "core/window.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::hopper_columns;
using vecina::cuda::hopper_layout;
using vecina::cuda::hopper_round_up;
using vecina::cuda::kHopperDepth;
using vecina::cuda::kHopperRows;

constexpr int kMaxBox = 256;  // tokens that a copy may span along an axis
constexpr int kMinStages = 2, kMaxStages = 4;
constexpr int kMaxTileKeys = 192;
constexpr int kMinTileKeys = 48;
constexpr int kMaxPaddedKeys = 12;  // of a tile
constexpr int kMinQueries = 48;     // of a box, where the problem has as many
constexpr size_t kMaxQueryBoxes = 12;
// Registers for sums, logits and weights that compile without spills; tests look.
constexpr int kMaxSums = 196, kMaxSumsWithThreeAxes = 184, kMaxSumsOfThree = 128;
// hopper_registers leaves the warp that makes masks too few for padded tiles beyond.
constexpr int kMaxSumsOfPadded = 190;
constexpr int kMaxSumsOfThreeWithPlaces = 112;  // output goes to more than one place
constexpr int kMaxSumsOfChainedWithThreeAxes = 172;
constexpr int kStoredColumns = 32;  // that four lanes store from registers
// Of a warpgroup and box of queries. Below, warpgroups that take turns wait more than they gain
// (measured on an H200).
constexpr double kManyTiles = 10.0;
// Above, two stages and a buffer for output are slower than none, unless blocks are chained.
constexpr double kOutputBufferTiles = 50.0;
// Of the work on tiles: short ones that save less are not worth their code.
constexpr double kLeastSaved = 0.005;
// Of a warpgroup and box of queries, of which the last may be short.
constexpr double kLeastTilesWithShort = 5.0;
constexpr int kPackedTokens = 8;  // rows of the pattern in which shared memory is swizzled

// The cost model: cycles of a multiprocessor, fitted by least squares of relative errors to
// steady-state times on an H200 (docs/hopper.md says how to fit it again).
constexpr double kFlopsPerCycle = 4096.0;  // what the tensor cores do at most
constexpr double kProductCycles = 1.142;
constexpr double kProductCyclesOfKeptShifts = 1.015;  // maxima are not in the way of products
// Of a product in e4m3, as a share of one in 16 bits: half the cycles at the peak, but the clock
// follows the power (set by hand to five problems measured on an H200).
constexpr double kE4m3Cycles = 0.6;
// Two warpgroups hide less of the softmax beside short products.
constexpr double kCyclesPerKeyOfThree = 0.106, kCyclesPerKeyOfNarrowHead = 0.63;
constexpr double kCyclesPerKeyOfWideTile = 1.28;  // beyond kWideTile
constexpr double kCyclesPerMaskedKey = 1.062;
constexpr double kCyclesPerTile = 303.0;
constexpr double kCyclesPerBlock = 2576.0, kCyclesPerDilatedBlock = 4562.0;
// Of a block that is chained, where output leaves beside the next queries' products.
constexpr double kCyclesHidden = 1500.0, kCyclesHiddenOfFewTiles = 500.0;
constexpr double kCyclesPerRow = 5.0;       // of a loaded tile: keys side by side along axis 2
constexpr double kCyclesPerFirstKey = 4.0;  // of a block with too few tiles to hide the first
constexpr double kCyclesPerWait = 874.0;    // for queries, if their memory is not free early
constexpr double kCyclesPerMs = 1.6e6;
constexpr double kLaunchMs = 0.003;
constexpr double kPaddingMs = 0.0015;  // where rows without a query are zeros, written first
constexpr int kNarrowHead = 64, kWideTile = 128;
constexpr double kFewTiles = 4.0;

int divide_up(int n, int d) { return (n + d - 1) / d; }

// Keys from a block's first on: those that some query of a box sees, and those that all see.
struct Seen {
  int begin, end;
  int whole_begin, whole_end;
  friend bool operator==(const Seen&, const Seen&) = default;
};
// Blocks along one axis that are alike: what each warpgroup sees (one, but on the pair axis).
struct BlockKind {
  std::array<Seen, 3> seen = {};
  size_t count = 0;  // without those that have no queries
  double blocks = 0;

  std::span<const Seen> warpgroups() const { return {seen.data(), count}; }
  bool is_like(const BlockKind& other) const { return count == other.count && seen == other.seen; }
};

struct AxisSums {
  double blocks = 0, tiles = 0, whole = 0, loaded = 0, warpgroups = 0;
  int short_rows = 0;      // as of HopperConfig, were this the pair axis
  double short_tiles = 0;  // of `tiles`
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
    const NaAxis dense = {extent, static_cast<int>(axis.kernel_size), static_cast<int>(axis.stride),
                          axis.is_causal};
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
        kind.seen[kind.count++] = {low.first - origin, high.second - origin, high.first - origin,
                                   low.second - origin};
      }
      if (kinds.empty() || !kinds.back().is_like(kind)) kinds.push_back(kind);
      kinds.back().blocks += groups;
    }
  }
  return kinds;
}

// A warpgroup's rows of its last tile; 0: that is its first, which is computed as a whole.
int last_rows(const Seen& seen, int key_box) {
  const int last = (seen.end - 1) / key_box;
  return last > seen.begin / key_box ? seen.end - last * key_box : 0;
}

// As many rows of short tiles as leave out most.
int best_short_rows(const std::vector<BlockKind>& kinds, int key_box) {
  std::array<double, kMaxTileKeys + 1> tiles;  // with so many rows
  std::array<int, kMaxTileKeys + 1> found;     // rows of some tiles
  std::fill_n(tiles.begin(), key_box + 1, 0.0);
  int count = 0;
  for (const BlockKind& kind : kinds) {
    for (const Seen& seen : kind.warpgroups()) {
      const int rows = last_rows(seen, key_box);
      if (rows == 0) continue;
      double& of_rows = tiles[static_cast<size_t>(rows)];
      if (of_rows == 0) found[static_cast<size_t>(count++)] = rows;
      of_rows += kind.blocks;
    }
  }
  std::sort(found.begin(), found.begin() + count);
  int best = 0;
  double most = 0, up_to = 0;
  for (int i = 0; i < count; ++i) {
    const int rows = found[static_cast<size_t>(i)];
    up_to += tiles[static_cast<size_t>(rows)];
    if (up_to * (key_box - rows) > most) {
      most = up_to * (key_box - rows);
      best = rows;
    }
  }
  return best;
}

AxisSums sum_kinds(const std::vector<BlockKind>& kinds, int key_box, int short_rows) {
  AxisSums sums;
  sums.short_rows = short_rows;
  for (const BlockKind& kind : kinds) {
    int loaded = 0;
    for (const Seen& seen : kind.warpgroups()) {
      const int last = (seen.end - 1) / key_box;
      loaded = last + 1;
      sums.tiles += kind.blocks * (last - seen.begin / key_box + 1);
      sums.whole += kind.blocks *
                    std::max(0, seen.whole_end / key_box - divide_up(seen.whole_begin, key_box));
      sums.warpgroups += kind.blocks;
      const int rows = last_rows(seen, key_box);
      if (rows > 0 && rows <= short_rows) sums.short_tiles += kind.blocks;
    }
    sums.loaded += kind.blocks * loaded;
    sums.blocks += kind.blocks;
  }
  return sums;
}

int tile_keys(const HopperConfig& config) {
  return config.key_box[0] * config.key_box[1] * config.key_box[2];
}
int short_keys(const HopperConfig& config, int short_rows) {
  return tile_keys(config) / config.key_box[config.pair_axis] * short_rows;
}

// Of a warpgroup's products with `keys` of a tile.
double tile_flops(const HopperConfig& config, int keys) {
  return 2.0 * kHopperRows *
         (hopper_columns(config, keys) * config.head_dim +
          hopper_round_up(keys, kHopperDepth) * config.head_dim_value);
}

HopperWork work_of(const Problem& problem, const HopperConfig& config,
                   const std::array<AxisSums, 3>& sums) {
  const int keys = tile_keys(config), few_keys = short_keys(config, config.short_rows);
  const double packs = static_cast<double>(problem.batch()) * problem.heads() / config.packed_heads;
  const auto product = [&](double AxisSums::*member) {
    return packs * sums[0].*member * sums[1].*member * sums[2].*member;
  };
  HopperWork work;
  work.launches = static_cast<double>(count_hopper_launches(problem));
  work.blocks = product(&AxisSums::blocks);
  work.tiles = product(&AxisSums::tiles);
  work.whole_tiles = hopper_columns(config, keys) == keys ? product(&AxisSums::whole) : 0.0;
  work.loaded_tiles = product(&AxisSums::loaded);
  if (config.short_rows > 0) {
    const AxisSums& pair = sums[static_cast<size_t>(config.pair_axis)];
    work.short_tiles = work.tiles / pair.tiles * pair.short_tiles;
  }
  if (config.has_additional) {
    const int tiles = divide_up(static_cast<int>(problem.additional_tokens()), keys);
    work.tiles += tiles * product(&AxisSums::warpgroups);
    work.loaded_tiles += tiles * work.blocks;
  }
  work.flops = (work.tiles - work.short_tiles) * tile_flops(config, keys) +
               work.short_tiles * tile_flops(config, few_keys);
  return work;
}

int count_sums(const HopperConfig& config) {
  return hopper_layout(config).tile_keys * 3 / 4 + config.head_dim_value / 2;
}

// Registers leave room for what is chained.
bool may_chain(const HopperConfig& config) {
  return !config.has_additional && config.packed_heads == 1 && config.head_dim_value <= 128 &&
         config.head_dim_value % kStoredColumns == 0 &&
         (config.rank < 3 || count_sums(config) <= kMaxSumsOfChainedWithThreeAxes);
}

// Only a tile's first rows can be multiplied alone. Measured on an H200 in steady state, with keys
// in steps of eight: up to 7% less time with two and three axes, of which short tiles are a part; 2
// to 10% more with few tiles, 2 to 3% more with one axis. With additional tokens, shared heads and
// wide values registers may be short. `work` is without short tiles.
int useful_short_rows(const HopperConfig& config, const HopperWork& work, const AxisSums& pair) {
  // ptxas serializes the products of some padded tiles in 2-D whose blocks are not chained.
  const bool may_serialize = config.rank == 2 && !may_chain(config) &&
                             hopper_round_up(tile_keys(config), kHopperDepth) != tile_keys(config);
  if (config.rank == 1 || pair.short_tiles == 0 || config.has_additional ||
      config.packed_heads > 1 || config.head_dim_value > 128 || may_serialize ||
      work.tiles < kLeastTilesWithShort * work.blocks * config.warpgroups) {
    return 0;
  }
  for (int a = 0; a < config.pair_axis; ++a) {
    if (config.key_box[a] > 1) return 0;
  }
  const double whole = tile_flops(config, tile_keys(config));
  const double few = tile_flops(config, short_keys(config, pair.short_rows));
  const double saved = pair.short_tiles * (whole - few);
  return saved >= kLeastSaved * pair.tiles * whole ? pair.short_rows : 0;
}

// Of softmax that nothing hides, for a tile.
double softmax_cycles(const HopperConfig& config, double keys) {
  if (config.warpgroups == 3) return kCyclesPerKeyOfThree * keys;
  return (config.head_dim <= kNarrowHead ? kCyclesPerKeyOfNarrowHead * keys : 0.0) +
         kCyclesPerKeyOfWideTile * std::max(0.0, keys - kWideTile);
}

bool hides_output(const HopperConfig& config) {
  return config.is_chained && (config.has_output_buffer || config.warpgroups == 3);
}

bool has_empty_rows(const HopperConfig& config) {
  return config.query_box[0] * config.query_box[1] * config.query_box[2] * config.packed_heads <
         kHopperRows;
}

double product_cycles(const HopperConfig& config) {
  return config.keeps_shift ? kProductCyclesOfKeptShifts : kProductCycles;
}

double predict(const HopperConfig& config, const HopperWork& work, const DeviceFacts& facts) {
  const int tile_rows = tile_keys(config);
  const double keys = hopper_columns(config, tile_rows);
  const bool is_e4m3 = config.query_key_dtype != config.dtype;
  const auto products = [&](int multiplied) {
    const double columns = config.head_dim * (is_e4m3 ? kE4m3Cycles : 1.0);
    return 2.0 * kHopperRows / kFlopsPerCycle *
           (hopper_columns(config, multiplied) * columns +
            hopper_round_up(multiplied, kHopperDepth) * config.head_dim_value);
  };
  const double tiles = work.tiles / (work.blocks * config.warpgroups);
  const double hidden = tiles < kManyTiles ? kCyclesHiddenOfFewTiles : kCyclesHidden;
  const auto tile = [&](int multiplied) {
    return product_cycles(config) * products(multiplied) +
           softmax_cycles(config, hopper_columns(config, multiplied)) + kCyclesPerTile;
  };
  const double block = (config.is_dilated ? kCyclesPerDilatedBlock : kCyclesPerBlock) +
                       (tiles < kFewTiles ? kCyclesPerFirstKey * keys : 0.0) -
                       (hides_output(config) ? hidden : 0.0) +
                       (hopper_frees_query_early(config) ? 0.0 : kCyclesPerWait);
  const double cycles = (work.tiles - work.short_tiles) * tile(tile_rows) +
                        work.short_tiles * tile(short_keys(config, config.short_rows)) +
                        work.blocks * block +
                        (work.tiles - work.whole_tiles) * kCyclesPerMaskedKey * keys +
                        work.loaded_tiles * kCyclesPerRow * config.key_box[0] * config.key_box[1];
  const double rounds =
      work.launches * std::ceil(work.blocks / work.launches / facts.multiprocessors);
  const double launch = kLaunchMs + (has_empty_rows(config) ? kPaddingMs : 0.0);
  return work.launches * launch + rounds * cycles / work.blocks / kCyclesPerMs;
}

// No cut of this problem takes less that has so many blocks, tiles of so many keys, and products of
// this share of them. Far quicker than to predict.
double least_ms(const HopperConfig& config, double blocks, double tiles, double share, double keys,
                const DeviceFacts& facts) {
  const double columns =
      config.head_dim * (config.query_key_dtype != config.dtype ? kE4m3Cycles : 1.0) +
      config.head_dim_value;
  const double product = 2.0 * kHopperRows * keys * columns / kFlopsPerCycle;
  const double cycles = tiles * (product_cycles(config) * product * share + kCyclesPerTile) +
                        blocks * (kCyclesPerBlock - kCyclesHidden);
  return cycles / facts.multiprocessors / kCyclesPerMs;
}

int padded_head_dim(const Problem& problem) {
  return vecina::cuda::hopper_padded(problem.head_dim(),
                                     static_cast<int>(dtype_bytes(problem.query_key_dtype())));
}
int padded_head_dim_value(const Problem& problem) {
  return vecina::cuda::hopper_padded(problem.head_dim_value(), vecina::cuda::kHopperValueBytes);
}

// Whether logits have registers until it is sure that the shift may stay. Not with wide values, nor
// with a scale for each row of e4m3. Measured on an H200 in steady state: in 3-D with more than 64
// columns of values maxima first take 2 to 7% less time, but for strided windows and shared heads,
// which with kept shifts take 3 to 6% less, as do, on the whole, all others.
bool keeps_shift(const Problem& problem, const HopperConfig& config) {
  const bool is_slower = config.rank == 3 && config.head_dim_value > 64 && !config.is_strided &&
                         problem.heads() == problem.heads_kv();
  return config.head_dim_value <= 128 && !problem.has_e4m3() && !is_slower;
}

// Everything of the configuration that does not depend on the cut.
HopperConfig base_config(const Problem& problem) {
  HopperConfig config = {};
  config.dtype = problem.dtype();
  config.query_key_dtype = problem.query_key_dtype();
  config.rank = problem.rank();
  config.head_dim = padded_head_dim(problem);
  config.head_dim_value = padded_head_dim_value(problem);
  config.output_columns = problem.head_dim_value();
  config.has_heads_for_batch = has_heads_for_batch(problem);
  config.packed_heads = 1;
  for (int a = 0; a < 3; ++a) {
    const Axis axis = hopper_axis(problem, a);
    config.is_causal = config.is_causal || axis.is_causal;
    config.is_strided = config.is_strided || axis.stride > 1;
    config.is_dilated = config.is_dilated || axis.dilation > 1;
    config.query_box[a] = config.key_box[a] = 1;
  }
  config.has_additional = problem.additional_tokens() > 0;
  config.keeps_shift = keeps_shift(problem, config);
  return config;
}

// As many stages as fit; false: fewer than `least` do.
bool fit_stages(const DeviceFacts& facts, int least, HopperConfig* config) {
  for (config->stages = kMaxStages; config->stages >= least; --config->stages) {
    if (hopper_layout(*config).bytes <= facts.shared_bytes_per_block) return true;
  }
  return false;
}

// How output leaves, and stages that fit: through a buffer, if there is room, else from registers.
// Measured on an H200 in steady state: chaining gains 5 to 7% for many tiles at head_dim 64, 1% at
// 128, 1 to 4% for few. In 1-D and 2-D three warpgroups with many tiles are up to 1.5% faster from
// registers. In 1-D, where few tiles have a mask, two with a buffer and no wide tiles are 1.5 to 3%
// faster without turns. `tiles` of keys for a warpgroup and box of queries. False: nothing fits.
bool fit_memory(const DeviceFacts& facts, double tiles, HopperConfig* config) {
  const bool has_many = tiles >= kManyTiles;
  const bool is_narrow = config->warpgroups == 3 && config->rank < 3;
  const bool is_even =
      config->warpgroups == 2 && config->rank == 1 && hopper_layout(*config).tile_keys <= kWideTile;
  config->is_chained = may_chain(*config);
  for (const bool has_buffer : {true, false}) {
    if (has_buffer && config->is_chained && has_many && is_narrow) continue;
    config->has_output_buffer = has_buffer;
    config->is_ping_pong = has_many && !(has_buffer && is_even);
    const bool needs_three = has_buffer && !config->is_chained && tiles >= kOutputBufferTiles;
    if (fit_stages(facts, needs_three ? 3 : kMinStages, config)) return true;
  }
  return false;
}

bool fits_registers(const HopperConfig& config) {
  const int sums = count_sums(config);
  if (config.warpgroups == 2) {
    const vecina::cuda::HopperLayout layout = hopper_layout(config);
    const bool is_padded = layout.key_rows < layout.tile_keys;
    return sums <= (config.rank == 3 ? kMaxSumsWithThreeAxes
                    : is_padded      ? kMaxSumsOfPadded
                                     : kMaxSums);
  }
  return sums <= (config.is_dilated || config.packed_heads > 1 ? kMaxSumsOfThreeWithPlaces
                                                               : kMaxSumsOfThree);
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

// How many query heads of a key head share a box: as many as leave room for 8 tokens of each, if
// few rows stay empty.
int most_packed_heads(int head_group) {
  for (int heads = kHopperRows / kPackedTokens; heads > 1; --heads) {
    const int tokens = kHopperRows / heads / kPackedTokens * kPackedTokens;
    if (head_group % heads == 0 && tokens * heads >= kMinQueries) return heads;
  }
  return 1;
}

void add_useful_share(const Problem& problem, HopperWork* work) {
  work->useful_share = work->flops > 0 ? problem.forward_flops() / work->flops : 0.0;
}

class Search {
 public:
  Search(const Problem& problem, const DeviceFacts& facts)
      : problem_(problem), facts_(facts), base_(base_config(problem)) {
    for (int a = 0; a < 3; ++a) axes_[static_cast<size_t>(a)] = hopper_axis(problem, a);
  }

  // The `count` best, best first; of equals those that were tried first.
  std::vector<HopperChoice> run(size_t count) {
    count_ = count;
    const int widest = std::max(problem_.head_dim(), problem_.head_dim_value());
    const bool may_have_three = widest <= (problem_.rank() == 1 ? 2 * kNarrowHead : kNarrowHead);
    const std::vector<Box> key_boxes = list_key_boxes();
    base_.packed_heads = most_packed_heads(problem_.head_group());
    for (const Box& query_box : list_query_boxes()) {
      for (base_.warpgroups = 2; base_.warpgroups <= (may_have_three ? 3 : 2); ++base_.warpgroups) {
        for (base_.pair_axis = 3 - problem_.rank(); base_.pair_axis < 3; ++base_.pair_axis) {
          std::copy(query_box.begin(), query_box.end(), base_.query_box);
          consider(key_boxes);
        }
      }
    }
    for (HopperChoice& choice : best_) add_useful_share(problem_, &choice.work);
    return best_;
  }

 private:
  using Box = std::array<int, 3>;

  // Those that see the fewest keys for their number of queries.
  std::vector<Box> list_query_boxes() {
    Box longest = {};
    double all = 1.0;
    for (size_t a = 0; a < 3; ++a) {
      const Axis& axis = axes_[a];
      const int64_t queries =
          divide_up(static_cast<int>(axis.num_queries()), static_cast<int>(axis.dilation));
      const int64_t step = std::max(axis.dilation, axis.output_stride);
      longest[a] = static_cast<int>(std::min(queries, kMaxBox / step));
      // Where heads are packed a box may reach beyond the last token, but never along an axis that
      // is not there: in the maps of fewer than three axes, heads stand in its place.
      if (base_.packed_heads > 1 && static_cast<int>(a) >= 3 - problem_.rank()) {
        longest[a] = std::min(kMaxBox / static_cast<int>(step), kHopperRows);
      }
      all *= longest[a];
    }
    const int most = kHopperRows / base_.packed_heads;
    const int least = all < kMinQueries ? 1 : kMinQueries / base_.packed_heads;
    std::vector<Box> boxes;
    add_boxes(0, least, most, longest, {1, 1, 1}, &boxes);
    std::vector<std::pair<double, Box>> ranked;
    for (const Box& box : boxes) {
      if (base_.packed_heads > 1 && box[0] * box[1] * box[2] % kPackedTokens != 0) continue;
      double seen = 1.0;
      for (size_t a = 0; a < 3; ++a) seen *= sums(a, box[a], 1)(1).tiles;
      ranked.emplace_back(seen, box);
    }
    std::sort(ranked.begin(), ranked.end());
    if (ranked.size() > kMaxQueryBoxes) ranked.resize(kMaxQueryBoxes);
    boxes.clear();
    for (const auto& [seen, box] : ranked) boxes.push_back(box);
    return boxes;
  }

  std::vector<Box> list_key_boxes() const {
    Box longest = {};
    for (size_t a = 0; a < 3; ++a) {
      const Axis& axis = axes_[a];
      const int64_t extent =
          divide_up(static_cast<int>(axis.extent), static_cast<int>(axis.dilation));
      longest[a] = static_cast<int>(std::min(extent, kMaxBox / axis.dilation));
    }
    std::vector<Box> boxes, kept;
    add_boxes(0, 1, kMaxTileKeys, longest, {1, 1, 1}, &boxes);
    int most = 0;
    for (const Box& box : boxes) most = std::max(most, box[0] * box[1] * box[2]);
    const int least = std::min(kMinTileKeys, most);
    for (const Box& box : boxes) {
      const int keys = box[0] * box[1] * box[2];
      const int padding = hopper_round_up(keys, 16) - keys;
      if (keys >= least && (padding <= kMaxPaddedKeys || keys == most)) kept.push_back(box);
    }
    return kept;
  }

  // The rest of base_ is set.
  void consider(const std::vector<Box>& key_boxes) {
    const auto sums_of = [&](int a) -> SumsByKeyBox& {
      return sums(static_cast<size_t>(a), base_.query_box[a],
                  a == base_.pair_axis ? base_.warpgroups : 1);
    };
    SumsByKeyBox &sums0 = sums_of(0), &sums1 = sums_of(1), &sums2 = sums_of(2);
    const double packs =
        static_cast<double>(problem_.batch()) * problem_.heads() / base_.packed_heads;
    for (const Box& key_box : key_boxes) {
      const std::array<const AxisSums*, 3> axes = {&sums0(key_box[0]), &sums1(key_box[1]),
                                                   &sums2(key_box[2])};
      const auto product = [&](double AxisSums::*member) {
        return packs * axes[0]->*member * axes[1]->*member * axes[2]->*member;
      };
      const AxisSums& pair_axis = *axes[static_cast<size_t>(base_.pair_axis)];
      const double rows = key_box[static_cast<size_t>(base_.pair_axis)];
      const double share =
          1.0 - pair_axis.short_tiles / pair_axis.tiles * (1.0 - pair_axis.short_rows / rows);
      if (!is_better(least_ms(base_, product(&AxisSums::blocks), product(&AxisSums::tiles), share,
                              key_box[0] * key_box[1] * key_box[2], facts_))) {
        continue;
      }
      HopperConfig config = base_;
      std::copy(key_box.begin(), key_box.end(), config.key_box);
      const std::array sums = {*axes[0], *axes[1], *axes[2]};
      HopperWork work = work_of(problem_, config, sums);
      const AxisSums& pair = sums[static_cast<size_t>(config.pair_axis)];
      config.short_rows = useful_short_rows(config, work, pair);
      if (config.short_rows > 0) work = work_of(problem_, config, sums);
      config.has_output_buffer = config.is_chained = true;  // the least that it may cost
      if (!is_better(predict(config, work, facts_))) continue;
      if (!fits_registers(config)) continue;
      const double tiles = work.tiles / (work.blocks * config.warpgroups);
      // Measured on an H200: slower than two.
      if (config.warpgroups == 3 && config.head_dim > kNarrowHead && tiles < kFewTiles) continue;
      if (!fit_memory(facts_, tiles, &config)) continue;
      const double ms = predict(config, work, facts_);
      if (is_better(ms)) keep({config, work, ms});
    }
  }
  bool is_better(double ms) const {
    return best_.size() < count_ || ms < best_.back().predicted_ms;
  }
  void keep(const HopperChoice& choice) {
    if (best_.size() == count_) best_.pop_back();
    const auto after = std::find_if(best_.begin(), best_.end(), [&](const HopperChoice& other) {
      return choice.predicted_ms < other.predicted_ms;
    });
    best_.insert(after, choice);
  }

  // Sums of one axis and box of queries, by the key box's size; made on demand.
  class SumsByKeyBox {
   public:
    const AxisSums& operator()(int key_box) {
      if (sums_.size() <= static_cast<size_t>(key_box)) sums_.resize(kMaxTileKeys + 1);
      AxisSums& sums = sums_[static_cast<size_t>(key_box)];
      if (sums.blocks == 0) {
        sums = sum_kinds(kinds, key_box, is_pair ? best_short_rows(kinds, key_box) : 0);
      }
      return sums;
    }
    std::vector<BlockKind> kinds;
    bool is_pair = false;  // or might be

   private:
    std::vector<AxisSums> sums_;
  };
  SumsByKeyBox& sums(size_t a, int box, int warpgroups) {
    SumsByKeyBox& sums = sums_[a][static_cast<size_t>(box)][static_cast<size_t>(warpgroups)];
    if (sums.kinds.empty()) {
      sums.kinds = block_kinds(axes_[a], box, warpgroups);
      sums.is_pair = warpgroups > 1;
    }
    return sums;
  }

  const Problem& problem_;
  const DeviceFacts& facts_;
  HopperConfig base_;
  std::array<Axis, 3> axes_;
  // Axis, queries of a box, warpgroups of a block.
  std::array<std::array<std::array<SumsByKeyBox, 4>, kHopperRows + 1>, 3> sums_;
  size_t count_ = 1;
  std::vector<HopperChoice> best_;
};

}  // namespace

bool has_heads_for_batch(const Problem& problem) {
  return problem.rank() == 3 && (problem.head_dim() != padded_head_dim(problem) ||
                                 problem.head_dim_value() != padded_head_dim_value(problem));
}

int64_t count_hopper_launches(const Problem& problem) {
  return has_heads_for_batch(problem) ? std::max<int64_t>(1, problem.batch()) : 1;
}

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
                  config.key_box[a], a == config.pair_axis ? config.short_rows : 0);
  }
  HopperWork work = work_of(problem, config, sums);
  add_useful_share(problem, &work);
  return work;
}

double predict_hopper_ms(const HopperConfig& config, const HopperWork& work,
                         const DeviceFacts& facts) {
  return predict(config, work, facts);
}

HopperChoice hopper_choice(const Problem& problem, const DeviceFacts& facts,
                           const HopperConfig& config) {
  const HopperWork work = count_hopper_work(problem, config);
  return {config, work, predict_hopper_ms(config, work, facts)};
}

std::vector<HopperChoice> rank_hopper_tilings(const Problem& problem, const DeviceFacts& facts,
                                              int count) {
  return Search(problem, facts).run(static_cast<size_t>(count));
}

HopperChoice choose_hopper_tiling(const Problem& problem, const DeviceFacts& facts) {
  const std::vector<HopperChoice> ranked = rank_hopper_tilings(problem, facts, 1);
  return ranked.empty() ? HopperChoice() : ranked.front();
}

std::vector<HopperConfig> hopper_variants(const HopperConfig& config, const DeviceFacts& facts) {
  std::vector<HopperConfig> variants;
  for (const bool has_output_buffer : {true, false}) {
    for (const bool is_chained : {true, false}) {
      for (const bool is_ping_pong : {true, false}) {
        HopperConfig variant = config;
        variant.has_output_buffer = has_output_buffer;
        variant.is_chained = is_chained;
        variant.is_ping_pong = is_ping_pong;
        if (is_chained && !may_chain(variant)) continue;
        const bool is_config = has_output_buffer == config.has_output_buffer &&
                               is_chained == config.is_chained &&
                               is_ping_pong == config.is_ping_pong;
        if (!is_config && fit_stages(facts, kMinStages, &variant)) variants.push_back(variant);
      }
    }
  }
  return variants;
}

bool apply_cut(const Problem& problem, const DeviceFacts& facts, const HopperConfig& cut,
               HopperConfig* config) {
  if (cut.warpgroups < 2 || cut.warpgroups > 3 || cut.pair_axis < 3 - problem.rank() ||
      cut.pair_axis > 2 || cut.stages < kMinStages || cut.stages > kMaxStages ||
      cut.packed_heads < 1 || cut.packed_heads > kHopperRows ||
      problem.head_group() % cut.packed_heads != 0) {
    return false;
  }
  *config = base_config(problem);
  int queries = 1, keys = 1;
  for (int a = 0; a < 3; ++a) {
    const Axis axis = hopper_axis(problem, a);
    const bool is_there = a >= 3 - problem.rank();
    const auto may_be = [&](int box, int most, int64_t step) {
      return box >= 1 && box <= (is_there ? most : 1) && box * step <= kMaxBox;
    };
    if (!may_be(cut.query_box[a], kHopperRows, std::max(axis.dilation, axis.output_stride)) ||
        !may_be(cut.key_box[a], kMaxTileKeys, axis.dilation)) {
      return false;
    }
    queries *= config->query_box[a] = cut.query_box[a];
    keys *= config->key_box[a] = cut.key_box[a];
  }
  if (queries * cut.packed_heads > kHopperRows || keys > kMaxTileKeys ||
      (cut.packed_heads > 1 && queries % kPackedTokens != 0)) {
    return false;
  }
  config->warpgroups = cut.warpgroups;
  config->pair_axis = cut.pair_axis;
  config->packed_heads = cut.packed_heads;
  config->stages = cut.stages;
  config->is_ping_pong = cut.is_ping_pong;
  config->has_output_buffer = cut.has_output_buffer;
  config->is_chained = cut.is_chained;
  const int pair_keys = cut.key_box[cut.pair_axis];
  const std::vector<BlockKind> kinds = block_kinds(hopper_axis(problem, cut.pair_axis),
                                                   cut.query_box[cut.pair_axis], cut.warpgroups);
  const AxisSums pair = sum_kinds(kinds, pair_keys, best_short_rows(kinds, pair_keys));
  config->short_rows = useful_short_rows(*config, count_hopper_work(problem, *config), pair);
  return fits_registers(*config) && (!config->is_chained || may_chain(*config)) &&
         hopper_layout(*config).bytes <= facts.shared_bytes_per_block;
}

}  // namespace vecina::internal::cuda
