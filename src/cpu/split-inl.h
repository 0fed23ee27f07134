// SPDX-License-Identifier: MIT
// The two products of the split form over lists of rows, for runs of tokens whose lists are alike.
// Lanes are along head_dim: nothing is packed, and borders, dilation and strides are offsets in a
// list.
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
#include <type_traits>

#include "cpu/pack-inl.h"
#include "cpu/split.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors of one row of `size` elements: whole ones, then a last one that has the rest, 1 to kLanes
// elements. It is read in part or, so that a whole vector is read, it ends with the row; where the
// row is shorter than a vector, it is the row and zeros.
template <typename T>
struct RowVectors {
  using D = hn::CappedTag<T, kMaxLanes>;
  static constexpr size_t kLanes = hn::MaxLanes(D());

  explicit RowVectors(int64_t elements)
      : size(static_cast<size_t>(elements)),
        whole((size - 1) / kLanes),
        rest(size - whole * kLanes),
        last(size < kLanes ? 0 : size - kLanes),
        in_rest(hn::FirstN(D(), rest)) {}

  size_t size, whole, rest;
  size_t last;  // where the last vector begins that ends with the row
  hn::Mask<D> in_rest;

  size_t count() const { return whole + 1; }
  size_t offset(size_t vector) const { return vector < whole ? vector * kLanes : last; }
};

template <class D, typename Element>
HWY_INLINE hn::Vec<D> load_short(D d, const Element* from, size_t count) {
  HWY_ALIGN Element part[hn::MaxLanes(d)] = {};
  std::copy_n(from, count, part);
  return load(d, part);
}

// True if rows are read where they lie, the last vector in part.
template <typename T, typename Element>
inline constexpr bool kReadsInPart = kHasMaskedLoads&& std::is_same_v<T, Element>;

