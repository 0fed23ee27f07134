// SPDX-License-Identifier: MIT
// Tensor-core products of one warp (mma.sync, sm_80 and later). Thread `lane` of a warp holds of a
// 16 x 8 sum: rows lane / 4 and lane / 4 + 8, columns 2 * (lane % 4) and the next; parts 0 and 1
// are of the first row.
#ifndef VECINA_CUDA_KERNELS_MATRIX_CUH_
#define VECINA_CUDA_KERNELS_MATRIX_CUH_

#include "types.h"

namespace vecina::cuda {

// sum += a * b: 16 x 8 times 8 x 8, f32 cut to TF32.
VECINA_DEVICE void multiply_tf32(float (&sum)[4], unsigned a0, unsigned a1, unsigned a2,
                                 unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// sum += a * b: 16 x 16 times 16 x 8.
VECINA_DEVICE void multiply(Bf16, float (&sum)[4], unsigned a0, unsigned a1, unsigned a2,
                            unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
VECINA_DEVICE void multiply(F16, float (&sum)[4], unsigned a0, unsigned a1, unsigned a2,
                            unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Of blocks that are one thread deep; ptxas does not know it.
VECINA_DEVICE unsigned opaque_zero() { return threadIdx.z; }
// First factors of products over columns, from words of two rows: a product wants words of both
// side by side, a load those of one. ptxas would copy them anew for each product; what it does not
// know to be a copy it does once.
template <int kWords>
VECINA_DEVICE void make_factors(const unsigned (&rows)[2][kWords],
                                unsigned (&factors)[kWords / 2][4]) {
  const unsigned zero = opaque_zero();
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
#pragma unroll
    for (int i = 0; i < 2; ++i) factors[w / 2][w % 2 * 2 + i] = rows[i][w] ^ zero;
  }
}

// x = high + low, each exact in TF32 but for low's last bits. Rounded to nearest for the factor
// whose error counts twice, cut (one instruction less) for the other.
struct Split {
  unsigned high, low;
};
VECINA_DEVICE Split split_rounded(float x) {
  const unsigned high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
  return {high, __float_as_uint(x - __uint_as_float(high))};
}
VECINA_DEVICE Split split_cut(float x) {
  const unsigned high = __float_as_uint(x) & 0xffffe000u;
  return {high, __float_as_uint(x - __uint_as_float(high))};
}

VECINA_DEVICE bool is_finite(float x) { return x - x == 0.0f; }

// A word of one or two elements with those that are not finite put to zero.
VECINA_DEVICE unsigned without_infinities(float, unsigned word) {
  return (word & 0x7f800000u) == 0x7f800000u ? 0u : word;
}
VECINA_DEVICE unsigned without_infinities(Bf16, unsigned word) {
  if ((word & 0x7f80u) == 0x7f80u) word &= 0xffff0000u;
  if ((word & 0x7f800000u) == 0x7f800000u) word &= 0x0000ffffu;
  return word;
}
VECINA_DEVICE unsigned without_infinities(F16, unsigned word) {
  if ((word & 0x7c00u) == 0x7c00u) word &= 0xffff0000u;
  if ((word & 0x7c000000u) == 0x7c000000u) word &= 0x0000ffffu;
  return word;
}

// Sum or maximum of the four threads that hold a row.
VECINA_DEVICE float over_quad(float x, bool is_sum) {
  const float other = __shfl_xor_sync(0xffffffffu, x, 1);
  x = is_sum ? x + other : larger(x, other);
  const float last = __shfl_xor_sync(0xffffffffu, x, 2);
  return is_sum ? x + last : larger(x, last);
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_MATRIX_CUH_
