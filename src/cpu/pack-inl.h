// SPDX-License-Identifier: MIT
// Between the tensors' element types and the kernels' float type: rows in, rows out, transposes.
// Part of every file of kernels; compiled once for every instruction set.
#if defined(VECINA_CPU_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_PACK_INL_H_
#undef VECINA_CPU_PACK_INL_H_
#else
#define VECINA_CPU_PACK_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "vecina/vecina.hpp"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Calls f(0), f(1), ... with compile-time numbers. Loops over arrays of vectors are written with
// it: g++ 12 keeps such arrays in registers only if no index is a variable.
template <typename F, size_t... I>
HWY_INLINE void unroll_indices(const F& f, std::index_sequence<I...>) {
  (f(std::integral_constant<size_t, I>()), ...);
}
template <size_t kCount, typename F>
HWY_INLINE void unroll(const F& f) {
  unroll_indices(f, std::make_index_sequence<kCount>());
}

// For lambdas that capture vectors: g++ keeps in memory what a call that is inlined late refers to,
// and in a file of many such calls all are.
#undef VECINA_INLINE
#define VECINA_INLINE HWY_ATTR __attribute__((always_inline))

// True if what a mask leaves out of a load or a store is not touched in memory. Then rows that do
// not fill vectors are read where they lie, too.
inline constexpr bool kHasMaskedLoads = HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3;

// Fetches `count` elements before they are used. The tokens of one head are not neighbours in
// memory: the machine does not foresee them.
template <typename Element>
HWY_INLINE void prefetch(const Element* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(Element);
  for (int64_t i = 0; i < count; i += kLine) hwy::Prefetch(from + i);
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  asm volatile("" : : "r"(from));  // g++ drops calls of functions that do nothing but fetch
#endif
}

// The same of `count` rows at equal distances, which takes fewer instructions line by line. far:
// into the second cache only.
enum class Fetch { near, far };
template <Fetch kFetch>
HWY_INLINE void prefetch_line(const void* line) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  __builtin_prefetch(line, /*rw=*/0, kFetch == Fetch::near ? 3 : 2);
#else
  hwy::Prefetch(static_cast<const char*>(line));
#endif
}
template <Fetch kFetch = Fetch::near, typename Element>
HWY_INLINE void prefetch_rows(const Element* from, int64_t stride, int64_t count, int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(Element);
  for (int64_t i = 0; i < size; i += kLine) {
    const Element* line = from + i;
    int64_t row = 0;
    for (; row + 4 <= count; row += 4, line += 4 * stride) {
      prefetch_line<kFetch>(line);
      prefetch_line<kFetch>(line + stride);
      prefetch_line<kFetch>(line + 2 * stride);
      prefetch_line<kFetch>(line + 3 * stride);
    }
    for (; row < count; ++row, line += stride) prefetch_line<kFetch>(line);
  }
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  asm volatile("" : : "r"(from));
#endif
}

// v, in a register for all its uses. Without it g++ loads it again as the operand of each one; from
// an address that is no multiple of the vector's size each load costs two.
template <class V>
HWY_INLINE V in_register(V v) {
#if HWY_ARCH_X86 && (HWY_COMPILER_GCC || HWY_COMPILER_CLANG)
  asm("" : "+v"(v.raw));
#elif HWY_ARCH_ARM_A64 && (HWY_COMPILER_GCC || HWY_COMPILER_CLANG)
  asm("" : "+w"(v.raw));
#endif
  return v;
}

// p, of which nothing is known: else g++ keeps what does not change from turn to turn of a loop,
// for which it has no registers, in those of vectors. volatile: else it would ask but once, p being
// the same in each turn.
template <typename T>
HWY_INLINE T* at_run_time(T* p) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  asm volatile("" : "+r"(p));
#endif
  return p;
}

#if HWY_TARGET == HWY_AVX3
// sums + a * b of pairs of bfloat16, one in each lane: two multiply-adds, each rounded to float;
// numbers below its normal ones count as zero. For CPUs that have it
// (ForwardKernel::has_pair_products).
template <class D>
HWY_INLINE hn::Vec<D> dot_pairs(D /*d*/, hn::Vec<D> a, hn::Vec<D> b, hn::Vec<D> sums) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums.raw) : "v"(a.raw), "vm"(b.raw));
  return sums;
}
#endif

// float for the 16-bit types and float, double for double.
template <typename Element>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};

