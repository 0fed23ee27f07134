// SPDX-License-Identifier: MIT
// What a tile of the backward pass holds: rows of queries, and runs of keys that they see.
// Part of backward.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_BACKWARD_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_BACKWARD_TILE_INL_H_
#undef VECINA_CPU_BACKWARD_TILE_INL_H_
#else
#define VECINA_CPU_BACKWARD_TILE_INL_H_
#endif

#include <array>

#include "cpu/backward.h"
#include "cpu/bias-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/row_softmax-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename Element>
struct BackwardTile {
  using T = typename ComputeType<Element>::type;
  using D = hn::ScalableTag<T>;
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  static constexpr int kMaxRuns = 128;

  // Where a query row stands: its first query, outer positions, phase and head.
  struct Place {
    int x, k, z, phase, head;
  };

  // One query row of a tile: queries at one outer position, phase and head.
  struct Row {
    Place place;
    int num_queries = 0;              // vectors are filled up with zeros
    int key_begin = 0, key_end = 0;   // of the middle axis
    const Element* output = nullptr;  // of lane 0
    Element* grad_query = nullptr;
    bool is_masked = false;  // some lane does not see all keys of its window
    bool has_views = false;  // and what it does not see are tokens, not zeros: sums leave it out
    std::array<QueryView, kLanes> views;
    BiasEntries<D> bias;
    int slots = 0;
    bool has_sums = false;            // some keys are in its queries' gradients
    bool is_written_at_once = false;  // all keys are, when they leave the registers
    RowSoftmax<D> softmax;
  };
  using Rows = std::array<Row, kBackwardRows>;

  // Keys that follow each other in one packed row, or additional tokens. Their probabilities for
  // row r of the tile are at slots[r].
  struct Run {
    const T* keys;  // packed one after the other, from lane 0's first one on
    T *key_sums, *value_sums;
    const T *key_columns, *value_columns;  // what products are made of
    int count, first_key;                  // of the window
    int z, y;                              // positions of its keys
    int first, last;                       // rows of the tile that see it
    int first_fresh;                       // from this key on, no tile has written sums
    bool is_shared, is_window;
    std::array<int, kBackwardRows> slots;

    bool is_seen_by(int row) const { return first <= row && row < last; }
    int num_slots() const { return count * (last - first); }
  };
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_BACKWARD_TILE_INL_H_
