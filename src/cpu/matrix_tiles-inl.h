// SPDX-License-Identifier: MIT
// Eight registers of 16 rows of 64 bytes each and what multiplies them: AMX, and the same by
// vectors of floats, to the bit but for numbers below the normal ones.
// Part of matrix.cc; compiled for AVX-512.
#if defined(VECINA_CPU_MATRIX_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_MATRIX_TILES_INL_H_
#undef VECINA_CPU_MATRIX_TILES_INL_H_
#else
#define VECINA_CPU_MATRIX_TILES_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kTileRegisters = 8;
inline constexpr ptrdiff_t kTileRowBytes = 64;

// All registers are whole tiles, of the calling thread. Written as instructions, since Highway has
// none of them and compilers only with options for a whole file.
class AmxTiles {
 public:
  static void configure() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < kTileRegisters; ++tile) {
      shapes.row_bytes[tile] = kTileRowBytes;
      shapes.rows[tile] = kMatrixTile;
    }
    asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  }
  // A thread that holds tiles takes 8 KiB more to switch.
  static void release() { asm volatile("tilerelease" ::: "memory"); }

  template <int kTile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  // `stride`: bytes from one row to the next.
  template <int kTile>
  static void load(const void* rows, ptrdiff_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  static void store(void* rows, ptrdiff_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
  }
  // sums[m][n] += a[m][2 k] * b[k][2 n] + a[m][2 k + 1] * b[k][2 n + 1] for 16 k, even and odd
  // products each summed up by themselves: of bfloat16 in floats, and numbers below the normal ones
  // count as zero.
  template <int kSums, int kA, int kB>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
  }

  // To bfloat16.
  template <class D>
  static __m256i round(D d, hn::Vec<D> v) {
    return rounded(d, v);
  }
  // Two vectors, one behind the other.
  template <class D>
  static __m512i round_both(D /*d*/, hn::Vec<D> low, hn::Vec<D> high) {
    __m512i both;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(high.raw), "v"(low.raw));
    return both;
  }
};

class EmulatedTiles {
 public:
  static void configure() {}
  static void release() {}

  template <int kTile>
  static void zero() {
    std::fill_n(&tiles_[kTile][0][0], kMatrixTile * kMatrixStep, bfloat16());
  }
  template <int kTile>
  static void load(const void* rows, ptrdiff_t stride) {
    for (int m = 0; m < kMatrixTile; ++m) {
      std::memcpy(tiles_[kTile][m], static_cast<const char*>(rows) + m * stride, kTileRowBytes);
    }
  }
  template <int kTile>
  static void store(void* rows, ptrdiff_t stride) {
    for (int m = 0; m < kMatrixTile; ++m) {
      std::memcpy(static_cast<char*>(rows) + m * stride, tiles_[kTile][m], kTileRowBytes);
    }
  }
  template <int kSums, int kA, int kB>
  static void multiply() {
    const hn::ScalableTag<float> d;
    for (int m = 0; m < kMatrixTile; ++m) {
      auto evens = hn::Zero(d), odds = hn::Zero(d);
      for (int k = 0; k < kMatrixTile; ++k) {
        const bfloat16* a = tiles_[kA][m] + 2 * k;
        hn::Vec<hn::ScalableTag<float>> even, odd;
        load_pair(d, tiles_[kB][k], &even, &odd);
        evens = hn::MulAdd(hn::Set(d, to_compute(a[0])), even, evens);
        odds = hn::MulAdd(hn::Set(d, to_compute(a[1])), odd, odds);
      }
      auto* sums = reinterpret_cast<float*>(tiles_[kSums][m]);
      hn::Store(hn::Add(hn::Load(d, sums), hn::Add(evens, odds)), d, sums);
    }
  }

  template <class D>
  static __m256i round(D d, hn::Vec<D> v) {
    return _mm512_cvtepi32_epi16(hn::ShiftRight<16>(round_any(d, v)).raw);
  }
  template <class D>
  static __m512i round_both(D d, hn::Vec<D> low, hn::Vec<D> high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(round(d, low)), round(d, high), 1);
  }

 private:
  alignas(64) static inline thread_local bfloat16 tiles_[kTileRegisters][kMatrixTile][kMatrixStep];
};

// Registers 0 to 3 hold sums: two by two tiles.
template <class Tiles>
HWY_INLINE void clear_sums() {
  Tiles::template zero<0>();
  Tiles::template zero<1>();
  Tiles::template zero<2>();
  Tiles::template zero<3>();
}
// Rows are `pitch` floats apart.
template <class Tiles>
HWY_INLINE void load_sums(const float* sums, ptrdiff_t pitch) {
  const ptrdiff_t stride = pitch * static_cast<ptrdiff_t>(sizeof(float));
  const float* below = sums + kMatrixTile * pitch;
  Tiles::template load<0>(sums, stride);
  Tiles::template load<1>(sums + kMatrixTile, stride);
  Tiles::template load<2>(below, stride);
  Tiles::template load<3>(below + kMatrixTile, stride);
}
template <class Tiles>
HWY_INLINE void store_sums(float* sums, ptrdiff_t pitch) {
  const ptrdiff_t stride = pitch * static_cast<ptrdiff_t>(sizeof(float));
  float* below = sums + kMatrixTile * pitch;
  Tiles::template store<0>(sums, stride);
  Tiles::template store<1>(sums + kMatrixTile, stride);
  Tiles::template store<2>(below, stride);
  Tiles::template store<3>(below + kMatrixTile, stride);
}
// Adds the products of registers 4 and 5, one below the other, with 6 and 7, side by side.
template <class Tiles>
HWY_INLINE void multiply_all() {
  Tiles::template multiply<0, 4, 6>();
  Tiles::template multiply<1, 4, 7>();
  Tiles::template multiply<2, 5, 6>();
  Tiles::template multiply<3, 5, 7>();
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // VECINA_CPU_MATRIX_TILES_INL_H_
