// SPDX-License-Identifier: MIT
// Products of a warpgroup: 64 rows times `n` columns, 16 deep (e4m3: 32), sums in registers. PTX
// wants every register by name, so there is one class for each n, written by the preprocessor.
//
// A thread's sums: of rows r = 16 * (its warp) + lane / 4 and r + 8, columns 8 * j + 2 * (lane % 4)
// and the next: sums 4 * j, 4 * j + 1 of row r and 4 * j + 2, 4 * j + 3 of row r + 8.
#ifndef VECINA_CUDA_KERNELS_HOPPER_WGMMA_H_
#define VECINA_CUDA_KERNELS_HOPPER_WGMMA_H_

#include "types.h"

namespace vecina::cuda {

VECINA_DEVICE void open_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
VECINA_DEVICE void close_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kOpen>  // groups that may still run
VECINA_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOpen) : "memory");
}
// Keeps the compiler from moving what touches the sums across this place.
template <int kCount>
VECINA_DEVICE void pin(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Descriptors of matrices in shared memory, in boxes of rows of kBoxBytes that lie one after
// another. The upper half is constant; the lower half counts addresses in units of 16 bytes.
template <int kBoxBytes>
VECINA_DEVICE unsigned long long descriptor(unsigned low) {
  // Swizzle over 128, 64 or 32 bytes; 8 rows to the next group of rows.
  constexpr unsigned kSwizzle = kBoxBytes == 128 ? 1u : kBoxBytes == 64 ? 2u : 3u;
  constexpr unsigned kHigh = kSwizzle << 30 | kBoxBytes * 8 / 16;
  return static_cast<unsigned long long>(kHigh) << 32 | low;
}
// `next_columns`: bytes to the box of the next columns, where products cross them.
VECINA_DEVICE unsigned descriptor_low(unsigned address, unsigned next_columns) {
  return address >> 4 | next_columns / 16 << 16;
}

template <int n>
struct Products;

// clang-format off
#define VECINA_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define VECINA_NAMES_12 VECINA_NAMES_8 ", %8, %9, %10, %11"
#define VECINA_NAMES_16 VECINA_NAMES_12 ", %12, %13, %14, %15"
#define VECINA_NAMES_20 VECINA_NAMES_16 ", %16, %17, %18, %19"
#define VECINA_NAMES_24 VECINA_NAMES_20 ", %20, %21, %22, %23"
#define VECINA_NAMES_28 VECINA_NAMES_24 ", %24, %25, %26, %27"
#define VECINA_NAMES_32 VECINA_NAMES_28 ", %28, %29, %30, %31"
#define VECINA_NAMES_36 VECINA_NAMES_32 ", %32, %33, %34, %35"
#define VECINA_NAMES_40 VECINA_NAMES_36 ", %36, %37, %38, %39"
#define VECINA_NAMES_44 VECINA_NAMES_40 ", %40, %41, %42, %43"
#define VECINA_NAMES_48 VECINA_NAMES_44 ", %44, %45, %46, %47"
#define VECINA_NAMES_52 VECINA_NAMES_48 ", %48, %49, %50, %51"
#define VECINA_NAMES_56 VECINA_NAMES_52 ", %52, %53, %54, %55"
#define VECINA_NAMES_60 VECINA_NAMES_56 ", %56, %57, %58, %59"
#define VECINA_NAMES_64 VECINA_NAMES_60 ", %60, %61, %62, %63"
#define VECINA_NAMES_68 VECINA_NAMES_64 ", %64, %65, %66, %67"
#define VECINA_NAMES_72 VECINA_NAMES_68 ", %68, %69, %70, %71"
#define VECINA_NAMES_76 VECINA_NAMES_72 ", %72, %73, %74, %75"
#define VECINA_NAMES_80 VECINA_NAMES_76 ", %76, %77, %78, %79"
#define VECINA_NAMES_84 VECINA_NAMES_80 ", %80, %81, %82, %83"
#define VECINA_NAMES_88 VECINA_NAMES_84 ", %84, %85, %86, %87"
#define VECINA_NAMES_92 VECINA_NAMES_88 ", %88, %89, %90, %91"
#define VECINA_NAMES_96 VECINA_NAMES_92 ", %92, %93, %94, %95"
#define VECINA_NAMES_104 VECINA_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define VECINA_NAMES_112 VECINA_NAMES_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define VECINA_NAMES_120 VECINA_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define VECINA_NAMES_128 VECINA_NAMES_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define VECINA_SUMS_8 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), \
  "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define VECINA_SUMS_12 \
  VECINA_SUMS_8, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define VECINA_SUMS_16 \
  VECINA_SUMS_12, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define VECINA_SUMS_20 \
  VECINA_SUMS_16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define VECINA_SUMS_24 \
  VECINA_SUMS_20, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define VECINA_SUMS_28 \
  VECINA_SUMS_24, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define VECINA_SUMS_32 \
  VECINA_SUMS_28, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define VECINA_SUMS_36 \
  VECINA_SUMS_32, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define VECINA_SUMS_40 \
  VECINA_SUMS_36, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define VECINA_SUMS_44 \
  VECINA_SUMS_40, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define VECINA_SUMS_48 \
  VECINA_SUMS_44, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define VECINA_SUMS_52 \
  VECINA_SUMS_48, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define VECINA_SUMS_56 \
  VECINA_SUMS_52, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define VECINA_SUMS_60 \
  VECINA_SUMS_56, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define VECINA_SUMS_64 \
  VECINA_SUMS_60, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define VECINA_SUMS_68 \
  VECINA_SUMS_64, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define VECINA_SUMS_72 \
  VECINA_SUMS_68, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define VECINA_SUMS_76 \
  VECINA_SUMS_72, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define VECINA_SUMS_80 \
  VECINA_SUMS_76, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define VECINA_SUMS_84 \
  VECINA_SUMS_80, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define VECINA_SUMS_88 \
  VECINA_SUMS_84, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define VECINA_SUMS_92 \
  VECINA_SUMS_88, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define VECINA_SUMS_96 \
  VECINA_SUMS_92, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define VECINA_SUMS_104 \
  VECINA_SUMS_96, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), \
  "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define VECINA_SUMS_112 \
  VECINA_SUMS_104, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), \
  "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define VECINA_SUMS_120 \
  VECINA_SUMS_112, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), \
  "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define VECINA_SUMS_128 \
  VECINA_SUMS_120, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), \
  "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
