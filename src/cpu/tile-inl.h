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

// Vectors of half as many queries, which the last of a row may fill (AxisGroup::narrows_last). They
// have no twins.
inline constexpr bool kHasNarrowVectors = HWY_TARGET == HWY_AVX3;
template <typename T>
using NarrowTag = hn::Half<hn::ScalableTag<T>>;
template <class D>
inline constexpr bool kHasTwins =
    hn::MaxLanes(D()) == hn::MaxLanes(hn::ScalableTag<hn::TFromD<D>>());

// Rows of queries that one call of the first step takes: where 32 registers hold their sums, those
// of four keys for six, so that a key is one load for all of them.
inline constexpr int kMaxLogitRows = HWY_TARGET == HWY_AVX3 ? 6 : 3;
inline constexpr int kMaxLogitVectors = std::max(kMaxLogitRows, kMaxTwins);

// What the first step of a tile reads and writes: logits of some rows of keys for vectors of
// queries, of which entry i of vector v = row * twins + twin is at queries[v * query_pitch + i *
// lanes]. Entry i of key j of a row is at its offset + i * key_step: a vector (shifted) or one
// number (shared).
template <typename T>
struct LogitsArguments {
  int head_dim;
  const T* queries;
  ptrdiff_t query_pitch;
  const T* keys;               // of the first row
  const int64_t* key_offsets;  // of each key of a row; shared: nullptr, keys are key_pitch apart
  ptrdiff_t key_pitch, key_step;
  int rows;
  ptrdiff_t key_row, weight_row;  // from one row to the next
  T* weights[kMaxLogitVectors];   // of each vector: those of key j begin at j * lanes
  T scale = 1;                    // of pairs: what the products are multiplied with
};

// The first step of a tile for every number of rows of queries, twins and keys. Twins are a key
// apart, so in the shifted layout key j of twin t is key j + t: keys + twins - 1 vectors serve
// keys * twins logits. Compiled once, in tile_logits.cc, for all element types and both passes.
// kArePairs: queries and keys are bfloat16, two entries in each lane, and head_dim counts pairs.
template <KeyLayout kLayout, class D, bool kArePairs = false>
class LogitsTable {
 public:
  using T = hn::TFromD<D>;
  static constexpr int kMaxRows = kMaxLogitRows;

  // Logits of the first `keys` keys of each row, for rows of queries or for one of twins.
  static void run(int rows, int twins, int keys, const LogitsArguments<T>& arguments);
  // Rows whose logits one call computes: `left` more are there.
  static int take_rows(int left) {
    // None alone.
    if (left > kMaxRows && left < kMaxRows + 3) return (left + 1) / 2;
    return std::min(left, kMaxRows);
  }
};
extern template class LogitsTable<KeyLayout::shifted, hn::ScalableTag<float>>;
extern template class LogitsTable<KeyLayout::shared, hn::ScalableTag<float>>;
extern template class LogitsTable<KeyLayout::shifted, hn::ScalableTag<double>>;
extern template class LogitsTable<KeyLayout::shared, hn::ScalableTag<double>>;
inline constexpr bool kHasPairs = HWY_TARGET == HWY_AVX3;  // and some CPUs can multiply them
#if HWY_TARGET == HWY_AVX3
extern template class LogitsTable<KeyLayout::shifted, hn::ScalableTag<float>, true>;
extern template class LogitsTable<KeyLayout::shared, hn::ScalableTag<float>, true>;
extern template class LogitsTable<KeyLayout::shifted, NarrowTag<float>>;
extern template class LogitsTable<KeyLayout::shared, NarrowTag<float>>;
extern template class LogitsTable<KeyLayout::shifted, NarrowTag<double>>;
extern template class LogitsTable<KeyLayout::shared, NarrowTag<double>>;
extern template class LogitsTable<KeyLayout::shifted, NarrowTag<float>, true>;
extern template class LogitsTable<KeyLayout::shared, NarrowTag<float>, true>;
#endif

// What 2^(x - base) is computed with, where base is a whole number: with the base in these two it
// takes no subtraction.
template <class D>
struct WholeBase {
  hn::Vec<D> least;  // the base and the exponent of the smallest normal number
  hn::Vec<D> magic;  // adding it rounds to a whole number, from the base on in the lowest bits
};
// Of a base of which the magic number has all bits: up to kMostBase, of either sign.
template <typename T>
inline constexpr T kMostBase = sizeof(T) == 4 ? static_cast<T>(0x1p21) : static_cast<T>(0x1p50);
template <class D>
HWY_INLINE WholeBase<D> whole_base(D d, hn::Vec<D> base) {
  using T = hn::TFromD<D>;
  constexpr bool kIsFloat = sizeof(T) == 4;
  return {
      hn::Add(base, hn::Set(d, static_cast<T>(kIsFloat ? -126 : -1022))),
      hn::Sub(hn::Set(d, kIsFloat ? static_cast<T>(0x1.8p23) : static_cast<T>(0x1.8p52)), base)};
}

