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
// Who owns a query walks its keys, so it finds the maximum, the sum and delta anew (lse, rounded,
// is not read: half of its last digit is 1e-6 of all weights from 16 on) and leaves them to
// the others as QueryFacts.
//
// Each gradient is gathered by the warp (some groups of lanes in gradient_span.cu, the block for
// additional tokens and bias) that owns its row. Of additional tokens that many queries see, each
// part of the queries has a block of its own, and gradient_key_sum.cu adds up the parts.
#ifndef VECINA_CUDA_KERNELS_GRADIENT_PAIRS_CUH_
#define VECINA_CUDA_KERNELS_GRADIENT_PAIRS_CUH_

#include "gather.cuh"
#include "gradient_params.h"

namespace vecina::cuda {

using KeyPart = RowPart<Element, Real, kConfig.head_dim, kConfig.vector, kConfig.piece, kLanes>;
using ValuePart =
    RowPart<Element, Real, kConfig.head_dim_value, kConfig.vector, kConfig.piece, kLanes>;

VECINA_DEVICE Real bias_at(const GradientParams& params, int head, const int (&relative)[3]) {
  return *reinterpret_cast<const Real*>(row_at(params.bias, 0, head, relative));
}

// The logit of a pair, in powers of two. Every kernel gets the same bits.
VECINA_DEVICE Real logit_of(Real dot, Real bias, const GradientParams& params) {
  return multiply_add(dot, static_cast<Real>(params.scale_to_powers), bias * Real(1.0 / kLn2));
}

// What a pair's gradients need of its query beside the rows.
struct alignas(4 * sizeof(Real)) QueryFacts {
  Real maximum;  // of the logits, or their lse in powers of two; means nothing where inverse is 0
  Real inverse;  // of the sum of 2^(logit - maximum); 0 if all logits are -infinity
  Real delta;
  Real reserved;
};

VECINA_DEVICE QueryFacts& facts_at(const GradientParams& params, int batch, int head,
                                   const int (&token)[3]) {
  const GatherGeometry& geometry = params.geometry;
  long long number = static_cast<long long>(batch) * geometry.heads + head;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) number = number * geometry.axes[a].num_queries + token[a];
  return reinterpret_cast<QueryFacts*>(params.facts)[number];
}

struct Pair {
  Real probability;
  Real gradient;  // of the logit
};
// `difference`: grad_output . (value - output). Pairs that do not exist have neither.
VECINA_DEVICE Pair pair_of(Real logit, Real difference, const QueryFacts& facts, bool exists) {
  Pair pair;
  pair.probability = exists && facts.inverse != Real(0)
                         ? power_of_two(logit - facts.maximum) * facts.inverse
                         : Real(0);
  pair.gradient = exists ? pair.probability * (difference - facts.delta) : Real(0);
  return pair;
}

// The most of the owners of a warp that have `groups` groups each: they walk together.
template <int groups>
VECINA_DEVICE int most_of_owners(int count) {
#pragma unroll
  for (int distance = kLanes * groups; distance < 32; distance *= 2) {
    count = na_max(count, __shfl_xor_sync(0xffffffffu, count, distance));
  }
  return count;
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GRADIENT_PAIRS_CUH_
