// SPDX-License-Identifier: MIT
// The first two steps of a tile, with queries in lanes: logits and softmax.
// Online softmax: Milakov and Gimelshein, arXiv:1805.02867.
// Part of each forward_*.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_TILE_INL_H_
#undef VECINA_CPU_TILE_INL_H_
#else
#define VECINA_CPU_TILE_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sums one call of a LogitsTable function keeps in registers: as many as leave room for a key and,
// read as operands of the multiply-adds where need be, the queries.
inline constexpr int kMaxSums = HWY_TARGET == HWY_AVX3 ? 28 : 12;

// The first step of a tile for every number of rows, twins and keys. A function computes logits of
// `keys` keys for vectors of queries, of which entry i of vector v = row * twins + twin is at
// queries[v * query_pitch + i * lanes], of key m at keys[m] + i * key_step: a vector (shifted) or
// one number (shared). Twins are a key apart, so in the shifted layout key j of twin t is key j +
// t: keys + twins - 1 vectors serve keys * twins logits. weights[v][j * lanes + lane] = sum over i
// of query * key. Compiled once, in tile_logits.cc, for all element types and both passes.
template <KeyLayout kLayout, class D>
class LogitsTable {
 public:
  using T = hn::TFromD<D>;
  static constexpr int kMaxRows = 3;
  static constexpr int kMostKeys = 8;
  static constexpr int kMaxColumns = 7 + kMaxTwins - 1;  // key vectors of one call
  using Function = void (*)(int head_dim, const T* queries, ptrdiff_t query_pitch,
                            const T* const* keys, ptrdiff_t key_step, T* const* weights);
  // For 1 to 4 vectors; not divided for each call.
  static constexpr int kFew = kMostKeys - 1;
  static constexpr std::array<int, 4> kMaxKeys = {kMostKeys, std::min(kMaxSums / 2, kFew),
                                                  std::min(kMaxSums / 3, kFew),
                                                  std::min(kMaxSums / 4, kFew)};

  // How many of `keys` one call takes for that many vectors, so that none is left with few sums.
  static int take(int vectors, int keys) {
    const int most = max_keys(vectors);
    if (keys > most) return keys < most + 3 ? (keys + 1) / 2 : most;
    return keys == 6 && most == 7 ? 3 : keys;
  }
  // Rows whose logits one call computes: `left` more are there.
  static int take_rows(int left) { return left == 4 ? 2 : std::min(left, kMaxRows); }
  static constexpr int max_keys(int vectors) { return kMaxKeys[static_cast<size_t>(vectors - 1)]; }

  static Function of_rows(int rows, int keys);
  static Function of_twins(int keys);
};
extern template class LogitsTable<KeyLayout::shifted, hn::ScalableTag<float>>;
extern template class LogitsTable<KeyLayout::shared, hn::ScalableTag<float>>;
extern template class LogitsTable<KeyLayout::shifted, hn::ScalableTag<double>>;
extern template class LogitsTable<KeyLayout::shared, hn::ScalableTag<double>>;

// 2^x for x <= 0, not below the smallest normal number; NaN stays NaN.
template <class D>
HWY_INLINE hn::Vec<D> exp2_negative(D d, hn::Vec<D> x) {
  using T = hn::TFromD<D>;
  const hn::RebindToSigned<D> d_int;
  constexpr bool kIsFloat = sizeof(T) == 4;
  constexpr int kMantissaBits = kIsFloat ? 23 : 52;
  // Adding 1.5 * 2^mantissa bits rounds to a whole number, which is left in the lowest bits.
  const auto magic = hn::Set(d, kIsFloat ? static_cast<T>(0x1.8p23) : static_cast<T>(0x1.8p52));
  // The second operand wins if one is NaN, so it must be x.
  x = hn::Max(hn::Set(d, static_cast<T>(kIsFloat ? -126 : -1022)), x);
  const auto shifted = hn::Add(x, magic);
  const auto part = hn::Sub(x, hn::Sub(shifted, magic));
  hn::Vec<D> p;
  if constexpr (kIsFloat) {
    // Least largest relative error (9.1e-8) on [-1/2, 1/2] of degree 5 with p(0) = 1.
    p = hn::Set(d, 0.0013264727f);
    p = hn::MulAdd(p, part, hn::Set(d, 0.0096715126f));
    p = hn::MulAdd(p, part, hn::Set(d, 0.0555073374f));
    p = hn::MulAdd(p, part, hn::Set(d, 0.2402224208f));
    p = hn::MulAdd(p, part, hn::Set(d, 0.6931469776f));
  } else {
    // ln(2)^k / k! for k = 13 to 1: the first term left out is below 5e-18.
    constexpr double kTerms[] = {
        1.3691488853904128e-12, 2.5678435993488196e-11, 4.4455382718708108e-10,
        7.0549116208011218e-9,  1.0178086009239699e-7,  1.3215486790144305e-6,
        1.5252733804059838e-5,  1.5403530393381606e-4,  1.3333558146428441e-3,
        9.6181291076284768e-3,  5.5504108664821576e-2,  2.4022650695910069e-1,
        6.9314718055994529e-1};
    p = hn::Set(d, kTerms[0]);
    for (size_t k = 1; k < sizeof(kTerms) / sizeof(kTerms[0]); ++k) {
      p = hn::MulAdd(p, part, hn::Set(d, kTerms[k]));
    }
  }
  p = hn::MulAdd(p, part, hn::Set(d, static_cast<T>(1)));
  // p is in [0.7, 1.42]: adding to the exponent's bits multiplies by the power of two.
  const auto exponent = hn::ShiftLeft<kMantissaBits>(hn::BitCast(d_int, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(d_int, p), exponent));
}