// The last vector of a row for a product along it. What earlier ones hold is zero: once multiplied,
// an infinite element must not meet a zero.
template <typename T, typename Element>
HWY_INLINE hn::Vec<typename RowVectors<T>::D> load_rest(const RowVectors<T>& row,
                                                        const Element* from) {
  const typename RowVectors<T>::D d;
  if constexpr (kReadsInPart<T, Element>) {
    return hn::MaskedLoad(row.in_rest, d, from + row.whole * row.kLanes);
  } else {
    if (row.size < row.kLanes) return load_short(d, from, row.size);
    const auto is_new = hn::Not(hn::FirstN(d, row.kLanes - row.rest));
    return hn::IfThenElseZero(is_new, load(d, from + row.last));
  }
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

// Tokens that follow each other along the innermost axis, each with its row and keys of its own,
// which stand alike to it: the first one's are keys + offsets[i].
template <typename T, typename Element>
struct DotRun {
  int64_t count;
  const Element* rows;
  int64_t row_step;
  const Element* keys;
  int64_t key_step;
  const int64_t* offsets;
  int64_t num_keys;
  T scale;
  const T* bias;  // num_keys of them and a vector
};

// A row's vectors but for the last one, if there are kVectors; 0: any number, and none is held.
template <size_t kVectors, typename T>
struct HeldRow {
  hn::Vec<typename RowVectors<T>::D> whole[HWY_MAX(kVectors, 1)], rest;
};

// Products of one row with kCount rows from base + offsets[i], in the first lanes.
template <size_t kCount, size_t kVectors, typename T, typename Element>
HWY_INLINE hn::Vec<typename RowVectors<T>::D> dot_some(const RowVectors<T>& row,
                                                       const HeldRow<kVectors, T>& held,
                                                       const Element* from, const Element* base,
                                                       const int64_t* offsets) {
  const typename RowVectors<T>::D d;
  constexpr size_t kLanes = RowVectors<T>::kLanes;
  hn::Vec<decltype(d)> sums[kLanes];
  const Element* rows[kCount];
  unroll<kCount>([&](auto i) VECINA_INLINE { rows[i] = base + offsets[i]; });
  if constexpr (kVectors > 0) {
    unroll<kLanes>([&](auto i) VECINA_INLINE {
      if constexpr (i < kCount) {
        sums[i] = hn::Mul(held.rest, load_rest(row, rows[i]));
      } else {
        sums[i] = hn::Zero(d);
      }
    });
    unroll<kVectors - 1>([&](auto v) VECINA_INLINE {
      unroll<kCount>([&](auto i) VECINA_INLINE {
        sums[i] = hn::MulAdd(held.whole[v], load(d, rows[i] + v * kLanes), sums[i]);
      });
    });
  } else {
    const size_t whole = row.rest == kLanes ? row.whole + 1 : row.whole;
    unroll<kLanes>([&](auto i) VECINA_INLINE { sums[i] = hn::Zero(d); });
    for (size_t v = 0; v < whole; ++v) {
      const auto factor = load(d, from + v * kLanes);
      unroll<kCount>([&](auto i) VECINA_INLINE {
        sums[i] = hn::MulAdd(factor, load(d, rows[i] + v * kLanes), sums[i]);
      });
    }
    if (whole == row.whole) {
      unroll<kCount>([&](auto i) VECINA_INLINE {
        sums[i] = hn::MulAdd(held.rest, load_rest(row, rows[i]), sums[i]);
      });
    }
  }
  return sum_each(d, sums);
}

// to[pitch * token + i] = scale * row . key i + bias[i]; up to a vector beyond is overwritten.
// kLast: keys of the last vector.
template <size_t kLast, size_t kVectors, typename T, typename Element>
HWY_NOINLINE void dot_run(const RowVectors<T>& vectors, const DotRun<T, Element>& run, T* to,
                          int64_t pitch) {
  const RowVectors<T> row = vectors;  // in registers, whatever is written
  const typename RowVectors<T>::D d;
  constexpr auto kLanes = static_cast<int64_t>(RowVectors<T>::kLanes);
  const auto factor = hn::Set(d, run.scale);
  const int64_t* HWY_RESTRICT offsets = run.offsets;
  const int64_t whole = run.num_keys - static_cast<int64_t>(kLast);
  int64_t last_offsets[kLast];
  unroll<kLast>([&](auto i) { last_offsets[i] = offsets[whole + static_cast<int64_t>(i)]; });
  const T* HWY_RESTRICT bias = run.bias;
  const auto last_bias = hn::LoadU(d, bias + whole);
  const int64_t row_step = run.row_step, key_step = run.key_step;
  const Element *from = run.rows, *keys = run.keys;
  for (int64_t t = run.count; t > 0; --t, from += row_step, keys += key_step, to += pitch) {
    HeldRow<kVectors, T> held;
    if constexpr (kVectors > 0) {
      unroll<kVectors - 1>(
          [&](auto v) VECINA_INLINE { held.whole[v] = load(d, from + v * RowVectors<T>::kLanes); });
    }
    held.rest = load_rest(row, from);
    for (int64_t i = 0; i < whole; i += kLanes) {
      const auto sum = dot_some<kLanes>(row, held, from, keys, offsets + i);
      hn::StoreU(hn::MulAdd(factor, sum, hn::LoadU(d, bias + i)), d, to + i);
    }
    const auto sum = dot_some<kLast>(row, held, from, keys, last_offsets);
    hn::StoreU(hn::MulAdd(factor, sum, last_bias), d, to + whole);
  }
}
// The same for any number of keys and vectors.
template <size_t kLast, typename T, typename Element>
void dot_run_of(size_t last, const RowVectors<T>& row, const DotRun<T, Element>& run, T* to,
                int64_t pitch) {
  if constexpr (kLast > 1) {
    if (last < kLast) return dot_run_of<kLast - 1>(last, row, run, to, pitch);
  }
  switch (row.count()) {
    case 1:
      return dot_run<kLast, 1>(row, run, to, pitch);
    case 2:
      return dot_run<kLast, 2>(row, run, to, pitch);
    case 4:
      return dot_run<kLast, 4>(row, run, to, pitch);
    default:
      return dot_run<kLast, 0>(row, run, to, pitch);
  }
}
template <typename T, typename Element>
void dot_rows(const RowVectors<T>& row, const DotRun<T, Element>& run, T* to, int64_t pitch) {
  constexpr size_t kLanes = RowVectors<T>::kLanes;
  if (run.num_keys == 0) return;
  const auto last = static_cast<size_t>(run.num_keys - 1) % kLanes + 1;
  dot_run_of<kLanes>(last, row, run, to, pitch);
}

// Weights that do not follow each other.
template <typename T>
struct GatheredWeights {
  const T* weights;
  const int64_t* places;
  T operator[](int64_t i) const { return weights[places[i]]; }
};

// Two chains of sums hide the latency of one.
template <size_t kVectors, typename T>
struct Chains {
  using V = hn::Vec<typename RowVectors<T>::D>;
  V even[kVectors], odd[kVectors];
};

// Adds rows base + offsets[i], weighted, to kVectors vectors: those of the row from `first` on, the
// last one at `last`.
template <size_t kVectors, typename T, typename Weights, typename Element>
HWY_INLINE void add_list(const RowVectors<T>& row, const Weights& weights, const Element* base,
                         const int64_t* HWY_RESTRICT offsets, int64_t count, size_t first,
                         size_t last, Chains<kVectors, T>* sums) {
  const typename RowVectors<T>::D d;
  constexpr size_t kLanes = RowVectors<T>::kLanes;
  const auto load_one = [&](const Element* from, auto v) VECINA_INLINE {
    if constexpr (v + 1 < kVectors) {
      return load(d, from + first + v * kLanes);
    } else if constexpr (kVectors == 1) {
      return row.size < kLanes ? load_rest(row, from) : load(d, from + last);
    } else {
      return load(d, from + last);
    }
  };
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const auto a = hn::Set(d, weights[i]), b = hn::Set(d, weights[i + 1]);
    const Element *row_a = base + offsets[i], *row_b = base + offsets[i + 1];
    unroll<kVectors>([&](auto v) HWY_ATTR {
      sums->even[v] = hn::MulAdd(a, load_one(row_a, v), sums->even[v]);
      sums->odd[v] = hn::MulAdd(b, load_one(row_b, v), sums->odd[v]);
    });
  }
  if (i == count) return;
  const auto a = hn::Set(d, weights[i]);
  const Element* row_a = base + offsets[i];
  unroll<kVectors>(
      [&](auto v) HWY_ATTR { sums->even[v] = hn::MulAdd(a, load_one(row_a, v), sums->even[v]); });
}

