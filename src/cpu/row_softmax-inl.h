// SPDX-License-Identifier: MIT
// The softmax of one row of a backward tile: from logits and dP to probabilities and gradients of
// logits, a vector of queries at a time.
// Part of backward.cc and of matrix.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_ROW_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_ROW_SOFTMAX_INL_H_
#undef VECINA_CPU_ROW_SOFTMAX_INL_H_
#else
#define VECINA_CPU_ROW_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cstddef>

#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sums over the keys of one row, for each lane.
template <class D>
struct ProbabilitySums {
  hn::Vec<D> probabilities, products;  // products with dP
};

template <class D>
struct RowSoftmax {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  static constexpr double kLog2E = 1.44269504088896340736;

  HWY_ALIGN T base[kLanes], base_rest[kLanes];  // lse as a power of two's exponent, in two parts
  HWY_ALIGN T delta[kLanes], grad_lse[kLanes];
  HWY_ALIGN T sees_some[kLanes];  // 1 if the lane is a query that sees a key, else 0
  HWY_ALIGN T factor[kLanes];     // of probabilities, besides lse: 1 unless lse was left
  HWY_ALIGN T largest[kLanes],
      total[kLanes];  // of logits, rounded down, and of 2^(logit - largest)

  // Whether some lane's lse, which was rounded, puts probabilities off by more than they may be of
  // tensors of Element; if all keys are summed up (differentiate()), by a power of two.
  template <typename Element>
  HWY_INLINE bool is_far(bool is_whole) const {
    const D d;
    return !hn::AllFalse(d, hn::Gt(hn::Abs(hn::Load(d, base)), far<Element>(is_whole)));
  }
  HWY_INLINE void begin_sums() {
    const D d;
    const SoftmaxState<D> none = empty_softmax(d);
    hn::Store(none.max, d, largest);
    hn::Store(none.sum, d, total);
  }
  // Takes the logits of `count` more keys, which are overwritten.
  HWY_INLINE void add_keys(size_t count, T* HWY_RESTRICT logits) {
    const D d;
    SoftmaxState<D> state = {hn::Load(d, largest), hn::Load(d, total)};
    const auto before = state.max;
    state.max = largest_logit(d, count, logits, before);
    softmax(d, before, &state, [&](hn::Vec<D> shift) HWY_ATTR {
      return HWY_NAMESPACE::exponentiate(d, count, shift, logits);
    });
    hn::Store(state.max, d, largest);
    hn::Store(state.sum, d, total);
  }
  // Lanes that are far leave lse for what was summed up.
  template <typename Element>
  HWY_INLINE void leave_lse(bool is_whole) {
    const D d;
    const auto high = hn::Load(d, base), sum = hn::Load(d, total), one = hn::Set(d, T{1});
    const auto leaves = hn::And(hn::Gt(hn::Abs(high), far<Element>(is_whole)),
                                hn::Ge(sum, one));  // not if it is NaN
    hn::Store(hn::IfThenElse(leaves, hn::Load(d, largest), high), d, base);
    hn::Store(hn::IfThenZeroElse(leaves, hn::Load(d, base_rest)), d, base_rest);
    hn::Store(hn::IfThenElse(leaves, hn::Div(one, sum), one), d, factor);
  }

  // `lse` of all lanes, of which the first `queries` are queries.
  HWY_INLINE void set_lse(V lse, int queries) {
    const D d;
    // A query that saw nothing but -infinity has probabilities 0, not NaN.
    const auto empty = hn::Eq(lse, hn::Set(d, -hwy::HighestValue<T>() * 2));
    const auto is_query = hn::FirstN(d, static_cast<size_t>(queries));
    hn::Store(hn::IfThenElseZero(is_query, hn::IfThenZeroElse(empty, hn::Set(d, T{1}))), d,
              sees_some);
    const auto log2e = hn::Set(d, static_cast<T>(kLog2E));
    const auto rest = hn::Set(d, static_cast<T>(kLog2E - static_cast<T>(kLog2E)));
    const auto high = hn::Mul(lse, log2e);
    const auto low = hn::MulAdd(lse, rest, hn::MulSub(lse, log2e, high));
    hn::Store(hn::IfThenZeroElse(empty, high), d, base);
    hn::Store(hn::IfThenZeroElse(empty, low), d, base_rest);
    hn::Store(hn::Set(d, T{1}), d, factor);
  }