// As many elements as d has lanes, from memory of any alignment, as the kernels' type.
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const hn::TFromD<D>* from) {
  return hn::LoadU(d, from);
}
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const bfloat16* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float16* from) {
#if HWY_TARGET == HWY_SSE4
  // Without the instruction Highway 1.0 makes numbers of infinities and NaN. Exponent and mantissa
  // are moved into place; a multiplication corrects the exponent's bias and normalises.
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from)));
  const auto magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(d32, 0x7fff)));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(d32, 0x8000)));
  const auto finite = hn::BitCast(d32, hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112f)));
  const auto special = hn::Or(magnitude, hn::Set(d32, 0x7f800000));
  const auto is_finite = hn::Lt(magnitude, hn::Set(d32, 0x7c00u << 13));
  return hn::BitCast(d, hn::Or(sign, hn::IfThenElse(is_finite, finite, special)));
#else
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
#endif
}

// And back, rounding to nearest even.
template <class D>
HWY_INLINE void store(D d, hn::Vec<D> v, hn::TFromD<D>* to) {
  hn::StoreU(v, d, to);
}
template <class D>
using Bits32 = hn::Vec<hn::Rebind<uint32_t, D>>;
// To bfloat16, which is the upper half of each word: numbers, and anything.
template <class D>
HWY_INLINE Bits32<D> round_numbers(D /*d*/, hn::Vec<D> v) {
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
  return hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7fff)));
}
template <class D>
HWY_INLINE Bits32<D> round_any(D d, hn::Vec<D> v) {
  const hn::Rebind<uint32_t, D> d32;
  const auto quiet = hn::Or(hn::BitCast(d32, v), hn::Set(d32, 0x400000));  // NaN stays NaN
  return hn::IfThenElse(hn::RebindMask(d32, hn::IsNaN(v)), quiet, round_numbers(d, v));
}
template <class D>
HWY_INLINE void store(D d, hn::Vec<D> v, bfloat16* to) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<int32_t, D> d32_signed;
  // Demoting saturates, but the upper half of a word always fits.
  const auto upper = hn::BitCast(d32_signed, hn::ShiftRight<16>(round_any(d, v)));
  hn::StoreU(hn::DemoteTo(d16, upper), d16, reinterpret_cast<uint16_t*>(to));
}
template <class D>
HWY_INLINE void store(D /*d*/, hn::Vec<D> v, float16* to) {
#if HWY_TARGET == HWY_SSE4
  // Without the instruction Highway 1.0 truncates.
  const D d;
  HWY_ALIGN float lanes[hn::MaxLanes(d)];
  hn::Store(v, d, lanes);
  for (size_t i = 0; i < hn::MaxLanes(d); ++i) to[i] = float16(lanes[i]);
#else
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(to));
#endif
}

#if HWY_TARGET == HWY_AVX3
// To bfloat16 where the CPU multiplies pairs of it: then it rounds to them too, in one instruction;
// numbers below float's normal ones become zero.
template <class D>
HWY_INLINE __m256i rounded(D /*d*/, hn::Vec<D> v) {
  __m256i half;
  asm("vcvtneps2bf16 %1, %0" : "=v"(half) : "v"(v.raw));
  return half;
}
template <class D>
HWY_INLINE void store_rounded(D d, hn::Vec<D> v, bfloat16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(d, v));
}
// Two vectors rounded in the same way, a pair in each lane.
template <class D>
HWY_INLINE hn::Vec<D> round_beside(D d, hn::Vec<D> low, hn::Vec<D> high) {
  const hn::Repartition<uint16_t, D> d16;
  hn::Vec<decltype(d16)> both;  // all of `low`, then all of `high`
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both.raw) : "v"(high.raw), "v"(low.raw));
  if constexpr (hn::MaxLanes(D()) == 16) {
    alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                        21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                        11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    both.raw = _mm512_permutexvar_epi16(hn::Load(d16, kOrder).raw, both.raw);
  } else {
    alignas(32) static constexpr uint16_t kOrder[16] = {0, 8,  1, 9,  2, 10, 3, 11,
                                                        4, 12, 5, 13, 6, 14, 7, 15};
    both.raw = _mm256_permutexvar_epi16(hn::Load(d16, kOrder).raw, both.raw);
  }
  return hn::BitCast(d, both);
}
#endif

