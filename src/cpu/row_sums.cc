// SPDX-License-Identifier: MIT
// The functions of RowSums, for every instruction set.
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/row_sums.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include <cstddef>
#include <type_traits>

#include "cpu/sums-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace {

// kSums sums of kVectors vectors each, in registers.
template <int kSums, int kVectors, class D>
struct Block {
  using T = hn::TFromD<D>;
  static constexpr ptrdiff_t kLanes = hn::MaxLanes(D());

  hn::Vec<D> sums[kSums * kVectors];

  HWY_INLINE void load(const Walk& walk, const T* from, ptrdiff_t pitch) {
    if (walk.starts) {
      unroll<kSums * kVectors>([&](auto i) VECINA_INLINE { sums[i] = hn::Zero(D()); });
      return;
    }
    unroll<kSums>([&](auto q) VECINA_INLINE {
      unroll<kVectors>([&](auto v) VECINA_INLINE {
        sums[q * kVectors + v] = hn::LoadU(D(), from + v * kLanes);
      });
      from = at_run_time(from + pitch);
    });
  }
  template <Weights kWeights>
  HWY_INLINE void store(const Walk& walk, T* to, ptrdiff_t pitch) const {
    const auto scale = hn::Set(D(), static_cast<T>(walk.scale));
    unroll<kSums>([&](auto q) VECINA_INLINE {
      unroll<kVectors>([&](auto v) VECINA_INLINE {
        auto sum = sums[q * kVectors + v];
        if constexpr (kWeights == Weights::of_queries) sum = hn::Mul(scale, sum);
        hn::StoreU(sum, D(), to + v * kLanes);
      });
      to = at_run_time(to + pitch);
    });
  }
  // One row into the sums [kFirst, kLast), whose weights are kApart elements apart.
  template <size_t kFirst, size_t kLast, ptrdiff_t kApart = 0>
  HWY_INLINE void add(const T* row, const T* weights) {
    hn::Vec<D> w[kLast - kFirst];
    unroll<kLast - kFirst>([&](auto i) VECINA_INLINE {
      w[i] = hn::Set(D(), weights[static_cast<ptrdiff_t>(kFirst + i) * kApart]);
    });
    unroll<kVectors>([&](auto v) VECINA_INLINE {
      auto r = hn::Load(D(), row + v * kLanes);
      if constexpr (kLast - kFirst > 1) r = in_register(r);
      unroll<kLast - kFirst>([&](auto i) VECINA_INLINE {
        constexpr size_t kSum = (kFirst + i) * kVectors + v;
        sums[kSum] = hn::MulAdd(w[i], r, sums[kSum]);
      });
    });
  }
};

template <int kSums, int kVectors, Weights kWeights, class D>
HWY_NOINLINE void add_stairs(D, const Segment<hn::TFromD<D>>* segments, int num_segments,
                             const Walk& walk, ptrdiff_t column, hn::TFromD<D>* HWY_RESTRICT to,
                             ptrdiff_t pitch) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  // One row on, a weight is that of the query before, or of the key before.
  constexpr ptrdiff_t kApart = kWeights == Weights::of_keys ? kLanes : 1 - kLanes;
  constexpr ptrdiff_t kStep = 1 - kApart;
  constexpr int kRamp = kSums - 1;
  const ptrdiff_t row_step = walk.row_step;
  const ptrdiff_t first_row = walk.row_offset + column + walk.begin * row_step;
  const ptrdiff_t first_weight = walk.weight_offset + walk.begin * kStep;
  Block<kSums, kVectors, D> sums;
  sums.load(walk, to, pitch);
  for (int s = 0; s < num_segments; ++s) {
    const int count = segments[s].count, end = HWY_MIN(walk.end, count + kRamp);
    const T* HWY_RESTRICT row = segments[s].rows + first_row;
    const T* HWY_RESTRICT weights = segments[s].weights + first_weight;
    int n = walk.begin;
    const auto add = [&](auto first, auto last) VECINA_INLINE {
      sums.template add<first, last, kApart>(row, weights);
      row += row_step;
      weights += kStep;
    };
    if (n == 0 && end == count + kRamp) {  // all of it, without a test for each step
      unroll<kRamp>([&](auto i) VECINA_INLINE {
        add(std::integral_constant<size_t, 0>(), std::integral_constant<size_t, i + 1>());
      });
      for (n = kRamp; n < count; ++n) {
        add(std::integral_constant<size_t, 0>(), std::integral_constant<size_t, kSums>());
      }
      unroll<kRamp>([&](auto i) VECINA_INLINE {
        add(std::integral_constant<size_t, i + 1>(), std::integral_constant<size_t, kSums>());
      });
      continue;
    }
    unroll<kRamp>([&](auto i) VECINA_INLINE {
      if (n == static_cast<int>(i) && n < end) {
        add(std::integral_constant<size_t, 0>(), std::integral_constant<size_t, i + 1>());
        ++n;
      }
    });
    for (const int last = HWY_MIN(end, count); n < last; ++n) {
      add(std::integral_constant<size_t, 0>(), std::integral_constant<size_t, kSums>());
    }
    unroll<kRamp>([&](auto i) VECINA_INLINE {
      if (n == count + static_cast<int>(i) && n < end) {
        add(std::integral_constant<size_t, i + 1>(), std::integral_constant<size_t, kSums>());
        ++n;
      }
    });
  }
  sums.template store<kWeights>(walk, to, pitch);
}

