// SPDX-License-Identifier: MIT
// Keys and values of the backward pass in the matrix form: rows of both, as the first operands of
// logits and of the gradients of probabilities, keys transposed too, for the gradients of queries,
// and the sums of their own gradients.
// Part of matrix.cc; compiled for AVX-512.
#if defined(VECINA_CPU_MATRIX_BACKWARD_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_MATRIX_BACKWARD_KEYS_INL_H_
#undef VECINA_CPU_MATRIX_BACKWARD_KEYS_INL_H_
#else
#define VECINA_CPU_MATRIX_BACKWARD_KEYS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/backward.h"
#include "cpu/key_gradients-inl.h"
#include "cpu/matrix_items-inl.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

class MatrixBackwardKeys : public MatrixItems<BackwardPlan> {
 protected:
  MatrixBackwardKeys(const BackwardPlan& plan, const BackwardPointers& pointers, int64_t unit,
                     void* scratch)
      : MatrixItems(plan, pointers, unit, scratch, 2 * plan.matrix.tile_pairs),
        sums_(plan, pointers, unit, scratch_) {}

  // A row of packed keys, from the item's first column on.
  struct KeyRow {
    bfloat16 *keys, *values, *transposed;
    ptrdiff_t transposed_pitch;
    float *key_sums, *value_sums;
    uint16_t* apart;         // of each 16 columns: a bit for each key that is not finite
    const bfloat16* tokens;  // the keys in their tensor
    int position;            // of column 0 there
    bool is_additional;
  };

  // All rows of keys at one place of the ring's axis.
  template <class Visit>
  void for_rows(int at, const KeyRange& others, const Visit& visit) const {
    for (int other = others.begin; other < others.end; ++other) {
      keys_.ring().axis == 0 ? visit(at, other) : visit(other, at);
    }
  }
  size_t other_axis() const { return 1 - static_cast<size_t>(keys_.ring().axis); }
  void pack_rows(int at) {
    for_rows(at, keys_.range(other_axis()), [&](int z, int y) { pack_row(z, y); });
  }

  bfloat16* halves(size_t array) const { return reinterpret_cast<bfloat16*>(scratch_ + array); }
  uint16_t* marks(size_t array) const { return reinterpret_cast<uint16_t*>(scratch_ + array); }

  KeyRow row_of_keys(int z, int y, int first) const {
    const ptrdiff_t row = keys_.row(z, y), token = row * keys_.tokens() + first;
    const ptrdiff_t sum = plan_.first_sum(keys_.box(), z, y) + first;
    const ptrdiff_t pitch = matrix_transposed_pitch(keys_.tokens());
    return {halves(plan_.scratch.keys) + token * plan_.key_pitch,
            halves(plan_.scratch.values) + token * plan_.value_pitch,
            halves(plan_.scratch.transposed_keys) + row * pitch * plan_.key_pitch + first,
            pitch,
            sums_.keys + sum * plan_.key_pitch,
            sums_.keys + plan_.sums_value + sum * plan_.value_pitch,
            marks(plan_.matrix.apart) + token / kTile,
            key_ + keys_.row_offset(plan_.key, z, y),
            keys_.range(2).begin + first,
            /*is_additional=*/false};
  }
  KeyRow row_of_additional() const {
    return {halves(plan_.scratch.additional_keys),
            halves(plan_.scratch.additional_values),
            halves(plan_.matrix.additional_transposed),
            matrix_transposed_pitch(additional_columns()),
            sums_.additional,
            sums_.additional + plan_.additional_value_sums,
            marks(plan_.matrix.additional_apart),
            additional_key_,
            /*position=*/0,
            /*is_additional=*/true};
  }
  const bfloat16* key_of(const KeyRow& row, int column) const {
    const int position = row.position + column;
    return row.is_additional ? row.tokens + position * plan_.additional_key.token[2]
                             : keys_.token(row.tokens, plan_.key, position);
  }

  void pack_row(int z, int y) {
    const KeyRow row = row_of_keys(z, y, 0);
    const bfloat16* value = value_ + keys_.row_offset(plan_.value, z, y);
    pack(row, keys_.tokens(),
         [&](int column) { return keys_.token(value, plan_.value, row.position + column); });
    const auto count = static_cast<ptrdiff_t>(plan_.sums_tokens(keys_.box()));
    std::fill_n(row.key_sums, count * plan_.key_pitch, 0.0f);
    std::fill_n(row.value_sums, count * plan_.value_pitch, 0.0f);
  }
  void pack_additional() {
    const KeyRow row = row_of_additional();
    pack(row, additional_columns(),
         [&](int column) { return additional_value_ + column * plan_.additional_value.token[2]; });
  }
  template <class ValueOf>
  void pack(const KeyRow& row, int columns, const ValueOf& value_of) {
    std::fill_n(row.apart, columns / kTile, uint16_t{0});
    for (int column = 0; column < columns; ++column) {
      const bool is_token = !row.is_additional || column < plan_.additional_tokens;
      const bfloat16* key = is_token ? key_of(row, column) : keys_.zeros();
      copy_padded(key, plan_.head_dim, plan_.key_pitch,
                  row.keys + ptrdiff_t{column} * plan_.key_pitch);
      copy_padded(is_token ? value_of(column) : keys_.zeros(), plan_.head_dim_value,
                  plan_.value_pitch, row.values + ptrdiff_t{column} * plan_.value_pitch);
      if (HWY_LIKELY(are_finite(key, plan_.head_dim))) continue;
      row.apart[column / kTile] |= static_cast<uint16_t>(1U << (column % kTile));
      has_apart_ = true;
    }
    transpose_keys(row, columns);
  }
  static void copy_padded(const bfloat16* from, int size, int pitch, bfloat16* to) {
    std::copy_n(from, size, to);
    std::fill(to + size, to + pitch, bfloat16());
  }
  // Of a row's packed keys. A gradient of zero would make NaN of what is not finite: that becomes
  // zero.
  void transpose_keys(const KeyRow& row, int columns) const {
    const ptrdiff_t words = plan_.key_pitch / 2, pitch = row.transposed_pitch;
    const auto* from = reinterpret_cast<const float*>(row.keys);
    for (int column = 0; column < columns; column += kTile, from += kTile * words) {
      for (ptrdiff_t word = 0; word < words; word += kTile) {
        bfloat16* entry = row.transposed + 2 * word * pitch + column;
        const auto store = [](__m512i halves, bfloat16* at) VECINA_INLINE {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtepi32_epi16(halves));
        };
        transpose_16x16(D(), RegularRows<float>(from, words), static_cast<size_t>(word),
                        [&](size_t i, hn::Vec<D> v) VECINA_INLINE {
                          const __m512i both = _mm512_castps_si512(v.raw);
                          bfloat16* even = entry + 2 * static_cast<ptrdiff_t>(i) * pitch;
                          store(both, even);
                          store(_mm512_srli_epi32(both, 16), even + pitch);
                        });
      }
    }
    for (int column = 0; column < columns; ++column) {
      if (!is_apart(row, column)) continue;
      for (int e = 0; e < plan_.head_dim; ++e) {
        bfloat16& entry = row.transposed[e * pitch + column];
        if (!is_finite(entry)) entry = bfloat16();
      }
    }
  }
  static bool is_apart(const KeyRow& row, int column) {
    return (row.apart[column / kTile] >> (column % kTile) & 1) != 0;
  }

  const UnitSums<float> sums_;
  bool has_apart_ = false;  // some key is not finite
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // VECINA_CPU_MATRIX_BACKWARD_KEYS_INL_H_
