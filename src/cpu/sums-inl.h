// SPDX-License-Identifier: MIT
// Weighted sums of packed rows, which all three gradients are: of keys for a query, of queries and
// of gradients of the output for a key. Lanes run along head_dim.
// Part of each backward_<dtype>.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_SUMS_INL_H_
#undef VECINA_CPU_SUMS_INL_H_
#else
#define VECINA_CPU_SUMS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "cpu/pack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// `count` rows, one after the other, and the weight of the first.
template <typename T>
struct Segment {
  const T* rows;
  const T* weights;
  int count;
};

// How to walk all segments of a call. Row n is at rows + row_offset + n * row_step; its weight in
// sum q is at weights + weight_offset + n * weight_step + q * apart.
struct Walk {
  ptrdiff_t row_offset = 0, weight_offset = 0;
  ptrdiff_t row_step = 0, weight_step = 0, apart = 0;
  // Of stairs: sum q takes the rows q to q + count - 1, so there are count + 3; of those, here only
  // [begin, end).
  int begin = 0, end = 0;
};

// Four sums of kVectors vectors each.
template <int kVectors, class D>
struct FourSums {
  using T = hn::TFromD<D>;
  static constexpr ptrdiff_t kLanes = hn::MaxLanes(D());

  hn::Vec<D> sums[4 * kVectors];

  HWY_INLINE void load(const T* from, ptrdiff_t pitch) {
    unroll<4>([&](auto q) HWY_ATTR {
      unroll<kVectors>([&](auto v) HWY_ATTR {
        sums[q * kVectors + v] =
            hn::Load(D(), from + static_cast<ptrdiff_t>(size_t{q}) * pitch + v * kLanes);
      });
    });
  }
  HWY_INLINE void store(T* to, ptrdiff_t pitch) const {
    unroll<4>([&](auto q) HWY_ATTR {
      unroll<kVectors>([&](auto v) HWY_ATTR {
        hn::Store(sums[q * kVectors + v], D(),
                  to + static_cast<ptrdiff_t>(size_t{q}) * pitch + v * kLanes);
      });
    });
  }
  // One row into the sums [kFirst, kLast).
  template <size_t kFirst, size_t kLast>
  HWY_INLINE void add(const T* row, const T* weights, ptrdiff_t apart) {
    hn::Vec<D> r[kVectors];
    unroll<kVectors>([&](auto v) HWY_ATTR { r[v] = hn::Load(D(), row + v * kLanes); });
    unroll<kLast - kFirst>([&](auto i) HWY_ATTR {
      constexpr size_t q = kFirst + i;
      const auto weight = hn::Set(D(), weights[static_cast<ptrdiff_t>(q) * apart]);
      unroll<kVectors>([&](auto v) HWY_ATTR {
        sums[q * kVectors + v] = hn::MulAdd(weight, r[v], sums[q * kVectors + v]);
      });
    });
  }
};

