// SPDX-License-Identifier: MIT
// A row of a tensor in the registers of the threads that share it.
#ifndef VECINA_CUDA_KERNELS_ROW_PART_CUH_
#define VECINA_CUDA_KERNELS_ROW_PART_CUH_

#include "types.h"

namespace vecina::cuda {

// A thread's part of a row of kVectors vectors: every kLanes-th from `first` on, kCount of them.
// Zeros beyond the row; of a row that is not there, without touching memory.
template <class Element, int kVectors, int kVector, int kPiece, int kLanes, int kCount, class Real>
VECINA_DEVICE void load_vectors(const char* row, int first, bool is_there, Real* part) {
#pragma unroll
  for (int m = 0; m < kCount; ++m) {
    const int vector = first + m * kLanes;
    if (is_there && vector < kVectors) {
      load_pieces<Element, kVector, kPiece>(
          row + vector * (kVector * static_cast<int>(sizeof(Element))), part + m * kVector);
    } else {
#pragma unroll
      for (int i = 0; i < kVector; ++i) part[m * kVector + i] = Real(0);
    }
  }
}

// One thread's part of a row of kSize elements that kLanes threads share: every kLanes-th vector
// of kVector elements, from the lane's own on. Zero beyond the row. Memory is accessed kPiece
// elements at a time.
template <class Element, class Real, int kSize, int kVector, int kPiece, int kLanes>
struct RowPart {
  static constexpr int kVectors = kSize / kVector;
  static constexpr int kCount = (kVectors + kLanes - 1) / kLanes;
  static constexpr int kColumns = kCount * kVector;
  static constexpr bool kIsEven = kVectors == kCount * kLanes;
  static constexpr int kVectorBytes = kVector * static_cast<int>(sizeof(Element));

  Real columns[kColumns];

  VECINA_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) columns[i] = Real(0);
  }
  VECINA_DEVICE void load(const char* row, int lane, bool is_there) {
    // An even row needs no comparison with its end.
    load_vectors<Element, kVectors + (kIsEven ? kLanes : 0), kVector, kPiece, kLanes, kCount>(
        row, lane, is_there, columns);
  }
  VECINA_DEVICE void store(char* row, int lane) const {
#pragma unroll
    for (int m = 0; m < kCount; ++m) {
      const int vector = m * kLanes + lane;
      if (kIsEven || vector < kVectors) {
        store_pieces<Element, kVector, kPiece>(columns + m * kVector, row + vector * kVectorBytes);
      }
    }
  }

  // As they were added up.
  VECINA_DEVICE void store_sums(Real* row, int lane) const {
#pragma unroll
    for (int m = 0; m < kCount; ++m) {
      const int vector = m * kLanes + lane;
      if (!kIsEven && vector >= kVectors) continue;
#pragma unroll
      for (int i = 0; i < kVector; ++i) row[vector * kVector + i] = columns[m * kVector + i];
    }
  }

  // This thread's share of the dot product of two rows.
  VECINA_DEVICE Real dot(const RowPart& other) const {
    Real sum = Real(0);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sum = multiply_add(columns[i], other.columns[i], sum);
    return sum;
  }
  // The same with `plus - minus`.
  VECINA_DEVICE Real dot_difference(const RowPart& plus, const RowPart& minus) const {
    Real sum = Real(0);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      sum = multiply_add(columns[i], plus.columns[i] - minus.columns[i], sum);
    }
    return sum;
  }
  VECINA_DEVICE void add_scaled(Real factor, const RowPart& other) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      columns[i] = multiply_add(factor, other.columns[i], columns[i]);
    }
  }
  VECINA_DEVICE void scale(Real factor) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) columns[i] *= factor;
  }

  // Sums the parts of groups of kLanes threads, of as many as lie in kEnd threads of the warp; all
  // get the sum.
  template <int kEnd = 32>
  VECINA_DEVICE void sum_over_groups() {
#pragma unroll
    for (int distance = kLanes; distance < kEnd; distance *= 2) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        columns[i] += __shfl_xor_sync(0xffffffffu, columns[i], distance);
      }
    }
  }
};

// Sums over the threads that share a row; all get the sum.
template <int kLanes, class Real>
VECINA_DEVICE Real sum_over_lanes(Real x) {
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  }
  return x;
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_ROW_PART_CUH_
