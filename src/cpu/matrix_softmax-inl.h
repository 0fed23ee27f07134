// SPDX-License-Identifier: MIT
// The softmax of the forward pass in the matrix form: from a tile's rows of logits to rows of
// weights, rounded to bfloat16. Of 16 queries by blocks of 16 columns, or by windows that were
// taken out of them. Part of matrix.cc; compiled for AVX-512.
#if defined(VECINA_CPU_MATRIX_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_MATRIX_SOFTMAX_INL_H_
#undef VECINA_CPU_MATRIX_SOFTMAX_INL_H_
#else
#define VECINA_CPU_MATRIX_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/forward.h"
#include "cpu/matrix_items-inl.h"
#include "cpu/matrix_rows-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Of the sixteen queries of a tile.
struct MatrixSoftmax {
  using D = hn::ScalableTag<float>;
  using V = hn::Vec<D>;
  using Rows = float[kMatrixTile][kMatrixTile];

  HWY_ALIGN float largest[kMatrixTile];  // logit so far, in powers of two
  HWY_ALIGN float sums[kMatrixTile];     // of weights
  HWY_ALIGN float shrink[kMatrixTile];   // of what was summed up before

  void begin() {
    const D d;
    hn::Store(empty_softmax(d).max, d, largest);
    hn::Store(empty_softmax(d).sum, d, sums);
  }
  // Takes logits into the state. `rows`: the largest that each query sees, lane by lane.
  // turn(base) makes weights 2^(logit - base[q]) of query q's, and leaves their sums in `rows`.
  template <class Turn>
  void take(Rows& rows, const Turn& turn) {
    const D d;
    SoftmaxState<D> state = {hn::Load(d, largest), hn::Load(d, sums)};
    const auto before = state.max;
    state.max = hn::Max(
        before, combine_rows(d, rows, [](V a, V b) VECINA_INLINE { return hn::Max(a, b); }));
    const auto factor = softmax<false>(d, before, &state, [&](V base) VECINA_INLINE {
      HWY_ALIGN float bases[kMatrixTile];
      hn::Store(base, d, bases);
      turn(bases);
      return combine_rows(d, rows, [](V a, V b) VECINA_INLINE { return hn::Add(a, b); });
    });
    hn::Store(state.max, d, largest);
    hn::Store(state.sum, d, sums);
    hn::Store(factor, d, shrink);
  }
};

// Columns of rows of logits and of weights, counted from where both begin: of which all queries see
// all sixteen, some, or none.
struct MatrixBlocks {
  struct Block {
    int column;
    __mmask16 seen[kMatrixTile];  // by each query
  };
  static constexpr int kMost = kMatrixColumns / kMatrixTile;
  Block some[kMost];
  int whole[kMost], empty[kMost];
  int num_some = 0, num_whole = 0, num_empty = 0;

  // Columns [first, first + 16) of what `view` counts.
  void add(int column, const MatrixView& view, int first) {
    if (view.holds(first, kMatrixTile)) {
      whole[num_whole++] = column;
    } else if (!view.touches(first, kMatrixTile)) {
      empty[num_empty++] = column;
    } else {
      Block& block = some[num_some++];
      block.column = column;
      for (int q = 0; q < kMatrixTile; ++q) {
        const KeyRange seen = view.of(q);
        const int begin = std::clamp(seen.begin - first, 0, kMatrixTile);
        const int end = std::clamp(seen.end - first, begin, kMatrixTile);
        block.seen[q] = static_cast<__mmask16>((1U << end) - (1U << begin));
      }
    }
  }
};

template <class Tiles>
void turn_to_weights(const MatrixBlocks& blocks, float log2_scale, const float* logits,
                     bfloat16* weights, MatrixSoftmax* softmax) {
  using V = MatrixSoftmax::V;
  const MatrixSoftmax::D d;
  const auto scale = hn::Set(d, log2_scale), none = empty_softmax(d).max;
  HWY_ALIGN MatrixSoftmax::Rows rows;
  for (int q = 0; q < kMatrixTile; ++q) {
    const float* row = logits + q * kMatrixLogitsPitch;
    auto largest = none, other = none;
    int i = 0;
    for (; i + 2 <= blocks.num_whole; i += 2) {
      largest = hn::Max(largest, hn::Mul(hn::Load(d, row + blocks.whole[i]), scale));
      other = hn::Max(other, hn::Mul(hn::Load(d, row + blocks.whole[i + 1]), scale));
    }
    if (i < blocks.num_whole) {
      largest = hn::Max(largest, hn::Mul(hn::Load(d, row + blocks.whole[i]), scale));
    }
    for (i = 0; i < blocks.num_some; ++i) {
      const MatrixBlocks::Block& block = blocks.some[i];
      const auto logit = hn::Mul(hn::Load(d, row + block.column), scale);
      other = hn::Max(other, V{_mm512_mask_mov_ps(none.raw, block.seen[q], logit.raw)});
    }
    hn::Store(hn::Max(largest, other), d, rows[q]);
  }
  softmax->take(rows, [&](const float* base) HWY_ATTR {
    for (int q = 0; q < kMatrixTile; ++q) {
      const float* row = logits + q * kMatrixLogitsPitch;
      bfloat16* to = weights + q * kMatrixWeightsPitch;
      const auto from = hn::Set(d, base[q]);
      const auto weight = [&](int column) VECINA_INLINE {
        // Rounded as the largest was: fused, it would count large logits from another number.
        const auto logit = in_register(hn::Mul(hn::Load(d, row + column), scale));
        return exp2_scaled(d, hn::Sub(logit, from));
      };
      const auto store = [&](V w, int column) VECINA_INLINE {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + column), Tiles::round(d, w));
      };
      auto sum = hn::Zero(d), other = sum;
      int i = 0;
      for (; i + 2 <= blocks.num_whole; i += 2) {
        const auto w0 = weight(blocks.whole[i]), w1 = weight(blocks.whole[i + 1]);
        sum = hn::Add(sum, w0);
        other = hn::Add(other, w1);
        store(w0, blocks.whole[i]);
        store(w1, blocks.whole[i + 1]);
      }
      if (i < blocks.num_whole) {
        const auto w = weight(blocks.whole[i]);
        sum = hn::Add(sum, w);
        store(w, blocks.whole[i]);
      }
      for (i = 0; i < blocks.num_some; ++i) {
        const MatrixBlocks::Block& block = blocks.some[i];
        const V w = {_mm512_maskz_mov_ps(block.seen[q], weight(block.column).raw)};
        other = hn::Add(other, w);
        store(w, block.column);
      }
      for (i = 0; i < blocks.num_empty; ++i) store(hn::Zero(d), blocks.empty[i]);
      hn::Store(hn::Add(sum, other), d, rows[q]);
    }
  });
}