// Rows of one head to be added up, weighted, for each of neighbouring tokens.
template <typename T, typename Element>
struct SumRun {
  struct List {
    const Element* weights;  // of the first token
    const Element* rows;
    int64_t row_step;
    const int64_t* offsets;
    int64_t count;
  };
  int64_t count;
  int64_t weight_step;
  List list, more;
  T scale;
  Element* to;
  int64_t to_step;
};

// Of the row, kVectors vectors from `first` on, the last one at `last`. weights_of(pointer) are the
// list's, more_of(pointer) those of what is added besides.
template <size_t kVectors, typename T, typename Element, class WeightsOf, class MoreOf>
HWY_NOINLINE void sum_run(const RowVectors<T>& vectors, const SumRun<T, Element>& run, size_t first,
                          size_t last, const WeightsOf& weights_of, const MoreOf& more_of) {
  const RowVectors<T> row = vectors;  // in registers, whatever is written
  const typename RowVectors<T>::D d;
  constexpr size_t kLanes = RowVectors<T>::kLanes;
  const auto factor = hn::Set(d, run.scale);
  const Element *weights = run.list.weights, *rows = run.list.rows, *more = run.more.weights;
  const int64_t* HWY_RESTRICT offsets = run.list.offsets;
  const int64_t count = run.list.count, weight_step = run.weight_step;
  const int64_t row_step = run.list.row_step, to_step = run.to_step;
  Element* to = run.to;
  for (int64_t t = run.count; t > 0; --t) {
    Chains<kVectors, T> sums;
    unroll<kVectors>([&](auto v) VECINA_INLINE { sums.even[v] = sums.odd[v] = hn::Zero(d); });
    add_list(row, weights_of(weights), rows, offsets, count, first, last, &sums);
    if (HWY_UNLIKELY(run.more.count > 0)) {
      add_list(row, more_of(more), run.more.rows, run.more.offsets, run.more.count, first, last,
               &sums);
      more += weight_step;
    }
    unroll<kVectors>([&](auto v) VECINA_INLINE {
      const auto sum = hn::Mul(factor, hn::Add(sums.even[v], sums.odd[v]));
      if constexpr (v + 1 < kVectors) {
        store(d, sum, to + first + v * kLanes);
      } else if (kVectors > 1 || row.size >= kLanes) {
        store(d, sum, to + last);
      } else {
        store_some(d, sum, row.size, to);
      }
    });
    weights += weight_step;
    rows += row_step;
    to += to_step;
  }
}