// 2^(x - base) for x < base + 1, not below the smallest normal number; NaN stays NaN.
template <class D>
HWY_INLINE hn::Vec<D> exp2_from(D d, const WholeBase<D>& base, hn::Vec<D> x) {
  using T = hn::TFromD<D>;
  const hn::RebindToSigned<D> d_int;
  constexpr bool kIsFloat = sizeof(T) == 4;
  constexpr int kMantissaBits = kIsFloat ? 23 : 52;
  // The second operand wins if one is NaN, so it must be x.
  x = hn::Max(base.least, x);
  const auto shifted = hn::Add(x, base.magic);
  const auto part = hn::Sub(x, hn::Sub(shifted, base.magic));
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

// 2^x for x < 1, likewise.
template <class D>
HWY_INLINE hn::Vec<D> exp2_negative(D d, hn::Vec<D> x) {
  return exp2_from(d, whole_base(d, hn::Zero(d)), x);
}

// Running state of one row's softmax, a vector of queries each; base-2 logarithms.
template <class D>
struct SoftmaxState {
  hn::Vec<D> max;  // the largest logit; by softmax<true>() rounded down
  hn::Vec<D> sum;  // of 2^(logit - max)
};
template <class D>
HWY_INLINE SoftmaxState<D> empty_softmax(D d) {
  return {hn::Set(d, -hwy::HighestValue<hn::TFromD<D>>() * 2), hn::Zero(d)};
}

// The largest of a maximum and of the logits of `count` keys.
template <class D>
HWY_INLINE hn::Vec<D> largest_logit(D d, size_t count, const hn::TFromD<D>* HWY_RESTRICT logits,
                                    hn::Vec<D> max) {
  constexpr size_t kLanes = hn::MaxLanes(D());
  auto max1 = max, max2 = max, max3 = max;
  size_t j = 0;
  for (; j + 4 <= count; j += 4, logits += 4 * kLanes) {
    max = hn::Max(max, hn::Load(d, logits));
    max1 = hn::Max(max1, hn::Load(d, logits + kLanes));
    max2 = hn::Max(max2, hn::Load(d, logits + 2 * kLanes));
    max3 = hn::Max(max3, hn::Load(d, logits + 3 * kLanes));
  }
  for (; j < count; ++j, logits += kLanes) max = hn::Max(max, hn::Load(d, logits));
  return hn::Max(hn::Max(max, max1), hn::Max(max2, max3));
}

// A row of nothing but -infinity has sum 0. If one is NaN, its maximum may be -infinity too: the
// sum stays NaN.
template <class M, class V>
HWY_INLINE V sum_of_row(M is_empty, V sum) {
  return hn::IfThenZeroElse(hn::And(is_empty, hn::Eq(sum, sum)), sum);
}

// The base of the logits of `count` keys. In lanes where it is too large for a WholeBase, or NaN,
// logits are counted from it, and then it is 0. Others keep theirs: what a lane that is no query
// holds, which may be anything, changes no bit of those that are.
template <class D>
HWY_INLINE hn::Vec<D> near_base(D d, size_t count, hn::Vec<D> base,
                                hn::TFromD<D>* HWY_RESTRICT logits) {
  using T = hn::TFromD<D>;
  constexpr size_t kLanes = hn::MaxLanes(D());
  const auto is_near = hn::Le(hn::Abs(base), hn::Set(d, kMostBase<T>));
  if (hn::AllTrue(d, is_near)) return base;
  const auto far = hn::IfThenZeroElse(is_near, base);
  for (size_t j = 0; j < count; ++j, logits += kLanes) {
    hn::Store(hn::Sub(hn::Load(d, logits), far), d, logits);
  }
  return hn::IfThenElseZero(is_near, base);
}

// Turns the logits of `count` keys into weights 2^(logit - base), of a whole number. Returns their
// sum.
template <class D>
HWY_INLINE hn::Vec<D> exponentiate(D d, size_t count, hn::Vec<D> base,
                                   hn::TFromD<D>* HWY_RESTRICT weights) {
  constexpr size_t kLanes = hn::MaxLanes(D());
  const WholeBase<D> whole = whole_base(d, near_base(d, count, base, weights));
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  size_t j = 0;
  for (; j + 2 <= count; j += 2, weights += 2 * kLanes) {
    const auto p0 = exp2_from(d, whole, hn::Load(d, weights));
    const auto p1 = exp2_from(d, whole, hn::Load(d, weights + kLanes));
    hn::Store(p0, d, weights);
    hn::Store(p1, d, weights + kLanes);
    sum0 = hn::Add(sum0, p0);
    sum1 = hn::Add(sum1, p1);
  }
  if (j < count) {
    const auto p = exp2_from(d, whole, hn::Load(d, weights));
    hn::Store(p, d, weights);
    sum0 = hn::Add(sum0, p);
  }
  return hn::Add(sum0, sum1);
}

// Takes logits into the state, whose maximum is up to date with them and, if kIsWhole, is rounded
// down here. turn(base) makes weights 2^(logit - base) of them and returns their sum. `before`: the
// maximum before. Returns the factor by which what was summed up before shrinks.
template <bool kIsWhole = true, class D, class Turn>
HWY_INLINE hn::Vec<D> softmax(D d, hn::Vec<D> before, SoftmaxState<D>* state, const Turn& turn) {
  const auto is_empty = hn::Lt(state->max, hn::Set(d, -hwy::HighestValue<hn::TFromD<D>>()));
  if constexpr (kIsWhole) state->max = hn::Floor(state->max);
  const auto base = hn::IfThenZeroElse(is_empty, state->max);
  const auto sum = turn(base);
  const auto shrink = exp2_negative(d, hn::Sub(before, base));
  state->sum = sum_of_row(is_empty, hn::MulAdd(state->sum, shrink, sum));
  return shrink;
}

#if HWY_TARGET == HWY_AVX3
// log_normal() of sixteen lanes or eight, with half as many multiply-adds: x = 2^exponent * m, and
// m is divided by what is in the middle of its sixteenth of [1, 2), but for the first, where that
// is 1: sums are at least 1, and near 1 what counts is their distance.
template <class D>
HWY_INLINE hn::Vec<D> log_by_sixteenths(D d, hn::Vec<D> x) {
  alignas(64) static constexpr float kInverse[16] = {
      1.0f,         0.914285719f, 0.864864886f, 0.820512831f, 0.780487776f, 0.744186044f,
      0.711111128f, 0.680851042f, 0.653061211f, 0.627451003f, 0.603773594f, 0.581818163f,
      0.561403513f, 0.542372882f, 0.524590135f, 0.507936537f};
  alignas(64) static constexpr float kLog[16] = {
      0.0f,         0.0896121562f, 0.145181984f, 0.19782573f,  0.247836202f, 0.295464218f,
      0.340926558f, 0.384411722f,  0.426084429f, 0.466089696f, 0.504556f,    0.541597307f,
      0.577315331f, 0.611801565f,  0.645138025f, 0.677398741f};
  const hn::RebindToSigned<D> d_int;
  const auto bits = hn::BitCast(d_int, x), one = hn::Set(d_int, 0x3f800000);
  const auto exponent = hn::ConvertTo(d, hn::ShiftRight<23>(hn::Sub(bits, one)));
  const auto m = hn::BitCast(d, hn::Or(hn::And(bits, hn::Set(d_int, 0x7fffff)), one));
  const auto sixteenth = hn::ShiftRight<19>(bits);  // in the lowest four bits
  const auto look_up = [&](const float* table) VECINA_INLINE {
    if constexpr (hn::MaxLanes(D()) == 16) {
      return hn::Vec<D>{_mm512_permutexvar_ps(sixteenth.raw, hn::Load(d, table).raw)};
    } else {
      return hn::Vec<D>{_mm256_permutex2var_ps(hn::Load(d, table).raw, sixteenth.raw,
                                               hn::Load(d, table + 8).raw)};
    }
  };
  const auto r = hn::MulAdd(m, look_up(kInverse), hn::Set(d, -1.0f));
  // Least largest error (3.3e-9) of log(1 + r) = r * p(r) on [-1/35, 1/16] with p(0) = 1.
  auto p = hn::MulAdd(r, hn::Set(d, -0.235732049f), hn::Set(d, 0.33335799f));
  p = hn::MulAdd(r, p, hn::Set(d, -0.500011683f));
  p = hn::MulAdd(r, p, hn::Set(d, 1.0f));
  return hn::MulAdd(exponent, hn::Set(d, 0.69314718f), hn::MulAdd(r, p, look_up(kLog)));
}
#endif

// Natural logarithm of a normal number; hn::Log takes those of all others too, and a division.
template <class D>
HWY_INLINE hn::Vec<D> log_normal(D d, hn::Vec<D> x) {
  using T = hn::TFromD<D>;
#if HWY_TARGET == HWY_AVX3
  if constexpr (sizeof(T) == 4 && hn::MaxLanes(D()) >= 8) return log_by_sixteenths(d, x);
#endif
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

// A run of keys of one tile row: `count` of them in each of some rows of keys, whose weights follow
// each other from `slot` on, and the values behind them. In the first row of keys, key j of query i
// has its value at values + (i * query_step + j) * pitch, or at values + j * pitch if all queries
// see the same keys.
template <typename T>
struct KeyRun {
  const T* values;
  ptrdiff_t pitch, row_step;  // elements between values, and from row to row
  int slot, rows, count;
  int first_key;   // of the window; what a QueryView counts from
  bool is_shared;  // all queries see the same keys
  bool is_window;  // queries may see part of it; additional tokens are seen by all
  // Of pairs of rows (exponentiate_pairs()): the first row is the second of its pair, and the last
  // one the first.
  bool begins_within, ends_within;  // no defaults: a tile would write those of all its runs
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
    const auto seen = hn::MaskFromVec(hn::BitCast(d, hn::Or(in_window, behind)));
    for (int row = 0; row < run.rows; ++row) {
      T* at = weights + static_cast<size_t>(run.slot + row * run.count + j) * lanes;
      hn::Store(hn::IfThenElse(seen, hn::Load(d, at), hidden), d, at);
    }
  }
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_TILE_INL_H_
