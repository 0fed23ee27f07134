// SPDX-License-Identifier: MIT
// Keys and values of the forward pass in the matrix form: keys transposed, in words of two entries,
// values in pairs of neighbours, as the second operands of both products. Part of matrix.cc;
// compiled for AVX-512.
#if defined(VECINA_CPU_MATRIX_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_MATRIX_KEYS_INL_H_
#undef VECINA_CPU_MATRIX_KEYS_INL_H_
#else
#define VECINA_CPU_MATRIX_KEYS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/forward.h"
#include "cpu/matrix_items-inl.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

class MatrixKeys : public MatrixItems<ForwardPlan> {
 protected:
  using MatrixItems<ForwardPlan>::MatrixItems;

  // A row of packed keys, from the item's first column on.
  struct KeyRow {
    const float *keys, *values;
    ptrdiff_t key_pitch;     // floats from one pair of entries to the next
    const uint16_t* apart;   // of each 16 columns: a bit for each value that is not finite
    const bfloat16* tokens;  // their values in the tensor
    int position;            // of column 0 there
    bool is_additional;
  };

  // The row at the given outer positions, from its column `first` on.
  KeyRow row_of_keys(int z, int y, int first) const {
    const ptrdiff_t row = keys_.row(z, y);
    return {packed_keys(row) + first,
            packed_values(row) + ptrdiff_t{first} / 2 * plan_.value_pitch,
            keys_.pitch(),
            apart(row) + first / kMatrixTile,
            value_ + keys_.row_offset(plan_.value, z, y),
            keys_.range(2).begin + first,
            /*is_additional=*/false};
  }
  KeyRow row_of_additional() const {
    return {scratch_ + plan_.scratch.additional_keys,
            scratch_ + plan_.scratch.additional_values,
            additional_columns(),
            additional_apart(),
            additional_value_,
            /*position=*/0,
            /*is_additional=*/true};
  }
  const bfloat16* value_of(const KeyRow& row, int column) const {
    const int position = row.position + column;
    return row.is_additional ? row.tokens + position * plan_.additional_value.token[2]
                             : keys_.token(row.tokens, plan_.value, position);
  }
  void pack_row(int z, int y) {
    const ptrdiff_t row = keys_.row(z, y);
    const int words = plan_.head_dim / 2;
    float* keys = packed_keys(row);
    keys_.transpose<true>(key_ + keys_.row_offset(plan_.key, z, y), plan_.key, words, keys);
    clear_words(words, keys_.pitch(), keys);
    const bfloat16* value = value_ + keys_.row_offset(plan_.value, z, y);
    for (int column = 0; column < keys_.tokens(); column += kMatrixTile) {
      const int next = keys_.range(2).begin + column + kMatrixTile;
      if (plan_.fetches_far) {
        keys_.fetch(value, plan_.value, next, kMatrixTile, plan_.head_dim_value);
      }
      const bfloat16* tokens[kMatrixTile];
      for (int i = 0; i < kMatrixTile; ++i) {
        tokens[i] = keys_.token(value, plan_.value, keys_.range(2).begin + column + i);
      }
      pack_values(tokens, packed_values(row) + ptrdiff_t{column / 2} * plan_.value_pitch,
                  apart(row) + column / kMatrixTile);
    }
  }

  void pack_additional() {
    const int columns = additional_columns(), words = plan_.head_dim / 2;
    float* keys = scratch_ + plan_.scratch.additional_keys;
    float* values = scratch_ + plan_.scratch.additional_values;
    for (int column = 0; column < columns; column += kMatrixTile) {
      const auto choose = [&](const bfloat16* tokens, const Strides& strides,
                              const bfloat16*(&chosen)[kMatrixTile]) {
        for (int i = 0; i < kMatrixTile; ++i) {
          const bool is_token = column + i < plan_.additional_tokens;
          chosen[i] = is_token ? tokens + (column + i) * strides.token[2] : keys_.zeros();
        }
      };
      const bfloat16* tokens[kMatrixTile];
      choose(additional_key_, plan_.additional_key, tokens);
      const ScatteredRows<bfloat16> rows = {tokens};
      transpose_rows(D(), InWords<ScatteredRows<bfloat16>>{rows}, static_cast<size_t>(words),
                     static_cast<size_t>(columns), Unscaled(), keys + column);
      choose(additional_value_, plan_.additional_value, tokens);
      pack_values(tokens, values + ptrdiff_t{column / 2} * plan_.value_pitch,
                  additional_apart() + column / kMatrixTile);
    }
    clear_words(words, columns, keys);
  }

  bool has_apart() const { return has_apart_; }

 private:
  float* packed_keys(ptrdiff_t row) const {
    return scratch_ + plan_.scratch.keys + row * keys_.transposed_row(plan_.key_words);
  }
  float* packed_values(ptrdiff_t row) const {
    return scratch_ + plan_.scratch.values + row * keys_.tokens() * plan_.value_pitch / 2;
  }
  uint16_t* apart(ptrdiff_t row) const {
    return reinterpret_cast<uint16_t*>(scratch_ + plan_.matrix.apart) +
           row * (keys_.tokens() / kMatrixTile);
  }
  uint16_t* additional_apart() const {
    return reinterpret_cast<uint16_t*>(scratch_ + plan_.matrix.additional_apart);
  }

  // Pairs of entries that fill up the last tile.
  void clear_words(int words, int pitch, float* keys) const {
    std::fill(keys + ptrdiff_t{words} * pitch, keys + ptrdiff_t{plan_.key_words} * pitch, 0.0f);
  }

  // Sixteen values, two side by side. A weight of zero would make NaN of what is not finite: that
  // is packed as zero, and its token marked.
  void pack_values(const bfloat16* const (&tokens)[kMatrixTile], float* to, uint16_t* apart) {
    unsigned marks = 0;
    for (unsigned i = 0; i < kMatrixTile; ++i) {
      const auto pitch = static_cast<size_t>(plan_.value_pitch);
      float* pair = to + i / 2 * pitch;
      if (i % 2 == 0) {
        copy_halves(D(), tokens[i], tokens[i + 1], static_cast<size_t>(plan_.head_dim_value), pitch,
                    pair);
      }
      if (HWY_LIKELY(are_finite(tokens[i], plan_.head_dim_value))) continue;
      marks |= 1U << i;
      auto* halves = reinterpret_cast<uint16_t*>(pair) + i % 2;
      for (int e = 0; e < plan_.head_dim_value; ++e) {
        if (!is_finite(tokens[i][e])) halves[2 * e] = 0;
      }
    }
    *apart = static_cast<uint16_t>(marks);
    has_apart_ |= marks != 0;
  }
  bool has_apart_ = false;
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // VECINA_CPU_MATRIX_KEYS_INL_H_
