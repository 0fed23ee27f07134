// SPDX-License-Identifier: MIT
// What a unit of either pass has that packs its keys: its tensors, packed keys, and where queries
// stand and what they see.
// Part of each forward_*.cc, of backward.cc and of matrix.cc; compiled once for every instruction
// set.
#if defined(VECINA_CPU_LANE_UNIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_LANE_UNIT_INL_H_
#undef VECINA_CPU_LANE_UNIT_INL_H_
#else
#define VECINA_CPU_LANE_UNIT_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/bias-inl.h"
#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "cpu/packed_keys-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Q is the tag of a vector of queries.
template <typename Element, class Plan,
          class Q = hn::ScalableTag<typename ComputeType<Element>::type>>
class LaneUnit {
 public:
  using T = typename ComputeType<Element>::type;
  using D = Q;
  using LseType = T;  // float for all but double

 protected:
  static constexpr int kMaxLanes = static_cast<int>(hn::MaxLanes(D()));
  static constexpr double kLog2E = 1.44269504088896340736;

  template <class Pointers>
  LaneUnit(const Plan& plan, const Pointers& pointers, int64_t unit, void* scratch)
      : plan_(plan),
        scratch_(static_cast<T*>(scratch)),
        head_index_(unit / static_cast<int64_t>(plan.boxes.size())),
        batch_(head_index_ / plan.heads_kv),
        head_(head_index_ % plan.heads_kv * plan.head_group),
        box_(plan.boxes[static_cast<size_t>(unit) % plan.boxes.size()]),
        keys_(plan, static_cast<size_t>(unit) % plan.boxes.size(), scratch_) {
    const int64_t head_kv = head_index_ % plan.heads_kv;
    query_ = tensor_at<const Element>(pointers.query, plan.query, batch_, head_);
    key_ = tensor_at<const Element>(pointers.key, plan.key, batch_, head_kv);
    value_ = tensor_at<const Element>(pointers.value, plan.value, batch_, head_kv);
    additional_key_ =
        tensor_at<const Element>(pointers.additional_key, plan.additional_key, batch_, head_kv);
    additional_value_ =
        tensor_at<const Element>(pointers.additional_value, plan.additional_value, batch_, head_kv);
    bias_ = static_cast<const T*>(pointers.bias) + head_ * plan.bias.head;
  }

  // The same unit, with other vectors of queries.
  template <class Other>
  explicit LaneUnit(const LaneUnit<Element, Plan, Other>& unit)
      : plan_(unit.plan_),
        scratch_(unit.scratch_),
        head_index_(unit.head_index_),
        batch_(unit.batch_),
        head_(unit.head_),
        box_(unit.box_),
        keys_(unit.keys_),
        query_(unit.query_),
        key_(unit.key_),
        value_(unit.value_),
        additional_key_(unit.additional_key_),
        additional_value_(unit.additional_value_),
        bias_(unit.bias_) {}

  const AxisGroup& lane_axis() const { return keys_.lane_axis(); }

  // What all tiles read: tables of the bias and additional tokens.
  void pack_for_all_tiles() const {
    if (plan_.bias.given) {
      pack_bias(plan_.bias, plan_.head_group, static_cast<T>(kLog2E), bias_,
                scratch_ + plan_.scratch.bias);
    }
    T* keys = scratch_ + plan_.scratch.additional_keys;
    T* values = scratch_ + plan_.scratch.additional_values;
    for (int64_t i = 0; i < plan_.additional_tokens; ++i) {
      copy_row(D(), additional_key_ + i * plan_.additional_key.token[2],
               static_cast<size_t>(plan_.head_dim), static_cast<size_t>(plan_.key_pitch),
               keys + i * plan_.key_pitch);
      copy_row(D(), additional_value_ + i * plan_.additional_value.token[2],
               static_cast<size_t>(plan_.head_dim_value), static_cast<size_t>(plan_.value_pitch),
               values + i * plan_.value_pitch);
    }
  }

