// SPDX-License-Identifier: MIT
// Logits of the direct form, for every instruction set that has it. All element types share them:
// queries and keys are floats when they come here.
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

#if HWY_TARGET != HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace {

using D = DirectFloats;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));

// Logits of kKeys keys in each row, kRows rows at a time: their keys follow each other in groups of
// kLanes, of which the last may be partly empty (-infinity). Two queries at a time: what one waits
// for, the other fills.
template <int kKeys, int kRows, int kStep>
void logits(const DirectBlock<D>& block, const DirectLogitsArguments& arguments) {
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
  const float* HWY_RESTRICT query_a = arguments.queries;
  float* HWY_RESTRICT logits_a = block.weights + arguments.first_key;
  const int num_queries = block.num_queries;
  // The second of the last pair may be the first once more.
  ptrdiff_t query_pair = arguments.query_stride, weights_pair = block.weights_pitch;
  for (int t = 0; t < num_queries; t += 2) {
    int u = t + 1;
    if (u == num_queries) {
      u = t;
      query_pair = weights_pair = 0;
    }
    const float* HWY_RESTRICT query_b = query_a + query_pair;
    float* HWY_RESTRICT logits_b = logits_a + weights_pair;
    const float* keys = first + key_offsets[t];
    const ptrdiff_t shift = key_offsets[u] - key_offsets[t];
    for (ptrdiff_t row = arguments.first_row; row < arguments.last_row; row += kRows) {
      const ptrdiff_t slot = row_slots[row];
      const float* key = keys + key_rows[row];  // the next one
      unroll<kVectors>([&](auto group) VECINA_INLINE {
        constexpr int kGroup = static_cast<int>(decltype(group)::value);
        hn::Vec<D> parts_a[kLanes / 4], parts_b[kLanes / 4];
        unroll<kLanes / 4>([&](auto quarter) VECINA_INLINE {
          constexpr int kFirst = kGroup * kLanes + 4 * static_cast<int>(decltype(quarter)::value);
          constexpr size_t kHere = static_cast<size_t>(HWY_MAX(0, HWY_MIN(4, kCount - kFirst)));
          hn::Vec<D> sums_a[4], sums_b[4];
          unroll<4>([&](auto i) VECINA_INLINE { sums_a[i] = sums_b[i] = hn::Zero(d); });
          if constexpr (kHere > 0) {
            const float* of[kHere];
            unroll<kHere>([&](auto i) VECINA_INLINE {
              constexpr int kNext = kFirst + static_cast<int>(decltype(i)::value) + 1;
              of[i] = key;
              if constexpr (kNext % kKeys != 0) {
                key += stride;
              } else if constexpr (kNext < kCount) {
                key = keys + key_rows[row + kNext / kKeys];
              }
            });
            const auto add = [&](ptrdiff_t at, auto is_first) VECINA_INLINE {
              const auto part_a = hn::LoadU(d, query_a + at), part_b = hn::LoadU(d, query_b + at);
              unroll<kHere>([&](auto i) VECINA_INLINE {
                const auto key_a = hn::LoadU(d, of[i] + at);
                const auto key_b = hn::LoadU(d, of[i] + (at + shift));
                sums_a[i] =
                    is_first ? hn::Mul(part_a, key_a) : hn::MulAdd(part_a, key_a, sums_a[i]);
                sums_b[i] =
                    is_first ? hn::Mul(part_b, key_b) : hn::MulAdd(part_b, key_b, sums_b[i]);
              });
            };
            add(0, std::true_type());
            unroll<kStep - 1>([&](auto s) VECINA_INLINE {
              add(static_cast<ptrdiff_t>(decltype(s)::value + 1) * kLanes, std::false_type());
            });
            for (ptrdiff_t v = kStep * kLanes; v < size; v += kStep * kLanes) {
              unroll<kStep>([&](auto s) VECINA_INLINE {
                add(v + static_cast<ptrdiff_t>(decltype(s)::value) * kLanes, std::false_type());
              });
            }
          }
          parts_a[quarter] = across_four(d, sums_a, AddLanes());
          parts_b[quarter] = across_four(d, sums_b, AddLanes());
        });
        constexpr bool kIsWhole = kGroup * kLanes + kLanes <= kCount;
        const auto finish = [&](const auto& parts) VECINA_INLINE {
          const auto sum = across_groups(d, parts, AddLanes());
          return kIsWhole ? hn::Mul(factor, sum) : hn::MulAdd(factor, sum, hidden);
        };
        const auto sum_a = finish(parts_a), sum_b = finish(parts_b);
        hn::Store(sum_a, d, logits_a + slot + kGroup * kLanes);
        hn::Store(sum_b, d, logits_b + slot + kGroup * kLanes);
      });
    }
    query_a += 2 * arguments.query_stride;
    logits_a += 2 * block.weights_pitch;
  }
}

// For every number of keys in a row.
using Table = std::array<DirectLogits, static_cast<size_t>(kLanes)>;

template <int kStep, int... kKeys>
constexpr Table row_table(std::integer_sequence<int, kKeys...>) {
  return {&logits<kKeys + 1, 1, kStep>...};
}
template <int kStep, int... kKeys>
constexpr Table group_table(std::integer_sequence<int, kKeys...>) {
  return {&logits<kKeys + 1, grouped_rows(kKeys + 1, kLanes), kStep>...};
}

// Vectors of head_dim that are taken at once where there are whole ones.
constexpr int kManyVectors = 4;
using AllKeys = std::make_integer_sequence<int, kLanes>;
constexpr Table kRows[2] = {row_table<1>(AllKeys()), row_table<kManyVectors>(AllKeys())};
constexpr Table kGroups[2] = {group_table<1>(AllKeys()), group_table<kManyVectors>(AllKeys())};

}  // namespace

DirectLogits direct_logits(int keys, bool in_groups, int vectors) {
  const bool in_steps = vectors % kManyVectors == 0;
  return (in_groups ? kGroups : kRows)[in_steps][static_cast<size_t>(keys - 1)];
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET != HWY_AVX3
