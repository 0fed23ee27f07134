// SPDX-License-Identifier: MIT
// The steps of a block of the direct form: logits, softmax, sums of values. Lanes run along
// head_dim in both products; a block is up to four vectors of neighbouring queries of a row, and
// their softmax has one query in each lane where it goes across keys. Part of each
// forward_*.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_DIRECT_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_DIRECT_TILE_INL_H_
#undef VECINA_CPU_DIRECT_TILE_INL_H_
#else
#define VECINA_CPU_DIRECT_TILE_INL_H_
#endif

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// With AVX-512 all steps but the additions across lanes take vectors of twice as many lanes, which
// fill the machine with half as many instructions. Blocks have one row of keys there.
inline constexpr bool kHasWideVectors = HWY_TARGET == HWY_AVX3;
template <class D>
using Wide =
    hn::CappedTag<hn::TFromD<D>, kHasWideVectors ? 2 * kMaxDirectLanes : hn::MaxLanes(D())>;

// The keys of one block's queries and room for their weights.
template <class D>
struct DirectBlock {
  using T = hn::TFromD<D>;
  static constexpr int kMaxQueries = kDirectVectors * static_cast<int>(hn::MaxLanes(D()));

  int num_queries;
  const void *keys, *values;           // of one head; of T, or bfloat16 where they lie
  ptrdiff_t key_offsets[kMaxQueries];  // of the first key of each query's window in row 0
  ptrdiff_t value_offsets[kMaxQueries];
  ptrdiff_t key_stride, value_stride;
  const int64_t* key_rows;  // offsets of the rows of keys that all queries of the block see
  const int64_t* value_rows;
  int num_rows;
  int row_keys;          // of the window in each row
  const int* row_slots;  // where the weights of each row begin
  T* weights;            // of query 0
  ptrdiff_t weights_pitch;
};

// op over the lanes of vectors, in two steps. The first takes four: lane l of the result is op over
// the lanes of v[l % 4] in the same half of the vector (for vectors of four lanes, over all).
template <class D, class Op>
HWY_INLINE hn::Vec<D> across_four(D d, const hn::Vec<D> (&v)[4], const Op& op) {
  const hn::Repartition<double, D> pairs;
  const auto by_two = [&](auto a, auto b) HWY_ATTR {
    return op(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  };
  const auto low = hn::BitCast(pairs, by_two(v[0], v[1]));
  const auto high = hn::BitCast(pairs, by_two(v[2], v[3]));
  return op(hn::BitCast(d, hn::InterleaveLower(pairs, low, high)),
            hn::BitCast(d, hn::InterleaveUpper(pairs, low, high)));
}
// The second takes as many results of the first as a vector has groups of four lanes.
template <class D, class Op>
HWY_INLINE hn::Vec<D> across_groups(D d, const hn::Vec<D> (&v)[hn::MaxLanes(D()) / 4],
                                    const Op& op) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v[0];
  } else {
    return op(hn::ConcatUpperLower(d, v[1], v[0]), hn::ConcatLowerUpper(d, v[1], v[0]));
  }
}
// Lane i: op over the lanes of of(i).
template <class D, class Op, class Of>
HWY_INLINE hn::Vec<D> across_lanes(D d, const Op& op, const Of& of) {
  constexpr size_t kGroups = hn::MaxLanes(D()) / 4;
  hn::Vec<D> groups[kGroups];
  unroll<kGroups>([&](auto g) HWY_ATTR {
    const hn::Vec<D> v[4] = {of(4 * g), of(4 * g + 1), of(4 * g + 2), of(4 * g + 3)};
    groups[g] = across_four(d, v, op);
  });
  return across_groups(d, groups, op);
}
struct AddLanes {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Add(a, b);
  }
};
struct MaxLanes {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Max(a, b);
  }
};

// Computes logits of `keys` keys from first_key on, at most a vector of them, in each of the rows
// [first_row, last_row) of the block. `size`: elements of queries and keys; those of bfloat16,
// kHeldVectors long, are loaded as pairs like packed keys.
template <typename Query>
struct DirectLogitsArguments {
  const Query* queries;
  ptrdiff_t query_stride;
  int size, first_key, first_row, last_row;
  float scale;
};
using DirectFloats = hn::CappedTag<float, kMaxDirectLanes>;
template <typename Query>
using DirectLogits = void (*)(const DirectBlock<DirectFloats>& block,
                              const DirectLogitsArguments<Query>& arguments);
