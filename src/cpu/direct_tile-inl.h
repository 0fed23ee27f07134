// SPDX-License-Identifier: MIT
// The steps of a block of the direct form: logits, softmax, sums of values. Lanes run along
// head_dim in both products; a block is as many neighbouring queries of a row as a vector has
// lanes, so that their softmax has one query in each lane where it goes across keys. Part of each
// forward_<dtype>.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_DIRECT_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_DIRECT_TILE_INL_H_
#undef VECINA_CPU_DIRECT_TILE_INL_H_
#else
#define VECINA_CPU_DIRECT_TILE_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The keys of one block's queries and room for their weights.
template <class D>
struct DirectBlock {
  using T = hn::TFromD<D>;
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));

  int num_queries;
  const T* keys[kLanes];    // first key of each query's window in row 0
  const T* values[kLanes];  // and its value
  ptrdiff_t key_stride, value_stride;
  const int64_t* key_rows;  // offsets of the rows of keys that all queries of the block see
  const int64_t* value_rows;
  int num_rows;
  int row_keys;          // of the window in each row
  const int* row_slots;  // where the weights of each row begin
  T* weights;            // of query 0
  ptrdiff_t weights_pitch;
  T* maxima;  // a vector for each query: over its groups of keys
};

// op(a, b) across the lanes of kLanes vectors: lane i of the result is op over the lanes of v[i].
template <class D, class Op>
HWY_INLINE hn::Vec<D> across_lanes(D d, const hn::Vec<D>* v, const Op& op) {
  using V = hn::Vec<D>;
  const hn::Repartition<double, D> pairs;
  // Two blends and a shuffle: the units that shuffle are busier than those that blend.
  const auto by_two = [&](V a, V b) HWY_ATTR {
    return op(hn::OddEven(b, a), hn::Shuffle2301(hn::OddEven(a, b)));
  };
  const auto by_four = [&](V a, V b) HWY_ATTR {
    const auto x = hn::BitCast(pairs, a), y = hn::BitCast(pairs, b);
    return op(hn::BitCast(d, hn::OddEven(y, x)), hn::BitCast(d, hn::Shuffle01(hn::OddEven(x, y))));
  };
  const V low = by_four(by_two(v[0], v[1]), by_two(v[2], v[3]));
  if constexpr (hn::MaxLanes(D()) == 4) {
    return low;
  } else {
    const V high = by_four(by_two(v[4], v[5]), by_two(v[6], v[7]));
    return op(hn::ConcatUpperLower(d, high, low), hn::ConcatLowerUpper(d, high, low));
  }
}
template <class D>
HWY_INLINE hn::Vec<D> sums_across(D d, const hn::Vec<D>* v) {
  return across_lanes(d, v, [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); });
}
template <class D>
HWY_INLINE hn::Vec<D> maxima_across(D d, const hn::Vec<D>* v) {
  return across_lanes(d, v, [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); });
}