  // Band by band along the ring's axis: pack_row(z, y, end_y) for each row of keys that no band
  // before it needed, rows up to end_y before any is read, then run_band(band).
  template <class PackRow, class RunBand>
  void walk_bands(const PackRow& pack_row, const RunBand& run_band) const {
    const PackedRing& ring = keys_.ring();
    const auto axis = static_cast<size_t>(ring.axis);
    const KeyRange& others = keys_.range(1 - axis);
    int packed = keys_.range(axis).begin;
    for (int first = box_.begin[axis]; first < box_.end[axis]; first += ring.band) {
      Box band = box_;
      band.begin[axis] = first;
      band.end[axis] = std::min(first + ring.band, box_.end[axis]);
      const KeyRange keys = key_range(keys_.axis(axis), first, band.end[axis]);
      packed = std::max(packed, keys.begin);
      for (; packed < keys.end; ++packed) {
        for (int other = others.begin; other < others.end; ++other) {
          axis == 0 ? pack_row(packed, other, others.end) : pack_row(other, packed, keys.end);
        }
      }
      run_band(band);
    }
  }

  // Of the first query of a row, which begins at `place`: in tensors of queries, and in output.
  template <class Place>
  ptrdiff_t query_offset(const Strides& strides, const Place& place) const {
    return place.head * strides.head +
           token_offset(strides, keys_.axis(0).query_token(place.z, 0),
                        keys_.axis(1).query_token(place.k, 0)) +
           lane_axis().query_token(place.x, place.phase) * strides.token[2];
  }
  template <class Place>
  ptrdiff_t output_offset(const Strides& strides, const Place& place) const {
    return place.head * strides.head +
           token_offset(strides, keys_.axis(0).output_token(place.z, 0),
                        keys_.axis(1).output_token(place.k, 0)) +
           lane_axis().output_token(place.x, place.phase) * strides.token[2];
  }

  // From one query of a row to the next: in tensors of queries, and in output.
  ptrdiff_t query_stride(const Strides& strides) const {
    return strides.token[2] * lane_axis().token_step * lane_axis().step;
  }
  ptrdiff_t output_stride(const Strides& strides) const {
    return strides.token[2] * lane_axis().output_step;
  }
  ptrdiff_t query_stride() const { return query_stride(plan_.query); }
  ptrdiff_t output_stride() const { return output_stride(plan_.output); }

  // From this unit's first head to the next one's; 0 if it is the last.
  ptrdiff_t to_next_unit(const Strides& strides, int64_t heads) const {
    if (plan_.boxes.size() > 1 || head_index_ + 1 == plan_.batch * plan_.heads_kv) return 0;
    if ((head_index_ + 1) % plan_.heads_kv != 0) return heads * strides.head;
    return strides.batch - heads * (plan_.heads_kv - 1) * strides.head;
  }

  // The queries that the row at `place` has: the others of its vectors are not on the axis.
  template <class Place>
  int num_queries(const Place& place) const {
    const AxisGroup& axis = lane_axis();
    int count = std::min(kMaxLanes * axis.twins, box_.end[2] - place.x);
    while (count > 0 && axis.position(place.x + count - 1) + place.phase >= axis.query_extent) {
      --count;
    }
    return count;
  }

  // What a causal query at position p sees. Stride 1 with the shifted layout: all from the border
  // on.
  QueryView causal_view(int p) const {
    const NaAxis& window = lane_axis().window;
    if (keys_.layout() == KeyLayout::shared) {
      return {0, std::min(p + 1, window.extent), window.extent};
    }
    const int begin = borderless_begin(window, p);
    return {std::max(0, -begin), p - begin + 1, window.extent - begin};
  }

  // Keys along the innermost axis that some query of the tile sees.
  template <class Rows>
  int visible_keys(const Rows& rows, int num_rows) const {
    const NaAxis& window = lane_axis().window;
    if (keys_.layout() == KeyLayout::shifted || !window.is_causal) return window.kernel_size;
    int keys = 0;
    for (int r = 0; r < num_rows; ++r) {
      const auto& row = rows[static_cast<size_t>(r)];
      keys =
          std::max(keys, row.views[static_cast<size_t>(std::max(row.num_queries - 1, 0))].visible);
    }
    return keys;
  }

  template <typename, class, class>
  friend class LaneUnit;

  const Plan& plan_;
  T* const scratch_;
  const int64_t head_index_;    // of all key heads of all batches
  const int64_t batch_, head_;  // the first of the query heads
  const Box& box_;
  PackedKeys<Element> keys_;
  const Element *query_, *key_, *value_, *additional_key_, *additional_value_;
  const T* bias_;
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_LANE_UNIT_INL_H_