// Of a query that stays in registers for all its keys.
inline constexpr int kHeldVectors = 4;
// `in_groups`: for numbers of rows that grouped_rows(keys) divides, else for any. Compiled once, in
// direct_logits.cc, for all element types.
template <typename Query>
DirectLogits<Query> direct_logits(int keys, bool in_groups, int size);
// The same of keys and queries of bfloat16, both read where they lie and multiplied in pairs.
// `size`: 32 or 64.
DirectLogits<bfloat16> direct_dots(int keys, int size);
extern template DirectLogits<float> direct_logits<float>(int, bool, int);
extern template DirectLogits<bfloat16> direct_logits<bfloat16>(int, bool, int);

// Logits of additional tokens, which all queries see: for as many queries as a vector has lanes,
// logits[j * kMaxQueries + t] for query t.
template <class D>
HWY_NOINLINE void direct_additional_logits(D d, const hn::TFromD<D>* first, ptrdiff_t query_stride,
                                           int num_queries, int vectors,
                                           const hn::TFromD<D>* HWY_RESTRICT keys, ptrdiff_t pitch,
                                           int64_t count, hn::TFromD<D> scale,
                                           hn::TFromD<D>* HWY_RESTRICT logits) {
  constexpr size_t kLanes = hn::MaxLanes(D());
  const auto factor = hn::Set(d, scale);
  const hn::TFromD<D>* queries[kLanes];  // the last one is repeated
  unroll<kLanes>([&](auto t) HWY_ATTR {
    queries[t] = first + HWY_MIN(static_cast<int>(t), num_queries - 1) * query_stride;
  });
  for (int64_t j = 0; j < count; ++j, keys += pitch, logits += DirectBlock<D>::kMaxQueries) {
    hn::Vec<D> sums[kLanes];
    unroll<kLanes>([&](auto t) HWY_ATTR { sums[t] = hn::Zero(d); });
    for (int v = 0; v < vectors; ++v) {
      const auto key = hn::LoadU(d, keys + v * static_cast<int>(kLanes));
      unroll<kLanes>([&](auto t) HWY_ATTR {
        sums[t] = hn::MulAdd(key, hn::LoadU(d, queries[t] + v * static_cast<int>(kLanes)), sums[t]);
      });
    }
    const auto sum = across_lanes(d, AddLanes(), [&](size_t t) HWY_ATTR { return sums[t]; });
    hn::Store(hn::Mul(factor, sum), d, logits);
  }
}

// What the softmax of a block leaves of each query.
template <class D>
struct DirectSoftmax {
  static constexpr int kMaxQueries = DirectBlock<D>::kMaxQueries;
  using T = hn::TFromD<D>;

  HWY_ALIGN T maxima[kMaxQueries], sums[kMaxQueries];
  HWY_ALIGN T inverse[kMaxQueries];  // one over the sum, 0 where a query sees nothing
};

// Turns logits into weights 2^(logit - base of their query), two queries of one vector each, or one
// of two, at once. The weights of a block follow each other without gaps.
template <class D>
HWY_INLINE void exponentiate_wide(D d, const DirectBlock<D>& block, int slots,
                                  const hn::TFromD<D>* HWY_RESTRICT bases) {
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  const Wide<D> wide;
  hn::TFromD<D>* HWY_RESTRICT weights = block.weights;
  const auto turn = [&](auto base) HWY_ATTR {
    hn::StoreU(exp2_negative(wide, hn::Sub(hn::LoadU(wide, weights), base)), wide, weights);
    weights += 2 * kLanes;
  };
  if (slots == kLanes) {
    for (int t = 0; t < block.num_queries; t += 2) {
      turn(hn::Combine(wide, hn::Set(d, bases[t + 1]), hn::Set(d, bases[t])));
    }
  } else {
    for (int t = 0; t < block.num_queries; ++t) turn(hn::Set(wide, bases[t]));
  }
}