  // Turns `size` logits into probabilities.
  HWY_INLINE ProbabilitySums<D> exponentiate(ptrdiff_t size, T* HWY_RESTRICT logits,
                                             const T* HWY_RESTRICT products) const {
    const D d;
    const auto high = hn::Load(d, base), low = hn::Load(d, base_rest);
    const auto is_seen = hn::Eq(hn::Load(d, sees_some), hn::Set(d, T{1}));
    return sum(size, products, [&](ptrdiff_t i) HWY_ATTR {
      const auto exponent = hn::Sub(hn::Sub(hn::Load(d, logits + i), high), low);
      const auto probability = hn::IfThenElseZero(is_seen, exp2_negative(d, exponent));
      hn::Store(probability, d, logits + i);
      return probability;
    });
  }
  // Of probabilities that are there.
  static HWY_INLINE ProbabilitySums<D> add_up(ptrdiff_t size, const T* HWY_RESTRICT probabilities,
                                              const T* HWY_RESTRICT products) {
    return sum(size, products,
               [&](ptrdiff_t i) HWY_ATTR { return hn::Load(D(), probabilities + i); });
  }

  // Turns dP (`gradients`) into gradients of logits. `is_whole`: the sums are over all keys of the
  // queries; then probabilities are divided by theirs, since lse was rounded: that error is in all
  // of them alike, and in their sum.
  HWY_INLINE void differentiate(ptrdiff_t size, bool is_whole, const ProbabilitySums<D>& sums,
                                T* HWY_RESTRICT probabilities, T* HWY_RESTRICT gradients) const {
    const D d;
    const auto one = hn::Set(d, T{1});
    const auto is_seen = hn::Eq(hn::Load(d, sees_some), one);
    const auto of_lse = hn::Load(d, grad_lse);
    auto mean = hn::Load(d, delta), share = hn::Load(d, factor);
    if (is_whole) {
      const auto is_empty = hn::Eq(sums.probabilities, hn::Zero(d));
      share = hn::IfThenZeroElse(is_empty, hn::Div(one, sums.probabilities));
      // A quotient: of a query with one key it is that key's dP, but for the last bit of some.
      mean =
          hn::Add(mean, hn::IfThenZeroElse(is_empty, hn::Div(sums.products, sums.probabilities)));
    }
    for (ptrdiff_t i = 0; i < size; i += kLanes) {
      const auto probability = hn::Mul(hn::Load(d, probabilities + i), share);
      const auto apart = hn::Sub(hn::Load(d, gradients + i), mean);  // small where the mean is not
      const auto gradient = hn::Mul(probability, hn::Add(apart, of_lse));
      hn::Store(probability, d, probabilities + i);
      hn::Store(hn::IfThenElseZero(is_seen, gradient), d, gradients + i);
    }
  }

 private:
  // An lse that is rounded at its 24th (53rd) bit, as an exponent of two. Gradients of 16 bits have
  // fewer digits.
  template <typename Element>
  static HWY_INLINE V far(bool is_whole) {
    constexpr T kFar = sizeof(Element) == 8 ? 1024 : sizeof(Element) == 4 ? 64 : 4096;
    constexpr T kOverflows = sizeof(T) == 8 ? 1024.0 * 32768 : 64 * 32768;
    return hn::Set(D(), is_whole ? kOverflows : kFar);
  }

  // Summed in parts of so many keys: one after the other, 144 equal probabilities are all rounded
  // the same way, and their sum is off by 1.6e-6.
  static constexpr ptrdiff_t kPart = 8 * kLanes;

  template <class Of>
  static HWY_INLINE ProbabilitySums<D> sum(ptrdiff_t size, const T* HWY_RESTRICT products,
                                           const Of& probability_at) {
    const D d;
    ProbabilitySums<D> total = {hn::Zero(d), hn::Zero(d)};
    for (ptrdiff_t first = 0; first < size; first += kPart) {
      const ptrdiff_t end = std::min(first + kPart, size);
      auto part = hn::Zero(d);
      for (ptrdiff_t i = first; i < end; i += kLanes) {
        const auto probability = probability_at(i);
        part = hn::Add(part, probability);
        total.products = hn::MulAdd(probability, hn::Load(d, products + i), total.products);
      }
      total.probabilities = hn::Add(total.probabilities, part);
    }
    return total;
  }
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_ROW_SOFTMAX_INL_H_
