// SPDX-License-Identifier: MIT
// The functions of LogitsTable, for every instruction set.
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/tile_logits.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace {

// Sums that a function keeps in registers: as many as leave room for a key and, read as operands of
// the multiply-adds where need be, the queries; those of more than three vectors of queries in any
// case.
constexpr int kMaxSums = HWY_TARGET == HWY_AVX3 ? 28 : 12;
constexpr int kMostKeys = 8;
// For 1 to 6 vectors; not divided for each call.
constexpr int kFew = kMostKeys - 1;
constexpr std::array<int, 6> kMaxKeys = {kMostKeys,
                                         std::min(kMaxSums / 2, kFew),
                                         std::min(kMaxSums / 3, kFew),
                                         std::min(kMaxSums / 4, kFew),
                                         kMaxSums / 5,
                                         kMaxSums / 6};
// Rows of queries for which so many keys would leave these no registers take one less.
constexpr int kMaxKeysOfFourRows = std::min(kMaxSums / 4, 6);
constexpr int max_keys(int rows, int twins) {
  return rows == 4 ? kMaxKeysOfFourRows : kMaxKeys[static_cast<size_t>(rows * twins - 1)];
}

// How many of `keys` one function takes, at most `most`, so that none is left with few sums.
int take(int most, int keys) {
  if (keys > most) return keys < most + 3 ? (keys + 1) / 2 : most;
  return keys == 6 && most == 7 ? 3 : keys;
}

#if HWY_TARGET == HWY_AVX3
// The vector that begins at lane kFirst of the first of two neighbours.
template <int kFirst, class D>
HWY_INLINE hn::Vec<D> put_together(D d, hn::Vec<D> first, hn::Vec<D> second) {
  const hn::Repartition<int32_t, D> d32;
  constexpr int kFirst32 = kFirst * static_cast<int>(sizeof(hn::TFromD<D>)) / 4;
  const auto a = hn::BitCast(d32, first), b = hn::BitCast(d32, second);
  if constexpr (sizeof(a) == 32) {
    return hn::BitCast(d, hn::Vec<decltype(d32)>{_mm256_alignr_epi32(b.raw, a.raw, kFirst32)});
  } else {
    return hn::BitCast(d, hn::Vec<decltype(d32)>{_mm512_alignr_epi32(b.raw, a.raw, kFirst32)});
  }
}
#endif

// `chunks` times kKeys keys of each row from first_key on; LogitsArguments says the rest.
template <int kRows, int kTwins, int kKeys, KeyLayout kLayout, class D, bool kArePairs>
void logits(const LogitsArguments<hn::TFromD<D>>& arguments, int first_key, int chunks) {
  using T = hn::TFromD<D>;
  const D d;
  constexpr bool kIsShifted = kLayout == KeyLayout::shifted;
  constexpr int kVectors = kRows * kTwins;
  constexpr int kColumns = kIsShifted ? kKeys + kTwins - 1 : kKeys;
  constexpr auto kLanes = static_cast<ptrdiff_t>(hn::MaxLanes(D()));
  const T* keys = arguments.keys;
  ptrdiff_t row_weights = first_key * kLanes;
  for (int row = 0; row < arguments.rows; ++row) {
    ptrdiff_t at = row_weights;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      // Read again for each chunk. g++ would keep these numbers in vector registers, and getting
      // one back waits for the stores of the chunk before.
      const LogitsArguments<T>& here = *at_run_time(&arguments);
      const ptrdiff_t key_step = here.key_step, query_pitch = here.query_pitch;
      const ptrdiff_t size = here.head_dim * kLanes;
      const T* HWY_RESTRICT queries = here.queries;
      const T* k[kColumns];
      const int first = first_key + chunk * kKeys;
      unroll<kColumns>([&](auto m) VECINA_INLINE {
        const int key = first + static_cast<int>(m);
        k[m] = keys + (kIsShifted ? here.key_offsets[key] : key * here.key_pitch);
      });
      hn::Vec<D> sums[kVectors * kKeys];
      ptrdiff_t entry = 0, i = 0;
      // Sums begin with a product: on Zen 4 a store takes a multiply-add, which has three sources,
      // its turn, a multiplication not, and those of the chunk before are stored meanwhile.
      const auto add = [&](auto is_first, hn::Vec<D> query, hn::Vec<D> key, hn::Vec<D>* sum)
                           VECINA_INLINE {
                             if constexpr (kArePairs) {
#if HWY_TARGET == HWY_AVX3
                               *sum = dot_pairs(d, query, key, is_first ? hn::Zero(d) : *sum);
#endif
                             } else {
                               *sum = is_first ? hn::Mul(query, key) : hn::MulAdd(query, key, *sum);
                             }
                           };
      const auto add_entry = [&](auto is_first, auto are_neighbours) VECINA_INLINE {
        // Where few keys use a query, g++ loads it again as the operand of each multiply-add; of
        // 512 bits that takes as long. Held if registers are left, of which a key takes one. SSE4
        // gains nothing.
        constexpr int kRegisters = HWY_TARGET == HWY_AVX3 ? 32 : HWY_TARGET == HWY_AVX2 ? 16 : 0;
        constexpr bool kHoldsQueries = kVectors > 1 && kKeys > 1 && (kKeys < 4 || kRows > 3) &&
                                       kVectors * (kKeys + 1) < kRegisters;
        hn::Vec<D> q[kVectors];
        unroll<kVectors>([&](auto v) VECINA_INLINE {
          q[v] = hn::Load(d, queries + static_cast<ptrdiff_t>(size_t{v}) * query_pitch + i);
          if constexpr (kHoldsQueries) q[v] = in_register(q[v]);
        });
        unroll<kColumns>([&](auto m) VECINA_INLINE {
          hn::Vec<D> key;
          if constexpr (kIsShifted) {
            key = hn::LoadU(d, are_neighbours ? k[0] + entry + m : k[m] + entry);
            if constexpr (kVectors > 1) key = in_register(key);
          } else {
            key = hn::Set(d, k[m][entry]);
          }
          unroll<kVectors>([&](auto v) VECINA_INLINE {
            constexpr int kKey = static_cast<int>(m) -
                                 (kLayout == KeyLayout::shifted ? static_cast<int>(v) % kTwins : 0);
            if constexpr (kKey >= 0 && kKey < kKeys) {
              add(is_first, q[v], key, &sums[v * kKeys + static_cast<size_t>(kKey)]);
            }
          });
        });
        i += kLanes;
        entry += key_step;
      };
      constexpr std::true_type kFirst, kNeighbours;
      constexpr std::false_type kOther, kApart;
#if HWY_TARGET == HWY_AVX3
      // A single vector of queries loads a key for each multiply-add, and most of those loads cross
      // a line of the cache. The first of keys side by side are put together from two vectors; more
      // than these, and the permutations would be what it waits for.
      constexpr int kPutTogether = 4;
      if constexpr (!kArePairs && kIsShifted && kVectors == 1 && kKeys > kPutTogether) {
        const auto put_together_entry = [&](auto is_first) VECINA_INLINE {
          const auto query = hn::Load(d, queries + i);
          const auto near = hn::LoadU(d, k[0] + entry);
          const auto next = hn::LoadU(d, k[0] + entry + kLanes);
          unroll<kKeys>([&](auto j) VECINA_INLINE {
            constexpr int kKey = static_cast<int>(j);
            if constexpr (kKey < kPutTogether) {
              add(is_first, query, put_together<kKey>(d, near, next), &sums[j]);
            } else {
              add(is_first, query, hn::LoadU(d, k[j] + entry), &sums[j]);
            }
          });
          i += kLanes;
          entry += key_step;
        };
        if (k[kKeys - 1] - k[0] == kKeys - 1) {
          put_together_entry(kFirst);
          while (i < size) put_together_entry(kOther);
        }
      }
#endif
      // Keys side by side take one register for all their addresses.
      if (kIsShifted && kVectors > 1 && k[kColumns - 1] - k[0] == kColumns - 1) {
        add_entry(kFirst, kNeighbours);
        while (i < size) add_entry(kOther, kNeighbours);
      } else {
        if (kVectors > 1 || i == 0) add_entry(kFirst, kApart);
        while (i < size) add_entry(kOther, kApart);
      }
      if constexpr (kArePairs) {
        const auto scale = hn::Set(d, here.scale);
        unroll<kVectors * kKeys>([&](auto n) VECINA_INLINE { sums[n] = hn::Mul(scale, sums[n]); });
      }
      unroll<kVectors>([&](auto v) VECINA_INLINE {
        T* HWY_RESTRICT weights = here.weights[v] + at;
        unroll<kKeys>([&](auto j) VECINA_INLINE {
          hn::Store(sums[v * kKeys + j], d, weights + static_cast<ptrdiff_t>(size_t{j}) * kLanes);
        });
      });
      at += kKeys * kLanes;
    }
    keys += arguments.key_row;
    row_weights += arguments.weight_row;
  }
}

