// SPDX-License-Identifier: MIT
#include "cuda/hopper_counts.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>

#include "core/window.h"

namespace vecina::internal::cuda {
namespace {

// By one divisor, of numbers that are not negative, without the processor's division.
class Quotients {
 public:
  explicit Quotients(int divisor) : inverse_(1.0 / divisor) {}
  int down(int n) const { return static_cast<int>((n + 0.5) * inverse_); }
  int up(int n) const { return n == 0 ? 0 : down(n - 1) + 1; }

 private:
  double inverse_;
};

// The queries of one axis, in one of its dilation groups.
struct Queries {
  NaAxis dense;
  int count;
  int output_stride;

  // Keys that a query sees; one beyond the last sees what the last sees.
  std::pair<int, int> window(int query) const {
    const int i = na_query_to_axis(std::min(query, count - 1), output_stride);
    return {na_window_begin(dense, i), std::min(na_window_end(dense, i), dense.extent)};
  }

  // From `first` on, how many blocks of `step` queries see the same keys, or keys that move along
  // with them: at least 1, and more only where that is sure.
  int alike_from(int first, int step) const {
    const auto low = window(first);
    const auto high = [&](int blocks) { return window(first + blocks * step - 1); };
    const auto see_the_same = [&](int blocks) { return high(blocks) == low; };
    // No border is in the way of the first window, nor of the last.
    const int last_begin = dense.extent - dense.kernel_size;
    const auto move_along = [&](int blocks) { return high(blocks).first < last_begin; };
    const int whole_blocks = (count - first) / step;
    if (whole_blocks < 2) return 1;
    if (see_the_same(2)) return last_of(2, whole_blocks, see_the_same);
    const bool may_move =
        low.first > 0 && na_query_to_axis(step, output_stride) % dense.stride == 0;
    return may_move && move_along(2) ? last_of(2, whole_blocks, move_along) : 1;
  }

 private:
  // The last number from `first` to `last` that is what `first` is; those beyond it are not.
  template <class Predicate>
  static int last_of(int first, int last, Predicate is) {
    while (first < last) {
      const int middle = last - (last - first) / 2;
      if (is(middle)) {
        first = middle;
      } else {
        last = middle - 1;
      }
    }
    return first;
  }
};

// Among the last ones: with a stride a few take turns.
BlockKind& find_or_add(const BlockKind& kind, std::vector<BlockKind>* kinds) {
  constexpr std::ptrdiff_t kMost = 8;
  const auto end = kinds->rbegin() + std::min(kMost, std::ssize(*kinds));
  const auto found = std::find_if(kinds->rbegin(), end,
                                  [&](const BlockKind& other) { return other.is_like(kind); });
  return found != end ? *found : kinds->emplace_back(kind);
}

// How many tiles end with so many rows.
class EndingTiles {
 public:
  void add(int rows, double tiles) {
    const auto i = static_cast<size_t>(rows);
    std::uint64_t& word = found_[i / 64];
    const std::uint64_t bit = std::uint64_t{1} << (i % 64);
    tiles_[i] = (word & bit) != 0 ? tiles_[i] + tiles : tiles;
    word |= bit;
  }
  // The rows of short tiles that leave out most of tiles of `key_box` rows.
  int best(int key_box) const {
    int best = 0;
    double most = 0, up_to = 0;
    for (size_t w = 0; w < found_.size(); ++w) {
      for (std::uint64_t bits = found_[w]; bits != 0; bits &= bits - 1) {
        const auto rows = static_cast<int>(w) * 64 + std::countr_zero(bits);
        up_to += tiles_[static_cast<size_t>(rows)];
        if (up_to * (key_box - rows) > most) {
          most = up_to * (key_box - rows);
          best = rows;
        }
      }
    }
    return best;
  }
  double up_to(int rows) const {
    double tiles = 0;
    for (int i = 1; i <= rows; ++i) {
      const auto at = static_cast<size_t>(i);
      if ((found_[at / 64] >> (at % 64) & 1) != 0) tiles += tiles_[at];
    }
    return tiles;
  }

 private:
  std::array<double, kMaxTileKeys + 1> tiles_;
  std::array<std::uint64_t, kMaxTileKeys / 64 + 1> found_ = {};  // whose tiles_ are set
};

}  // namespace

std::vector<BlockKind> block_kinds(const Axis& axis, int box, int warpgroups) {
  std::vector<BlockKind> kinds;
  const auto dilation = static_cast<int>(axis.dilation);
  const int shortest = static_cast<int>(axis.extent) / dilation;
  const int step = box * warpgroups;
  for (int extent = shortest; extent <= shortest + 1; ++extent) {
    const int longer = static_cast<int>(axis.extent) % dilation;
    const int groups = extent == shortest ? dilation - longer : longer;
    if (groups == 0) continue;
    const Queries queries = {
        {extent, static_cast<int>(axis.kernel_size), static_cast<int>(axis.stride), axis.is_causal},
        dilation > 1 ? extent : static_cast<int>(axis.num_queries()),
        static_cast<int>(axis.output_stride)};
    for (int first = 0; first < queries.count;) {
      const int origin = queries.window(first).first;
      BlockKind kind;
      for (int w = 0; w < warpgroups && first + w * box < queries.count; ++w) {
        const auto low = queries.window(first + w * box);
        const auto high = queries.window(first + (w + 1) * box - 1);
        kind.seen[kind.count++] = {low.first - origin, high.second - origin, high.first - origin,
                                   low.second - origin};
      }
      const int blocks = queries.alike_from(first, step);
      find_or_add(kind, &kinds).blocks += static_cast<double>(groups) * blocks;
      first += blocks * step;
    }
  }
  return kinds;
}

double seen_keys(const std::vector<BlockKind>& kinds) {
  double keys = 0;
  for (const BlockKind& kind : kinds) {
    for (const Seen& seen : kind.warpgroups()) keys += kind.blocks * (seen.end - seen.begin);
  }
  return keys;
}

AxisSums sum_kinds(const std::vector<BlockKind>& kinds, int key_box, int short_rows) {
  AxisSums sums;
  const Quotients tiles(key_box);
  EndingTiles ending;  // but those that are a box's first, which are computed as a whole
  for (const BlockKind& kind : kinds) {
    int loaded = 0;
    for (const Seen& seen : kind.warpgroups()) {
      const int first = tiles.down(seen.begin), last = tiles.down(seen.end - 1);
      loaded = last + 1;
      sums.tiles += kind.blocks * (last - first + 1);
      sums.whole +=
          kind.blocks * std::max(0, tiles.down(seen.whole_end) - tiles.up(seen.whole_begin));
      sums.warpgroups += kind.blocks;
      if (last > first && short_rows != 0) ending.add(seen.end - last * key_box, kind.blocks);
    }
    sums.loaded += kind.blocks * loaded;
    sums.blocks += kind.blocks;
  }
  sums.short_rows = short_rows == kBestShortRows ? ending.best(key_box) : short_rows;
  sums.short_tiles = ending.up_to(sums.short_rows);
  return sums;
}

}  // namespace vecina::internal::cuda
