// SPDX-License-Identifier: MIT
// Logits of the direct form, for every instruction set. All element types share them:
// keys, and queries but for those of bfloat16, are floats when they come here.
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/direct_logits.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/direct_tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace {

using D = DirectFloats;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));

// Logits of kKeys keys in each row, kRows rows at a time: their keys follow each other in groups of
// kLanes, of which the last may be partly empty (-infinity). kHeld: vectors of head_dim that there
// are, so that a query stays in registers for all its keys; 0: any number; kPartial: any, of which
// the last is not whole.
constexpr int kPartial = -1;
// Where a function's loops lie within cache lines changed 1-D calls by 5 %.
template <int kKeys, int kRows, int kHeld, typename Query>
__attribute__((aligned(64))) void logits(const DirectBlock<D>& block,
                                         const DirectLogitsArguments<Query>& arguments) {
  const D d;
  constexpr int kCount = kKeys * kRows;
  constexpr int kVectors = (kCount + kLanes - 1) / kLanes;
  const auto factor = hn::Set(d, arguments.scale);
  // Of the last group, where it is partly empty: 0, then -infinity.
  constexpr size_t kLast = static_cast<size_t>(kCount - (kVectors - 1) * kLanes);
  const auto hidden = hn::IfThenElse(hn::FirstN(d, kLast), hn::Zero(d),
                                     hn::Set(d, -hwy::HighestValue<float>() * 2));
  const ptrdiff_t stride = block.key_stride, size = arguments.size;
  const ptrdiff_t whole = kHeld == kPartial ? size / kLanes * kLanes : size;
  const auto rest = hn::FirstN(d, static_cast<size_t>(size - whole));
  const ptrdiff_t* HWY_RESTRICT key_offsets = block.key_offsets;
  const int64_t* HWY_RESTRICT key_rows = block.key_rows;
  const int* HWY_RESTRICT row_slots = block.row_slots;
  const float* first = static_cast<const float*>(block.keys) + arguments.first_key * stride;
  const Query* HWY_RESTRICT query = arguments.queries;
  float* HWY_RESTRICT weights = block.weights + arguments.first_key;
  const int num_queries = block.num_queries;
  for (int t = 0; t < num_queries; ++t) {
    const float* keys = first + key_offsets[t];
    hn::Vec<D> held[HWY_MAX(kHeld, 0) + 1];
    if constexpr (std::is_same_v<Query, bfloat16>) {
      unroll<kHeld / 2>([&](auto v) VECINA_INLINE {
        load_pair(d, query + 2 * v * kLanes, &held[2 * v], &held[2 * v + 1]);
      });
    } else {
      unroll<HWY_MAX(kHeld, 0)>([&](auto v)
                                    VECINA_INLINE { held[v] = hn::LoadU(d, query + v * kLanes); });
    }
    for (ptrdiff_t row = arguments.first_row; row < arguments.last_row; row += kRows) {
      float* HWY_RESTRICT to = weights + row_slots[row];
      unroll<kVectors>([&](auto group) VECINA_INLINE {
        constexpr int kFirst = static_cast<int>(decltype(group)::value) * kLanes;
        constexpr size_t kHere = static_cast<size_t>(HWY_MIN(kLanes, kCount - kFirst));
        const float* of[kHere];
        unroll<kHere>([&](auto i) VECINA_INLINE {
          constexpr int kKey = kFirst + static_cast<int>(decltype(i)::value);
          if constexpr (kKey % kKeys == 0 || decltype(i)::value == 0) {
            of[i] = keys + key_rows[row + kKey / kKeys] + kKey % kKeys * stride;
          } else {
            of[i] = of[decltype(i)::value - 1] + stride;
          }
        });
        hn::Vec<D> sums[kLanes];
        unroll<kLanes>([&](auto i) VECINA_INLINE { sums[i] = hn::Zero(d); });
        if constexpr (kHeld > 0) {
          unroll<kHeld>([&](auto v) VECINA_INLINE {
            unroll<kHere>([&](auto i) VECINA_INLINE {
              const auto key = hn::LoadU(d, of[i] + v * kLanes);
              sums[i] = v == 0 ? hn::Mul(held[v], key) : hn::MulAdd(held[v], key, sums[i]);
            });
          });
        } else {
          for (ptrdiff_t v = 0; v < whole; v += kLanes) {
            const auto part = hn::LoadU(d, query + v);
            unroll<kHere>([&](auto i) VECINA_INLINE {
              sums[i] = hn::MulAdd(part, hn::LoadU(d, of[i] + v), sums[i]);
            });
          }
          if constexpr (kHeld == kPartial) {
            const auto part = hn::MaskedLoad(rest, d, query + whole);
            unroll<kHere>([&](auto i) VECINA_INLINE {
              sums[i] = hn::MulAdd(part, hn::MaskedLoad(rest, d, of[i] + whole), sums[i]);
            });
          }
        }
        const auto sum =
            across_lanes(d, AddLanes(), [&](size_t i) VECINA_INLINE { return sums[i]; });
        constexpr bool kIsWhole = kFirst + kLanes <= kCount;
        hn::Store(kIsWhole ? hn::Mul(factor, sum) : hn::MulAdd(factor, sum, hidden), d,
                  to + kFirst);
      });
    }
    query += arguments.query_stride;
    weights += block.weights_pitch;
  }
}