// Calls visit(vectors, first, last) for parts of a row, up to four vectors each.
template <typename T, class Visit>
HWY_INLINE void for_parts(const RowVectors<T>& row, const Visit& visit) {
  for (size_t v = 0; v < row.count(); v += 4) {
    const size_t vectors = std::min<size_t>(4, row.count() - v), first = v * row.kLanes;
    const size_t last = row.offset(v + vectors - 1);
    switch (vectors) {
      case 1:
        visit(std::integral_constant<size_t, 1>(), first, last);
        break;
      case 2:
        visit(std::integral_constant<size_t, 2>(), first, last);
        break;
      case 3:
        visit(std::integral_constant<size_t, 3>(), first, last);
        break;
      default:
        visit(std::integral_constant<size_t, 4>(), first, last);
        break;
    }
  }
}
template <typename T, typename Element, class WeightsOf, class MoreOf>
void sum_rows(const RowVectors<T>& row, const SumRun<T, Element>& run, const WeightsOf& weights_of,
              const MoreOf& more_of) {
  for_parts(row, [&](auto vectors, size_t first, size_t last) {
    sum_run<vectors>(row, run, first, last, weights_of, more_of);
  });
}

// sum += sum_i factors[i] * (base + offsets[i]), in whole vectors.
template <typename T, typename Element>
void add_rows(const RowVectors<T>& row, const T* factors, const Element* base,
              const int64_t* offsets, int64_t count, T* sum) {
  for_parts(row, [&](auto vectors, size_t first, size_t last) HWY_ATTR {
    const typename RowVectors<T>::D d;
    Chains<vectors, T> sums;
    unroll<vectors>([&](auto v) HWY_ATTR {
      sums.even[v] = hn::LoadU(d, sum + first + v * row.kLanes);
      sums.odd[v] = hn::Zero(d);
    });
    add_list(row, factors, base, offsets, count, first, last, &sums);
    unroll<vectors>([&](auto v) HWY_ATTR {
      hn::StoreU(hn::Add(sums.even[v], sums.odd[v]), d, sum + first + v * row.kLanes);
    });
  });
}

// sums[n] += the weights of `count` tokens, `step` apart, num_keys each.
template <typename T, typename Element>
void add_weights(const Element* weights, int64_t step, int64_t count, int64_t num_keys, T* sums) {
  const typename RowVectors<T>::D d;
  constexpr auto kLanes = static_cast<int64_t>(RowVectors<T>::kLanes);
  const RowVectors<T> rest(std::max<int64_t>(1, num_keys % kLanes));
  const auto add = [&](int64_t first, const auto& load_one) HWY_ATTR {
    const Element* from = weights + first;
    auto even = hn::LoadU(d, sums + first), odd = hn::Zero(d);
    int64_t t = 0;
    for (; t + 2 <= count; t += 2, from += 2 * step) {
      even = hn::Add(even, load_one(from));
      odd = hn::Add(odd, load_one(from + step));
    }
    if (t < count) even = hn::Add(even, load_one(from));
    hn::StoreU(hn::Add(even, odd), d, sums + first);
  };
  int64_t n = 0;
  for (; n + kLanes <= num_keys; n += kLanes) {
    add(n, [&](const Element* from) HWY_ATTR { return load(d, from); });
  }
  if (n == num_keys) return;
  add(n, [&](const Element* from) HWY_ATTR { return load_rest(rest, from); });
}

template <typename T>
void clear_sum(const RowVectors<T>& row, T* sum) {
  std::fill_n(sum, row.count() * row.kLanes, T{0});
}

// to = scale * sum
template <typename T, typename Element>
void write_sum(const RowVectors<T>& row, const T* sum, T scale, Element* to) {
  const typename RowVectors<T>::D d;
  const auto factor = hn::Set(d, scale);
  for (size_t v = 0; v < row.count(); ++v) {
    const auto scaled = hn::Mul(factor, hn::LoadU(d, sum + v * row.kLanes));
    store_some(d, scaled, std::min(row.size, row.kLanes), to + row.offset(v));
  }
}

// `count` rows of `size` elements, `pitch` apart, converted; no element beyond is touched.
template <typename T, typename Element>
void convert_rows(const T* from, int64_t pitch, int64_t count, int64_t size, Element* to,
                  int64_t to_step) {
  const typename RowVectors<T>::D d;
  constexpr auto kLanes = static_cast<int64_t>(RowVectors<T>::kLanes);
  for (int64_t t = 0; t < count; ++t, from += pitch, to += to_step) {
    // What a vector overwrites of the rows behind is theirs again in their turn.
    const int64_t room = to_step == size ? (count - t) * size : size;
    int64_t i = 0;
    for (; i < size && i + kLanes <= room; i += kLanes) store(d, hn::LoadU(d, from + i), to + i);
    if (i < size) store_some(d, hn::LoadU(d, from + i), static_cast<size_t>(size - i), to + i);
  }
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_SPLIT_INL_H_