// Turns the logits of a block into weights 2^(logit - maximum). `slots` of each query, `count`
// additional tokens. Each step is done for all queries before the next: they wait less that way.
template <class D>
HWY_NOINLINE void direct_softmax(D d, const DirectBlock<D>& block, int slots, int64_t count,
                                 hn::TFromD<D>* HWY_RESTRICT additional,
                                 DirectSoftmax<D>* HWY_RESTRICT result) {
  using T = hn::TFromD<D>;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(D())), kPitch = DirectBlock<D>::kMaxQueries;
  T* const weights = block.weights;
  const ptrdiff_t pitch = block.weights_pitch;
  const int num_queries = block.num_queries;
  // The last query stands in for those that there are not.
  const auto query = [&](int t) { return HWY_MIN(t, num_queries - 1); };
  const auto is_empty = [&](hn::Vec<D> maximum) HWY_ATTR {
    return hn::Lt(maximum, hn::Set(d, -hwy::HighestValue<T>()));
  };
  HWY_ALIGN T bases[kPitch];
  for (int first = 0; first < num_queries; first += kLanes) {
    auto maximum = across_lanes(d, MaxLanes(), [&](size_t t) HWY_ATTR {
      const T* row = weights + query(first + static_cast<int>(t)) * pitch;
      auto most = hn::Load(d, row);
      for (int slot = kLanes; slot < slots; slot += kLanes) {
        most = hn::Max(most, hn::Load(d, row + slot));
      }
      return most;
    });
    for (int64_t j = 0; j < count; ++j) {
      maximum = hn::Max(maximum, hn::Load(d, additional + j * kPitch + first));
    }
    hn::Store(maximum, d, result->maxima + first);
    hn::Store(hn::IfThenZeroElse(is_empty(maximum), maximum), d, bases + first);
  }
  HWY_ALIGN T parts[kPitch * kLanes];
  if constexpr (kHasWideVectors) {
    exponentiate_wide(d, block, slots, bases);
  } else {
    for (int first = 0; first < num_queries; first += kLanes) {
      T* rows[kLanes];
      hn::Vec<D> base[kLanes], sums[kLanes];
      unroll<kLanes>([&](auto i) HWY_ATTR {
        const int t = query(first + static_cast<int>(i));
        rows[i] = weights + t * pitch;
        base[i] = hn::Set(d, bases[t]);
        sums[i] = hn::Zero(d);
      });
      for (int slot = 0; slot < slots; slot += kLanes) {
        hn::Vec<D> w[kLanes];  // all are read before one is written: rows may be the same
        unroll<kLanes>([&](auto i)
                           HWY_ATTR { w[i] = hn::Sub(hn::Load(d, rows[i] + slot), base[i]); });
        unroll<kLanes>([&](auto i) HWY_ATTR { w[i] = exp2_negative(d, w[i]); });
        unroll<kLanes>([&](auto i) HWY_ATTR {
          hn::Store(w[i], d, rows[i] + slot);
          sums[i] = hn::Add(sums[i], w[i]);
        });
      }
      unroll<kLanes>([&](auto i) HWY_ATTR {
        hn::Store(sums[i], d, parts + (first + static_cast<int>(i)) * kLanes);
      });
    }
  }
  for (int first = 0; first < num_queries; first += kLanes) {
    const auto base = hn::Load(d, bases + first);
    auto sum = across_lanes(d, AddLanes(), [&](size_t t) HWY_ATTR {
      const int at = first + static_cast<int>(t);
      if constexpr (kHasWideVectors) {
        const T* row = weights + query(at) * pitch;
        auto all = hn::Load(d, row);
        for (int slot = kLanes; slot < slots; slot += kLanes) {
          all = hn::Add(all, hn::Load(d, row + slot));
        }
        return all;
      } else {
        return hn::Load(d, parts + at * kLanes);
      }
    });
    for (int64_t j = 0; j < count; ++j) {
      T* weight = additional + j * kPitch + first;
      const auto w = exp2_negative(d, hn::Sub(hn::Load(d, weight), base));
      hn::Store(w, d, weight);
      sum = hn::Add(sum, w);
    }
    sum = sum_of_row(is_empty(hn::Load(d, result->maxima + first)), sum);
    hn::Store(sum, d, result->sums + first);
    hn::Store(hn::IfThenZeroElse(hn::Eq(sum, hn::Zero(d)), hn::Div(hn::Set(d, T{1}), sum)), d,
              result->inverse + first);
  }
}

