// SPDX-License-Identifier: MIT
// What a unit of the matrix form has in either pass: items of some tiles of 16 queries, and what
// these see.
// Part of matrix.cc; compiled for AVX-512.
#if defined(VECINA_CPU_MATRIX_ITEMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_MATRIX_ITEMS_INL_H_
#undef VECINA_CPU_MATRIX_ITEMS_INL_H_
#else
#define VECINA_CPU_MATRIX_ITEMS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cpu/forward.h"
#include "cpu/lane_unit-inl.h"
#include "cpu/layout.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// What the queries of a tile see: query q columns [begin + q * begin_step, end + q * end_step), and
// of these those in [least, most). Both steps are 0 or 1.
struct MatrixView {
  int begin, begin_step, end, end_step, least, most;

  KeyRange of(int q) const {
    return {std::max(begin + q * begin_step, least), std::min(end + q * end_step, most)};
  }
  // True if all queries see `count` columns from `first` on.
  bool holds(int first, int count) const {
    return of(kMatrixTile - 1).begin <= first && of(0).end >= first + count;
  }
  // False: none sees any of them.
  bool touches(int first, int count) const {
    return of(0).begin < first + count && of(kMatrixTile - 1).end > first;
  }
  // The queries that see a column: a bit for each.
  unsigned seen_by(int column) const {
    if (column < least || column >= most) return 0;
    const int past = begin_step == 0 ? (column < begin ? 0 : kMatrixTile) : column - begin + 1;
    const int first = end_step == 0 ? (column < end ? 0 : kMatrixTile) : column - end + 1;
    const int up_to = std::clamp(past, 0, kMatrixTile);
    return (1U << up_to) - (1U << std::clamp(first, 0, up_to));
  }
};

template <class Plan>
class MatrixItems : public LaneUnit<bfloat16, Plan> {
  using Base = LaneUnit<bfloat16, Plan>;

 protected:
  using typename Base::D;
  static constexpr int kTile = kMatrixTile, kStep = kMatrixStep;
  static constexpr ptrdiff_t kFloat = sizeof(float);

  template <class Pointers>
  MatrixItems(const Plan& plan, const Pointers& pointers, int64_t unit, void* scratch,
              int num_tiles)
      : Base(plan, pointers, unit, scratch),
        pair_(plan.matrix.pair),
        num_tiles_(num_tiles),
        item_columns_(matrix_columns(lane_axis(), plan.lanes)),
        is_shared_(keys_.layout() == KeyLayout::shared) {}

  // Where a tile's first query stands.
  struct Place {
    int x, z, k, phase, head;
  };
  struct QueryTile {
    int num_queries = 0;  // 0: none, or of another band or unit
    KeyRange rows = {};   // of keys along the middle axis
    MatrixView view;      // of the item's columns
  };
  int item_rows() const { return pair_ == MatrixPair::rows ? num_tiles_ : 1; }
  int item_heads() const { return pair_ == MatrixPair::heads ? num_tiles_ : 1; }

  // Where tile t of the item at `item` begins; false: there is none.
  bool find_tile(const Place& item, int t, Place* place) const {
    *place = item;
    switch (pair_) {
      case MatrixPair::heads:
        return (place->head += t) < plan_.head_group;
      case MatrixPair::rows:
        return (place->k += t) < keys_.axis(1).num_queries;
      case MatrixPair::columns:
        return (place->x += t * kTile) < lane_axis().num_queries;
    }
    return false;
  }
  // In packed rows.
  int first_column(const Place& item) const { return is_shared_ ? 0 : item.x - box_.begin[2]; }

  // The tile at `place` of the item whose first column is given.
  void place_tile(const Place& place, const Box& band, int first_column, QueryTile* tile) const {
    const AxisGroup& middle = keys_.axis(1);
    const int position = middle.position(place.k);
    tile->rows = {middle.begin(position), middle.end(position)};
    tile->view = view_of(place.x, first_column);
    const bool is_here = place.k >= band.begin[1] && place.k < band.end[1] && place.x < band.end[2];
    tile->num_queries = is_here ? std::min(kTile, band.end[2] - place.x) : 0;
  }

  static bool sees_row(const QueryTile& tile, int y) {
    return tile.num_queries > 0 && y >= tile.rows.begin && y < tile.rows.end;
  }
  // Of columns [column, column + kStep).
  static bool sees(const QueryTile& tile, bool is_additional, int y, int column) {
    if (is_additional) return tile.num_queries > 0;
    return sees_row(tile, y) && tile.view.touches(column, kStep);
  }

  int additional_columns() const {
    return round_up(static_cast<int>(plan_.additional_tokens), kStep);
  }
  MatrixView view_for(const QueryTile& tile, bool is_additional) const {
    const int tokens = static_cast<int>(plan_.additional_tokens);
    return is_additional ? MatrixView{0, 0, tokens, 0, 0, tokens} : tile.view;
  }

  static bool is_finite(bfloat16 number) { return std::isfinite(static_cast<float>(number)); }
  static bool are_finite(const bfloat16* row, int size) {
    const hn::Repartition<uint16_t, D> d16;
    constexpr int kHalves = static_cast<int>(hn::MaxLanes(d16));
    const auto* bits = reinterpret_cast<const uint16_t*>(row);
    const auto magnitude = hn::Set(d16, 0x7fff);
    auto most = hn::Zero(d16);
    int i = 0;
    for (; i + kHalves <= size; i += kHalves) {
      most = hn::Max(most, hn::And(hn::LoadU(d16, bits + i), magnitude));
    }
    const auto infinity = hn::Set(d16, 0x7f80);
    bool is_less = hn::AllTrue(d16, hn::Lt(most, infinity));
    for (; i < size; ++i) is_less &= is_finite(row[i]);
    return is_less;
  }

  using Base::additional_key_, Base::additional_value_, Base::key_, Base::query_, Base::value_;
  using Base::batch_, Base::box_, Base::head_, Base::head_index_, Base::keys_, Base::plan_,
      Base::scratch_;
  using Base::kLog2E;
  using Base::lane_axis, Base::output_offset, Base::query_offset, Base::query_stride;
  const MatrixPair pair_;
  const int num_tiles_;  // of an item
  const int item_columns_;
  const bool is_shared_;

 private:
  // Of the tile of queries from x on.
  MatrixView view_of(int x, int first_column) const {
    const NaAxis& window = lane_axis().window;
    if (is_shared_) {
      const int end = window.is_causal ? lane_axis().position(x) + 1 : window.extent;
      return {0, 0, end, window.is_causal ? 1 : 0, 0, window.extent};
    }
    // Its first window begins here.
    const int begin = x - box_.begin[2] - first_column;
    // Before a causal axis there is nothing.
    const int least = window.is_causal ? -(keys_.range(2).begin + first_column) : 0;
    return {begin, 1, begin + window.kernel_size, 1, least, item_columns_};
  }
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // VECINA_CPU_MATRIX_ITEMS_INL_H_
