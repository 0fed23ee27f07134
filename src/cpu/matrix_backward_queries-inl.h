// SPDX-License-Identifier: MIT
// Tiles of queries of the backward pass in the matrix form: queries and their grad_output, each in
// words of two entries and in rows of two tokens, as the second operands of products, and what
// makes probabilities and their gradients.
// Part of matrix.cc; compiled for AVX-512.
#if defined(VECINA_CPU_MATRIX_BACKWARD_QUERIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_MATRIX_BACKWARD_QUERIES_INL_H_
#undef VECINA_CPU_MATRIX_BACKWARD_QUERIES_INL_H_
#else
#define VECINA_CPU_MATRIX_BACKWARD_QUERIES_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cpu/backward.h"
#include "cpu/matrix_backward_keys-inl.h"
#include "cpu/matrix_rows-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/row_softmax-inl.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

class MatrixBackwardQueries : public MatrixBackwardKeys {
 protected:
  MatrixBackwardQueries(const BackwardPlan& plan, const BackwardPointers& pointers, int64_t unit,
                        void* scratch)
      : MatrixBackwardKeys(plan, pointers, unit, scratch),
        output_(tensor_at<const bfloat16>(pointers.output, plan.output, batch_, head_)),
        grad_output_(
            tensor_at<const bfloat16>(pointers.grad_output, plan.grad_output, batch_, head_)),
        lse_(tensor_at<const float>(pointers.lse, plan.lse, batch_, head_)),
        grad_lse_(tensor_at<const float>(pointers.grad_lse, plan.grad_lse, batch_, head_)),
        grad_query_(tensor_at<bfloat16>(pointers.grad_query, plan.grad_query, batch_, head_)) {}

  static constexpr int kQueries = kMatrixPairQueries;

  struct Tile : QueryTile {
    const bfloat16 *queries = nullptr, *grad_outputs = nullptr;  // in their tensors
    bfloat16* grad_queries = nullptr;
    // A bit for each that has what is not finite.
    uint16_t queries_apart = 0, grad_outputs_apart = 0;
    __mmask16 is_query = 0;  // that sees some key
    RowSoftmax<D> softmax;
    HWY_ALIGN float mean[kTile];  // delta - grad_lse
    bool sums_delta = false;      // delta is summed up, not taken from output
    HWY_ALIGN float probability_sums[kTile], delta_sums[kTile];  // of P and of P * dP
  };

  int tile_pairs() const { return num_tiles_ / 2; }
  // What one pair of tiles has in an array of `pitch` entries for each query, two in a float.
  float* queries_of(size_t array, int pair, int pitch) const {
    return scratch_ + array + ptrdiff_t{pair} * kQueries / 2 * pitch;
  }

  // False: the item at `item` has no tile t.
  bool set_tile(int t, const Place& item, const Box& band) {
    Tile& tile = tiles_[t];
    Place place;
    tile.num_queries = 0;
    tile.sums_delta = false;
    if (find_tile(item, t, &place)) place_tile(place, band, first_column(item), &tile);
    const bool is_there = tile.num_queries > 0;
    // Tiles are there from the first on: a pair whose first one is not is not read at all.
    if (!is_there && (t % 2 == 0 || tiles_[t - 1].num_queries == 0)) return false;
    if (is_there) {
      tile.queries = query_ + query_offset(plan_.query, place);
      tile.grad_outputs = grad_output_ + output_offset(plan_.grad_output, place);
      if (grad_query_ != nullptr) {
        tile.grad_queries = grad_query_ + query_offset(plan_.grad_query, place);
      }
      tile.sums_delta = is_delta_rough(least_keys(item, tile));
      set_softmax(place, &tile);
      if (!tile.sums_delta) set_mean(place, &tile);
    }
    tile.queries_apart = set_rows(t, tile.queries, query_stride(), plan_.head_dim, plan_.key_pitch,
                                  plan_.scratch.transposed_queries, plan_.scratch.queries);
    tile.grad_outputs_apart = set_rows(
        t, tile.grad_outputs, output_stride(plan_.grad_output), plan_.head_dim_value,
        plan_.value_pitch, plan_.scratch.transposed_grad_outputs, plan_.scratch.grad_outputs);
    return is_there;
  }

  const bfloat16 *output_, *grad_output_;
  const float *lse_, *grad_lse_;
  bfloat16* const grad_query_;
  Tile tiles_[2 * kMostTilePairs];