// Values of a block's queries: those of additional tokens are seen by all.
template <typename T, typename Output>
struct DirectOutput {
  const T* inverse;     // of each query
  const T* additional;  // weights, [token][kMaxQueries]
  const T* additional_values;
  ptrdiff_t additional_pitch;
  int64_t num_additional;
  Output* output;  // of query 0
  ptrdiff_t output_stride;
  ptrdiff_t head_dim;  // of value
};

// How many elements of each vector of a row of values there are.
struct WholeVectors {};
template <class W>
struct PartOfVector {
  hn::Mask<W> mask;
};
template <bool kIsPart, class W>
HWY_INLINE auto part_of(W w, ptrdiff_t left) {
  if constexpr (kIsPart) {
    return PartOfVector<W>{hn::FirstN(w, static_cast<size_t>(left))};
  } else {
    return WholeVectors();
  }
}

// Writes kVectors vectors of one query's output; a single one may reach beyond the `left` elements.
template <size_t kVectors, class D, class Part, typename Output>
HWY_INLINE void direct_store(D d, Part part, const hn::Vec<D> (&sums)[kVectors], hn::Vec<D> inverse,
                             ptrdiff_t left, Output* HWY_RESTRICT output) {
  constexpr ptrdiff_t kLanes = hn::MaxLanes(D());
  if constexpr (!std::is_same_v<Part, WholeVectors>) {
    hn::BlendedStore(hn::Mul(inverse, sums[0]), part.mask, d, output);
  } else if constexpr (kVectors == 1) {
    const auto count = static_cast<size_t>(HWY_MIN(left, kLanes));
    store_some(d, hn::Mul(inverse, sums[0]), count, output);
  } else {
    hn::Vec<D> weighed[kVectors];
    unroll<kVectors>([&](auto v) VECINA_INLINE { weighed[v] = hn::Mul(inverse, sums[v]); });
    store_pairs(d, weighed, output);
  }
}

// kVectors vectors of one value; of bfloat16 in pairs of even and odd elements.
template <size_t kVectors, class W, class Part, typename Stored>
HWY_INLINE void load_value(W w, Part part, const Stored* from, hn::Vec<W> (&value)[kVectors]) {
  constexpr size_t kLanes = hn::MaxLanes(W());
  if constexpr (!std::is_same_v<Part, WholeVectors>) {
    value[0] = hn::MaskedLoad(part.mask, w, from);
  } else if constexpr (std::is_same_v<Stored, bfloat16>) {
    unroll<kVectors / 2>([&](auto v) VECINA_INLINE {
      load_pair(w, from + 2 * v * kLanes, &value[2 * v], &value[2 * v + 1]);
    });
  } else {
    unroll<kVectors>([&](auto v) VECINA_INLINE { value[v] = hn::LoadU(w, from + v * kLanes); });
  }
}
// Adds one value to sums, weighted.
template <size_t kVectors, class W, class Part, typename Stored>
HWY_INLINE void direct_add(W w, Part part, hn::TFromD<W> weight, const Stored* from,
                           hn::Vec<W> (&sums)[kVectors]) {
  const auto factor = hn::Set(w, weight);
  hn::Vec<W> value[kVectors];
  load_value<kVectors>(w, part, from, value);
  unroll<kVectors>([&](auto v) HWY_ATTR { sums[v] = hn::MulAdd(factor, value[v], sums[v]); });
}
// The same value to the sums of queries kFirst, kFirst + 1, ... up to kLast, whose weights are
// `apart`: it is loaded once. Those from kFresh on have no sums yet: a product leaves the stores of
// others' sums before their turn, a multiply-add does not (Zen 4).
template <size_t kFirst, size_t kLast, size_t kVectors, size_t kFresh = kLast, class W, class Part,
          typename Stored, size_t kSums>