// clang-format on

// shared: rows of the left matrix and columns of the right one from shared memory, both with their
// depth contiguous. turned: both with rows and columns contiguous instead, not e4m3. registers: the
// left matrix from registers, rows of the right one contiguous, not e4m3.
#define VECINA_SHARED(shape, n, names, sums, left, right, keep, order)                    \
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #keep                           \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n shape " {" names "}, %" #left \
               ", %" #right ", keep, 1, 1" order ";\n}\n"                                 \
               : sums                                                                     \
               : "l"(a), "l"(b), "r"(keep_sums))
#define VECINA_REGISTERS(type, n, names, sums, i0, i1, i2, i3, i4)                        \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" names \
               "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", 1, 1, 1, 1;\n"     \
               : sums                                                                     \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b))
#define VECINA_PRODUCTS(n, count, i0, i1, i2, i3, i4)                                              \
  template <>                                                                                      \
  struct Products<n> {                                                                             \
    template <int dtype>                                                                           \
    static VECINA_DEVICE void shared(float (&d)[count], unsigned long long a,                      \
                                     unsigned long long b, int keep_sums) {                        \
      if constexpr (dtype == kBf16) {                                                              \
        VECINA_SHARED("k16.f32.bf16.bf16", n, VECINA_NAMES_##count, VECINA_SUMS_##count, i0, i1,   \
                      i2, ", 0, 0");                                                               \
      } else if constexpr (dtype == kE4m3) {                                                       \
        VECINA_SHARED("k32.f32.e4m3.e4m3", n, VECINA_NAMES_##count, VECINA_SUMS_##count, i0, i1,   \
                      i2, "");                                                                     \
      } else {                                                                                     \
        VECINA_SHARED("k16.f32.f16.f16", n, VECINA_NAMES_##count, VECINA_SUMS_##count, i0, i1, i2, \
                      ", 0, 0");                                                                   \
      }                                                                                            \
    }                                                                                              \
    template <int dtype>                                                                           \
    static VECINA_DEVICE void turned(float (&d)[count], unsigned long long a,                      \
                                     unsigned long long b, int keep_sums) {                        \
      if constexpr (dtype == kBf16) {                                                              \
        VECINA_SHARED("k16.f32.bf16.bf16", n, VECINA_NAMES_##count, VECINA_SUMS_##count, i0, i1,   \
                      i2, ", 1, 1");                                                               \
      } else {                                                                                     \
        VECINA_SHARED("k16.f32.f16.f16", n, VECINA_NAMES_##count, VECINA_SUMS_##count, i0, i1, i2, \
                      ", 1, 1");                                                                   \
      }                                                                                            \
    }                                                                                              \
    template <int dtype>                                                                           \
    static VECINA_DEVICE void registers(float (&d)[count], unsigned a0, unsigned a1, unsigned a2,  \
                                        unsigned a3, unsigned long long b) {                       \
      if constexpr (dtype == kBf16) {                                                              \
        VECINA_REGISTERS("bf16", n, VECINA_NAMES_##count, VECINA_SUMS_##count, i0, i1, i2, i3,     \
                         i4);                                                                      \
      } else {                                                                                     \
        VECINA_REGISTERS("f16", n, VECINA_NAMES_##count, VECINA_SUMS_##count, i0, i1, i2, i3, i4); \
      }                                                                                            \
    }                                                                                              \
  };
VECINA_PRODUCTS(16, 8, 8, 9, 10, 11, 12)
VECINA_PRODUCTS(24, 12, 12, 13, 14, 15, 16)
VECINA_PRODUCTS(32, 16, 16, 17, 18, 19, 20)
VECINA_PRODUCTS(40, 20, 20, 21, 22, 23, 24)
VECINA_PRODUCTS(48, 24, 24, 25, 26, 27, 28)
VECINA_PRODUCTS(56, 28, 28, 29, 30, 31, 32)
VECINA_PRODUCTS(64, 32, 32, 33, 34, 35, 36)
VECINA_PRODUCTS(72, 36, 36, 37, 38, 39, 40)
VECINA_PRODUCTS(80, 40, 40, 41, 42, 43, 44)
VECINA_PRODUCTS(88, 44, 44, 45, 46, 47, 48)
VECINA_PRODUCTS(96, 48, 48, 49, 50, 51, 52)
VECINA_PRODUCTS(104, 52, 52, 53, 54, 55, 56)
VECINA_PRODUCTS(112, 56, 56, 57, 58, 59, 60)
VECINA_PRODUCTS(120, 60, 60, 61, 62, 63, 64)
VECINA_PRODUCTS(128, 64, 64, 65, 66, 67, 68)
VECINA_PRODUCTS(136, 68, 68, 69, 70, 71, 72)
VECINA_PRODUCTS(144, 72, 72, 73, 74, 75, 76)
VECINA_PRODUCTS(152, 76, 76, 77, 78, 79, 80)
VECINA_PRODUCTS(160, 80, 80, 81, 82, 83, 84)
VECINA_PRODUCTS(168, 84, 84, 85, 86, 87, 88)
VECINA_PRODUCTS(176, 88, 88, 89, 90, 91, 92)
VECINA_PRODUCTS(184, 92, 92, 93, 94, 95, 96)
VECINA_PRODUCTS(192, 96, 96, 97, 98, 99, 100)
VECINA_PRODUCTS(208, 104, 104, 105, 106, 107, 108)
VECINA_PRODUCTS(224, 112, 112, 113, 114, 115, 116)
VECINA_PRODUCTS(240, 120, 120, 121, 122, 123, 124)
VECINA_PRODUCTS(256, 128, 128, 129, 130, 131, 132)

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_WGMMA_H_
