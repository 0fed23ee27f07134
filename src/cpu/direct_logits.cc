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
// are, so that a query stays in registers for all its keys; 0: any number.
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
  const ptrdiff_t stride = block.key_stride, size = ptrdiff_t{arguments.vectors} * kLanes;
  const ptrdiff_t* HWY_RESTRICT key_offsets = block.key_offsets;
  const int64_t* HWY_RESTRICT key_rows = block.key_rows;
  const int* HWY_RESTRICT row_slots = block.row_slots;
  const float* first = block.keys + arguments.first_key * stride;
  const Query* HWY_RESTRICT query = arguments.queries;
  float* HWY_RESTRICT weights = block.weights + arguments.first_key;
  const int num_queries = block.num_queries;
  for (int t = 0; t < num_queries; ++t) {
    const float* keys = first + key_offsets[t];
    hn::Vec<D> held[kHeld + 1];
    if constexpr (std::is_same_v<Query, bfloat16>) {
      unroll<kHeld / 2>([&](auto v) VECINA_INLINE {
        load_pair(d, query + 2 * v * kLanes, &held[2 * v], &held[2 * v + 1]);
      });
    } else {
      unroll<kHeld>([&](auto v) VECINA_INLINE { held[v] = hn::LoadU(d, query + v * kLanes); });
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
          for (ptrdiff_t v = 0; v < size; v += kLanes) {
            const auto part = hn::LoadU(d, query + v);
            unroll<kHere>([&](auto i) VECINA_INLINE {
              sums[i] = hn::MulAdd(part, hn::LoadU(d, of[i] + v), sums[i]);
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

// For every number of keys in a row.
template <typename Query>
using Table = std::array<DirectLogits<Query>, static_cast<size_t>(kLanes)>;

template <int kHeld, typename Query, int... kKeys>
constexpr Table<Query> row_table(std::integer_sequence<int, kKeys...>) {
  return {&logits<kKeys + 1, 1, kHeld, Query>...};
}
template <int kHeld, typename Query, int... kKeys>
constexpr Table<Query> group_table(std::integer_sequence<int, kKeys...>) {
  return {&logits<kKeys + 1, grouped_rows(kKeys + 1, kLanes), kHeld, Query>...};
}

// Of rows one at a time and in groups.
template <int kHeld, typename Query>
struct Tables {
  using AllKeys = std::make_integer_sequence<int, kLanes>;
  static constexpr Table<Query> kOf[2] = {row_table<kHeld, Query>(AllKeys()),
                                          group_table<kHeld, Query>(AllKeys())};
};

}  // namespace

template <typename Query>
DirectLogits<Query> direct_logits(int keys, bool in_groups, int vectors) {
  const auto key = static_cast<size_t>(keys - 1);
  if constexpr (std::is_same_v<Query, float>) {
    if (vectors != kHeldVectors) return Tables<0, Query>::kOf[in_groups][key];
  }
  return Tables<kHeldVectors, Query>::kOf[in_groups][key];
}
template DirectLogits<float> direct_logits<float>(int, bool, int);
template DirectLogits<bfloat16> direct_logits<bfloat16>(int, bool, int);

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
