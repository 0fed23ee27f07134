// SPDX-License-Identifier: MIT
// What the kernels of the gradients share. With P the probabilities and the output of forward:
//   dP_ij = grad_output_i . value_j,  delta_i = sum_j P_ij * dP_ij - grad_lse_i
//   dS_ij = P_ij * (dP_ij - delta_i)
//   grad_query_i = scale * sum_j dS_ij * key_j     grad_key_j   = scale * sum_i dS_ij * query_i
//   grad_value_j = sum_i P_ij * grad_output_i      grad_bias[j - i] = sum over queries of dS_ij
// Instead of dP stands dP_ij - grad_output_i . output_i = grad_output_i . (value_j - output_i): it
// is small where dP and delta nearly cancel, zero for a query with one key, and delta then only
// corrects the rounding of output.
//
// gradient_query.cu walks the keys of each query, so it finds the maximum, the sum and delta anew
// (lse, rounded, is not read) and leaves them to the others as QueryFacts.
//
// Each gradient is gathered by the warp (the block, for additional tokens and bias) that owns its
// row, in a fixed order: no atomics, the same bits in every run.
#ifndef VECINA_CUDA_KERNELS_GRADIENT_PAIRS_CUH_
#define VECINA_CUDA_KERNELS_GRADIENT_PAIRS_CUH_

#include "config.h"
#include "gradient_params.h"
#include "row_part.cuh"
#include "small_geometry.cuh"
#include "types.h"

namespace vecina::cuda {

using Element = Types<kConfig.dtype>::Element;
using Real = Types<kConfig.dtype>::Real;

inline constexpr int kWarps = kConfig.warps;
inline constexpr int kLanes = kConfig.lanes;
inline constexpr int kGroups = 32 / kLanes;  // of a warp: rows at the same time
inline constexpr int kFirstAxis = 3 - kConfig.rank;

using KeyPart =
    RowPart<Element, Real, kConfig.head_dim, kConfig.vector, kConfig.piece, kLanes>;
using ValuePart = RowPart<Element, Real, kConfig.head_dim_value, kConfig.vector, kConfig.piece, kLanes>;

template <bool is_wide>
struct NumberType {
  using Type = unsigned;
};
template <>
struct NumberType<true> {
  using Type = unsigned long long;
};
using Number = NumberType<kConfig.has_wide_number>::Type;

// number becomes number / size; returns number % size.
VECINA_DEVICE int take_off(Number& number, int size) {
  const Number quotient = number / static_cast<Number>(size);
  const auto remainder = static_cast<int>(number - quotient * static_cast<Number>(size));
  number = quotient;
  return remainder;
}

VECINA_DEVICE AxisWindow window_along(const GradientAxis& axis, int query) {
  return window_along(
      axis.extent,
      {axis.kernel_size, axis.stride, axis.dilation, axis.output_stride, axis.is_causal}, query);
}

VECINA_DEVICE char* row_at(const SmallRows& rows, int batch, int head, const int (&token)[3]) {
  char* row = rows.data + batch * rows.batch + head * rows.head;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) row += token[a] * rows.token[a];
  return row;
}
VECINA_DEVICE Real real_at(const SmallRows& rows, int batch, int head, const int (&token)[3]) {
  return *reinterpret_cast<Real*>(row_at(rows, batch, head, token));
}

// Walks a box of tokens, the innermost axis fastest, several at a time.
struct BoxWalk {
  int at[3] = {0, 0, 0};

  // Leaves the box at the far end of the outermost axis.
  VECINA_DEVICE void advance(int steps, const int (&count)[3]) {
    at[2] += steps;
    if constexpr (kFirstAxis < 2) {
      while (at[2] >= count[2]) {
        at[2] -= count[2];
        ++at[1];
      }
    }
    if constexpr (kFirstAxis < 1) {
      while (at[1] >= count[1]) {
        at[1] -= count[1];
        ++at[0];
      }
    }
  }
  VECINA_DEVICE bool is_inside(const int (&count)[3]) const {
    return at[kFirstAxis] < count[kFirstAxis];
  }
};

// The logit of a pair, in powers of two. Every kernel gets the same bits.
VECINA_DEVICE Real logit_of(Real dot, Real bias, const GradientParams& params) {
  return multiply_add(dot, static_cast<Real>(params.scale_to_powers), bias * Real(1.0 / kLn2));
}

// What a pair's gradients need of its query beside the rows.
struct alignas(4 * sizeof(Real)) QueryFacts {
  Real maximum;  // of the logits; 0 if all are -infinity
  Real inverse;  // of the sum of 2^(logit - maximum); 0 if all logits are -infinity
  Real delta;
  Real reserved;
};

VECINA_DEVICE QueryFacts& facts_at(const GradientParams& params, int batch, int head,
                                   const int (&token)[3]) {
  long long number = static_cast<long long>(batch) * params.heads + head;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) number = number * params.axes[a].num_queries + token[a];
  return reinterpret_cast<QueryFacts*>(params.facts)[number];
}

struct Pair {
  Real probability;
  Real gradient;  // of the logit
};
// `difference`: grad_output . (value - output). Pairs that do not exist have neither.
VECINA_DEVICE Pair pair_of(Real logit, Real difference, const QueryFacts& facts, bool exists) {
  Pair pair;
  pair.probability =
      exists && facts.inverse != Real(0) ? power_of_two(logit - facts.maximum) * facts.inverse
                                         : Real(0);
  pair.gradient = exists ? pair.probability * (difference - facts.delta) : Real(0);
  return pair;
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GRADIENT_PAIRS_CUH_