#if HWY_TARGET == HWY_AVX3
// With sixteen lanes: of two neighbouring queries at once, kHeld vectors each. Their sums are
// brought together into the halves of one vector for each key, and go on across lanes beside the
// products of the next two: added up right after their own products they would fill the scheduler,
// waiting. Keys of bfloat16 are multiplied in pairs, with queries of the same type. kIsPartial: of
// the last vector only the first elements are there.
template <int kKeys, int kHeld, bool kIsPartial, typename Query, typename Key>
struct PairLogits {
  static constexpr bool kHasDots = std::is_same_v<Key, bfloat16>;
  using W = hn::CappedTag<float, 2 * kMaxDirectLanes>;
  using V = hn::Vec<W>;
  static constexpr size_t kWide = hn::MaxLanes(W());

  const Query* queries;
  ptrdiff_t query_stride;
  const Key* keys;  // the first one here of a window that begins with the block's
  const ptrdiff_t* key_offsets;
  ptrdiff_t key_stride, weights_pitch;
  int num_queries;
  V factor, hidden;
  hn::Mask<W> rest;

  // Vector v of a row of floats.
  template <size_t v>
  HWY_INLINE V load_floats(const float* row) const {
    if constexpr (kIsPartial && v + 1 == kHeld) return hn::MaskedLoad(rest, W(), row + v * kWide);
    return hn::LoadU(W(), row + v * kWide);
  }
  HWY_INLINE void load(int t, V (&held)[kHeld]) const {
    const Query* from = queries + t * query_stride;
    if constexpr (kHasDots) {
      unroll<kHeld>([&](auto v) VECINA_INLINE { held[v] = load_words(from, v); });
    } else if constexpr (std::is_same_v<Query, bfloat16>) {
      unroll<kHeld / 2>([&](auto v) VECINA_INLINE {
        load_pair(W(), from + 2 * v * kWide, &held[2 * v], &held[2 * v + 1]);
      });
    } else {
      unroll<kHeld>([&](auto v) VECINA_INLINE { held[v] = load_floats<v>(from); });
    }
  }
  // Vector v of a row, two elements of bfloat16 in each lane.
  static HWY_INLINE V load_words(const bfloat16* row, size_t v) {
    return hn::LoadU(W(), reinterpret_cast<const float*>(row) + v * kWide);
  }
  // query . key, to be added up across lanes.
  HWY_INLINE V product(const V (&query)[kHeld], const Key* key) const {
    const W w;
    V sum;
    if constexpr (kHasDots) {
      sum = hn::Zero(w);
      unroll<kHeld>([&](auto v)
                        VECINA_INLINE { sum = dot_pairs(w, query[v], load_words(key, v), sum); });
    } else {
      sum = hn::Mul(query[0], load_floats<0>(key));
      unroll<kHeld - 1>([&](auto v) VECINA_INLINE {
        sum = hn::MulAdd(query[v + 1], load_floats<v + 1>(key), sum);
      });
    }
    return sum;
  }

