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

 private:
  alignas(64) static inline thread_local bfloat16 tiles_[kTileRegisters][kMatrixTile][kMatrixStep];
};

// Registers 0 to 3: 0 and 2 are of the first tile of queries, 1 and 3 of the second.
template <class Tiles>
void clear_sums() {
  Tiles::template zero<0>();
  Tiles::template zero<1>();
  Tiles::template zero<2>();
  Tiles::template zero<3>();
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // VECINA_CPU_MATRIX_TILES_INL_H_