HWY_INLINE void direct_add_all(W w, Part part, const hn::TFromD<W>* weight, ptrdiff_t apart,
                               const Stored* from, hn::Vec<W> (&sums)[kSums]) {
  hn::Vec<W> factors[kLast - kFirst], value[kVectors];
  unroll<kLast - kFirst>([&](auto i) VECINA_INLINE {
    factors[i] = hn::Set(w, weight[static_cast<ptrdiff_t>(kFirst + i) * apart]);
  });
  load_value<kVectors>(w, part, from, value);
  unroll<kVectors>([&](auto v) VECINA_INLINE {
    if constexpr (kLast - kFirst > 1) value[v] = in_register(value[v]);
    unroll<kLast - kFirst>([&](auto i) VECINA_INLINE {
      constexpr size_t kSum = (kFirst + i) * kVectors + v;
      sums[kSum] = kFirst + i >= kFresh ? hn::Mul(factors[i], value[v])
                                        : hn::MulAdd(factors[i], value[v], sums[kSum]);
    });
  });
}

// Queries first, first + 1, ... up to `last`, kQueries at once, whose windows are kShift keys
// apart. Then they have at least kQueries - 1 keys in a row; kQueries where sums begin with
// products.
template <int kShift, int kQueries, size_t kVectors, bool kIsPart, typename Stored, class D,
          class W, typename Output>
HWY_NOINLINE void direct_together(D, W w, const DirectBlock<D>& block,
                                  const DirectOutput<hn::TFromD<D>, Output>& target, int first,
                                  int last, ptrdiff_t column) {
  using T = hn::TFromD<D>;
  const int64_t* HWY_RESTRICT value_rows = block.value_rows;
  const int* HWY_RESTRICT row_slots = block.row_slots;
  const T* HWY_RESTRICT inverse = target.inverse + first;
  const T* HWY_RESTRICT weights = block.weights + first * block.weights_pitch;
  const ptrdiff_t stride = block.value_stride, pitch = block.weights_pitch;
  const ptrdiff_t num_rows = block.num_rows, row_keys = block.row_keys;
  const ptrdiff_t left = target.head_dim - column, output_stride = target.output_stride;
  const auto part = part_of<kIsPart>(w, left);
  const int64_t num_additional = target.num_additional;
  Output* HWY_RESTRICT output = target.output + first * output_stride + column;
  constexpr size_t kAll = kQueries, kRamp = kShift * (kQueries - 1);
  // Where registers hold two sets of sums, queries are written after the next ones' first values
  // are loaded: a load right behind a store to the same place of another page may wait for it.
  constexpr bool kWritesLater = kHasWideVectors && kAll * kVectors <= 8;
  hn::Vec<W> done[kAll * kVectors];
  const auto write_done = [&]() VECINA_INLINE {
    unroll<kAll>([&](auto q) VECINA_INLINE {
      hn::Vec<W> of[kVectors];
      unroll<kVectors>([&](auto v) VECINA_INLINE { of[v] = done[q * kVectors + v]; });
      direct_store(w, part, of, hn::Set(w, inverse[q]), left, output);
      output += output_stride;
    });
    inverse += kAll;
  };
  for (int t = first; t < last; t += kQueries, weights += kQueries * pitch) {
    hn::Vec<W> sums[kAll * kVectors];
    const Stored* values =
        static_cast<const Stored*>(block.values) + block.value_offsets[t] + column;
    const auto add_row = [&](ptrdiff_t row, auto is_first) VECINA_INLINE {
      constexpr bool kIsFirst = decltype(is_first)::value;
      const Stored* value = values + value_rows[row];
      const T* p = weights + row_slots[row];
      const T* end = p + row_keys;
      const ptrdiff_t apart = pitch - kShift;
      unroll<kRamp>([&](auto i) VECINA_INLINE {
        direct_add_all<0, i + 1, kVectors, kIsFirst ? i : i + 1>(w, part, p++, apart, value, sums);
        value += stride;
      });
      if constexpr (kWritesLater) {
        if (kIsFirst && t > first) write_done();
      }
      if constexpr (kIsFirst) {  // the first key of those that have no sums yet
        direct_add_all<0, kAll, kVectors, kRamp>(w, part, p++, apart, value, sums);
        value += stride;
      }
      for (; p < end; ++p, value += stride) {
        direct_add_all<0, kAll, kVectors>(w, part, p, apart, value, sums);
      }
      unroll<kRamp>([&](auto i) VECINA_INLINE {
        direct_add_all<i + 1, kAll, kVectors>(w, part, p++, apart, value, sums);
        value += stride;
      });
    };
    // So a query's sums have the same bits as in direct_rolling().
    if constexpr (kHasWideVectors) {
      add_row(0, std::true_type());
    } else {
      unroll<kAll * kVectors>([&](auto i) VECINA_INLINE { sums[i] = hn::Zero(w); });
    }
    for (ptrdiff_t row = kHasWideVectors; row < num_rows; ++row) add_row(row, std::false_type());
    if (num_additional > 0) {
      const T* value = target.additional_values + column;
      const T* p = target.additional + t;
      for (int64_t j = 0; j < num_additional; ++j) {
        direct_add_all<0, kAll, kVectors>(w, part, p, 1, value, sums);
        value += target.additional_pitch;
        p += DirectBlock<D>::kMaxQueries;
      }
    }
    unroll<kAll * kVectors>([&](auto i) VECINA_INLINE { done[i] = sums[i]; });
    if constexpr (!kWritesLater) write_done();
  }
  if constexpr (kWritesLater) write_done();  // there is a first query
}

