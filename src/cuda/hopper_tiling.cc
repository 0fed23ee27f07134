// SPDX-License-Identifier: MIT
#include "cuda/hopper_tiling.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/tensor.h"
#include "cuda/hopper_counts.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::hopper_columns;
using vecina::cuda::hopper_layout;
using vecina::cuda::hopper_round_up;
using vecina::cuda::kHopperDepth;
using vecina::cuda::kHopperRows;

constexpr int kMaxBox = 256;  // tokens that a copy may span along an axis
constexpr int kMinStages = 2, kMaxStages = 4;
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

// Whether there are short tiles for some tile. With additional tokens, shared heads and wide values
// registers may be short.
bool may_be_short(const HopperConfig& config) {
  return config.rank > 1 && !config.has_additional && config.packed_heads == 1 &&
         config.head_dim_value <= 128;
}

// Only a tile's first rows can be multiplied alone. Measured on an H200 in steady state, with keys
// in steps of eight: up to 7% less time with two and three axes, of which short tiles are a part; 2
// to 10% more with few tiles, 2 to 3% more with one axis. `work` is without short tiles.
int useful_short_rows(const HopperConfig& config, const HopperWork& work, const AxisSums& pair) {
  // ptxas serializes the products of some padded tiles in 2-D whose blocks are not chained.
  const bool may_serialize = config.rank == 2 && !may_chain(config) &&
                             hopper_round_up(tile_keys(config), kHopperDepth) != tile_keys(config);
  if (!may_be_short(config) || pair.short_tiles == 0 || may_serialize ||
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

// Of a tile, whatever its shape.
int most_keys_in_registers(HopperConfig config) {
  config.key_box[0] = config.key_box[1] = 1;
  int& keys = config.key_box[2];
  for (keys = kMaxTileKeys; keys > kHopperDepth && !fits_registers(config);) keys -= kHopperDepth;
  return keys;
}

// For cuts that differ in their tiles alone, of at most `tile_keys` each: no more than predict
// says, and far quicker. It leaves out what a term of predict may add.
static_assert(kCyclesPerDilatedBlock >= kCyclesPerBlock);
static_assert(kCyclesHiddenOfFewTiles <= kCyclesHidden);
static_assert(kCyclesPerKeyOfWideTile >= 0.0);
class LeastTime {
 public:
  LeastTime(const HopperConfig& config, double blocks, int tile_keys, const DeviceFacts& facts)
      : block_cycles_(blocks * (kCyclesPerBlock - kCyclesHidden)),
        ms_per_cycle_(1.0 / facts.multiprocessors / kCyclesPerMs) {
    const double columns =
        config.head_dim * (config.query_key_dtype != config.dtype ? kE4m3Cycles : 1.0) +
        config.head_dim_value;
    key_cycles_ = product_cycles(config) * 2.0 * kHopperRows * columns / kFlopsPerCycle +
                  softmax_cycles(config, 1.0);
    key_cycles_in_tiles_ = key_cycles_ + kCyclesPerTile / tile_keys;
  }
  // Of `keys` in `tiles`; masked ones; rows of loaded tiles.
  double operator()(double keys, double tiles, double masked_keys, double rows) const {
    return (block_cycles_ + keys * key_cycles_ + tiles * kCyclesPerTile +
            masked_keys * kCyclesPerMaskedKey + rows * kCyclesPerRow) *
           ms_per_cycle_;
  }
  // Keys, of which this share is masked, that take so long: more take longer.
  double most_keys(double ms, double masked) const {
    return (ms / ms_per_cycle_ - block_cycles_) /
           (key_cycles_in_tiles_ + masked * kCyclesPerMaskedKey);
  }

 private:
  double block_cycles_, ms_per_cycle_, key_cycles_, key_cycles_in_tiles_;
};

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
  using Box = std::array<int, 3>;

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
    base_.packed_heads = most_packed_heads(problem_.head_group());
    may_be_short_ = may_be_short(base_);
    find_key_boxes();
    for (const Box& query_box : list_query_boxes()) {
      for (base_.warpgroups = 2; base_.warpgroups <= (may_have_three ? 3 : 2); ++base_.warpgroups) {
        for (base_.pair_axis = 3 - problem_.rank(); base_.pair_axis < 3; ++base_.pair_axis) {
          std::copy(query_box.begin(), query_box.end(), base_.query_box);
          consider();
        }
      }
    }
    for (HopperChoice& choice : best_) add_useful_share(problem_, &choice.work);
    return best_;
  }

 private:
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
      for (size_t a = 0; a < 3; ++a) seen *= counts(a, box[a], 1).seen;
      ranked.emplace_back(seen, box);
    }
    std::sort(ranked.begin(), ranked.end());
    if (ranked.size() > kMaxQueryBoxes) ranked.resize(kMaxQueryBoxes);
    boxes.clear();
    for (const auto& [seen, box] : ranked) boxes.push_back(box);
    return boxes;
  }

  void find_key_boxes() {
    for (size_t a = 0; a < 3; ++a) {
      const Axis& axis = axes_[a];
      const int64_t extent =
          divide_up(static_cast<int>(axis.extent), static_cast<int>(axis.dilation));
      longest_keys_[a] = static_cast<int>(
          std::min({extent, kMaxBox / axis.dilation, static_cast<int64_t>(kMaxTileKeys)}));
    }
    for (int i = 1; i <= longest_keys_[0]; ++i) {
      for (int j = 1; j <= std::min(longest_keys_[1], kMaxTileKeys / i); ++j) {
        const int k = std::min(longest_keys_[2], kMaxTileKeys / (i * j));
        most_keys_ = std::max(most_keys_, i * j * k);
      }
    }
    least_keys_ = std::min(kMinTileKeys, most_keys_);
  }
  bool may_have(int keys) const {  // a tile
    return hopper_round_up(keys, kHopperDepth) - keys <= kMaxPaddedKeys || keys == most_keys_;
  }

  // Every tile for the rest of base_.
  void consider() {
    const auto axis = [&](size_t a) -> AxisCounts& {
      const bool is_pair = static_cast<int>(a) == base_.pair_axis;
      return counts(a, base_.query_box[a], is_pair ? base_.warpgroups : 1);
    };
    AxisCounts &axis0 = axis(0), &axis1 = axis(1), &axis2 = axis(2);
    const double packs =
        static_cast<double>(problem_.batch()) * problem_.heads() / base_.packed_heads;
    const double blocks = packs * axis0.blocks * axis1.blocks * axis2.blocks;
    const int tile_keys = most_keys_in_registers(base_);
    const LeastTime least(base_, blocks, tile_keys, facts_);
    // At each axis: the keys along it above which all tiles of further axes take too long.
    const double most0 = least.most_keys(limit(), 0.0) / (packs * axis1.seen * axis2.seen);
    if (axis0.seen > most0) return;
    const int last_i = axis0.longest(most0, longest_keys_[0]);
    for (int i = 1; i <= last_i; ++i) {
      const AxisTiles& tiles0 = axis0(i);
      if (tiles0.keys > most0) continue;
      const double keys0 = packs * tiles0.keys;
      const double most1 =
          least.most_keys(limit(), 1.0 - tiles0.whole_share) / (keys0 * axis2.seen);
      if (axis1.seen > most1) continue;
      const int last_j = axis1.longest(most1, std::min(longest_keys_[1], tile_keys / i));
      for (int j = 1; j <= last_j; ++j) {
        const AxisTiles& tiles1 = axis1(j);
        if (tiles1.keys > most1) continue;
        const double keys1 = keys0 * tiles1.keys;
        const double most2 =
            least.most_keys(limit(), 1.0 - tiles0.whole_share * tiles1.whole_share) / keys1;
        if (axis2.seen > most2) continue;
        const double tiles = packs * tiles0.sums.tiles * tiles1.sums.tiles;
        const double whole = packs * tiles0.sums.whole * tiles1.sums.whole;
        const double loaded = packs * tiles0.sums.loaded * tiles1.sums.loaded;
        const int last_k = axis2.longest(most2, std::min(longest_keys_[2], tile_keys / (i * j)));
        for (int k = divide_up(least_keys_, i * j); k <= last_k; ++k) {
          if (!may_have(i * j * k)) continue;
          const AxisTiles& tiles2 = axis2(k);
          if (tiles2.keys > most2) continue;
          const double masked = tiles * tiles2.sums.tiles - whole * tiles2.sums.whole;
          if (is_better(least(keys1 * tiles2.keys, tiles * tiles2.sums.tiles, masked * (i * j * k),
                              loaded * tiles2.sums.loaded * (i * j)))) {
            consider({i, j, k}, {tiles0.sums, tiles1.sums, tiles2.sums});
          }
        }
      }
    }
  }
  void consider(const Box& key_box, const std::array<AxisSums, 3>& sums) {
    HopperConfig config = base_;
    std::copy(key_box.begin(), key_box.end(), config.key_box);
    HopperWork work = work_of(problem_, config, sums);
    const AxisSums& pair = sums[static_cast<size_t>(config.pair_axis)];
    config.short_rows = useful_short_rows(config, work, pair);
    if (config.short_rows > 0) work = work_of(problem_, config, sums);
    config.has_output_buffer = config.is_chained = true;  // the least that it may cost
    if (!is_better(predict(config, work, facts_))) return;
    if (!fits_registers(config)) return;
    const double tiles = work.tiles / (work.blocks * config.warpgroups);
    // Measured on an H200: slower than two.
    if (config.warpgroups == 3 && config.head_dim > kNarrowHead && tiles < kFewTiles) return;
    if (!fit_memory(facts_, tiles, &config)) return;
    const double ms = predict(config, work, facts_);
    if (is_better(ms)) keep({config, work, ms});
  }
  // What a cut must take less than.
  double limit() const {
    return best_.size() < count_ ? std::numeric_limits<double>::infinity()
                                 : best_.back().predicted_ms;
  }
  bool is_better(double ms) const { return ms < limit(); }
  void keep(const HopperChoice& choice) {
    if (best_.size() == count_) best_.pop_back();
    const auto after = std::find_if(best_.begin(), best_.end(), [&](const HopperChoice& other) {
      return choice.predicted_ms < other.predicted_ms;
    });
    best_.insert(after, choice);
  }

  // One axis, size of a box of queries along it and number of such boxes in a block.
  struct AxisTiles {
    AxisSums sums;
    double keys = 0;         // of all tiles, less what short tiles may leave out
    double whole_share = 0;  // of tiles that all queries see
  };
  class AxisCounts {
   public:
    double seen = 0, blocks = 0, boxes = 0;  // of queries, without those that have none

    bool is_made() const { return blocks > 0; }
    void make(const Axis& axis, int box, int warpgroups, bool has_short) {
      kinds_ = block_kinds(axis, box, warpgroups);
      has_short_ = has_short;
      seen = seen_keys(kinds_);
      for (const BlockKind& kind : kinds_) {
        blocks += kind.blocks;
        boxes += kind.blocks * static_cast<double>(kind.count);
      }
    }
    // Of tiles up to `longest`, those that need not have more than `most` keys: each box has a tile
    // that is not short.
    int longest(double most, int longest) const {
      return boxes * longest <= most ? longest : static_cast<int>(most / boxes);
    }
    // Of tiles of so many keys along the axis, counted when it is first asked for. Holds until the
    // next call.
    const AxisTiles& operator()(int key_box) {
      if (at_.empty()) at_.resize(kMaxTileKeys + 1);
      std::uint8_t& at = at_[static_cast<size_t>(key_box)];
      if (at == 0) {
        AxisTiles tiles = {sum_kinds(kinds_, key_box, has_short_ ? kBestShortRows : 0)};
        tiles.keys =
            tiles.sums.tiles * key_box - tiles.sums.short_tiles * (key_box - tiles.sums.short_rows);
        tiles.whole_share = tiles.sums.whole / tiles.sums.tiles;
        tiles_.push_back(tiles);
        at = static_cast<std::uint8_t>(tiles_.size());
      }
      return tiles_[at - size_t{1}];
    }

   private:
    std::vector<BlockKind> kinds_;
    bool has_short_ = false;
    std::vector<AxisTiles> tiles_;
    std::vector<std::uint8_t> at_;  // in tiles_, from 1, by keys along the axis; 0: not yet
  };
  AxisCounts& counts(size_t a, int box, int warpgroups) {
    AxisCounts& counts = counts_[a][static_cast<size_t>(box)][static_cast<size_t>(warpgroups)];
    if (!counts.is_made()) {
      counts.make(axes_[a], box, warpgroups, warpgroups > 1 && may_be_short_);
    }
    return counts;
  }

  const Problem& problem_;
  const DeviceFacts& facts_;
  HopperConfig base_;
  std::array<Axis, 3> axes_;
  bool may_be_short_;
  Box longest_keys_ = {};               // of a tile along each axis
  int least_keys_ = 0, most_keys_ = 0;  // of a tile
  // Axis, queries of a box, warpgroups of a block.
  std::array<std::array<std::array<AxisCounts, 4>, kHopperRows + 1>, 3> counts_;
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
  const AxisSums pair = sum_kinds(kinds, pair_keys, kBestShortRows);
  config->short_rows = useful_short_rows(*config, count_hopper_work(problem, *config), pair);
  return fits_registers(*config) && (!config->is_chained || may_chain(*config)) &&
         hopper_layout(*config).bytes <= facts.shared_bytes_per_block;
}

}  // namespace vecina::internal::cuda