// For every number of keys.
template <KeyLayout kLayout, class D, bool kArePairs>
struct Tables {
  using Function = void (*)(const LogitsArguments<hn::TFromD<D>>& arguments, int first_key,
                            int chunks);

  template <int kRows, int kTwins, int kKeys>
  static constexpr Function function() {
    constexpr int kMost = max_keys(kRows, kTwins);
    if constexpr (kKeys > kMost || (kKeys == 6 && kMost == 7)) {
      return nullptr;  // never taken
    } else {
      return &logits<kRows, kTwins, kKeys, kLayout, D, kArePairs>;
    }
  }
  template <int kRows, int kTwins, int... kKeys>
  static constexpr std::array<Function, sizeof...(kKeys)> table(
      std::integer_sequence<int, kKeys...>) {
    return {function<kRows, kTwins, kKeys + 1>()...};
  }
  using AllKeys = std::make_integer_sequence<int, kMostKeys>;
  template <int... kRows>
  static constexpr std::array<std::array<Function, kMostKeys>, sizeof...(kRows)> tables(
      std::integer_sequence<int, kRows...>) {
    return {table<kRows + 1, 1>(AllKeys())...};
  }
  using AllRows = std::make_integer_sequence<int, LogitsTable<kLayout, D>::kMaxRows>;
  static constexpr auto kOfRows = tables(AllRows());
  static constexpr auto kOfTwins = table<1, kMaxTwins>(AllKeys());
  static const std::array<Function, kMostKeys>& of(int rows, int twins) {
    if constexpr (kHasTwins<D>) {
      if (twins > 1) return kOfTwins;
    }
    return kOfRows[static_cast<size_t>(rows - 1)];
  }
};

}  // namespace

