// SPDX-License-Identifier: MIT
// The two products of the split form over lists of rows. Lanes are along head_dim: nothing is
// packed, and borders, dilation and strides are offsets in a list.
// Part of split.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_SPLIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_SPLIT_INL_H_
#undef VECINA_CPU_SPLIT_INL_H_
#else
#define VECINA_CPU_SPLIT_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/pack-inl.h"
#include "cpu/split.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors of one row of `size` elements: whole ones, then one that ends with the row and, where the
// row is shorter than a vector, is the row and zeros.
template <typename T>
struct RowVectors {
  using D = hn::CappedTag<T, kMaxLanes>;
  static constexpr size_t kLanes = hn::MaxLanes(D());

  explicit RowVectors(int head_dim)
      : size(static_cast<size_t>(head_dim)),
        whole(size / kLanes),
        rest(size % kLanes),
        count(whole + (rest != 0)),
        last(size < kLanes ? 0 : size - kLanes) {}

  size_t size, whole, rest, count;
  size_t last;  // where the last vector begins if there is a rest

  size_t offset(size_t vector) const { return vector < whole ? vector * kLanes : last; }
};

template <class D, typename Element>
HWY_INLINE hn::Vec<D> load_short(D d, const Element* from, size_t count) {
  HWY_ALIGN Element part[hn::MaxLanes(d)] = {};
  std::copy_n(from, count, part);
  return load(d, part);
}

// Converts a row to whole vectors; in the last one, what earlier ones hold is zero.
template <typename T, typename Element>
void spread_row(const RowVectors<T>& row, const Element* from, T* to) {
  const typename RowVectors<T>::D d;
  for (size_t v = 0; v < row.whole; ++v) {
    hn::StoreU(load(d, from + v * row.kLanes), d, to + v * row.kLanes);
  }
  if (row.rest == 0) return;
  to += row.whole * row.kLanes;
  if (row.whole == 0) return hn::StoreU(load_short(d, from, row.size), d, to);
  const auto is_new = hn::Not(hn::FirstN(d, row.kLanes - row.rest));
  hn::StoreU(hn::IfThenElseZero(is_new, load(d, from + row.last)), d, to);
}

// Lane i of the result is the sum of the lanes of sums[i].
template <class D>
HWY_INLINE hn::Vec<D> sum_each(D d, const hn::Vec<D>* sums) {
  using V = hn::Vec<D>;
  const auto halve = [&](V a, V b) HWY_ATTR {
    return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  };
  if constexpr (sizeof(hn::TFromD<D>) == 8) {
    const V low = halve(sums[0], sums[1]);
    if constexpr (hn::MaxLanes(d) == 2) {
      return low;
    } else if constexpr (hn::MaxLanes(d) == 4) {
      const V high = halve(sums[2], sums[3]);
      return hn::Add(hn::ConcatLowerLower(d, high, low), hn::ConcatUpperUpper(d, high, low));
    } else {
      HWY_ALIGN hn::TFromD<D> each[hn::MaxLanes(d)];
      unroll<hn::MaxLanes(d)>([&](auto i)
                                  HWY_ATTR { each[i] = hn::GetLane(hn::SumOfLanes(d, sums[i])); });
      return hn::Load(d, each);
    }
  } else {
    const hn::Repartition<uint64_t, D> pairs;
    const auto quarter = [&](V a, V b) HWY_ATTR {
      const auto x = hn::BitCast(pairs, a), y = hn::BitCast(pairs, b);
      return hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, x, y)),
                     hn::BitCast(d, hn::InterleaveUpper(pairs, x, y)));
    };
    const V low = quarter(halve(sums[0], sums[1]), halve(sums[2], sums[3]));
    if constexpr (hn::MaxLanes(d) == 4) {
      return low;
    } else {
      static_assert(hn::MaxLanes(d) == 8);
      const V high = quarter(halve(sums[4], sums[5]), halve(sums[6], sums[7]));
      return hn::Add(hn::ConcatLowerLower(d, high, low), hn::ConcatUpperUpper(d, high, low));
    }
  }
}

// Products of one spread row with kCount rows from base + offsets[i], in the first lanes.
template <size_t kCount, typename T, typename Element>
HWY_INLINE hn::Vec<typename RowVectors<T>::D> dot_some(const RowVectors<T>& row, const T* spread,
                                                       const Element* base,
                                                       const int64_t* offsets) {
  const typename RowVectors<T>::D d;
  constexpr size_t kLanes = RowVectors<T>::kLanes;
  hn::Vec<decltype(d)> sums[kLanes];
  const Element* rows[kCount];
  unroll<kLanes>([&](auto i) HWY_ATTR { sums[i] = hn::Zero(d); });
  unroll<kCount>([&](auto i) { rows[i] = base + offsets[i]; });
  for (size_t v = 0; v < row.whole; ++v) {
    const auto factor = hn::LoadU(d, spread + v * kLanes);
    unroll<kCount>([&](auto i) HWY_ATTR {
      sums[i] = hn::MulAdd(factor, load(d, rows[i] + v * kLanes), sums[i]);
    });
  }
  if (row.rest != 0) {
    const auto factor = hn::LoadU(d, spread + row.whole * kLanes);
    if (row.whole != 0) {
      // What was multiplied already must not meet a zero: it may be infinite.
      const auto is_new = hn::Not(hn::FirstN(d, kLanes - row.rest));
      unroll<kCount>([&](auto i) HWY_ATTR {
        const auto last = hn::IfThenElseZero(is_new, load(d, rows[i] + row.last));
        sums[i] = hn::MulAdd(factor, last, sums[i]);
      });
    } else {
      unroll<kCount>([&](auto i) HWY_ATTR {
        sums[i] = hn::MulAdd(factor, load_short(d, rows[i], row.size), sums[i]);
      });
    }
  }
  return sum_each(d, sums);
}

