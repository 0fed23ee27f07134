// SPDX-License-Identifier: MIT
// Softmax of one tile after another: a thread has two rows, which four threads share.
#ifndef VECINA_CUDA_KERNELS_HOPPER_SOFTMAX_CUH_
#define VECINA_CUDA_KERNELS_HOPPER_SOFTMAX_CUH_

#include "hopper_tiles.cuh"

namespace vecina::cuda {

// Of one row. The shift lags behind the maximum by at most kLag powers of two, so that sums need
// rarely be scaled anew.
inline constexpr float kLag = 8.0f;

struct RunningSum {
  float maximum = -infinity();  // that exponentials are taken from, in units of logits
  float sum = 0.0f;             // of this thread's exponentials
  float kept = 1.0f;            // what the last tile's maximum leaves of earlier sums

  // Returns the shift, in powers of two.
  VECINA_DEVICE float raise(float tile_maximum, float scale) {
    tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(0xffffffffu, tile_maximum, 1));
    tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(0xffffffffu, tile_maximum, 2));
    tile_maximum = fmaxf(tile_maximum, maximum);
    const bool is_far = (tile_maximum - maximum) * scale > kLag;
    kept = is_far ? power_of_two((maximum - tile_maximum) * scale) : 1.0f;
    maximum = is_far ? tile_maximum : maximum;
    sum *= kept;
    // Where nothing but -infinity was seen, exponentials are 0 and not NaN.
    return maximum == -infinity() ? 0.0f : maximum * scale;
  }
  VECINA_DEVICE void close() {
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  }
};

// Logits become exponentials. scales: of each row.
template <int kCount>
VECINA_DEVICE void exponentiate(float (&logits)[kCount], const float (&scales)[2],
                                RunningSum (&rows)[2]) {
  float n0 = fmaxf(logits[0], logits[1]), n1 = fmaxf(logits[2], logits[3]);
  if constexpr (kCount > 4) {
    float n2 = fmaxf(logits[4], logits[5]), n3 = fmaxf(logits[6], logits[7]);
#pragma unroll
    for (int i = 8; i < kCount; i += 8) {
      n0 = fmaxf(n0, fmaxf(logits[i], logits[i + 1]));
      n1 = fmaxf(n1, fmaxf(logits[i + 2], logits[i + 3]));
      n2 = fmaxf(n2, fmaxf(logits[i + 4], logits[i + 5]));
      n3 = fmaxf(n3, fmaxf(logits[i + 6], logits[i + 7]));
    }
    n0 = fmaxf(n0, n2);
    n1 = fmaxf(n1, n3);
  }
  const float shift0 = rows[0].raise(n0, scales[0]), shift1 = rows[1].raise(n1, scales[1]);
  float sum0 = 0.0f, sum1 = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    logits[i] = power_of_two(logits[i] * scales[0] - shift0);
    logits[i + 1] = power_of_two(logits[i + 1] * scales[0] - shift0);
    logits[i + 2] = power_of_two(logits[i + 2] * scales[1] - shift1);
    logits[i + 3] = power_of_two(logits[i + 3] * scales[1] - shift1);
    rows[0].sum += logits[i];
    sum0 += logits[i + 1];
    rows[1].sum += logits[i + 2];
    sum1 += logits[i + 3];
  }
  rows[0].sum += sum0;
  rows[1].sum += sum1;
}

// Exponentials in 16 bits, as the left matrix of the next product.
template <class Element, int kCount>
VECINA_DEVICE void pack_rows(const float (&values)[kCount], unsigned (&words)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 2) words[i / 2] = pack(Element{}, values[i], values[i + 1]);
}

template <int kCount>
VECINA_DEVICE void scale_rows(float (&sums)[kCount], const RunningSum (&rows)[2]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    sums[i] *= rows[0].kept;
    sums[i + 1] *= rows[0].kept;
    sums[i + 2] *= rows[1].kept;
    sums[i + 3] *= rows[1].kept;
  }
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_SOFTMAX_CUH_
