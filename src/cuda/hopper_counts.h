// SPDX-License-Identifier: MIT
// Along one axis: which keys the boxes of queries of kernels/hopper_forward.cu see, and of how many
// tiles that makes. Exact; products over the axes are counts of the whole problem.
#ifndef VECINA_CUDA_HOPPER_COUNTS_H_
#define VECINA_CUDA_HOPPER_COUNTS_H_

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "core/problem.h"

namespace vecina::internal::cuda {

inline constexpr int kMaxTileKeys = 192;  // along an axis, too

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

// The axis, cut into boxes of `box` queries, `warpgroups` to a block.
std::vector<BlockKind> block_kinds(const Axis& axis, int box, int warpgroups);

// Keys that boxes see, were each multiplied once: no tiles compute fewer.
double seen_keys(const std::vector<BlockKind>& kinds);

struct AxisSums {
  double blocks = 0, tiles = 0, whole = 0, loaded = 0, warpgroups = 0;
  int short_rows = 0;      // as of HopperConfig, were this the pair axis
  double short_tiles = 0;  // of `tiles`
};
// short_rows: 0 where no tile is short; kBestShortRows: those that leave out most.
inline constexpr int kBestShortRows = -1;
AxisSums sum_kinds(const std::vector<BlockKind>& kinds, int key_box, int short_rows);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_HOPPER_COUNTS_H_