// Where a vector is a line of the cache, large tensors are written past the caches: a line is then
// not read before. Not half of a line, of elements that are computed in another type.
template <typename T, typename Element>
inline constexpr bool kStreams = (HWY_TARGET == HWY_AVX3) && std::is_same_v<T, Element>;
// is_streamed: `to` is a whole vector, has_whole_vectors().
template <class D, typename Element>
HWY_INLINE void store_or_stream(D d, hn::Vec<D> v, bool is_streamed, Element* to) {
  if constexpr (kStreams<hn::TFromD<D>, Element>) {
    if (is_streamed) {
      hn::Stream(v, d, to);
      return;
    }
  }
  store(d, v, to);
}

HWY_INLINE float to_compute(float value) { return value; }
HWY_INLINE double to_compute(double value) { return value; }
HWY_INLINE float to_compute(bfloat16 value) { return static_cast<float>(value); }
HWY_INLINE float to_compute(float16 value) { return static_cast<float>(value); }

// The first `count` lanes of v; memory behind them is not touched.
template <class D, typename Element>
HWY_INLINE void store_some(D d, hn::Vec<D> v, size_t count, Element* to) {
  if (count >= hn::Lanes(d)) {
    store(d, v, to);
    return;
  }
  HWY_ALIGN Element lanes[hn::MaxLanes(d)];
  store(d, v, lanes);
  for (size_t i = 0; i < count; ++i) to[i] = lanes[i];
}

// Copies `count` elements of one row, converted; elements count to pitch - 1 become 0.
template <class D, typename Element>
HWY_INLINE void copy_row(D d, const Element* from, size_t count, size_t pitch,
                         hn::TFromD<D>* HWY_RESTRICT to) {
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    unroll<4>([&](auto v)
                  HWY_ATTR { hn::StoreU(load(d, from + i + v * lanes), d, to + i + v * lanes); });
  }
  for (; i + lanes <= count; i += lanes) hn::StoreU(load(d, from + i), d, to + i);
  if (i == pitch) return;
  for (; i < count; ++i) to[i] = to_compute(from[i]);
  for (; i < pitch; ++i) to[i] = 0;
}