// Logits of kKeys keys from `first_key` on in each row, kRows rows at a time: their keys follow
// each other in groups of kLanes, of which the last may be partly empty (-infinity). kVectors:
// those of head_dim, 0 if only `vectors` knows. kPacked: keys of kVectors vectors follow each
// other.
template <int kKeys, int kRows, int kVectors, bool kPacked, class D, typename Query>
HWY_NOINLINE void direct_logits(D d, const DirectBlock<D>& block, const Query* queries,
                                ptrdiff_t query_stride, int vectors, int first_key, int first_row,
                                int last_row, hn::TFromD<D> scale) {
  using T = hn::TFromD<D>;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  constexpr int kCount = kKeys * kRows;
  constexpr int kGroups = (kCount + kLanes - 1) / kLanes;
  constexpr size_t kHeld = kVectors > 0 ? kVectors : 1;
  const auto factor = hn::Set(d, scale);
  // Of the last group, where it is partly empty: 0, then -infinity.
  constexpr size_t kLast = static_cast<size_t>(kCount - (kGroups - 1) * kLanes);
  const auto hidden =
      hn::IfThenElse(hn::FirstN(d, kLast), hn::Zero(d), hn::Set(d, -hwy::HighestValue<T>() * 2));
  const ptrdiff_t stride = kPacked && kVectors > 0 ? kVectors * kLanes : block.key_stride;
  const int64_t* HWY_RESTRICT key_rows = block.key_rows;
  const int* HWY_RESTRICT row_slots = block.row_slots;
  for (int t = 0; t < block.num_queries; ++t) {
    const Query* HWY_RESTRICT query = queries + t * query_stride;
    hn::Vec<D> q[kHeld];
    if constexpr (kVectors > 0) {
      unroll<kHeld>([&](auto v) HWY_ATTR { q[v] = load(d, query + v * kLanes); });
    }
    auto maximum = hn::Load(d, block.maxima + ptrdiff_t{t} * kLanes);
    const T* keys = block.keys[t] + first_key * stride;
    T* HWY_RESTRICT logits = block.weights + t * block.weights_pitch + first_key;
    for (int row = first_row; row < last_row; row += kRows) {
      const T* rows[kRows];
      unroll<kRows>([&](auto r) HWY_ATTR { rows[r] = keys + key_rows[row + static_cast<int>(r)]; });
      T* to = logits + row_slots[row];
      unroll<kGroups>([&](auto g) HWY_ATTR {
        constexpr int kFirst = static_cast<int>(g) * kLanes;
        constexpr size_t kHere = static_cast<size_t>(HWY_MIN(kLanes, kCount - kFirst));
        const auto key = [&](auto i) HWY_ATTR {
          constexpr int kKey = kFirst + static_cast<int>(decltype(i)::value);
          return rows[kKey / kKeys] + ptrdiff_t{kKey % kKeys} * stride;
        };
        hn::Vec<D> sums[kLanes];
        if constexpr (kVectors > 0) {
          unroll<kHere>([&](auto i) HWY_ATTR { sums[i] = hn::Mul(q[0], hn::LoadU(d, key(i))); });
          unroll<kHeld - 1>([&](auto v) HWY_ATTR {
            unroll<kHere>([&](auto i) HWY_ATTR {
              sums[i] = hn::MulAdd(q[v + 1], hn::LoadU(d, key(i) + (v + 1) * kLanes), sums[i]);
            });
          });
        } else {
          const T* at[kHere];
          unroll<kHere>([&](auto i) HWY_ATTR {
            at[i] = key(i);
            sums[i] = hn::Zero(d);
          });
          for (int v = 0; v < vectors; ++v) {
            const auto part = load(d, query + v * kLanes);
            unroll<kHere>([&](auto i) HWY_ATTR {
              sums[i] = hn::MulAdd(part, hn::LoadU(d, at[i] + v * kLanes), sums[i]);
            });
          }
        }
        unroll<kLanes - kHere>([&](auto i) HWY_ATTR { sums[kHere + i] = hn::Zero(d); });
        const auto across = sums_across(d, sums);
        const auto sum =
            kHere < kLanes ? hn::MulAdd(factor, across, hidden) : hn::Mul(factor, across);
        hn::Store(sum, d, to + kFirst);
        maximum = hn::Max(maximum, sum);
      });
    }
    hn::Store(maximum, d, block.maxima + ptrdiff_t{t} * kLanes);
  }
}

// Logits of additional tokens, which all queries see: logits[j * kLanes + t] for query t.
template <int kVectors, class D, typename Query>
HWY_NOINLINE void direct_additional_logits(D d, const Query* first, ptrdiff_t query_stride,
                                           int num_queries, int vectors,
                                           const hn::TFromD<D>* HWY_RESTRICT keys, ptrdiff_t pitch,
                                           int64_t count, hn::TFromD<D> scale,
                                           hn::TFromD<D>* HWY_RESTRICT logits) {
  constexpr size_t kLanes = hn::MaxLanes(D());
  const auto factor = hn::Set(d, scale);
  const Query* queries[kLanes];  // the last one is repeated
  unroll<kLanes>([&](auto t) HWY_ATTR {
    queries[t] = first + HWY_MIN(static_cast<int>(t), num_queries - 1) * query_stride;
  });
  const int num_vectors = kVectors > 0 ? kVectors : vectors;
  for (int64_t j = 0; j < count; ++j, keys += pitch, logits += kLanes) {
    hn::Vec<D> sums[kLanes];
    unroll<kLanes>([&](auto t) HWY_ATTR { sums[t] = hn::Zero(d); });
    for (int v = 0; v < num_vectors; ++v) {
      const auto key = hn::LoadU(d, keys + v * static_cast<int>(kLanes));
      unroll<kLanes>([&](auto t) HWY_ATTR {
        sums[t] = hn::MulAdd(key, load(d, queries[t] + v * static_cast<int>(kLanes)), sums[t]);
      });
    }
    hn::Store(hn::Mul(factor, sums_across(d, sums)), d, logits);
  }
}