template <int kSums, int kVectors, Weights kWeights, class D>
HWY_NOINLINE void add_level(D, const Segment<hn::TFromD<D>>* segments, int num_segments,
                            const Walk& walk, ptrdiff_t column, hn::TFromD<D>* HWY_RESTRICT to,
                            ptrdiff_t pitch) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  constexpr ptrdiff_t kApart = kWeights == Weights::of_keys ? kLanes : 1;
  constexpr ptrdiff_t kStep = kWeights == Weights::of_keys ? 1 : kLanes;
  const ptrdiff_t row_step = walk.row_step;
  Block<kSums, kVectors, D> sums;
  sums.load(walk, to, pitch);
  for (int s = 0; s < num_segments; ++s) {
    const T* HWY_RESTRICT row = segments[s].rows + walk.row_offset + column;
    const T* HWY_RESTRICT weights = segments[s].weights + walk.weight_offset;
    for (int n = 0; n < segments[s].count; ++n) {
      sums.template add<0, kSums, kApart>(row, weights);
      row += row_step;
      weights += kStep;
    }
  }
  sums.template store<kWeights>(walk, to, pitch);
}

// Four rows at once, each into sums of its own, hide the latency.
template <int kVectors, class D>
HWY_NOINLINE void add_single(D d, const Segment<hn::TFromD<D>>* segments, int num_segments,
                             const Walk& walk, ptrdiff_t column, hn::TFromD<D>* HWY_RESTRICT to) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  const ptrdiff_t row_step = walk.row_step, weight_step = walk.weight_step;
  Block<4, kVectors, D> sums;
  unroll<4 * kVectors>([&](auto i) VECINA_INLINE { sums.sums[i] = hn::Zero(d); });
  for (int s = 0; s < num_segments; ++s) {
    const T* HWY_RESTRICT row = segments[s].rows + walk.row_offset + column;
    const T* HWY_RESTRICT weights = segments[s].weights + walk.weight_offset;
    const int count = segments[s].count;
    int n = 0;
    for (; n + 4 <= count; n += 4) {
      unroll<4>([&](auto q) VECINA_INLINE {
        sums.template add<q, q + 1>(row + static_cast<ptrdiff_t>(size_t{q}) * row_step,
                                    weights + static_cast<ptrdiff_t>(size_t{q}) * weight_step);
      });
      row += 4 * row_step;
      weights += 4 * weight_step;
    }
    for (; n < count; ++n) {
      sums.template add<0, 1>(row, weights);
      row += row_step;
      weights += weight_step;
    }
  }
  unroll<kVectors>([&](auto v) VECINA_INLINE {
    const auto sum = hn::Add(hn::Add(sums.sums[v], sums.sums[kVectors + v]),
                             hn::Add(sums.sums[2 * kVectors + v], sums.sums[3 * kVectors + v]));
    const auto scaled = hn::Mul(hn::Set(d, static_cast<T>(walk.scale)), sum);
    T* at = to + v * kLanes;
    hn::StoreU(walk.starts ? scaled : hn::Add(hn::LoadU(d, at), scaled), d, at);
  });
}

// Calls add(vectors, column) for as many vectors at once as there are, at most kMost.
template <int kMost, class D, typename Add>
void for_columns(D, int size, const Add& add) {
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  int column = 0;
  for (; column + kMost * kLanes <= size; column += kMost * kLanes) {
    add(std::integral_constant<int, kMost>(), column);
  }
  if constexpr (kMost > 2) {
    for (; column + 2 * kLanes <= size; column += 2 * kLanes) {
      add(std::integral_constant<int, 2>(), column);
    }
  }
  for (; column < size; column += kLanes) add(std::integral_constant<int, 1>(), column);
}

}  // namespace

template <class D>
void RowSums<D>::stairs(int sums, Weights weights, const Segment<T>* segments, int num_segments,
                        const Walk& walk, int size, T* to, ptrdiff_t pitch) {
  for_columns<kVectors>(D(), size, [&](auto vectors, int column) {
    constexpr auto kKeys = Weights::of_keys, kQueries = Weights::of_queries;
    const auto add = weights == kKeys ? (sums == kMost ? add_stairs<kMost, vectors, kKeys, D>
                                                       : add_stairs<kFew, vectors, kKeys, D>)
                                      : (sums == kMost ? add_stairs<kMost, vectors, kQueries, D>
                                                       : add_stairs<kFew, vectors, kQueries, D>);
    add(D(), segments, num_segments, walk, column, to + column, pitch);
  });
}

template <class D>
void RowSums<D>::level(int sums, Weights weights, const Segment<T>* segments, int num_segments,
                       const Walk& walk, int size, T* to, ptrdiff_t pitch) {
  for_columns<kVectors>(D(), size, [&](auto vectors, int column) {
    constexpr auto kKeys = Weights::of_keys, kQueries = Weights::of_queries;
    const auto add = weights == kKeys ? (sums == kMost ? add_level<kMost, vectors, kKeys, D>
                                                       : add_level<kFew, vectors, kKeys, D>)
                                      : (sums == kMost ? add_level<kMost, vectors, kQueries, D>
                                                       : add_level<kFew, vectors, kQueries, D>);
    add(D(), segments, num_segments, walk, column, to + column, pitch);
  });
}

template <class D>
void RowSums<D>::single(const Segment<T>* segments, int num_segments, const Walk& walk, int size,
                        T* to) {
  for_columns<2>(D(), size, [&](auto vectors, int column) {
    add_single<vectors>(D(), segments, num_segments, walk, column, to + column);
  });
}

template class RowSums<hn::ScalableTag<float>>;
template class RowSums<hn::ScalableTag<double>>;

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