// Running state of one row's softmax, a vector of queries each; base-2 logarithms.
template <class D>
struct SoftmaxState {
  hn::Vec<D> max, sum;
};
template <class D>
HWY_INLINE SoftmaxState<D> empty_softmax(D d) {
  return {hn::Set(d, -hwy::HighestValue<hn::TFromD<D>>() * 2), hn::Zero(d)};
}

// Turns the logits of `count` keys into weights 2^(logit - max) and updates the state. Returns the
// factor by which what was summed up before shrinks.
template <class D>
HWY_INLINE hn::Vec<D> softmax(D d, size_t count, hn::TFromD<D>* HWY_RESTRICT weights,
                              SoftmaxState<D>* state) {
  const size_t lanes = hn::Lanes(d);
  auto max0 = state->max, max1 = max0, max2 = max0, max3 = max0;
  size_t j = 0;
  for (; j + 4 <= count; j += 4) {
    max0 = hn::Max(max0, hn::Load(d, weights + (j + 0) * lanes));
    max1 = hn::Max(max1, hn::Load(d, weights + (j + 1) * lanes));
    max2 = hn::Max(max2, hn::Load(d, weights + (j + 2) * lanes));
    max3 = hn::Max(max3, hn::Load(d, weights + (j + 3) * lanes));
  }
  for (; j < count; ++j) max0 = hn::Max(max0, hn::Load(d, weights + j * lanes));
  const auto max = hn::Max(hn::Max(max0, max1), hn::Max(max2, max3));
  // A row of nothing but -infinity has sum 0, not NaN.
  const auto is_empty = hn::Lt(max, hn::Set(d, -hwy::HighestValue<hn::TFromD<D>>()));
  const auto base = hn::IfThenZeroElse(is_empty, max);

  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  for (j = 0; j + 2 <= count; j += 2) {
    const auto p0 = exp2_negative(d, hn::Sub(hn::Load(d, weights + j * lanes), base));
    const auto p1 = exp2_negative(d, hn::Sub(hn::Load(d, weights + (j + 1) * lanes), base));
    hn::Store(p0, d, weights + j * lanes);
    hn::Store(p1, d, weights + (j + 1) * lanes);
    sum0 = hn::Add(sum0, p0);
    sum1 = hn::Add(sum1, p1);
  }
  if (j < count) {
    const auto p = exp2_negative(d, hn::Sub(hn::Load(d, weights + j * lanes), base));
    hn::Store(p, d, weights + j * lanes);
    sum0 = hn::Add(sum0, p);
  }
  const auto shrink = exp2_negative(d, hn::Sub(state->max, base));
  const auto sum = hn::MulAdd(state->sum, shrink, hn::Add(sum0, sum1));
  state->sum = hn::IfThenZeroElse(is_empty, sum);
  state->max = max;
  return shrink;
}