// Queries first, first + 1, ... up to `last`, at least kKeys, whose windows of kKeys keys in one
// row are one key apart. The sums of kKeys of them stay in registers: each value is loaded once,
// for all that see it, and then one query is done.
template <size_t kKeys, size_t kVectors, bool kIsPart, typename Stored, class D, class W,
          typename Output>
HWY_NOINLINE void direct_rolling(D, W w, const DirectBlock<D>& block,
                                 const DirectOutput<hn::TFromD<D>, Output>& target, int first,
                                 int last, ptrdiff_t column) {
  using T = hn::TFromD<D>;
  constexpr size_t kRamp = kKeys - 1;
  const ptrdiff_t stride = block.value_stride, pitch = block.weights_pitch;
  const ptrdiff_t left = target.head_dim - column, output_stride = target.output_stride;
  const auto part = part_of<kIsPart>(w, left);
  const Stored* value = static_cast<const Stored*>(block.values) + block.value_offsets[first] +
                        block.value_rows[0] + column;
  const T* HWY_RESTRICT weight = block.weights + first * pitch + block.row_slots[0] + kRamp;
  const T* HWY_RESTRICT inverse = target.inverse + first;
  const T* const first_inverse = inverse;
  const T* additional = target.additional + first;
  Output* HWY_RESTRICT output = target.output + first * output_stride + column;
  const int64_t num_additional = target.num_additional;

  // Of queries in turn, the one that is done next first.
  hn::Vec<W> sums[kKeys * kVectors], done[kVectors];
  // The value of the last key but `earlier` of the first one, to `count` of them, of which the last
  // one begins with it. `write` comes after the load, which behind a store to the same place of
  // another page may wait for it.
  const auto add_value = [&](auto count, auto earlier, auto begins,
                             const auto& write) VECINA_INLINE {
    hn::Vec<W> v[kVectors];
    load_value<kVectors>(w, part, value, v);
    value += stride;
    write();
    unroll<count>([&](auto q) VECINA_INLINE {
      constexpr bool kIsFresh = begins && q + 1 == count;
      const ptrdiff_t slot = static_cast<ptrdiff_t>(size_t{q}) * (pitch - 1);
      const auto factor = hn::Set(w, weight[slot - static_cast<ptrdiff_t>(size_t{earlier})]);
      unroll<kVectors>([&](auto k) VECINA_INLINE {
        auto& sum = sums[q * kVectors + k];
        sum = kIsFresh ? hn::Mul(factor, v[k]) : hn::MulAdd(factor, v[k], sum);
      });
    });
  };
  const auto finish_first = [&]() VECINA_INLINE {
    unroll<kVectors>([&](auto k) VECINA_INLINE { done[k] = sums[k]; });
    unroll<kRamp * kVectors>([&](auto i) VECINA_INLINE { sums[i] = sums[i + kVectors]; });
    weight += pitch;
  };
  const auto write_done = [&]() VECINA_INLINE {
    if (HWY_UNLIKELY(num_additional > 0)) {
      const T* from = target.additional_values + column;
      const T* p = additional + (inverse - first_inverse);
      for (int64_t j = 0; j < num_additional; ++j, from += target.additional_pitch) {
        direct_add<kVectors>(w, part, *p, from, done);
        p += DirectBlock<D>::kMaxQueries;
      }
    }
    direct_store(w, part, done, hn::Set(w, *inverse), left, output);
    output += output_stride;
    ++inverse;
  };
  const auto nothing = []() {};
  using All = std::integral_constant<size_t, kKeys>;
  using None = std::integral_constant<size_t, 0>;
  unroll<kRamp>([&](auto j) VECINA_INLINE {
    add_value(std::integral_constant<size_t, j + 1>(), std::integral_constant<size_t, kRamp - j>(),
              std::true_type(), nothing);
  });
  add_value(All(), None(), std::true_type(), nothing);
  finish_first();
  for (int t = first + kKeys; t < last; ++t) {
    add_value(All(), None(), std::true_type(), write_done);
    finish_first();
  }
  unroll<kRamp>([&](auto j) VECINA_INLINE {
    add_value(std::integral_constant<size_t, kRamp - j>(), None(), std::false_type(), write_done);
    finish_first();
  });
  write_done();
}

