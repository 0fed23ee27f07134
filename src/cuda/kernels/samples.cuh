// SPDX-License-Identifier: MIT
// Where the tokens of a sample lie: in padded tensors each sample begins at its batch and may be
// shorter than its axes, in packed ones the samples lie one after another. Lengths are not checked
// before they get here: longer ones than the axes count as these, and packed samples that the
// tensors have no room for as empty, so that nothing else is touched.
#ifndef VECINA_CUDA_KERNELS_SAMPLES_CUH_
#define VECINA_CUDA_KERNELS_SAMPLES_CUH_

#include "core/window.h"
#include "small_params.h"
#include "types.h"

namespace vecina::cuda {

inline constexpr int kEqualLengths = 0, kPaddedLengths = 1, kPackedLengths = 2;  // vecina_lengths

// A sample's tokens in one tensor, outermost axis first.
struct Tokens {
  int sample;
  int extent[3];
  long long first;  // packed: tokens of the samples before

  VECINA_DEVICE long long count() const {
    return static_cast<long long>(extent[0]) * extent[1] * extent[2];
  }
  VECINA_DEVICE bool has(const int (&token)[3]) const {
    return token[0] < extent[0] && token[1] < extent[1] && token[2] < extent[2];
  }
  // Of a token in a packed tensor.
  VECINA_DEVICE long long number(const int (&token)[3]) const {
    return first + (static_cast<long long>(token[0]) * extent[1] + token[1]) * extent[2] + token[2];
  }
};

struct Sample {
  Tokens key, query, output;
  bool has_windows;  // one smaller than its window sees nothing
};

VECINA_DEVICE int length_at(const LengthRows& rows, int sample, int axis, int extent) {
  const char* at = rows.data + sample * rows.sample + axis * rows.axis;
  const long long length =
      rows.bytes == 8 ? *reinterpret_cast<const long long*>(at) : *reinterpret_cast<const int*>(at);
  if (length < 0) return 0;
  return length < extent ? static_cast<int>(length) : extent;
}

// But for where it begins.
template <int kFirstAxis>
VECINA_DEVICE Sample extents_of(const SampleLengths& lengths, int index) {
  Sample sample = {{index, {1, 1, 1}, 0}, {index, {1, 1, 1}, 0}, {index, {1, 1, 1}, 0}, true};
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    const int keys = length_at(lengths.key, index, a - kFirstAxis, lengths.extent[a]);
    const int queries = length_at(lengths.query, index, a - kFirstAxis, lengths.query_extent[a]);
    sample.key.extent[a] = keys;
    sample.query.extent[a] = queries;
    sample.output.extent[a] = (queries + lengths.output_stride[a] - 1) / lengths.output_stride[a];
    sample.has_windows = sample.has_windows && keys >= lengths.window_tokens[a];
  }
  return sample;
}

VECINA_DEVICE long long sum_over_warp(long long x) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  }
  return x;
}

// By whole warps, each for one sample, after wait_for_previous().
template <int kLengths, int kFirstAxis>
VECINA_DEVICE Sample sample_at(const SampleLengths& lengths, int index) {
  Sample sample = extents_of<kFirstAxis>(lengths, index);
  if constexpr (kLengths == kPackedLengths) {
    for (int i = static_cast<int>(threadIdx.x) % 32; i < index; i += 32) {
      const Sample before = extents_of<kFirstAxis>(lengths, i);
      sample.key.first += before.key.count();
      sample.query.first += before.query.count();
      sample.output.first += before.output.count();
    }
    sample.key.first = sum_over_warp(sample.key.first);
    sample.query.first = sum_over_warp(sample.query.first);
    sample.output.first = sum_over_warp(sample.output.first);
    if (sample.key.first + sample.key.count() > lengths.num_keys ||
        sample.query.first + sample.query.count() > lengths.num_queries ||
        sample.output.first + sample.output.count() > lengths.num_outputs) {
      sample.key.extent[2] = sample.query.extent[2] = sample.output.extent[2] = 0;
      sample.has_windows = false;
    }
  }
  return sample;
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SAMPLES_CUH_