template <KeyLayout kLayout, class D, bool kArePairs>
void LogitsTable<kLayout, D, kArePairs>::run(int rows, int twins, int keys,
                                             const LogitsArguments<T>& arguments) {
  const auto& functions = Tables<kLayout, D, kArePairs>::of(rows, twins);
  const int most = max_keys(rows, twins);
  for (int t = 0, taken, chunks; t < keys; t += taken * chunks) {
    const int left = keys - t;
    taken = take(most, left);
    chunks = taken == most && left >= 2 * most + 3 ? (left - 3) / most : 1;
    functions[static_cast<size_t>(taken - 1)](arguments, t, chunks);
  }
}
template class LogitsTable<KeyLayout::shifted, hn::ScalableTag<float>>;
template class LogitsTable<KeyLayout::shared, hn::ScalableTag<float>>;
template class LogitsTable<KeyLayout::shifted, hn::ScalableTag<double>>;
template class LogitsTable<KeyLayout::shared, hn::ScalableTag<double>>;
#if HWY_TARGET == HWY_AVX3
template class LogitsTable<KeyLayout::shifted, hn::ScalableTag<float>, true>;
template class LogitsTable<KeyLayout::shared, hn::ScalableTag<float>, true>;
template class LogitsTable<KeyLayout::shifted, NarrowTag<float>>;
template class LogitsTable<KeyLayout::shared, NarrowTag<float>>;
template class LogitsTable<KeyLayout::shifted, NarrowTag<double>>;
template class LogitsTable<KeyLayout::shared, NarrowTag<double>>;
template class LogitsTable<KeyLayout::shifted, NarrowTag<float>, true>;
template class LogitsTable<KeyLayout::shared, NarrowTag<float>, true>;
#endif

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
