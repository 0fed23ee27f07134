// SPDX-License-Identifier: MIT
// Relative position bias: which entries of a head's table the logits of one row of queries take,
// their sum, and the gradient of the entries.
// Part of each forward_<dtype>.cc and backward_<dtype>.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_BIAS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_BIAS_INL_H_
#undef VECINA_CPU_BIAS_INL_H_
#else
#define VECINA_CPU_BIAS_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/forward.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The tables of `heads` heads, times `factor`, each contiguous.
template <typename T>
void pack_bias(const BiasTable& bias, int heads, T factor, const T* tables, T* to) {
  for (int head = 0; head < heads; ++head) {
    const T* from = tables + head * bias.head;
    for (int z = 0; z < bias.sizes[0]; ++z) {
      for (int y = 0; y < bias.sizes[1]; ++y) {
        for (int x = 0; x < bias.sizes[2]; ++x) {
          *to++ = factor * from[z * bias.strides[0] + y * bias.strides[1] + x * bias.strides[2]];
        }
      }
    }
  }
}

// Of keys that are `z` and `y` positions away from their queries and at the queries' own position
// along the innermost axis.
inline ptrdiff_t bias_entry(const BiasTable& bias, int z, int y) {
  const std::array<int, kRank>& sizes = bias.sizes;
  return (ptrdiff_t{z + sizes[0] / 2} * sizes[1] + (y + sizes[1] / 2)) * sizes[2] + sizes[2] / 2;
}

// Entries of a row of neighbouring queries along the innermost axis, counted from bias_entry().
// A vector of queries is every twins-th of them.
template <class D, int kQueries>
class BiasEntries {
 public:
  using T = hn::TFromD<D>;

  // Of no queries.
  BiasEntries() = default;
  // Queries x, x + 1, ... of the axis, in phase `phase`.
  BiasEntries(const AxisGroup& axis, int x, int phase)
      : axis_(&axis),
        is_shared_(key_layout(axis) == KeyLayout::shared),
        position_(axis.position(x) + phase) {
    if (is_shared_) return;
    const int count = kLanes * axis.twins;
    for (int i = 0; i < count; ++i) {
      begins_[static_cast<size_t>(i)] = borderless_begin(axis.window, axis.position(x + i));
    }
    level_ = begins_[0] - position_;
    is_level_ =
        begins_[0] >= 0 &&
        begins_[static_cast<size_t>(count - 1)] + axis.window.kernel_size <= axis.window.extent;
  }

  // Adds the bias of the window's keys [first_key, first_key + count) to their logits. `twin` tells
  // which vector of queries it is.
  void add(const T* table, int first_key, int count, int twin, T* HWY_RESTRICT logits) const {
    const D d;
    if (is_level_) {
      const T* from = table + level_ + first_key;
      for (int j = 0; j < count; ++j, logits += kLanes) {
        hn::Store(hn::Add(hn::Load(d, logits), hn::Set(d, from[j])), d, logits);
      }
      return;
    }
    if (is_reversed()) {
      const T* from = table + first_key - position_ - (kLanes - 1);
      for (int j = 0; j < count; ++j, logits += kLanes) {
        const auto bias = hn::Reverse(d, hn::LoadU(d, from + j));
        hn::Store(hn::Add(hn::Load(d, logits), bias), d, logits);
      }
      return;
    }
    HWY_ALIGN T bias[kLanes];
    for (int j = 0; j < count; ++j, logits += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        bias[lane] = table[entry(first_key + j, lane * axis_->twins + twin)];
      }
      hn::Store(hn::Add(hn::Load(d, logits), hn::Load(d, bias)), d, logits);
    }
  }

  // Adds gradients of logits to the sums of their entries: a vector of sums for each entry, one
  // for each lane. Only those that sees(lane, key) says, if it says so at all. No twins.
  template <typename Sees>
  void add_gradients(const T* HWY_RESTRICT gradients, int first_key, int count, bool is_masked,
                     const Sees& sees, T* HWY_RESTRICT sums) const {
    const D d;
    if (is_level_ && !is_masked) {
      T* to = sums + ptrdiff_t{level_ + first_key} * kLanes;
      for (int j = 0; j < count; ++j, gradients += kLanes, to += kLanes) {
        hn::Store(hn::Add(hn::Load(d, to), hn::Load(d, gradients)), d, to);
      }
      return;
    }
    for (int j = 0; j < count; ++j, gradients += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        if (is_masked && !sees(lane, first_key + j)) continue;
        sums[ptrdiff_t{entry(first_key + j, lane)} * kLanes + lane] += gradients[lane];
      }
    }
  }

 private:
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));

  // Neighbouring lanes take neighbouring entries, the last lane the first.
  bool is_reversed() const { return is_shared_ && axis_->step * axis_->twins == 1; }

  int entry(int key, int query) const {
    const int at = is_shared_ ? key : packed_key(*axis_, begins_[static_cast<size_t>(query)] + key);
    // Lanes that are no queries, and keys that none sees, take any entry.
    const int most = axis_->window.kernel_size - 1;
    return std::clamp(at - (position_ + query * axis_->step), -most, most);
  }

  const AxisGroup* axis_ = nullptr;
  bool is_shared_ = false;
  int position_ = 0;       // of the first query
  bool is_level_ = false;  // all lanes take the same entry: level_ + key
  int level_ = 0;
  std::array<int, kQueries> begins_;  // of the windows, as if no border were near
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_BIAS_INL_H_