// What the softmax of a block leaves: one vector, query t in lane t.
template <class D>
struct DirectSoftmax {
  SoftmaxState<D> state;
  hn::Vec<D> inverse;  // one over the sums of weights, 0 where a query sees nothing
};

// Turns the logits of a block into weights 2^(logit - maximum). `slots` of each query, `additional`
// with one query in each lane.
template <class D>
HWY_NOINLINE DirectSoftmax<D> direct_softmax(D d, int num_queries, int slots,
                                             hn::TFromD<D>* HWY_RESTRICT weights,
                                             ptrdiff_t weights_pitch,
                                             hn::TFromD<D>* HWY_RESTRICT maxima, int64_t count,
                                             hn::TFromD<D>* HWY_RESTRICT additional) {
  using T = hn::TFromD<D>;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  hn::Vec<D> each[kLanes];
  unroll<kLanes>([&](auto t)
                     HWY_ATTR { each[t] = hn::Load(d, maxima + static_cast<int>(t) * kLanes); });
  auto maximum = maxima_across(d, each);
  for (int64_t j = 0; j < count; ++j) {
    maximum = hn::Max(maximum, hn::Load(d, additional + j * kLanes));
  }
  // A query that sees nothing but -infinity has sum 0, not NaN.
  const auto is_empty = hn::Lt(maximum, hn::Set(d, -hwy::HighestValue<T>()));
  const auto bases = hn::IfThenZeroElse(is_empty, maximum);
  HWY_ALIGN T base_of[kLanes];
  hn::Store(bases, d, base_of);
  for (int t = 0; t < num_queries; ++t) {
    T* HWY_RESTRICT row = weights + t * weights_pitch;
    const auto base = hn::Set(d, base_of[t]);
    auto sum = hn::Zero(d);
    for (int slot = 0; slot < slots; slot += kLanes) {
      const auto weight = exp2_negative(d, hn::Sub(hn::Load(d, row + slot), base));
      hn::Store(weight, d, row + slot);
      sum = hn::Add(sum, weight);
    }
    hn::Store(sum, d, maxima + t * kLanes);
  }
  unroll<kLanes>([&](auto t)
                     HWY_ATTR { each[t] = hn::Load(d, maxima + static_cast<int>(t) * kLanes); });
  auto sum = sums_across(d, each);
  for (int64_t j = 0; j < count; ++j) {
    const auto weight = exp2_negative(d, hn::Sub(hn::Load(d, additional + j * kLanes), bases));
    hn::Store(weight, d, additional + j * kLanes);
    sum = hn::Add(sum, weight);
  }
  sum = hn::IfThenZeroElse(is_empty, sum);
  const auto inverse = hn::IfThenZeroElse(hn::Eq(sum, hn::Zero(d)), hn::Div(hn::Set(d, T{1}), sum));
  return {{maximum, sum}, inverse};
}

// Values of a block's queries: those of additional tokens are seen by all.
template <typename T, typename Output>
struct DirectOutput {
  const T* inverse;     // of each query
  const T* additional;  // weights, one query in each lane
  const T* additional_values;
  ptrdiff_t additional_pitch;
  int64_t num_additional;
  Output* output;  // of query 0
  ptrdiff_t output_stride;
  ptrdiff_t head_dim;  // of value
};

// Writes kVectors vectors from `column` on of one query's output.
template <int kVectors, class D, typename Output>
HWY_INLINE void direct_store(D d, const hn::Vec<D>* sums, hn::Vec<D> inverse, ptrdiff_t left,
                             Output* HWY_RESTRICT output) {
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  if (left >= kVectors * kLanes) {
    unroll<kVectors>([&](auto v) HWY_ATTR {
      store(d, hn::Mul(inverse, sums[v]), output + ptrdiff_t{v} * kLanes);
    });
  } else {
    unroll<kVectors>([&](auto v) HWY_ATTR {
      constexpr ptrdiff_t kAt = ptrdiff_t{v} * kLanes;
      if (kAt < left) {
        store_some(d, hn::Mul(inverse, sums[v]), static_cast<size_t>(left - kAt), output + kAt);
      }
    });
  }
}