 private:
  // To words of all queries and to rows of two of them, zeros for those that are none. What is not
  // finite is zero in the latter, and marked.
  uint16_t set_rows(int t, const bfloat16* from, ptrdiff_t stride, int size, int pitch,
                    size_t transposed, size_t paired) const {
    const D d;
    const bfloat16* rows[kTile];
    for (int q = 0; q < kTile; ++q) {
      rows[q] = q < tiles_[t].num_queries ? from + q * stride : keys_.zeros();
    }
    const ScatteredRows<bfloat16> scattered = {rows};
    float* words = queries_of(transposed, t / 2, pitch) + t % 2 * kTile;
    transpose_rows(d, InWords<ScatteredRows<bfloat16>>{scattered}, static_cast<size_t>(size / 2),
                   kQueries, Unscaled(), words);
    for (int word = size / 2; word < pitch / 2; ++word) {
      hn::Store(hn::Zero(d), d, words + ptrdiff_t{word} * kQueries);
    }
    unsigned marks = 0;
    float* both = queries_of(paired, t / 2, pitch) + ptrdiff_t{t} % 2 * (kTile / 2) * pitch;
    for (int q = 0; q < kTile; q += 2, both += pitch) {
      copy_halves(d, rows[q], rows[q + 1], static_cast<size_t>(size), static_cast<size_t>(pitch),
                  both);
      for (int i = 0; i < 2; ++i) {
        const bfloat16* row = rows[q + i];
        if (HWY_LIKELY(are_finite(row, size))) continue;
        marks |= 1U << (q + i);
        auto* halves = reinterpret_cast<bfloat16*>(both) + i;
        for (int e = 0; e < size; ++e) {
          if (!is_finite(row[e])) halves[2 * e] = bfloat16();
        }
      }
    }
    return static_cast<uint16_t>(marks);
  }

  // Keys that the first query of a tile sees: on a causal axis no other one sees fewer.
  int64_t least_keys(const Place& item, const Tile& tile) const {
    const AxisGroup& outer = keys_.axis(0);
    const int position = outer.position(item.z);
    const int64_t rows = int64_t{outer.end(position) - outer.begin(position)} * tile.rows.size();
    return rows * tile.view.of(0).size() + plan_.additional_tokens;
  }

  void set_softmax(const Place& place, Tile* tile) const {
    const D d;
    const float* lse = lse_ + output_offset(plan_.lse, place);
    const float* grad_lse =
        grad_lse_ == nullptr ? nullptr : grad_lse_ + output_offset(plan_.grad_lse, place);
    HWY_ALIGN float lses[kTile];
    for (int q = 0; q < kTile; ++q) {
      const bool is_query = q < tile->num_queries;
      lses[q] = is_query ? lse[q * output_stride(plan_.lse)] : 0.0f;
      tile->softmax.grad_lse[q] =
          is_query && grad_lse != nullptr ? grad_lse[q * output_stride(plan_.grad_lse)] : 0.0f;
    }
    tile->softmax.set_lse(hn::Load(d, lses), tile->num_queries);
    tile->is_query = _mm512_cmp_ps_mask(hn::Load(d, tile->softmax.sees_some).raw,
                                        hn::Set(d, 1.0f).raw, _CMP_EQ_OQ);
  }
  // Delta of output.
  void set_mean(const Place& place, Tile* tile) const {
    const D d;
    const bfloat16* output = output_ + output_offset(plan_.output, place);
    HWY_ALIGN float products[kTile][kTile];
    for (int q = 0; q < kTile; ++q) {
      auto sum = hn::Zero(d);
      if (q < tile->num_queries) {
        const bfloat16* a = output + q * output_stride(plan_.output);
        const bfloat16* b = tile->grad_outputs + q * output_stride(plan_.grad_output);
        int e = 0;
        for (; e + kTile <= plan_.head_dim_value; e += kTile) {
          sum = hn::MulAdd(load(d, a + e), load(d, b + e), sum);
        }
        float rest = 0.0f;
        for (; e < plan_.head_dim_value; ++e) rest += to_compute(a[e]) * to_compute(b[e]);
        sum = hn::Add(sum, hn::IfThenElseZero(hn::FirstN(d, 1), hn::Set(d, rest)));
      }
      hn::Store(sum, d, products[q]);
    }
    const auto delta =
        combine_rows(d, products, [](auto a, auto b) VECINA_INLINE { return hn::Add(a, b); });
    hn::Store(hn::Sub(delta, hn::Load(d, tile->softmax.grad_lse)), d, tile->mean);
  }
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // VECINA_CPU_MATRIX_BACKWARD_QUERIES_INL_H_