// direct_rolling() of so many keys.
inline constexpr int kMostRolling = 13;  // whose sums stay in registers
template <size_t kVectors, bool kIsPart, typename Stored, class D, class W, typename Output,
          size_t... kFewer>
auto rolling_of(size_t keys, std::index_sequence<kFewer...>) {
  static constexpr std::array kTable = {
      &direct_rolling<kFewer + 1, kVectors, kIsPart, Stored, D, W, Output>...};
  return kTable[keys - 1];
}
template <size_t kVectors, bool kIsPart, typename Stored, class D, class W, typename Output>
auto rolling_of(int keys) {
  return rolling_of<kVectors, kIsPart, Stored, D, W, Output>(
      static_cast<size_t>(keys), std::make_index_sequence<kMostRolling>());
}

// One query that sees the first `row_keys` keys of each row of its window.
template <size_t kVectors, bool kIsPart, typename Stored, class D, class W, typename Output>
HWY_NOINLINE void direct_single(D, W d, const DirectBlock<D>& block,
                                const DirectOutput<hn::TFromD<D>, Output>& target, int t,
                                int row_keys, ptrdiff_t column) {
  using T = hn::TFromD<D>;
  const auto part = part_of<kIsPart>(d, target.head_dim - column);
  // Two sums each hide the latency of the multiply-add.
  hn::Vec<W> a[kVectors], b[kVectors];
  unroll<kVectors>([&](auto v) HWY_ATTR { a[v] = b[v] = hn::Zero(d); });
  for (int row = 0; row < block.num_rows; ++row) {
    const Stored* value = static_cast<const Stored*>(block.values) + block.value_offsets[t] +
                          column + block.value_rows[row];
    const T* p = block.weights + t * block.weights_pitch + block.row_slots[row];
    int j = 0;
    for (; j + 2 <= row_keys; j += 2, value += 2 * block.value_stride) {
      direct_add(d, part, p[j], value, a);
      direct_add(d, part, p[j + 1], value + block.value_stride, b);
    }
    if (j < row_keys) direct_add(d, part, p[j], value, a);
  }
  for (int64_t j = 0; j < target.num_additional; ++j) {
    direct_add(d, part, target.additional[j * DirectBlock<D>::kMaxQueries + t],
               target.additional_values + column + j * target.additional_pitch, b);
  }
  unroll<kVectors>([&](auto v) HWY_ATTR { a[v] = hn::Add(a[v], b[v]); });
  direct_store(d, part, a, hn::Set(d, target.inverse[t]), target.head_dim - column,
               target.output + t * target.output_stride + column);
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_DIRECT_TILE_INL_H_
