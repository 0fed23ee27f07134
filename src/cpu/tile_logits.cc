// SPDX-License-Identifier: MIT
// The functions of LogitsTable, for every instruction set.
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/tile_logits.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include <array>
#include <cstddef>
#include <utility>

#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace {

// LogitsTable says what it computes.
template <int kRows, int kTwins, int kKeys, KeyLayout kLayout, class D>
void logits(int head_dim, const hn::TFromD<D>* HWY_RESTRICT queries, ptrdiff_t query_pitch,
            const hn::TFromD<D>* const* keys, ptrdiff_t key_step, hn::TFromD<D>* const* weights) {
  using T = hn::TFromD<D>;
  const D d;
  constexpr bool kIsShifted = kLayout == KeyLayout::shifted;
  constexpr int kVectors = kRows * kTwins;
  constexpr int kColumns = kIsShifted ? kKeys + kTwins - 1 : kKeys;
  const auto lanes = static_cast<ptrdiff_t>(hn::Lanes(d));
  hn::Vec<D> sums[kVectors * kKeys];
  unroll<kVectors * kKeys>([&](auto i) VECINA_INLINE { sums[i] = hn::Zero(d); });
  const T* k[kColumns];
  unroll<kColumns>([&](auto m) VECINA_INLINE { k[m] = keys[m]; });
  for (int i = 0; i < head_dim; ++i) {
    hn::Vec<D> q[kVectors];
    unroll<kVectors>([&](auto v) VECINA_INLINE {
      q[v] = hn::Load(d, queries + static_cast<ptrdiff_t>(size_t{v}) * query_pitch + i * lanes);
    });
    unroll<kColumns>([&](auto m) VECINA_INLINE {
      hn::Vec<D> key;
      if constexpr (kIsShifted) {
        key = hn::LoadU(d, k[m] + i * key_step);
        if constexpr (kVectors > 1) key = in_register(key);
      } else {
        key = hn::Set(d, k[m][i * key_step]);
      }
      unroll<kVectors>([&](auto v) VECINA_INLINE {
        constexpr int kKey = static_cast<int>(m) - (kIsShifted ? static_cast<int>(v) % kTwins : 0);
        if constexpr (kKey >= 0 && kKey < kKeys) {
          constexpr size_t kSum = v * kKeys + static_cast<size_t>(kKey);
          sums[kSum] = hn::MulAdd(q[v], key, sums[kSum]);
        }
      });
    });
  }
  unroll<kVectors>([&](auto v) VECINA_INLINE {
    unroll<kKeys>([&](auto j) VECINA_INLINE {
      hn::Store(sums[v * kKeys + j], d, weights[v] + static_cast<ptrdiff_t>(size_t{j}) * lanes);
    });
  });
}

// For every number of keys.
template <KeyLayout kLayout, class D>
struct Tables {
  using Logits = LogitsTable<kLayout, D>;
  using Function = typename Logits::Function;

  template <int kRows, int kTwins, int kKeys>
  static constexpr Function function() {
    constexpr int kMost = Logits::max_keys(kRows * kTwins);
    if constexpr (kKeys > kMost || (kKeys == 6 && kMost == 7)) {
      return nullptr;  // never taken
    } else {
      return &logits<kRows, kTwins, kKeys, kLayout, D>;
    }
  }
  template <int kRows, int kTwins, int... kKeys>
  static constexpr std::array<Function, sizeof...(kKeys)> table(
      std::integer_sequence<int, kKeys...>) {
    return {function<kRows, kTwins, kKeys + 1>()...};
  }
  using AllKeys = std::make_integer_sequence<int, Logits::kMostKeys>;
  static constexpr std::array<Function, Logits::kMostKeys> kOfRows[Logits::kMaxRows] = {
      table<1, 1>(AllKeys()), table<2, 1>(AllKeys()), table<3, 1>(AllKeys())};
  static constexpr auto kOfTwins = table<1, kMaxTwins>(AllKeys());
};

}  // namespace

template <KeyLayout kLayout, class D>
typename LogitsTable<kLayout, D>::Function LogitsTable<kLayout, D>::of_rows(int rows, int keys) {
  return Tables<kLayout, D>::kOfRows[rows - 1][static_cast<size_t>(keys - 1)];
}
template <KeyLayout kLayout, class D>
typename LogitsTable<kLayout, D>::Function LogitsTable<kLayout, D>::of_twins(int keys) {
  return Tables<kLayout, D>::kOfTwins[static_cast<size_t>(keys - 1)];
}
template class LogitsTable<KeyLayout::shifted, hn::ScalableTag<float>>;
template class LogitsTable<KeyLayout::shared, hn::ScalableTag<float>>;
template class LogitsTable<KeyLayout::shifted, hn::ScalableTag<double>>;
template class LogitsTable<KeyLayout::shared, hn::ScalableTag<double>>;

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
