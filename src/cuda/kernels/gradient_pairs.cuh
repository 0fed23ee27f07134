// SPDX-License-Identifier: MIT
// What the kernels of the gradients share. With P the probabilities and the output of forward:
//   dP_ij = grad_output_i . value_j,  delta_i = grad_output_i . output_i - grad_lse_i
//   dS_ij = P_ij * (dP_ij - delta_i) = P_ij * (grad_output_i . (value_j - output_i) + grad_lse_i)
//   grad_query_i = scale * sum_j dS_ij * key_j     grad_key_j   = scale * sum_i dS_ij * query_i
//   grad_value_j = sum_i P_ij * grad_output_i      grad_bias[j - i] = sum over queries of dS_ij
// The difference is taken before the product: a query with one key has output = value, and its dS
// is exactly zero.
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

inline constexpr int kWarps = 4;  // of a block
inline constexpr int kLanes = kConfig.lanes;
inline constexpr int kGroups = 32 / kLanes;  // of a warp: rows at the same time
inline constexpr int kFirstAxis = 3 - kConfig.rank;

using KeyPart = RowPart<Element, Real, kConfig.head_dim, kConfig.vector, kLanes>;
using ValuePart = RowPart<Element, Real, kConfig.head_dim_value, kConfig.vector, kLanes>;

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

// What a pair's gradients need of its query beside the rows.
struct QueryFacts {
  Real lse;  // in powers of two
  Real grad_lse;
};
VECINA_DEVICE QueryFacts facts_of(const GradientParams& params, int batch, int head,
                                  const int (&token)[3], bool is_there) {
  QueryFacts facts = {Real(0), Real(0)};
  if (!is_there) return facts;
  facts.lse = real_at(params.lse, batch, head, token) * Real(1.0 / kLn2);
  if constexpr (kConfig.has_grad_lse) {
    facts.grad_lse = real_at(params.grad_lse, batch, head, token);
  }
  return facts;
}

struct Pair {
  Real probability;
  Real gradient;  // of the logit
};
// `dot`: of query and key. `difference`: grad_output . (value - output). Pairs that do not exist
// have neither.
VECINA_DEVICE Pair pair_of(Real dot, Real bias, Real difference, const QueryFacts& facts,
                           Real scale_to_powers, bool exists) {
  const Real logit = multiply_add(dot, scale_to_powers, bias * Real(1.0 / kLn2));
  // Where all logits are -infinity the forward pass gave no key a share.
  const bool has_share = exists && facts.lse != Real(-infinity());
  Pair pair;
  pair.probability = has_share ? power_of_two(logit - facts.lse) : Real(0);
  pair.gradient = has_share ? pair.probability * (difference + facts.grad_lse) : Real(0);
  return pair;
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GRADIENT_PAIRS_CUH_
