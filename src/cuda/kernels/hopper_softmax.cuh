// SPDX-License-Identifier: MIT
// Softmax of one tile after another: a thread has two rows, which four threads share.
#ifndef VECINA_CUDA_KERNELS_HOPPER_SOFTMAX_CUH_
#define VECINA_CUDA_KERNELS_HOPPER_SOFTMAX_CUH_

#include "hopper_tiles.cuh"

namespace vecina::cuda {

// What a thread's weights of a row and tile may sum up to with the shift there is. So far the shift
// may lag behind the maximum, which need then not be known, nor sums be scaled anew.
inline constexpr float kMostWeights = 256.0f;

struct RunningSum {
  float maximum = -infinity();  // that exponentials are taken from, in units of logits
  float sum = 0.0f;             // of this thread's exponentials
  float kept = 1.0f;            // what the last tile's maximum leaves of earlier sums

  // Returns the shift, in powers of two.
  VECINA_DEVICE float raise(float tile_maximum, float scale) {
    tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(0xffffffffu, tile_maximum, 1));
    tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(0xffffffffu, tile_maximum, 2));
    tile_maximum = fmaxf(tile_maximum, maximum);
    kept = tile_maximum > maximum ? power_of_two((maximum - tile_maximum) * scale) : 1.0f;
    maximum = tile_maximum;
    sum *= kept;
    // Where nothing but -infinity was seen, exponentials are 0 and not NaN.
    return maximum == -infinity() ? 0.0f : maximum * scale;
  }
  VECINA_DEVICE void close() {
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  }
};

// Logits from kBegin to kEnd become exponentials. scales: of each row.
template <int kBegin, int kEnd, int kCount>
VECINA_DEVICE void exponentiate(float (&logits)[kCount], const float (&scales)[2],
                                RunningSum (&rows)[2]) {
  float n0 = fmaxf(logits[kBegin], logits[kBegin + 1]);
  float n1 = fmaxf(logits[kBegin + 2], logits[kBegin + 3]);
  if constexpr (kEnd - kBegin > 4) {
    float n2 = fmaxf(logits[kBegin + 4], logits[kBegin + 5]);
    float n3 = fmaxf(logits[kBegin + 6], logits[kBegin + 7]);
#pragma unroll
    for (int i = kBegin + 8; i < kEnd; i += 8) {
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
  for (int i = kBegin; i < kEnd; i += 4) {
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

// The same where the shift stays as it is, straight to weights in 16 bits. False: they sum up to
// too much in some thread of the warp, or a row has seen nothing yet and has no shift; then nothing
// but `weights` has changed.
template <class Element, int kBegin, int kEnd, int kCount>
VECINA_DEVICE bool exponentiate_unshifted(const float (&logits)[kCount], const float (&scales)[2],
                                          RunningSum (&rows)[2], unsigned (&weights)[kCount / 2]) {
  const bool has_none = rows[0].maximum == -infinity() || rows[1].maximum == -infinity();
  if (__any_sync(0xffffffffu, has_none)) return false;
  float shift0 = rows[0].maximum * scales[0], shift1 = rows[1].maximum * scales[1];
  float sum0 = 0.0f, sum1 = 0.0f, before = 0.0f;
  // An exponential waits for one of those so many before it: else the assembler would begin them
  // all, for which there are no registers. Where the weight is infinite, so is the sum, or NaN.
  constexpr int kAhead = 16;
#pragma unroll
  for (int i = kBegin; i < kEnd; i += 4) {
    if ((i - kBegin) % kAhead == 0 && i > kBegin) {
      shift0 = fmaf(before, 0.0f, shift0);
      shift1 = fmaf(before, 0.0f, shift1);
    }
    const float w0 = power_of_two(logits[i] * scales[0] - shift0);
    const float w1 = power_of_two(logits[i + 1] * scales[0] - shift0);
    const float w2 = power_of_two(logits[i + 2] * scales[1] - shift1);
    const float w3 = power_of_two(logits[i + 3] * scales[1] - shift1);
    if ((i - kBegin) % kAhead == 0) before = w0;
    sum0 += w0 + w1;
    sum1 += w2 + w3;
    weights[i / 2] = pack(Element{}, w0, w1);
    weights[i / 2 + 1] = pack(Element{}, w2, w3);
  }
  if (!__all_sync(0xffffffffu, sum0 <= kMostWeights && sum1 <= kMostWeights)) return false;
  rows[0].sum += sum0;
  rows[1].sum += sum1;
  return true;
}

// Exponentials from kBegin to kEnd in 16 bits, as the left matrix of the next product.
template <class Element, int kBegin, int kEnd, int kCount>
VECINA_DEVICE void pack_rows(const float (&values)[kCount], unsigned (&words)[kCount / 2]) {
#pragma unroll
  for (int i = kBegin; i < kEnd; i += 2) {
    words[i / 2] = pack(Element{}, values[i], values[i + 1]);
  }
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

// Weights in 16 bits up to kEnd, as scale_rows.
template <class Element, int kEnd, int kCount>
VECINA_DEVICE void scale_weights(unsigned (&words)[kCount], const RunningSum (&rows)[2]) {
#pragma unroll
  for (int i = 0; i < kEnd / 2; ++i) {
    const float kept = rows[i & 1].kept;
    const unsigned pair = words[i];
    const float low = unpack_low(Element{}, pair), high = unpack_high(Element{}, pair);
    words[i] = pack(Element{}, low * kept, high * kept);
  }
}

// Of some row of the warp.
VECINA_DEVICE bool is_any_raised(const RunningSum (&rows)[2]) {
  return __any_sync(0xffffffffu, rows[0].kept != 1.0f || rows[1].kept != 1.0f);
}

// Weights of the logits from kBegin to kEnd, whatever came before.
template <class Element, int kBegin, int kEnd, int kCount>
VECINA_DEVICE void weigh(float (&logits)[kCount], const float (&scales)[2],
                         RunningSum (&rows)[2], unsigned (&weights)[kCount / 2]) {
  exponentiate<kBegin, kEnd>(logits, scales, rows);
  pack_rows<Element, kBegin, kEnd>(logits, weights);
}

// The same next to the weights up to kBegin and to sums, which are scaled anew if need be.
template <class Element, int kBegin, int kEnd, int kCount, int kSums>
VECINA_DEVICE void weigh_next_to(float (&logits)[kCount], const float (&scales)[2],
                                 RunningSum (&rows)[2], unsigned (&weights)[kCount / 2], float (&sums)[kSums]) {
  if (exponentiate_unshifted<Element, kBegin, kEnd>(logits, scales, rows, weights)) return;
  weigh<Element, kBegin, kEnd>(logits, scales, rows, weights);
  if (!is_any_raised(rows)) return;
  scale_rows(sums, rows);
  scale_weights<Element, kBegin>(weights, rows);
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_SOFTMAX_CUH_