// Queries first, first + 1, ... up to `last` in pairs whose windows are kShift keys apart: each
// value is loaded once for both.
template <int kShift, int kVectors, class D, typename Output>
HWY_NOINLINE void direct_pairs(D d, const DirectBlock<D>& block,
                               const DirectOutput<hn::TFromD<D>, Output>& target, int first,
                               int last, ptrdiff_t column) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  const ptrdiff_t stride = block.value_stride;
  for (int t = first; t < last; t += 2) {
    hn::Vec<D> a[kVectors], b[kVectors];
    unroll<kVectors>([&](auto v) HWY_ATTR { a[v] = b[v] = hn::Zero(d); });
    const T* weights = block.weights + t * block.weights_pitch;
    const T* values = block.values[t] + column;
    const auto add = [&](const T* value, hn::Vec<D> weight, hn::Vec<D>* sums) HWY_ATTR {
      unroll<kVectors>([&](auto v) HWY_ATTR {
        sums[v] = hn::MulAdd(weight, hn::LoadU(d, value + ptrdiff_t{v} * kLanes), sums[v]);
      });
    };
    const auto add_both = [&](const T* value, hn::Vec<D> p, hn::Vec<D> r) HWY_ATTR {
      unroll<kVectors>([&](auto v) HWY_ATTR {
        const auto x = in_register(hn::LoadU(d, value + ptrdiff_t{v} * kLanes));
        a[v] = hn::MulAdd(p, x, a[v]);
        b[v] = hn::MulAdd(r, x, b[v]);
      });
    };
    for (int row = 0; row < block.num_rows; ++row) {
      const T* value = values + block.value_rows[row];
      const T* p = weights + block.row_slots[row];
      const T* r = p + block.weights_pitch;
      const T* end = p + block.row_keys;
      if constexpr (kShift == 1) {
        add(value, hn::Set(d, *p++), a);
        value += stride;
      }
      for (; p < end; ++p, ++r, value += stride) add_both(value, hn::Set(d, *p), hn::Set(d, *r));
      if constexpr (kShift == 1) add(value, hn::Set(d, *r), b);
    }
    const T* value = target.additional_values + column;
    const T* p = target.additional + t;
    for (int64_t j = 0; j < target.num_additional; ++j) {
      add_both(value, hn::Set(d, p[0]), hn::Set(d, p[1]));
      value += target.additional_pitch;
      p += kLanes;
    }
    Output* output = target.output + t * target.output_stride + column;
    const ptrdiff_t left = target.head_dim - column;
    direct_store<kVectors>(d, a, hn::Set(d, target.inverse[t]), left, output);
    direct_store<kVectors>(d, b, hn::Set(d, target.inverse[t + 1]), left,
                           output + target.output_stride);
  }
}

// One query that sees the first `row_keys` keys of each row of its window.
template <int kVectors, class D, typename Output>
HWY_NOINLINE void direct_single(D d, const DirectBlock<D>& block,
                                const DirectOutput<hn::TFromD<D>, Output>& target, int t,
                                int row_keys, ptrdiff_t column) {
  using T = hn::TFromD<D>;
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  // Two sums each hide the latency of the multiply-add.
  hn::Vec<D> a[kVectors], b[kVectors];
  unroll<kVectors>([&](auto v) HWY_ATTR { a[v] = b[v] = hn::Zero(d); });
  const auto add = [&](const T* value, T weight, hn::Vec<D>* sums) HWY_ATTR {
    const auto w = hn::Set(d, weight);
    unroll<kVectors>([&](auto v) HWY_ATTR {
      sums[v] = hn::MulAdd(w, hn::LoadU(d, value + ptrdiff_t{v} * kLanes), sums[v]);
    });
  };
  for (int row = 0; row < block.num_rows; ++row) {
    const T* value = block.values[t] + column + block.value_rows[row];
    const T* p = block.weights + t * block.weights_pitch + block.row_slots[row];
    int j = 0;
    for (; j + 2 <= row_keys; j += 2, value += 2 * block.value_stride) {
      add(value, p[j], a);
      add(value + block.value_stride, p[j + 1], b);
    }
    if (j < row_keys) add(value, p[j], a);
  }
  for (int64_t j = 0; j < target.num_additional; ++j) {
    add(target.additional_values + column + j * target.additional_pitch,
        target.additional[j * kLanes + t], b);
  }
  unroll<kVectors>([&](auto v) HWY_ATTR { a[v] = hn::Add(a[v], b[v]); });
  direct_store<kVectors>(d, a, hn::Set(d, target.inverse[t]), target.head_dim - column,
                         target.output + t * target.output_stride + column);
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_DIRECT_TILE_INL_H_
