// SPDX-License-Identifier: MIT
// Weighted sums of packed rows, which all three gradients are: of keys for a query, of queries and
// of gradients of the output for a key. Lanes run along head_dim.
// Part of backward.cc and row_sums.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_SUMS_INL_H_
#undef VECINA_CPU_SUMS_INL_H_
#else
#define VECINA_CPU_SUMS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "cpu/pack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// `count` rows, one after the other, and the weight of the first.
template <typename T>
struct Segment {
  const T* rows;
  const T* weights;
  int count;
};

// Weights of a key's sum over queries are neighbours, those of a query's sum over keys a vector
// apart.
enum class Weights { of_keys, of_queries };

// How to walk all segments of a call. Row n is at rows + row_offset + n * row_step; the first
// weight at weights + weight_offset.
struct Walk {
  ptrdiff_t row_offset = 0, weight_offset = 0, row_step = 0;
  ptrdiff_t weight_step = 0;  // of single(): from row to row
  bool starts = false;        // the sums: nothing is at `to` yet
  double scale = 1.0;         // of what is added to a query's sums, or is one
  // Of stairs: sum q takes the rows q to q + count - 1; of all sums' rows, here only [begin, end).
  int begin = 0, end = 0;
};

// Adds to sums of `size` elements, whole vectors, `pitch` apart, at any address. Compiled once, in
// row_sums.cc, for all element types.
template <class D>
class RowSums {
 public:
  using T = hn::TFromD<D>;
  // Sums of one call, so that they and what is added to them fit the registers: with 16 of them
  // and FMA three of four vectors, which take a load for 1.7 multiply-adds.
  static constexpr int kMost = HWY_TARGET == HWY_AVX3 ? 8 : HWY_TARGET == HWY_AVX2 ? 3 : 4;
  static constexpr int kFew = HWY_TARGET == HWY_AVX2 ? 2 : 4;
  static constexpr int kVectors = HWY_TARGET == HWY_AVX2 ? 4 : 2;

  // How many of `left` sums one call of stairs() or level() takes; 1: none, take single().
  static constexpr int take(int left, int most = kMost) {
    if (left < kFew) return 1;
    return left >= most && (kMost % kFew == 0 || left != most + 1) ? most : kFew;
  }
  // How many sums stairs of segments of at least `count` rows take at once; 1: none.
  static constexpr int most_in_stairs(int count) {
    return count >= kMost - 1 ? kMost : count >= kFew - 1 ? kFew : 1;
  }

  // Each sum takes the rows of the one before but for the first, and one more. Segments of at least
  // sums - 1 rows.
  static void stairs(int sums, Weights weights, const Segment<T>* segments, int num_segments,
                     const Walk& walk, int size, T* to, ptrdiff_t pitch);
  // All sums take the same rows.
  static void level(int sums, Weights weights, const Segment<T>* segments, int num_segments,
                    const Walk& walk, int size, T* to, ptrdiff_t pitch);
  static void single(const Segment<T>* segments, int num_segments, const Walk& walk, int size,
                     T* to);
};
extern template class RowSums<hn::ScalableTag<float>>;
extern template class RowSums<hn::ScalableTag<double>>;

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_SUMS_INL_H_