  // Queries t and t + 1 into sums; what was there, of those before them, goes across lanes to `to`.
  template <bool kHasNext, bool kHasBefore>
  HWY_INLINE void step(int t, V (&sums)[kLanes], float* HWY_RESTRICT to) const {
    const W w;
    V a[kHeld], b[kHeld], next[kLanes], four[2];
    const Key *key_a = nullptr, *key_b = nullptr;
    if constexpr (kHasNext) {
      const int u = HWY_MIN(t + 1, num_queries - 1);  // an odd last one stands for two
      load(t, a);
      load(u, b);
      key_a = keys + key_offsets[t];
      key_b = keys + key_offsets[u];
    }
    const auto add_four = [&](auto i) VECINA_INLINE {
      const V some[4] = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
      four[i] = across_four(w, some, AddLanes());
    };
    unroll<kLanes>([&](auto i) VECINA_INLINE {
      constexpr int kKey = static_cast<int>(decltype(i)::value);
      if constexpr (kHasNext && kKey >= kKeys) next[i] = hn::Zero(w);
      if constexpr (kHasNext && kKey < kKeys) {
        const V p = product(a, key_a), q = product(b, key_b);
        next[i] = hn::Add(hn::ConcatUpperLower(w, q, p), hn::ConcatLowerUpper(w, q, p));
        key_a += key_stride;
        key_b += key_stride;
      }
      if constexpr (kHasBefore && kKey == 1) add_four(std::integral_constant<size_t, 0>());
      if constexpr (kHasBefore && kKey == 3) add_four(std::integral_constant<size_t, 1>());
      if constexpr (kHasBefore && kKey == 5) {
        const V sum = hn::Add(hn::OddEvenBlocks(four[1], four[0]),
                              hn::SwapAdjacentBlocks(hn::OddEvenBlocks(four[0], four[1])));
        const V logits = kKeys == kLanes ? hn::Mul(factor, sum) : hn::MulAdd(factor, sum, hidden);
        hn::Store(hn::LowerHalf(logits), D(), to);
        hn::Store(hn::UpperHalf(D(), logits), D(), to + weights_pitch);
      }
    });
    if constexpr (kHasNext) unroll<kLanes>([&](auto i) VECINA_INLINE { sums[i] = next[i]; });
  }

  HWY_INLINE void run(float* HWY_RESTRICT to) const {
    V sums[kLanes];
    step<true, false>(0, sums, to);
    for (int t = 2; t < num_queries; t += 2, to += 2 * weights_pitch) {
      step<true, true>(t, sums, to);
    }
    step<false, true>(0, sums, to);
  }
};

template <int kKeys, int kHeld, bool kIsPartial, typename Query, typename Key>
__attribute__((aligned(64))) void pair_logits(const DirectBlock<D>& block,
                                              const DirectLogitsArguments<Query>& arguments) {
  const auto hidden = hn::IfThenElse(hn::FirstN(D(), size_t{kKeys}), hn::Zero(D()),
                                     hn::Set(D(), -hwy::HighestValue<float>() * 2));
  using Pairs = PairLogits<kKeys, kHeld, kIsPartial, Query, Key>;
  const typename Pairs::W w;
  for (int row = arguments.first_row; row < arguments.last_row; ++row) {
    const Pairs pairs = {arguments.queries,
                         arguments.query_stride,
                         static_cast<const Key*>(block.keys) + block.key_rows[row] +
                             arguments.first_key * block.key_stride,
                         block.key_offsets,
                         block.key_stride,
                         block.weights_pitch,
                         block.num_queries,
                         hn::Set(w, arguments.scale),
                         hn::Combine(w, hidden, hidden),
                         hn::FirstN(w, static_cast<size_t>(arguments.size) % Pairs::kWide)};
    pairs.run(block.weights + arguments.first_key + block.row_slots[row]);
  }
}
#endif