// The columns of a step that each query sees, where they are a few neighbours: those of query q
// begin at first + q * step of the step's. Taken out of the step they follow each other: a vector
// each, or of up to kMatrixHalf columns half of one.
struct MatrixWindow {
  int column;  // of the step, in rows of weights
  int first, step;
};
inline constexpr int kMatrixHalf = kMatrixTile / 2;
// Floats from one query's to the next one's.
inline constexpr ptrdiff_t kWindowsPitch = ptrdiff_t{kMatrixColumns} / kMatrixStep * kMatrixTile;

// From a step's logits of all queries, kMatrixStep apart.
template <class D>
HWY_INLINE void take_windows(D d, const MatrixWindow& window, size_t columns, float log2_scale,
                             const float* logits, float* to) {
  const auto scale = hn::Set(d, log2_scale), none = empty_softmax(d).max;
  const auto is_seen = hn::FirstN(d, columns);
  logits += window.first;
  for (int q = 0; q < kMatrixTile; ++q, logits += kMatrixStep + window.step, to += kWindowsPitch) {
    hn::Store(hn::IfThenElse(is_seen, hn::Mul(hn::LoadU(d, logits), scale), none), d, to);
  }
}

// Of `count` windows; zeros surround each.
template <class Tiles, bool kAreHalves>
void turn_to_weights(const MatrixWindow* windows, int count, float* logits, bfloat16* weights,
                     MatrixSoftmax* softmax) {
  const MatrixSoftmax::D d;
  const hn::Repartition<uint16_t, MatrixSoftmax::D> d16;  // a step of weights
  constexpr int kOfVector = kAreHalves ? 2 : 1;
  const int vectors = (count + kOfVector - 1) / kOfVector;
  const auto none = empty_softmax(d).max;
  HWY_ALIGN MatrixSoftmax::Rows rows;
  for (int q = 0; q < kMatrixTile; ++q) {
    float* row = logits + q * kWindowsPitch;
    if (kAreHalves && count % 2 != 0) {
      const hn::Half<MatrixSoftmax::D> half;
      hn::Store(hn::LowerHalf(half, none), half, row + count * kMatrixHalf);
    }
    auto largest = none;
    for (int v = 0; v < vectors; ++v) {
      largest = hn::Max(largest, hn::Load(d, row + v * kMatrixTile));
    }
    hn::Store(largest, d, rows[q]);
  }
  softmax->take(rows, [&](const float* base) HWY_ATTR {
    for (int q = 0; q < kMatrixTile; ++q) {
      const float* row = logits + q * kWindowsPitch;
      const auto from = hn::Set(d, base[q]);
      const auto place = [&](int i) VECINA_INLINE {
        const MatrixWindow& window = windows[i];
        bfloat16* step = weights + q * kMatrixWeightsPitch + window.column;
        hn::StoreU(hn::Zero(d16), d16, reinterpret_cast<uint16_t*>(step));
        return reinterpret_cast<__m128i*>(step + window.first + q * window.step);
      };
      auto sum = hn::Zero(d);
      for (int v = 0; v < vectors; ++v) {
        // Of columns that are not seen, zero: 2^-infinity.
        const auto weight = exp2_scaled(d, hn::Sub(hn::Load(d, row + v * kMatrixTile), from));
        sum = hn::Add(sum, weight);
        const auto rounded = Tiles::round(d, weight);
        const int i = v * kOfVector;
        if constexpr (kAreHalves) {
          _mm_storeu_si128(place(i), _mm256_castsi256_si128(rounded));
          if (i + 1 < count) _mm_storeu_si128(place(i + 1), _mm256_extracti128_si256(rounded, 1));
        } else {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(place(i)), rounded);
        }
      }
      hn::Store(sum, d, rows[q]);
    }
  });
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // VECINA_CPU_MATRIX_SOFTMAX_INL_H_
