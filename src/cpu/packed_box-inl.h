// SPDX-License-Identifier: MIT
// The keys and values that a unit of the backward pass reads, packed into its scratch: as rows for
// sums along head_dim, and for products with lanes of queries transposed (shifted layout).
// Part of backward.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_PACKED_BOX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_PACKED_BOX_INL_H_
#undef VECINA_CPU_PACKED_BOX_INL_H_
#else
#define VECINA_CPU_PACKED_BOX_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/backward.h"
#include "cpu/key_gradients-inl.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename Element>
class PackedBox {
 public:
  using T = typename ComputeType<Element>::type;
  using D = hn::ScalableTag<T>;

  PackedBox(const BackwardPlan& plan, const BoxKeys& keys, T* scratch)
      : plan_(plan),
        keys_(keys),
        scratch_(scratch),
        tokens_(reinterpret_cast<int64_t*>(scratch + plan.scratch.tokens)),
        key_offsets_(reinterpret_cast<int64_t*>(scratch + plan.scratch.key_offsets)),
        is_shared_(key_layout(lane_axis()) == KeyLayout::shared),
        columns_(is_shared_ ? 0 : transposed_columns(lane_axis(), keys.ranges[2], plan.lanes)) {}

  // Of one run of transposed keys.
  int columns() const { return columns_; }
  // Where each key of a window lies in the transposed keys or values.
  const int64_t* key_offsets() const { return key_offsets_; }
  // Elements of one row of transposed keys or values.
  ptrdiff_t transposed_row(int size) const { return ptrdiff_t{columns_} * lane_axis().step * size; }

  void prepare() const {
    std::fill_n(scratch_ + plan_.scratch.zeros, plan_.scratch.num_zeros, T{0});
    for (int p = keys_.ranges[2].begin; p < keys_.ranges[2].end; ++p) {
      const int key = packed_key(lane_axis(), p);
      tokens_[p - keys_.ranges[2].begin] = key < 0 ? -1 : lane_axis().to_token(key);
    }
    if (!is_shared_) {
      find_key_offsets(lane_axis().window.kernel_size, lane_axis().step, columns_, key_offsets_);
    }
  }

  // The row of keys and values at (z, y).
  void pack_row(int z, int y, const Element* keys_from, const Element* values_from) const {
    const int64_t token_z = keys_.axes[0]->to_token(z), token_y = keys_.axes[1]->to_token(y);
    const Element* key = keys_from + token_offset(plan_.key, token_z, token_y);
    const Element* value = values_from + token_offset(plan_.value, token_z, token_y);
    const ptrdiff_t row = keys_.row(z, y), first = row * keys_.ranges[2].size();
    copy_tokens(key, plan_.key.token[2], plan_.head_dim, plan_.key_pitch,
                scratch_ + plan_.scratch.keys + first * plan_.key_pitch);
    if (is_shared_) {
      copy_tokens(value, plan_.value.token[2], plan_.head_dim_value, plan_.value_pitch,
                  scratch_ + plan_.scratch.values + first * plan_.value_pitch);
      return;
    }
    transpose_tokens(
        key, plan_.key.token[2], plan_.head_dim,
        scratch_ + plan_.scratch.transposed_keys + row * transposed_row(plan_.head_dim));
    transpose_tokens(
        value, plan_.value.token[2], plan_.head_dim_value,
        scratch_ + plan_.scratch.transposed_values + row * transposed_row(plan_.head_dim_value));
  }

 private:
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));

  const AxisGroup& lane_axis() const { return *keys_.axes[2]; }

  void copy_tokens(const Element* from, int64_t stride, int size, int pitch, T* to) const {
    for (int i = 0; i < keys_.ranges[2].size(); ++i, to += pitch) {
      prefetch_tokens(from, stride, size, i + kLanes, 1);
      if (tokens_[i] < 0) {
        std::fill_n(to, pitch, T{0});
      } else {
        copy_row(D(), from + tokens_[i] * stride, static_cast<size_t>(size),
                 static_cast<size_t>(pitch), to);
      }
    }
  }

  // Those of `count` positions from the one at `first` on.
  void prefetch_tokens(const Element* from, int64_t stride, int size, int first, int count) const {
    const int end = std::min(first + count, keys_.ranges[2].size());
    for (int i = first; i < end; ++i) {
      if (tokens_[i] >= 0) prefetch(from + tokens_[i] * stride, size);
    }
  }

  void transpose_tokens(const Element* from, int64_t stride, int size, T* to) const {
    const int step = lane_axis().step, count = keys_.ranges[2].size();
    const auto* zeros = reinterpret_cast<const Element*>(scratch_ + plan_.scratch.zeros);
    std::array<const Element*, kLanes> rows;
    for (int run = 0; run < step; ++run) {
      for (int column = 0; column * step + run < count; column += kLanes) {
        if (run == 0) {
          prefetch_tokens(from, stride, size, (column + kLanes) * step, kLanes * step);
        }
        for (int lane = 0; lane < kLanes; ++lane) {
          const int i = (column + lane) * step + run;
          rows[static_cast<size_t>(lane)] =
              i < count && tokens_[i] >= 0 ? from + tokens_[i] * stride : zeros;
        }
        transpose_rows(D(), ScatteredRows<Element>{rows.data()}, static_cast<size_t>(size),
                       static_cast<size_t>(columns_ * step), T{1},
                       to + ptrdiff_t{run} * columns_ + column);
      }
    }
  }

  const BackwardPlan& plan_;
  const BoxKeys& keys_;
  T* const scratch_;
  int64_t* const tokens_;  // of each position of the innermost range; -1: none
  int64_t* const key_offsets_;
  const bool is_shared_;
  const int columns_;
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_PACKED_BOX_INL_H_