// For every number of keys in a row.
template <typename Query>
using Table = std::array<DirectLogits<Query>, static_cast<size_t>(kLanes)>;
using AllKeys = std::make_integer_sequence<int, kLanes>;

template <int kHeld, typename Query, int... kKeys>
constexpr Table<Query> row_table(std::integer_sequence<int, kKeys...>) {
  return {&logits<kKeys + 1, 1, kHeld, Query>...};
}
template <int kHeld, typename Query, int... kKeys>
constexpr Table<Query> group_table(std::integer_sequence<int, kKeys...>) {
  return {&logits<kKeys + 1, grouped_rows(kKeys + 1, kLanes), kHeld, Query>...};
}

#if HWY_TARGET == HWY_AVX3
template <int kHeld, bool kIsPartial, typename Query, typename Key, int... kKeys>
constexpr Table<Query> pair_table(std::integer_sequence<int, kKeys...>) {
  return {&pair_logits<kKeys + 1, kHeld, kIsPartial, Query, Key>...};
}
// For 1, 2, ... vectors.
template <bool kIsPartial, int... kHeld>
constexpr std::array<Table<float>, sizeof...(kHeld)> pair_tables(
    std::integer_sequence<int, kHeld...>) {
  return {pair_table<kHeld + 1, kIsPartial, float, float>(AllKeys())...};
}
#endif

// Of rows one at a time and in groups.
template <int kHeld, typename Query>
struct Tables {
  static constexpr Table<Query> kOf[2] = {row_table<kHeld, Query>(AllKeys()),
                                          group_table<kHeld, Query>(AllKeys())};
};

}  // namespace

template <typename Query>
DirectLogits<Query> direct_logits(int keys, bool in_groups, int size) {
  const auto key = static_cast<size_t>(keys - 1);
#if HWY_TARGET == HWY_AVX3
  constexpr int kWide = 2 * kLanes, kMost = 4;
  if constexpr (std::is_same_v<Query, float>) {
    using Held = std::make_integer_sequence<int, kMost>;
    static constexpr auto kWhole = pair_tables<false>(Held()), kRest = pair_tables<true>(Held());
    if (!in_groups && size <= kMost * kWide) {
      const auto& tables = size % kWide == 0 ? kWhole : kRest;
      return tables[static_cast<size_t>((size - 1) / kWide)][key];
    }
  } else {
    static constexpr Table<Query> kTable = pair_table<2, false, Query, float>(AllKeys());
    if (!in_groups) return kTable[key];
  }
#endif
  if constexpr (std::is_same_v<Query, float>) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
    static constexpr Table<Query> kParts = row_table<kPartial, Query>(AllKeys());
    if (size % kLanes != 0) return kParts[key];
#endif
    if (size != kHeldVectors * kLanes) return Tables<0, Query>::kOf[in_groups][key];
  }
  return Tables<kHeldVectors, Query>::kOf[in_groups][key];
}
DirectLogits<bfloat16> direct_dots(int keys, int size) {
#if HWY_TARGET == HWY_AVX3
  static constexpr Table<bfloat16> kOne = pair_table<1, false, bfloat16, bfloat16>(AllKeys());
  static constexpr Table<bfloat16> kTwo = pair_table<2, false, bfloat16, bfloat16>(AllKeys());
  return (size == 32 ? kOne : kTwo)[static_cast<size_t>(keys - 1)];
#else
  static_cast<void>(keys), static_cast<void>(size);
  return nullptr;  // never planned
#endif
}

template DirectLogits<float> direct_logits<float>(int, bool, int);
template DirectLogits<bfloat16> direct_logits<bfloat16>(int, bool, int);

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
