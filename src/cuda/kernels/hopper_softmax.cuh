// SPDX-License-Identifier: MIT
// Softmax of one tile after another: a thread has two rows, which four threads share.
#ifndef VECINA_CUDA_KERNELS_HOPPER_SOFTMAX_CUH_
#define VECINA_CUDA_KERNELS_HOPPER_SOFTMAX_CUH_

#include "hopper_tiles.cuh"

namespace vecina::cuda {

// The shift may lag behind the maximum, so that sums need rarely be scaled anew: by so many powers
// of two where maxima are known, else as far as a thread's weights of a row and tile sum up to no
// more than this.
inline constexpr float kLag = 8.0f, kMostWeights = 256.0f;

struct RunningSum {
  float maximum = -infinity();  // that exponentials are taken from, in units of logits
  float sum = 0.0f;             // of this thread's exponentials
  float kept = 1.0f;            // what the last tile's maximum leaves of earlier sums

  // Returns the shift, in powers of two. It moves if the maximum is further from it than `lag`.
  VECINA_DEVICE float raise(float tile_maximum, float scale, float lag) {
    tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(0xffffffffu, tile_maximum, 1));
    tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(0xffffffffu, tile_maximum, 2));
    tile_maximum = fmaxf(tile_maximum, maximum);
    const bool is_far = (tile_maximum - maximum) * scale > lag;
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

// Logits from kBegin to kEnd become exponentials. scales, lags: of each row.
template <int kBegin, int kEnd, int kCount>
VECINA_DEVICE void exponentiate(float (&logits)[kCount], const float (&scales)[2],
                                const float (&lags)[2], RunningSum (&rows)[2]) {
  float n0 = fmaxf(logits[kBegin], logits[kBegin + 1]);
  float n1 = fmaxf(logits[kBegin + 2], logits[kBegin + 3]);
  if constexpr (kEnd - kBegin > 4) {
    float n2 = fmaxf(logits[kBegin + 4], logits[kBegin + 5]);
    float n3 = fmaxf(logits[kBegin + 6], logits[kBegin + 7]);
#pragma unroll
    for (int i = kBegin + 8; i < kEnd; i += 8) {
      n0 = fmaxf(n0, fmaxf(logits[i], logits[i + 1]));
      n1 = fmaxf(n1, fmaxf(logits[i + 2], logits[i + 3]));
      if (i + 4 == kEnd) break;
      n2 = fmaxf(n2, fmaxf(logits[i + 4], logits[i + 5]));
      n3 = fmaxf(n3, fmaxf(logits[i + 6], logits[i + 7]));
    }
    n0 = fmaxf(n0, n2);
    n1 = fmaxf(n1, n3);
  }
  const float shift0 = rows[0].raise(n0, scales[0], lags[0]);
  const float shift1 = rows[1].raise(n1, scales[1], lags[1]);
  float sum0 = 0.0f, sum1 = 0.0f;
#pragma unroll
  for (int i = kBegin; i < kEnd; i += 4) {
    logits[i] = power_of_two(logits[i] * scales[0] - shift0);
    logits[i + 1] = power_of_two(logits[i + 1] * scales[0] - shift0);
    logits[i + 2] = power_of_two(logits[i + 2] * scales[1] - shift1);
    logits[i + 3] = power_of_two(logits[i + 3] * scales[1] - shift1);
    sum0 += logits[i] + logits[i + 1];
    sum1 += logits[i + 2] + logits[i + 3];
  }
  rows[0].sum += sum0;
  rows[1].sum += sum1;
}

// Of some of the four threads that share a row.
VECINA_DEVICE bool is_any_of_row(bool is) {
  unsigned found = is;
  found |= __shfl_xor_sync(0xffffffffu, found, 1);
  found |= __shfl_xor_sync(0xffffffffu, found, 2);
  return found != 0;
}

// The same where shifts stay as they are, straight to weights in 16 bits. False: some row of the
// warp has weights that sum up to too much, or has seen nothing yet, so that they are no numbers.
// Then nothing but `weights` has changed, and lags are 0 for such rows and endless for the others,
// whose bits must not depend on them.
template <class Element, int kBegin, int kEnd, int kCount, int kWords>
VECINA_DEVICE bool exponentiate_unshifted(const float (&logits)[kCount], const float (&scales)[2],
                                          RunningSum (&rows)[2], unsigned (&weights)[kWords],
                                          float (&lags)[2]) {
  float shift0 = rows[0].maximum * scales[0], shift1 = rows[1].maximum * scales[1];
  float sum0 = 0.0f, sum1 = 0.0f, before0 = 0.0f, before1 = 0.0f;
  constexpr int kAhead = 16;  // else the assembler begins all, for which it has no registers
#pragma unroll
  for (int i = kBegin; i < kEnd; i += 4) {
    if ((i - kBegin) % kAhead == 0 && i > kBegin) {
      shift0 = fmaf(before0, 0.0f, shift0);
      shift1 = fmaf(before1, 0.0f, shift1);
    }
    const float w0 = power_of_two(logits[i] * scales[0] - shift0);
    const float w1 = power_of_two(logits[i + 1] * scales[0] - shift0);
    const float w2 = power_of_two(logits[i + 2] * scales[1] - shift1);
    const float w3 = power_of_two(logits[i + 3] * scales[1] - shift1);
    if ((i - kBegin) % kAhead == 0) {
      before0 = w0;
      before1 = w2;
    }
    sum0 += w0 + w1;
    sum1 += w2 + w3;
    weights[i / 2] = pack(Element{}, w0, w1);
    weights[i / 2 + 1] = pack(Element{}, w2, w3);
  }
  const bool is_low0 = sum0 <= kMostWeights, is_low1 = sum1 <= kMostWeights;
  if (!__all_sync(0xffffffffu, is_low0 && is_low1)) {
    lags[0] = is_any_of_row(!is_low0) ? 0.0f : infinity();
    lags[1] = is_any_of_row(!is_low1) ? 0.0f : infinity();
    return false;
  }
  rows[0].sum += sum0;
  rows[1].sum += sum1;
  return true;
}

// Exponentials from kBegin to kEnd in 16 bits, as the left matrix of the next product.
template <class Element, int kBegin, int kEnd, int kCount, int kWords>
VECINA_DEVICE void pack_rows(const float (&values)[kCount], unsigned (&words)[kWords]) {
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
template <class Element, int kBegin, int kEnd, int kCount, int kWords>
VECINA_DEVICE void weigh(float (&logits)[kCount], const float (&scales)[2], RunningSum (&rows)[2],
                         unsigned (&weights)[kWords]) {
  exponentiate<kBegin, kEnd>(logits, scales, {kLag, kLag}, rows);
  pack_rows<Element, kBegin, kEnd>(logits, weights);
}

// The same next to the weights up to kBegin and to sums, which are scaled anew if need be.
template <class Element, int kBegin, int kEnd, int kCount, int kWords, int kSums>
VECINA_DEVICE void weigh_next_to(float (&logits)[kCount], const float (&scales)[2],
                                 RunningSum (&rows)[2], unsigned (&weights)[kWords],
                                 float (&sums)[kSums]) {
  float lags[2];
  if (exponentiate_unshifted<Element, kBegin, kEnd>(logits, scales, rows, weights, lags)) return;
  exponentiate<kBegin, kEnd>(logits, scales, lags, rows);
  pack_rows<Element, kBegin, kEnd>(logits, weights);
  if (!is_any_raised(rows)) return;
  scale_rows(sums, rows);
  scale_weights<Element, kBegin>(weights, rows);
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_SOFTMAX_CUH_
