// SPDX-License-Identifier: MIT
// The three steps of a tile: logits (lanes are queries), softmax, weighted sum of values (lanes run
// along head_dim_value). Online softmax: Milakov and Gimelshein, arXiv:1805.02867.
// Part of each forward_<dtype>.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_TILE_INL_H_
#undef VECINA_CPU_TILE_INL_H_
#else
#define VECINA_CPU_TILE_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Keys whose logits one call of logits() computes for several rows, and for a single one. 8 sums
// hide the latency of the multiply-add; with AVX-512's 32 registers 3 x 7 sums save loads of
// queries.
inline constexpr int kMaxKeys = HWY_TARGET == HWY_AVX3 ? 7 : 4;
inline constexpr int kMaxKeysOneRow = 8;

// weights[r][t * lanes + lane] = sum over i of queries[r * query_pitch + i * lanes + lane] * key t,
// whose entry i is a vector at keys[t] + i * key_step (shifted) or one number there (shared).
template <int kRows, int kKeys, KeyLayout kLayout, class D>
HWY_NOINLINE void logits(D d, int head_dim, const hn::TFromD<D>* HWY_RESTRICT queries,
                         ptrdiff_t query_pitch, const hn::TFromD<D>* const* keys,
                         ptrdiff_t key_step, hn::TFromD<D>* const* weights) {
  using T = hn::TFromD<D>;
  const auto lanes = static_cast<ptrdiff_t>(hn::Lanes(d));
  hn::Vec<D> sums[kRows * kKeys];
  unroll<kRows * kKeys>([&](auto i) HWY_ATTR { sums[i] = hn::Zero(d); });
  const T* k[kKeys];
  unroll<kKeys>([&](auto t) HWY_ATTR { k[t] = keys[t]; });
  for (int i = 0; i < head_dim; ++i) {
    hn::Vec<D> q[kRows];
    unroll<kRows>([&](auto r) HWY_ATTR {
      q[r] = hn::Load(d, queries + static_cast<ptrdiff_t>(size_t{r}) * query_pitch + i * lanes);
    });
    unroll<kKeys>([&](auto t) HWY_ATTR {
      hn::Vec<D> key;
      if constexpr (kLayout == KeyLayout::shifted) {
        key = hn::LoadU(d, k[t] + i * key_step);
        if constexpr (kRows > 1) key = in_register(key);
      } else {
        key = hn::Set(d, k[t][i * key_step]);
      }
      unroll<kRows>([&](auto r) HWY_ATTR {
        sums[r * kKeys + t] = hn::MulAdd(q[r], key, sums[r * kKeys + t]);
      });
    });
  }
  unroll<kRows>([&](auto r) HWY_ATTR {
    unroll<kKeys>([&](auto t) HWY_ATTR {
      hn::Store(sums[r * kKeys + t], d, weights[r] + static_cast<ptrdiff_t>(size_t{t}) * lanes);
    });
  });
}

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

// Natural logarithm of the sum of exp over all keys.
template <class D>
HWY_INLINE hn::Vec<D> log_sum_exp(D d, const SoftmaxState<D>& state) {
  using T = hn::TFromD<D>;
  const auto zero = hn::Zero(d);
  const auto infinite = hn::Set(d, -hwy::HighestValue<T>() * 2);
  const auto lse = hn::MulAdd(state.max, hn::Set(d, static_cast<T>(0.69314718055994530942)),
                              hn::Log(d, state.sum));
  // Log takes neither 0 nor NaN.
  return hn::IfThenElse(hn::IsNaN(state.sum), state.sum,
                        hn::IfThenElse(hn::Eq(state.sum, zero), infinite, lse));
}

// A run of keys of one tile row: `count` weights from `slot` on and the packed values behind them.
// Lane l's key j has its value row at values + (l * lane_step + j) * pitch, or at
// values + j * pitch if all lanes see the same keys.
template <typename T>
struct KeyRun {
  const T* values;
  ptrdiff_t pitch;  // elements between value rows
  int slot, count;
  int first_key;   // of the window; what a LaneView counts from
  bool is_shared;  // all lanes see the same keys
  bool is_window;  // lanes may see part of it; additional tokens are seen by all
};