// Natural logarithm of a normal number; hn::Log takes those of all others too, and a division.
template <class D>
HWY_INLINE hn::Vec<D> log_normal(D d, hn::Vec<D> x) {
  using T = hn::TFromD<D>;
  if constexpr (sizeof(T) == 8) {
    return hn::Log(d, x);
  } else {
    // x = 2^exponent * (1 + f), f from sqrt(1/2) - 1 to sqrt(2) - 1.
    const hn::RebindToSigned<D> d_int;
    const auto bits = hn::BitCast(d_int, x);
    const auto exponent = hn::ShiftRight<23>(hn::Sub(bits, hn::Set(d_int, 0x3f3504f3)));
    const auto mantissa = hn::BitCast(d, hn::Sub(bits, hn::ShiftLeft<23>(exponent)));
    const auto f = hn::Sub(mantissa, hn::Set(d, 1.0f)), f2 = hn::Mul(f, f), f4 = hn::Mul(f2, f2);
    // Least largest relative error (1.7e-7) of f * p(f) of degree 8.
    const auto p01 = hn::MulAdd(f, hn::Set(d, -0.50000364f), hn::Set(d, 0.99999994f));
    const auto p23 = hn::MulAdd(f, hn::Set(d, -0.24969904f), hn::Set(d, 0.33335057f));
    const auto p45 = hn::MulAdd(f, hn::Set(d, -0.17250933f), hn::Set(d, 0.19900209f));
    const auto p67 = hn::MulAdd(f, hn::Set(d, -0.10106154f), hn::Set(d, 0.16222262f));
    const auto p = hn::MulAdd(f4, hn::MulAdd(f2, p67, p45), hn::MulAdd(f2, p23, p01));
    return hn::MulAdd(hn::ConvertTo(d, exponent), hn::Set(d, 0.69314718f), hn::Mul(f, p));
  }
}

// Natural logarithm of the sum of exp over all keys.
template <class D>
HWY_INLINE hn::Vec<D> log_sum_exp(D d, const SoftmaxState<D>& state) {
  using T = hn::TFromD<D>;
  const auto zero = hn::Zero(d);
  const auto infinite = hn::Set(d, -hwy::HighestValue<T>() * 2);
  const auto lse = hn::MulAdd(state.max, hn::Set(d, static_cast<T>(0.69314718055994530942)),
                              log_normal(d, state.sum));
  // The logarithm takes neither 0 nor NaN.
  return hn::IfThenElse(hn::IsNaN(state.sum), state.sum,
                        hn::IfThenElse(hn::Eq(state.sum, zero), infinite, lse));
}

// A run of keys of one tile row: `count` weights from `slot` on and the packed values behind them.
// Key j of query i has its value row at values + (i * query_step + j) * pitch, or at
// values + j * pitch if all queries see the same keys.
template <typename T>
struct KeyRun {
  const T* values;
  ptrdiff_t pitch;  // elements between value rows
  int slot, count;
  int first_key;   // of the window; what a QueryView counts from
  bool is_shared;  // all queries see the same keys
  bool is_window;  // queries may see part of it; additional tokens are seen by all
};

// The keys of its window that one query sees: [begin, visible) and [wrapped, ...).
struct QueryView {
  int begin, visible, wrapped;
  bool sees(int key) const { return (key >= begin && key < visible) || key >= wrapped; }
};

// Hides the logits of keys that a query does not see: run by run, key by key. Lane l of the vector
// is the query of views[l * apart].
template <class D>
HWY_INLINE void hide(D d, const KeyRun<hn::TFromD<D>>& run, const QueryView* views, size_t apart,
                     hn::TFromD<D>* HWY_RESTRICT weights) {
  using T = hn::TFromD<D>;
  const hn::RebindToSigned<D> d_int;
  using Int = hn::TFromD<decltype(d_int)>;
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN Int begins[hn::MaxLanes(d)], visibles[hn::MaxLanes(d)], wraps[hn::MaxLanes(d)];
  for (size_t lane = 0; lane < lanes; ++lane) {
    begins[lane] = views[lane * apart].begin;
    visibles[lane] = views[lane * apart].visible;
    wraps[lane] = views[lane * apart].wrapped;
  }
  const auto begin = hn::Load(d_int, begins), visible = hn::Load(d_int, visibles);
  const auto wrapped = hn::Load(d_int, wraps);
  const auto hidden = hn::Set(d, -hwy::HighestValue<T>() * 2);
  for (int j = 0; j < run.count; ++j) {
    const auto key = hn::Set(d_int, static_cast<Int>(run.first_key + j));
    const auto in_window = hn::AndNot(hn::VecFromMask(d_int, hn::Lt(key, begin)),
                                      hn::VecFromMask(d_int, hn::Lt(key, visible)));
    const auto behind = hn::Not(hn::VecFromMask(d_int, hn::Lt(key, wrapped)));
    const auto seen = hn::Or(in_window, behind);
    T* at = weights + static_cast<size_t>(run.slot + j) * lanes;
    hn::Store(hn::IfThenElse(hn::MaskFromVec(hn::BitCast(d, seen)), hn::Load(d, at), hidden), d,
              at);
  }
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_TILE_INL_H_
