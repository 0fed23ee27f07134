// SPDX-License-Identifier: MIT
// How gradient_span.cu, which computes the gradients of query, key and value in one launch, cuts a
// problem into blocks, and whether that pays: neighbouring blocks find the facts of the same
// queries, which may cost more than the second launch.
#ifndef VECINA_CUDA_GRADIENT_SPAN_PLAN_H_
#define VECINA_CUDA_GRADIENT_SPAN_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "core/problem.h"
#include "cuda/kernels/gradient_config.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

struct GradientSpan {
  int64_t keys = 0, queries = 0;         // that a block owns, of all heads of the group
  int64_t spans = 0;                     // of a sample
  int64_t seeing_queries = 0;            // of one head whose facts a block holds at most
  size_t facts_bytes = 0;                // of these, of all heads of the group
  int query_groups = 0, key_groups = 0;  // GradientConfig's
  bool is_taken() const { return keys > 0; }
};

inline constexpr int kSpanWarps = 8;  // of a block

size_t facts_bytes_of_query(const Problem& problem);  // QueryFacts of gradient_pairs.cuh

// Positions of query, of one head, that a block needs which owns so many keys, at most.
int64_t count_seeing_queries(const Problem& problem, int64_t keys, int64_t queries);
// `config`: of the two launches that it takes the place of; not taken: they are faster.
GradientSpan choose_gradient_span(const Problem& problem,
                                  const vecina::cuda::GradientConfig& config,
                                  const DeviceFacts& facts);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_GRADIENT_SPAN_PLAN_H_