// The keys of its window that one lane sees: [begin, visible) and [wrapped, ...).
struct LaneView {
  int begin, visible, wrapped;
};

// What the add_*() functions read: runs of one tile row, from a lane on, at a column of the values.
template <typename T>
struct ValueArguments {
  const KeyRun<T>* runs;
  int num_runs;
  const T* weights;       // of lane 0
  ptrdiff_t lane_step;    // value rows between the keys of neighbouring lanes
  const LaneView* views;  // one a lane; nullptr: every lane sees every key
};

template <typename T>
HWY_INLINE LaneView seen_by(const ValueArguments<T>& arguments, const KeyRun<T>& run, int lane) {
  if (arguments.views == nullptr || !run.is_window) return {0, run.count, run.count};
  const LaneView& view = arguments.views[lane];
  const int visible = HWY_MAX(0, HWY_MIN(view.visible - run.first_key, run.count));
  return {0, visible, HWY_MAX(visible, HWY_MIN(view.wrapped - run.first_key, run.count))};
}

// How the lanes of one call see their keys.
enum class Quad {
  stairs,  // four lanes whose windows move by one key each
  level,   // four lanes with the same keys
  single,  // one lane
};

// Four sums of values, kVectors vectors each, kept in registers within one function: a function
// with several loops over them would spill.
template <int kVectors, class D>
struct ValueSums {
  using T = hn::TFromD<D>;
  static constexpr ptrdiff_t kLanes = hn::MaxLanes(D());

  hn::Vec<D> sums[4 * kVectors];

  HWY_INLINE ValueSums() {
    unroll<4 * kVectors>([&](auto i) HWY_ATTR { sums[i] = hn::Zero(D()); });
  }
  HWY_INLINE void load(const T* from) {
    unroll<4 * kVectors>([&](auto i) HWY_ATTR { sums[i] = hn::Load(D(), from + i * kLanes); });
  }
  HWY_INLINE void store(T* to) const {
    unroll<4 * kVectors>([&](auto i) HWY_ATTR { hn::Store(sums[i], D(), to + i * kLanes); });
  }
  // One value row times the weights of sums [kFirst, kLast), `apart` elements from each other.
  template <size_t kFirst, size_t kLast>
  HWY_INLINE void add(const T* value, const T* weights, ptrdiff_t apart) {
    hn::Vec<D> v[kVectors];
    unroll<kVectors>([&](auto k) HWY_ATTR {
      v[k] = hn::LoadU(D(), value + k * kLanes);
      if constexpr (kLast - kFirst > 1) v[k] = in_register(v[k]);
    });
    unroll<kLast - kFirst>([&](auto i) HWY_ATTR {
      constexpr size_t q = kFirst + i;
      const auto w = hn::Set(D(), weights[static_cast<ptrdiff_t>(q) * apart]);
      unroll<kVectors>([&](auto k) HWY_ATTR {
        sums[q * kVectors + k] = hn::MulAdd(w, v[k], sums[q * kVectors + k]);
      });
    });
  }
};

// Four lanes whose windows move by one key each: count + 3 value rows, each loaded once. Runs of at
// least 3 keys, seen by all.
template <int kVectors, class D>
HWY_INLINE void add_stairs(D, const ValueArguments<hn::TFromD<D>>& arguments, int lane,
                           ptrdiff_t column, ValueSums<kVectors, D>* sums) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  for (int n = 0; n < arguments.num_runs; ++n) {
    const KeyRun<T>& run = arguments.runs[n];
    const ptrdiff_t pitch = run.pitch;
    const T* w = arguments.weights + run.slot * kLanes + lane;
    const T* value = run.values + column + lane * pitch;
    // Row j of the stairs is key j of lane 0, key j - 1 of lane 1 and so on.
    constexpr ptrdiff_t kApart = 1 - kLanes;
    sums->template add<0, 1>(value, w, kApart);
    sums->template add<0, 2>(value + pitch, w + kLanes, kApart);
    sums->template add<0, 3>(value + 2 * pitch, w + 2 * kLanes, kApart);
    w += 3 * kLanes;
    value += 3 * pitch;
    for (int j = 3; j < run.count; ++j, w += kLanes, value += pitch) {
      sums->template add<0, 4>(value, w, kApart);
    }
    sums->template add<1, 4>(value, w, kApart);
    sums->template add<2, 4>(value + pitch, w + kLanes, kApart);
    sums->template add<3, 4>(value + 2 * pitch, w + 2 * kLanes, kApart);
  }
}