// `count` rows at equal distances, as copy_row() does.
template <class D, typename Element>
HWY_INLINE void copy_rows(D d, const Element* from, ptrdiff_t stride, int64_t count, size_t size,
                          size_t pitch, hn::TFromD<D>* HWY_RESTRICT to) {
  constexpr size_t kLanes = hn::MaxLanes(D());
  if (size != pitch || size % kLanes != 0) {
    for (int64_t i = 0; i < count; ++i, from += stride, to += pitch) {
      copy_row(d, from, size, pitch, to);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i, from += stride, to += pitch) {
    for (size_t k = 0; k < size; k += kLanes) hn::StoreU(load(d, from + k), d, to + k);
  }
}

#if HWY_TARGET == HWY_AVX3
// Two rows of bfloat16 side by side, one in each half of an element; zeros up to `pitch`.
template <class D>
HWY_INLINE void copy_halves(D /*d*/, const bfloat16* lower, const bfloat16* upper, size_t count,
                            size_t pitch, hn::TFromD<D>* HWY_RESTRICT to) {
  const hn::Repartition<uint16_t, D> d16;
  constexpr size_t kLanes = hn::MaxLanes(D()), kHalves = 2 * kLanes;
  alignas(64) static constexpr uint16_t kOrder[2][kHalves] = {
      {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  const auto write = [&](const uint16_t* low, const uint16_t* high, auto half,
                         uint16_t* at) VECINA_INLINE {
    const auto order = hn::Load(d16, kOrder[half]);
    const auto both =
        _mm512_permutex2var_epi16(hn::LoadU(d16, low).raw, order.raw, hn::LoadU(d16, high).raw);
    hn::StoreU(hn::Vec<decltype(d16)>{both}, d16, at);
  };
  constexpr std::integral_constant<int, 0> kFirst;
  constexpr std::integral_constant<int, 1> kSecond;
  const auto* low = reinterpret_cast<const uint16_t*>(lower);
  const auto* high = reinterpret_cast<const uint16_t*>(upper);
  auto* out = reinterpret_cast<uint16_t*>(to);
  size_t i = 0;
  for (; i + kHalves <= count; i += kHalves) {
    write(low + i, high + i, kFirst, out + 2 * i);
    write(low + i, high + i, kSecond, out + 2 * i + kHalves);
  }
  if (i == pitch) return;
  HWY_ALIGN uint16_t rest[2][kHalves] = {};
  for (size_t k = i; k < count; ++k) {
    rest[0][k - i] = low[k];
    rest[1][k - i] = high[k];
  }
  write(rest[0], rest[1], kFirst, out + 2 * i);
  if (i + kHalves <= pitch) write(rest[0], rest[1], kSecond, out + 2 * i + kHalves);
}
#endif

// bfloat16 may be packed in pairs of vectors, elements 0, 2, 4, ... in the first and 1, 3, 5, ...
// in the second: two instructions for both, and none moves between lanes, neither here nor on the
// way back.
template <class D>
HWY_INLINE void load_pair(D d, const bfloat16* from, hn::Vec<D>* even, hn::Vec<D>* odd) {
  const hn::Rebind<uint32_t, D> d32;
  const auto both = hn::LoadU(d32, reinterpret_cast<const uint32_t*>(from));
  *even = hn::BitCast(d, hn::ShiftLeft<16>(both));
  *odd = hn::BitCast(d, hn::And(both, hn::Set(d32, 0xffff0000)));
}
// Copies `count` rows, in pairs of vectors where these are full; the rest and other types as
// copy_row() does. Vectors by vectors: rows are short.
template <class D, typename Element>
HWY_INLINE void copy_rows_in_pairs(D d, const Element* from, int64_t stride, int64_t count,
                                   size_t size, size_t pitch, hn::TFromD<D>* HWY_RESTRICT to) {
  constexpr size_t kLanes = hn::MaxLanes(D());
  size_t column = 0;
  const auto copy_vectors = [&](auto vectors) VECINA_INLINE {
    const Element* row = from + column;
    hn::TFromD<D>* out = to + column;
    for (int64_t i = 0; i < count; ++i, row += stride, out += pitch) {
      if constexpr (std::is_same_v<Element, bfloat16>) {
        unroll<vectors / 2>([&](auto v) VECINA_INLINE {
          hn::Vec<D> even, odd;
          load_pair(d, row + 2 * v * kLanes, &even, &odd);
          hn::StoreU(even, d, out + 2 * v * kLanes);
          hn::StoreU(odd, d, out + 2 * v * kLanes + kLanes);
        });
      } else {
        unroll<vectors>([&](auto v) VECINA_INLINE {
          hn::StoreU(load(d, row + v * kLanes), d, out + v * kLanes);
        });
      }
    }
    column += vectors * kLanes;
  };
  while (column + 4 * kLanes <= size) copy_vectors(std::integral_constant<size_t, 4>());
  if (column + 2 * kLanes <= size) copy_vectors(std::integral_constant<size_t, 2>());
  if (column == pitch) return;
  for (int64_t i = 0; i < count; ++i) {
    copy_row(d, from + i * stride + column, size - column, pitch - column,
             to + static_cast<size_t>(i) * pitch + column);
  }
}
// Writes vectors that are in pairs, if the type is packed so.
template <size_t kVectors, class D, typename Element>
HWY_INLINE void store_pairs(D d, const hn::Vec<D> (&v)[kVectors], Element* to) {
  constexpr size_t kLanes = hn::MaxLanes(D());
  if constexpr (std::is_same_v<Element, bfloat16>) {
    const hn::Rebind<uint32_t, D> d32;
    // A sum is NaN if a summand is: one test for all.
    auto sum = v[0];
    unroll<kVectors - 1>([&](auto i) VECINA_INLINE { sum = hn::Add(sum, v[i + 1]); });
    const bool are_numbers = hn::AllTrue(d, hn::Eq(sum, sum));
    unroll<kVectors / 2>([&](auto i) VECINA_INLINE {
      const auto write = [&](Bits32<D> even, Bits32<D> odd) VECINA_INLINE {
        const auto both = hn::Or(hn::ShiftRight<16>(even), hn::And(odd, hn::Set(d32, 0xffff0000)));
        hn::StoreU(both, d32, reinterpret_cast<uint32_t*>(to + 2 * i * kLanes));
      };
      if (HWY_LIKELY(are_numbers)) {
        write(round_numbers(d, v[2 * i]), round_numbers(d, v[2 * i + 1]));
      } else {
        write(round_any(d, v[2 * i]), round_any(d, v[2 * i + 1]));
      }
    });
  } else {
    unroll<kVectors>([&](auto i) VECINA_INLINE { store(d, v[i], to + i * kLanes); });
  }
}

// The rows of a transpose, one for each lane: from anywhere, or at equal distances. Those of one
// lane of the vector's 128-bit blocks are `block` * kStep rows apart.
template <typename Element>
struct ScatteredRows {
  const Element* const* rows;
  template <size_t kLane>
  const Element* row() const {
    return rows[kLane];
  }
};
template <typename Element>
struct RegularRows {
  // Of lanes 0, 4, 8 and 12: these and one stride fit the registers of x86, sixteen pointers do
  // not.
  const Element* quads[4];
  ptrdiff_t stride;

  RegularRows(const Element* first, ptrdiff_t row_stride)
      : quads{first, first + 4 * row_stride, first + 8 * row_stride, first + 12 * row_stride},
        stride(row_stride) {}
  template <size_t kLane>
  const Element* row() const {
    return quads[kLane / 4] + static_cast<ptrdiff_t>(kLane % 4) * stride;
  }
};

// Rows of bfloat16 as words of two elements each.
template <class Rows>
struct InWords {
  const Rows rows;
  template <size_t kLane>
  const float* row() const {
    return reinterpret_cast<const float*>(rows.template row<kLane>());
  }
};

// A vector of d made of 128-bit blocks, block b from row kFirst + kStep * b, at `offset`.
template <class D, size_t kFirst, size_t kStep, class Rows>
HWY_INLINE hn::Vec<D> load_blocks(D d, const Rows& rows, size_t offset) {
  using T = hn::TFromD<D>;
  constexpr size_t kBlocks = hn::MaxLanes(d) * sizeof(T) / 16;
  const auto* first = rows.template row<kFirst>() + offset;
  if constexpr (kBlocks == 1) {
    return load(d, first);
  } else if constexpr (std::is_same_v<decltype(first), const T*>) {
    const auto second = hn::LoadDup128(d, rows.template row<kFirst + kStep>() + offset);
    const auto low = hn::OddEvenBlocks(second, hn::LoadDup128(d, first));
    if constexpr (kBlocks == 2) return low;
    const auto third = hn::LoadDup128(d, rows.template row<kFirst + 2 * kStep>() + offset);
    const auto fourth = hn::LoadDup128(d, rows.template row<kFirst + 3 * kStep>() + offset);
    return hn::ConcatUpperLower(d, hn::OddEvenBlocks(fourth, third), low);
  } else {
    const hn::Half<D> half;
    constexpr size_t kUpper = kFirst + kBlocks / 2 * kStep;
    return hn::Combine(d, load_blocks<decltype(half), kUpper, kStep>(half, rows, offset),
                       load_blocks<decltype(half), kFirst, kStep>(half, rows, offset));
  }
}

// Instead of a scale: nothing is multiplied, so that any bits may be transposed.
struct Unscaled {};

#if HWY_TARGET == HWY_AVX3
// Sixteen entries of sixteen rows: a load takes all of a row's, and a line of the cache holds them.
// write(i, v): v holds entry i of each row.
template <class D, class Rows, class Write>
HWY_INLINE void transpose_16x16(D d, const Rows& rows, size_t offset, const Write& write) {
  hn::Vec<D> v[16], quads[16];
  unroll<16>([&](auto lane)
                 VECINA_INLINE { v[lane] = hn::LoadU(d, rows.template row<lane>() + offset); });
  // In block b of quads[4 * e + q]: entry 4 * b + e of rows 4 * q to 4 * q + 3.
  unroll<4>([&](auto q) VECINA_INLINE {
    const auto even_low = hn::InterleaveLower(d, v[4 * q], v[4 * q + 2]);
    const auto odd_low = hn::InterleaveLower(d, v[4 * q + 1], v[4 * q + 3]);
    const auto even_high = hn::InterleaveUpper(d, v[4 * q], v[4 * q + 2]);
    const auto odd_high = hn::InterleaveUpper(d, v[4 * q + 1], v[4 * q + 3]);
    quads[q] = hn::InterleaveLower(d, even_low, odd_low);
    quads[4 + q] = hn::InterleaveUpper(d, even_low, odd_low);
    quads[8 + q] = hn::InterleaveLower(d, even_high, odd_high);
    quads[12 + q] = hn::InterleaveUpper(d, even_high, odd_high);
  });
  unroll<4>([&](auto e) VECINA_INLINE {
    const auto first_low = hn::ConcatLowerLower(d, quads[4 * e + 1], quads[4 * e]);
    const auto first_high = hn::ConcatUpperUpper(d, quads[4 * e + 1], quads[4 * e]);
    const auto last_low = hn::ConcatLowerLower(d, quads[4 * e + 3], quads[4 * e + 2]);
    const auto last_high = hn::ConcatUpperUpper(d, quads[4 * e + 3], quads[4 * e + 2]);
    const auto even_blocks = [](hn::Vec<D> a, hn::Vec<D> b) VECINA_INLINE {
      return hn::Vec<D>{_mm512_shuffle_f32x4(a.raw, b.raw, 0x88)};
    };
    const auto odd_blocks = [](hn::Vec<D> a, hn::Vec<D> b) VECINA_INLINE {
      return hn::Vec<D>{_mm512_shuffle_f32x4(a.raw, b.raw, 0xdd)};
    };
    write(e, even_blocks(first_low, last_low));
    write(4 + e, odd_blocks(first_low, last_low));
    write(8 + e, even_blocks(first_high, last_high));
    write(12 + e, odd_blocks(first_high, last_high));
  });
}
#endif

// to[i * pitch + lane] = scale * row of lane [i] for i in [0, count). Blocks of 4x4 (double: 2x2)
// are transposed in registers. The first kAgain lanes go to `again` as well.
template <size_t kAgain = 0, class D, class Rows, typename Scale>
HWY_INLINE void transpose_rows(D d, const Rows& rows, size_t count, size_t pitch, Scale scale,
                               hn::TFromD<D>* HWY_RESTRICT to,
                               hn::TFromD<D>* HWY_RESTRICT again = nullptr) {
  using T = hn::TFromD<D>;
  const auto scaled = [&](auto v) VECINA_INLINE {
    if constexpr (std::is_same_v<Scale, Unscaled>) {
      return v;
    } else if constexpr (std::is_same_v<decltype(v), T>) {
      return static_cast<T>(scale) * v;
    } else {
      return hn::Mul(hn::Set(d, static_cast<T>(scale)), v);
    }
  };
  constexpr size_t kBlock = 16 / sizeof(T);
  size_t i = 0;
  const auto write = [&](size_t k, hn::Vec<D> v) VECINA_INLINE {
    v = scaled(v);
    hn::StoreU(v, d, to + (i + k) * pitch);
    if constexpr (kAgain == hn::MaxLanes(d)) {
      hn::StoreU(v, d, again + (i + k) * pitch);
    } else if constexpr (kAgain > 0) {
      const hn::Half<D> half;
      static_assert(kAgain == hn::MaxLanes(half));
      hn::StoreU(hn::LowerHalf(half, v), half, again + (i + k) * pitch);
    }
  };
#if HWY_TARGET == HWY_AVX3
  if constexpr (hn::MaxLanes(d) == 16 &&
                std::is_same_v<decltype(rows.template row<0>()), const float*>) {
    for (; i + 16 <= count; i += 16) transpose_16x16(d, rows, i, write);
  }
#endif
  for (; i + kBlock <= count; i += kBlock) {
    if constexpr (kBlock == 4) {
      const auto r0 = load_blocks<D, 0, 4>(d, rows, i), r1 = load_blocks<D, 1, 4>(d, rows, i);
      const auto r2 = load_blocks<D, 2, 4>(d, rows, i), r3 = load_blocks<D, 3, 4>(d, rows, i);
      const auto even_low = hn::InterleaveLower(d, r0, r2),
                 odd_low = hn::InterleaveLower(d, r1, r3);
      const auto even_high = hn::InterleaveUpper(d, r0, r2),
                 odd_high = hn::InterleaveUpper(d, r1, r3);
      write(0, hn::InterleaveLower(d, even_low, odd_low));
      write(1, hn::InterleaveUpper(d, even_low, odd_low));
      write(2, hn::InterleaveLower(d, even_high, odd_high));
      write(3, hn::InterleaveUpper(d, even_high, odd_high));
    } else {
      const auto r0 = load_blocks<D, 0, 2>(d, rows, i), r1 = load_blocks<D, 1, 2>(d, rows, i);
      write(0, hn::InterleaveLower(d, r0, r1));
      write(1, hn::InterleaveUpper(d, r0, r1));
    }
  }
  for (; i < count; ++i) {
    unroll<hn::MaxLanes(d)>([&](auto lane) HWY_ATTR {
      to[i * pitch + lane] = scaled(to_compute(rows.template row<lane>()[i]));
      if constexpr (lane < kAgain) again[i * pitch + lane] = to[i * pitch + lane];
    });
  }
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_PACK_INL_H_
