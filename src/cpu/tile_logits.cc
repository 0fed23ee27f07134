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
#include <utility>

#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace {

// Sums that a function keeps in registers: as many as leave room for a key and, read as operands of
// the multiply-adds where need be, the queries.
constexpr int kMaxSums = HWY_TARGET == HWY_AVX3 ? 28 : 12;
constexpr int kMostKeys = 8;
// For 1 to 4 vectors; not divided for each call.
constexpr int kFew = kMostKeys - 1;
constexpr std::array<int, 4> kMaxKeys = {kMostKeys, std::min(kMaxSums / 2, kFew),
                                         std::min(kMaxSums / 3, kFew),
                                         std::min(kMaxSums / 4, kFew)};
constexpr int max_keys(int vectors) { return kMaxKeys[static_cast<size_t>(vectors - 1)]; }

// How many of `keys` one function takes for that many vectors, so that none is left with few sums.
int take(int vectors, int keys) {
  const int most = max_keys(vectors);
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
  return hn::BitCast(d, hn::Vec<decltype(d32)>{_mm512_alignr_epi32(b.raw, a.raw, kFirst32)});
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
  const ptrdiff_t key_step = arguments.key_step, query_pitch = arguments.query_pitch;
  const ptrdiff_t size = arguments.head_dim * kLanes;
  const T* HWY_RESTRICT queries = arguments.queries;
  const T* keys = arguments.keys;
  ptrdiff_t row_weights = first_key * kLanes;
  for (int row = 0; row < arguments.rows; ++row) {
    ptrdiff_t at = row_weights;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const T* k[kColumns];
      const int first = first_key + chunk * kKeys;
      unroll<kColumns>([&](auto m) VECINA_INLINE {
        const int key = first + static_cast<int>(m);
        k[m] = keys + (kIsShifted ? arguments.key_offsets[key] : key * arguments.key_pitch);
      });
      hn::Vec<D> sums[kVectors * kKeys];
      unroll<kVectors * kKeys>([&](auto i) VECINA_INLINE { sums[i] = hn::Zero(d); });
      ptrdiff_t entry = 0, i = 0;
#if HWY_TARGET == HWY_AVX3
      // A single vector of queries loads a key for each multiply-add, and most of those loads cross
      // a line of the cache. The first of keys side by side are put together from two vectors; more
      // than these, and the permutations would be what it waits for.
      constexpr int kPutTogether = 4;
      if constexpr (!kArePairs && kIsShifted && kVectors == 1 && kKeys > kPutTogether) {
        for (; k[kKeys - 1] - k[0] == kKeys - 1 && i < size; i += kLanes, entry += key_step) {
          const auto query = hn::Load(d, queries + i);
          const auto near = hn::LoadU(d, k[0] + entry);
          const auto next = hn::LoadU(d, k[0] + entry + kLanes);
          unroll<kKeys>([&](auto j) VECINA_INLINE {
            constexpr int kKey = static_cast<int>(j);
            if constexpr (kKey < kPutTogether) {
              sums[j] = hn::MulAdd(query, put_together<kKey>(d, near, next), sums[j]);
            } else {
              sums[j] = hn::MulAdd(query, hn::LoadU(d, k[j] + entry), sums[j]);
            }
          });
        }
      }
#endif
      for (; i < size; i += kLanes) {
        // Where few keys use a query, g++ loads it again as the operand of each multiply-add; of
        // 512 bits that takes as long. Held if registers are left, of which a key takes one. SSE4
        // gains nothing.
        constexpr int kRegisters = HWY_TARGET == HWY_AVX3 ? 32 : HWY_TARGET == HWY_AVX2 ? 16 : 0;
        constexpr bool kHoldsQueries =
            kVectors > 1 && kKeys > 1 && kKeys < 4 && kVectors * (kKeys + 1) < kRegisters;
        hn::Vec<D> q[kVectors];
        unroll<kVectors>([&](auto v) VECINA_INLINE {
          q[v] = hn::Load(d, queries + static_cast<ptrdiff_t>(size_t{v}) * query_pitch + i);
          if constexpr (kHoldsQueries) q[v] = in_register(q[v]);
        });
        unroll<kColumns>([&](auto m) VECINA_INLINE {
          hn::Vec<D> key;
          if constexpr (kIsShifted) {
            key = hn::LoadU(d, k[m] + entry);
            if constexpr (kVectors > 1) key = in_register(key);
          } else {
            key = hn::Set(d, k[m][entry]);
          }
          unroll<kVectors>([&](auto v) VECINA_INLINE {
            constexpr int kKey =
                static_cast<int>(m) - (kIsShifted ? static_cast<int>(v) % kTwins : 0);
            if constexpr (kKey >= 0 && kKey < kKeys) {
              constexpr size_t kSum = v * kKeys + static_cast<size_t>(kKey);
              if constexpr (kArePairs) {
                sums[kSum] = dot_pairs(d, q[v], key, sums[kSum]);
              } else {
                sums[kSum] = hn::MulAdd(q[v], key, sums[kSum]);
              }
            }
          });
        });
        entry += key_step;
      }
      if constexpr (kArePairs) {
        const auto scale = hn::Set(d, arguments.scale);
        unroll<kVectors * kKeys>([&](auto n) VECINA_INLINE { sums[n] = hn::Mul(scale, sums[n]); });
      }
      unroll<kVectors>([&](auto v) VECINA_INLINE {
        T* HWY_RESTRICT weights = arguments.weights[v] + at;
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
    constexpr int kMost = max_keys(kRows * kTwins);
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
  static constexpr std::array<Function, kMostKeys> kOfRows[LogitsTable<kLayout, D>::kMaxRows] = {
      table<1, 1>(AllKeys()), table<2, 1>(AllKeys()), table<3, 1>(AllKeys())};
  static constexpr auto kOfTwins = table<1, kMaxTwins>(AllKeys());
};

}  // namespace

template <KeyLayout kLayout, class D, bool kArePairs>
void LogitsTable<kLayout, D, kArePairs>::run(int rows, int twins, int keys,
                                             const LogitsArguments<T>& arguments) {
  using Functions = Tables<kLayout, D, kArePairs>;
  const auto& functions = twins > 1 ? Functions::kOfTwins : Functions::kOfRows[rows - 1];
  const int vectors = rows * twins, most = max_keys(vectors);
  for (int t = 0, taken, chunks; t < keys; t += taken * chunks) {
    const int left = keys - t;
    taken = take(vectors, left);
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
#endif

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
