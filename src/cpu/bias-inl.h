// SPDX-License-Identifier: MIT
// Relative position bias: which entries of a head's table the logits of one row of queries take,
// their sum, and the gradient of the entries.
// Part of each forward_*.cc and backward.cc; compiled once for every instruction set.
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
// A vector of queries is every twins-th of them. All lanes take the same entry, except those whose
// key stands for one at the other end of the window (packed_key).
template <class D>
class BiasEntries {
 public:
  using T = hn::TFromD<D>;

  // Of no queries; not cleared, since every tile has some.
  BiasEntries() = default;
  // Queries x, x + 1, ... of the axis, in phase `phase`.
  BiasEntries(const AxisGroup& axis, int x, int phase)
      : axis_(&axis),
        is_shared_(key_layout(axis) == KeyLayout::shared),
        position_(axis.position(x) + phase),
        begin_(is_shared_ ? 0 : borderless_begin(axis.window, axis.position(x))) {}

  // Adds the bias of the window's keys [first_key, first_key + count) to their logits. `twin` tells
  // which vector of queries it is.
  void add(const T* table, int first_key, int count, int twin, T* HWY_RESTRICT logits) const {
    const D d;
    if (is_shared_) return add_shared(table, first_key, count, twin, logits);
    Wrapped wrapped;
    for (int j = first_key; j < first_key + count; ++j, logits += kLanes) {
      update(j, twin, &wrapped);
      auto bias = hn::Set(d, table[level(j)]);
      if (wrapped.left > 0) {
        bias = hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(wrapped.left)),
                              hn::Set(d, table[level(j + kernel_size())]), bias);
      }
      if (wrapped.right < kLanes) {
        bias = hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(wrapped.right)), bias,
                              hn::Set(d, table[level(j - kernel_size())]));
      }
      hn::Store(hn::Add(hn::Load(d, logits), bias), d, logits);
    }
  }

  // Adds gradients of logits to the sums of their entries: a vector of sums for each entry, one
  // for each lane. No twins.
  void add_gradients(const T* HWY_RESTRICT gradients, int first_key, int count,
                     T* HWY_RESTRICT sums) const {
    if (is_shared_) {
      return add_seen_gradients(
          gradients, first_key, count, [](int, int) { return true; }, sums);
    }
    const D d;
    const auto add = [&](int entry, hn::Vec<D> gradient) HWY_ATTR {
      T* to = sums + ptrdiff_t{entry} * kLanes;
      hn::Store(hn::Add(hn::Load(d, to), gradient), d, to);
    };
    Wrapped wrapped;
    for (int j = first_key; j < first_key + count; ++j, gradients += kLanes) {
      update(j, /*twin=*/0, &wrapped);
      auto gradient = hn::Load(d, gradients);
      if (wrapped.left > 0) {
        const auto is_left = hn::FirstN(d, static_cast<size_t>(wrapped.left));
        add(level(j + kernel_size()), hn::IfThenElseZero(is_left, gradient));
        gradient = hn::IfThenZeroElse(is_left, gradient);
      }
      if (wrapped.right < kLanes) {
        const auto is_not_right = hn::FirstN(d, static_cast<size_t>(wrapped.right));
        add(level(j - kernel_size()), hn::IfThenZeroElse(is_not_right, gradient));
        gradient = hn::IfThenElseZero(is_not_right, gradient);
      }
      add(level(j), gradient);
    }
  }

  // The same for the keys that sees(lane, key) says: what others hold may be no number.
  template <typename Sees>
  void add_seen_gradients(const T* HWY_RESTRICT gradients, int first_key, int count,
                          const Sees& sees, T* HWY_RESTRICT sums) const {
    for (int j = first_key; j < first_key + count; ++j, gradients += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        if (sees(lane, j)) sums[ptrdiff_t{entry(j, lane)} * kLanes + lane] += gradients[lane];
      }
    }
  }

 private:
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));

  // Lanes [0, left) take a key beyond the left border, [right, ...) one beyond the right border.
  struct Wrapped {
    int left = kLanes, right = kLanes;
  };
  // For key j; from key to key both only shrink.
  void update(int j, int twin, Wrapped* wrapped) const {
    const int step = axis_->step * axis_->twins, first = begin_ + twin + j;
    while (wrapped->left > 0 && first + (wrapped->left - 1) * step >= 0) --wrapped->left;
    while (wrapped->right > 0 && first + (wrapped->right - 1) * step >= axis_->window.extent) {
      --wrapped->right;
    }
  }

  void add_shared(const T* table, int first_key, int count, int twin,
                  T* HWY_RESTRICT logits) const {
    const D d;
    if (axis_->step * axis_->twins == 1) {  // each lane takes the entry before its neighbour's
      const T* from = table + first_key - position_ - (kLanes - 1);
      for (int j = 0; j < count; ++j, logits += kLanes) {
        const auto bias = hn::Reverse(d, hn::LoadU(d, from + j));
        hn::Store(hn::Add(hn::Load(d, logits), bias), d, logits);
      }
      return;
    }
    HWY_ALIGN T bias[kLanes];
    for (int j = first_key; j < first_key + count; ++j, logits += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        bias[lane] = table[entry(j, lane * axis_->twins + twin)];
      }
      hn::Store(hn::Add(hn::Load(d, logits), hn::Load(d, bias)), d, logits);
    }
  }

  int kernel_size() const { return axis_->window.kernel_size; }
  // Lanes that are no queries, and keys that none sees, take any entry.
  int within(int apart) const { return std::clamp(apart, 1 - kernel_size(), kernel_size() - 1); }
  // Of key j where no border is near.
  int level(int j) const { return within(begin_ + j - position_); }
  int entry(int key, int query) const {
    const int moved = query * axis_->step;
    const int at = is_shared_ ? key : packed_key(*axis_, begin_ + moved + key);
    return within(at - (position_ + moved));
  }

  const AxisGroup* axis_;
  bool is_shared_;
  int position_;  // of the first query
  int begin_;     // of its window, as if no border were near; its neighbour's is `step` more
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_BIAS_INL_H_