// Adds to four sums, `pitch` elements apart, that each take the rows of the one before but for the
// first, and one more. Segments of at least 3 rows.
template <int kVectors, class D>
HWY_NOINLINE void add_stairs(D, const Segment<hn::TFromD<D>>* segments, int num_segments,
                             const Walk& walk, hn::TFromD<D>* HWY_RESTRICT to, ptrdiff_t pitch) {
  using T = hn::TFromD<D>;
  const ptrdiff_t row_step = walk.row_step, weight_step = walk.weight_step, apart = walk.apart;
  FourSums<kVectors, D> sums;
  sums.load(to, pitch);
  for (int s = 0; s < num_segments; ++s) {
    const int count = segments[s].count, begin = walk.begin, end = HWY_MIN(walk.end, count + 3);
    const T* rows = segments[s].rows + walk.row_offset;
    const T* weights = segments[s].weights + walk.weight_offset;
    if (begin < 3) {
      if (begin <= 0 && 0 < end) sums.template add<0, 1>(rows, weights, apart);
      if (begin <= 1 && 1 < end)
        sums.template add<0, 2>(rows + row_step, weights + weight_step, apart);
      if (2 < end) sums.template add<0, 3>(rows + 2 * row_step, weights + 2 * weight_step, apart);
    }
    int n = HWY_MAX(begin, 3);
    rows += n * row_step;
    weights += n * weight_step;
    for (const int last = HWY_MIN(end, count); n < last; ++n) {
      sums.template add<0, 4>(rows, weights, apart);
      rows += row_step;
      weights += weight_step;
    }
    if (n >= end) continue;
    // n is count, or where `begin` lies behind it.
    if (n == count) {
      sums.template add<1, 4>(rows, weights, apart);
      rows += row_step;
      weights += weight_step;
      ++n;
    }
    if (n == count + 1 && n < end) {
      sums.template add<2, 4>(rows, weights, apart);
      rows += row_step;
      weights += weight_step;
      ++n;
    }
    if (n == count + 2 && n < end) sums.template add<3, 4>(rows, weights, apart);
  }
  sums.store(to, pitch);
}

// Adds to four sums, `pitch` elements apart, of the same rows.
template <int kVectors, class D>
HWY_NOINLINE void add_level(D, const Segment<hn::TFromD<D>>* segments, int num_segments,
                            const Walk& walk, hn::TFromD<D>* HWY_RESTRICT to, ptrdiff_t pitch) {
  using T = hn::TFromD<D>;
  const ptrdiff_t row_step = walk.row_step, weight_step = walk.weight_step, apart = walk.apart;
  FourSums<kVectors, D> sums;
  sums.load(to, pitch);
  for (int s = 0; s < num_segments; ++s) {
    const T* rows = segments[s].rows + walk.row_offset;
    const T* weights = segments[s].weights + walk.weight_offset;
    for (int n = 0; n < segments[s].count; ++n) {
      sums.template add<0, 4>(rows, weights, apart);
      rows += row_step;
      weights += weight_step;
    }
  }
  sums.store(to, pitch);
}

// Adds to one sum. Four rows at once, each into sums of its own, hide the latency.
template <int kVectors, class D>
HWY_NOINLINE void add_single(D d, const Segment<hn::TFromD<D>>* segments, int num_segments,
                             const Walk& walk, hn::TFromD<D>* HWY_RESTRICT to) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  const ptrdiff_t row_step = walk.row_step, weight_step = walk.weight_step;
  FourSums<kVectors, D> sums;
  unroll<4 * kVectors>([&](auto i) HWY_ATTR { sums.sums[i] = hn::Zero(d); });
  for (int s = 0; s < num_segments; ++s) {
    const T* rows = segments[s].rows + walk.row_offset;
    const T* weights = segments[s].weights + walk.weight_offset;
    const int count = segments[s].count;
    int n = 0;
    for (; n + 4 <= count; n += 4) {
      unroll<4>([&](auto q) HWY_ATTR {
        sums.template add<q, q + 1>(rows + static_cast<ptrdiff_t>(size_t{q}) * row_step,
                                    weights + static_cast<ptrdiff_t>(size_t{q}) * weight_step, 0);
      });
      rows += 4 * row_step;
      weights += 4 * weight_step;
    }
    for (; n < count; ++n) {
      sums.template add<0, 1>(rows, weights, 0);
      rows += row_step;
      weights += weight_step;
    }
  }
  unroll<kVectors>([&](auto v) HWY_ATTR {
    const auto sum = hn::Add(hn::Add(sums.sums[v], sums.sums[kVectors + v]),
                             hn::Add(sums.sums[2 * kVectors + v], sums.sums[3 * kVectors + v]));
    T* at = to + v * kLanes;
    hn::Store(hn::Add(hn::Load(d, at), sum), d, at);
  });
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_SUMS_INL_H_
