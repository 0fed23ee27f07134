// SPDX-License-Identifier: MIT
// From the sums of small_fragments.cu's warps to rows of the output: two warps that share a box's
// keys hand each other half of its rows through shared memory.
#ifndef VECINA_CUDA_KERNELS_SMALL_FRAGMENTS_ROWS_CUH_
#define VECINA_CUDA_KERNELS_SMALL_FRAGMENTS_ROWS_CUH_

#include "small_fragments_box.cuh"

namespace vecina::cuda {

// Sums of a warp: its part of the keys, for the thread's two rows.
struct Sums {
  float maximum[2], total[2];  // of logits in powers of two; of their exponentials
  float output[kColumns / 8][4];
};

// A sum of exponentials is 0, or 1 and more.
VECINA_DEVICE float inverse_of(float total) { return total == 0.0f ? 0.0f : reciprocal(total); }

// A thread's part of one row's sums: columns 8q to 8q + 7 of each 32.
struct RowSums {
  float maximum, total;
  float output[kColumns / 32][8];

  VECINA_DEVICE RowSums(const Sums& sums, int i) : maximum(sums.maximum[i]), total(sums.total[i]) {
#pragma unroll
    for (int m = 0; m < kColumns / 32; ++m) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        output[m][t] = sums.output[4 * m + t][2 * i];
        output[m][4 + t] = sums.output[4 * m + t][2 * i + 1];
      }
    }
  }

  VECINA_DEVICE void add(const RowSums& other) {
    const float both = larger(maximum, other.maximum);
    const float weight = power_of_two(maximum - both);
    const float other_weight = power_of_two(other.maximum - both);
    maximum = both;
    total = weight * total + other_weight * other.total;
#pragma unroll
    for (int m = 0; m < kColumns / 32; ++m) {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        output[m][c] = weight * output[m][c] + other_weight * other.output[m][c];
      }
    }
  }

  VECINA_DEVICE void store(const Params& params, const Box& box, const Row& row, int q) const {
    if (!row.is_query) return;
    const float inverse = inverse_of(total);
    char* to = output_row(params, box, row);
#pragma unroll
    for (int m = 0; m < kColumns / 32; ++m) {
      float columns[8];
#pragma unroll
      for (int c = 0; c < 8; ++c) columns[c] = output[m][c] * inverse;
      char* eight = to + (32 * m + 8 * q) * kBytes;
      if constexpr (kIsF32) {
        vecina::cuda::store<Element, 4>(columns, eight);
        vecina::cuda::store<Element, 4>(columns + 4, eight + 16);
      } else {
        vecina::cuda::store<Element, 8>(columns, eight);
      }
    }
    if (params.lse != nullptr && q == 0) {
      store_lse(params, box, row, (maximum + logarithm_of_two(total)) * static_cast<float>(kLn2));
    }
  }
};

// What the two warps of a box hand each other: each its second row, in pieces of a whole warp.
struct PairSlots {
  float4* pieces;
  float2* totals;

  VECINA_DEVICE explicit PairSlots(float4* shared)
      : pieces(shared), totals(reinterpret_cast<float2*>(shared + kBoxes * 2 * kColumns / 4 * 8)) {}

  VECINA_DEVICE static int slot(int warp, int piece) {
    return (warp * (kColumns / 16) + piece) * 32 + static_cast<int>(ThreadNumber(threadIdx.x) % 32);
  }
  VECINA_DEVICE void put(int warp, const RowSums& row) const {
#pragma unroll
    for (int p = 0; p < kColumns / 16; ++p) {
      const float* from = row.output[p / 2] + p % 2 * 4;
      pieces[slot(warp, p)] = make_float4(from[0], from[1], from[2], from[3]);
    }
    totals[warp * 32 + static_cast<int>(ThreadNumber(threadIdx.x) % 32)] =
        make_float2(row.maximum, row.total);
  }
  VECINA_DEVICE void get(int warp, RowSums* row) const {
#pragma unroll
    for (int p = 0; p < kColumns / 16; ++p) {
      const float4 four = pieces[slot(warp, p)];
      float* to = row->output[p / 2] + p % 2 * 4;
      to[0] = four.x;
      to[1] = four.y;
      to[2] = four.z;
      to[3] = four.w;
    }
    const float2 both = totals[warp * 32 + static_cast<int>(ThreadNumber(threadIdx.x) % 32)];
    row->maximum = both.x;
    row->total = both.y;
  }
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SMALL_FRAGMENTS_ROWS_CUH_