template <size_t kCount, typename T, typename Element>
HWY_INLINE hn::Vec<typename RowVectors<T>::D> dot_rest(size_t count, const RowVectors<T>& row,
                                                       const T* spread, const Element* base,
                                                       const int64_t* offsets) {
  if constexpr (kCount > 1) {
    if (count < kCount) return dot_rest<kCount - 1>(count, row, spread, base, offsets);
  }
  return dot_some<kCount>(row, spread, base, offsets);
}

// to[i] = scale * row . (base + offsets[i]) for i < count; up to a vector beyond is overwritten.
template <typename T, typename Element>
void dot_rows(const RowVectors<T>& row, const T* spread, const Element* base,
              const int64_t* offsets, int64_t count, T scale, T* to) {
  const typename RowVectors<T>::D d;
  constexpr auto kLanes = static_cast<int64_t>(RowVectors<T>::kLanes);
  const auto factor = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(hn::Mul(factor, dot_some<kLanes>(row, spread, base, offsets + i)), d, to + i);
  }
  if (i == count) return;
  const auto rest = static_cast<size_t>(count - i);
  hn::StoreU(hn::Mul(factor, dot_rest<kLanes - 1>(rest, row, spread, base, offsets + i)), d,
             to + i);
}

// Adds to kVectors vectors of the sum: those of the row from `first` on, the last one at `last`.
template <size_t kVectors, typename T, typename Element>
HWY_INLINE void add_vectors(const RowVectors<T>& row, const T* factors, const Element* base,
                            const int64_t* offsets, int64_t count, size_t first, size_t last,
                            T* sum) {
  const typename RowVectors<T>::D d;
  constexpr size_t kLanes = RowVectors<T>::kLanes;
  hn::Vec<decltype(d)> even[kVectors], odd[kVectors];  // two chains hide the latency of one
  unroll<kVectors>([&](auto v) HWY_ATTR {
    even[v] = hn::LoadU(d, sum + v * kLanes);
    odd[v] = hn::Zero(d);
  });
  const auto load_one = [&](const Element* from, auto v) HWY_ATTR {
    if constexpr (v + 1 < kVectors) {
      return load(d, from + first + v * kLanes);
    } else {
      return row.size < kLanes ? load_short(d, from, row.size) : load(d, from + last);
    }
  };
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const auto a = hn::Set(d, factors[i]), b = hn::Set(d, factors[i + 1]);
    const Element *row_a = base + offsets[i], *row_b = base + offsets[i + 1];
    unroll<kVectors>([&](auto v) HWY_ATTR {
      even[v] = hn::MulAdd(a, load_one(row_a, v), even[v]);
      odd[v] = hn::MulAdd(b, load_one(row_b, v), odd[v]);
    });
  }
  if (i < count) {
    const auto a = hn::Set(d, factors[i]);
    const Element* row_a = base + offsets[i];
    unroll<kVectors>([&](auto v)
                         HWY_ATTR { even[v] = hn::MulAdd(a, load_one(row_a, v), even[v]); });
  }
  unroll<kVectors>([&](auto v)
                       HWY_ATTR { hn::StoreU(hn::Add(even[v], odd[v]), d, sum + v * kLanes); });
}

// sum += sum_i factors[i] * (base + offsets[i]), with sum as spread_row lays a row, but whole.
template <typename T, typename Element>
void add_rows(const RowVectors<T>& row, const T* factors, const Element* base,
              const int64_t* offsets, int64_t count, T* sum) {
  constexpr size_t kLanes = RowVectors<T>::kLanes;
  for (size_t v = 0; v < row.count; v += 4) {
    const size_t vectors = std::min<size_t>(4, row.count - v), first = v * kLanes;
    const size_t last = row.offset(v + vectors - 1);
    T* to = sum + first;
    switch (vectors) {
      case 1:
        add_vectors<1>(row, factors, base, offsets, count, first, last, to);
        break;
      case 2:
        add_vectors<2>(row, factors, base, offsets, count, first, last, to);
        break;
      case 3:
        add_vectors<3>(row, factors, base, offsets, count, first, last, to);
        break;
      default:
        add_vectors<4>(row, factors, base, offsets, count, first, last, to);
        break;
    }
  }
}

template <typename T>
void clear_sum(const RowVectors<T>& row, T* sum) {
  std::fill_n(sum, row.count * row.kLanes, T{0});
}

// to = scale * sum
template <typename T, typename Element>
void write_sum(const RowVectors<T>& row, const T* sum, T scale, Element* to) {
  const typename RowVectors<T>::D d;
  const auto factor = hn::Set(d, scale);
  for (size_t v = 0; v < row.count; ++v) {
    const auto scaled = hn::Mul(factor, hn::LoadU(d, sum + v * row.kLanes));
    store_some(d, scaled, std::min(row.size, row.kLanes), to + row.offset(v));
  }
}

// As many elements, converted; no element beyond is touched.
template <typename T, typename Element>
void convert_row(const T* from, size_t count, Element* to) {
  const typename RowVectors<T>::D d;
  constexpr size_t kLanes = RowVectors<T>::kLanes;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(d, hn::LoadU(d, from + i), to + i);
  if (i < count) store_some(d, hn::LoadU(d, from + i), count - i, to + i);
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_SPLIT_INL_H_
