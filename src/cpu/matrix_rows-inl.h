// SPDX-License-Identifier: MIT
// What the softmaxes of the matrix form have in common: powers of two, and reductions of rows.
// Part of matrix.cc; compiled for AVX-512.
#if defined(VECINA_CPU_MATRIX_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_MATRIX_ROWS_INL_H_
#undef VECINA_CPU_MATRIX_ROWS_INL_H_
#else
#define VECINA_CPU_MATRIX_ROWS_INL_H_
#endif

#include <cstddef>

#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 2^x, relative error 9.1e-8 before rounding: by instructions that split a number and scale it.
template <class D>
HWY_INLINE hn::Vec<D> exp2_scaled(D d, hn::Vec<D> x) {
  constexpr int kAboveFloor = 0x09;  // x - floor(x), without exceptions
  const hn::Vec<D> part = {_mm512_reduce_ps(x.raw, kAboveFloor)};
  auto p = hn::Set(d, 0.00187757667f);
  p = hn::MulAdd(p, part, hn::Set(d, 0.00898934009f));
  p = hn::MulAdd(p, part, hn::Set(d, 0.0558263181f));
  p = hn::MulAdd(p, part, hn::Set(d, 0.240153617f));
  p = hn::MulAdd(p, part, hn::Set(d, 0.693153073f));
  p = hn::MulAdd(p, part, hn::Set(d, 0.999999925f));
  return {_mm512_scalef_ps(p.raw, x.raw)};
}

// Lane r is what `combine` makes of the sixteen lanes of row r.
template <class D, class Combine>
HWY_INLINE hn::Vec<D> combine_rows(D d, const float (*rows)[kMatrixTile], const Combine& combine) {
  using V = hn::Vec<D>;
  const hn::Repartition<double, D> d64;
  V pairs[8], quads[4];
  unroll<8>([&](auto i) VECINA_INLINE {
    const auto a = hn::Load(d, rows[2 * i]), b = hn::Load(d, rows[2 * i + 1]);
    pairs[i] = combine(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  });
  unroll<4>([&](auto i) VECINA_INLINE {
    const auto a = hn::BitCast(d64, pairs[2 * i]), b = hn::BitCast(d64, pairs[2 * i + 1]);
    quads[i] = combine(hn::BitCast(d, hn::InterleaveLower(d64, a, b)),
                       hn::BitCast(d, hn::InterleaveUpper(d64, a, b)));
  });
  const auto combine_blocks = [&](V a, V b) VECINA_INLINE {
    return combine(V{_mm512_shuffle_f32x4(a.raw, b.raw, 0x88)},
                   V{_mm512_shuffle_f32x4(a.raw, b.raw, 0xdd)});
  };
  return combine_blocks(combine_blocks(quads[0], quads[1]), combine_blocks(quads[2], quads[3]));
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // VECINA_CPU_MATRIX_ROWS_INL_H_