// Four lanes that see the same keys, or each the first so many of them.
template <int kVectors, class D>
HWY_INLINE void add_level(D, const ValueArguments<hn::TFromD<D>>& arguments, int lane,
                          ptrdiff_t column, ValueSums<kVectors, D>* sums) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  for (int n = 0; n < arguments.num_runs; ++n) {
    const KeyRun<T>& run = arguments.runs[n];
    const ptrdiff_t pitch = run.pitch;
    const T* w = arguments.weights + run.slot * kLanes + lane;
    const T* value = run.values + column;
    int ends[4], common = run.count;
    for (int q = 0; q < 4; ++q) {
      ends[q] = seen_by(arguments, run, lane + q).visible;
      common = HWY_MIN(common, ends[q]);
    }
    for (int j = 0; j < common; ++j, w += kLanes, value += pitch) {
      sums->template add<0, 4>(value, w, 1);
    }
    unroll<4>([&](auto q) HWY_ATTR {
      for (int j = common; j < ends[q]; ++j) {
        const ptrdiff_t further = j - common;
        sums->template add<q, q + 1>(value + further * pitch, w + further * kLanes, 1);
      }
    });
  }
}

// add_level() as a function of its own, for those that keep other sums in registers.
template <int kVectors, class D>
HWY_NOINLINE void add_level_apart(D d, const ValueArguments<hn::TFromD<D>>& arguments, int lane,
                                  ptrdiff_t column, hn::TFromD<D>* HWY_RESTRICT buffer) {
  ValueSums<kVectors, D> sums;
  sums.load(buffer);
  add_level(d, arguments, lane, column, &sums);
  sums.store(buffer);
}

// One lane, whatever it sees. Four keys at once, each with sums of its own: the caller adds them.
template <int kVectors, class D>
HWY_INLINE void add_single(D, const ValueArguments<hn::TFromD<D>>& arguments, int lane,
                           ptrdiff_t column, ValueSums<kVectors, D>* sums) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  for (int n = 0; n < arguments.num_runs; ++n) {
    const KeyRun<T>& run = arguments.runs[n];
    const ptrdiff_t pitch = run.pitch;
    const T* w = arguments.weights + run.slot * kLanes + lane;
    const T* value = run.values + column + (run.is_shared ? 0 : lane * arguments.lane_step * pitch);
    const LaneView view = seen_by(arguments, run, lane);
    for (int part = 0; part < 2; ++part) {
      int j = part == 0 ? 0 : view.wrapped;
      const int end = part == 0 ? view.visible : run.count;
      for (; j + 4 <= end; j += 4) {
        unroll<4>([&](auto k) HWY_ATTR {
          const ptrdiff_t key = j + static_cast<ptrdiff_t>(size_t{k});
          sums->template add<k, k + 1>(value + key * pitch, w + key * kLanes, 0);
        });
      }
      for (; j < end; ++j) sums->template add<0, 1>(value + j * pitch, w + j * kLanes, 0);
    }
  }
}

// Hides the logits of keys that a lane does not see: run by run, key by key.
template <class D>
HWY_INLINE void hide(D d, const KeyRun<hn::TFromD<D>>& run, const LaneView* views,
                     hn::TFromD<D>* HWY_RESTRICT weights) {
  using T = hn::TFromD<D>;
  const hn::RebindToSigned<D> d_int;
  using Int = hn::TFromD<decltype(d_int)>;
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN Int begins[hn::MaxLanes(d)], visibles[hn::MaxLanes(d)], wraps[hn::MaxLanes(d)];
  for (size_t lane = 0; lane < lanes; ++lane) {
    begins[lane] = views[lane].begin;
    visibles[lane] = views[lane].visible;
    wraps[lane] = views[lane].wrapped;
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
