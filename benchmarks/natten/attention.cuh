// SPDX-License-Identifier: MIT
// One of NATTEN's Hopper kernels behind C entry points. build.py includes this file once for each
// kernel, with NAME, RANK, HEAD_DIM, QUERY_TILE, KEY_TILE and, for a forward, SCHEDULE defined.
#pragma once

#include "call.h"

#ifdef SCHEDULE
#include <natten/cuda/fna_hopper/fna_forward.cuh>
#else
#include <natten/cuda/fna_hopper/fna_backward.cuh>
#endif

namespace {

template <int... N>
struct Tile {
  using Type = cute::tuple<cute::Int<N>...>;
  static constexpr int kTokens = (N * ...);
};
using QueryTile = Tile<QUERY_TILE>;
using KeyTile = Tile<KEY_TILE>;
using Product = Tile<QueryTile::kTokens, KeyTile::kTokens, HEAD_DIM>::Type;
#if RANK == 1
using Causal = cute::tuple<cute::false_type>;
#elif RANK == 2
using Causal = cute::tuple<cute::false_type, cute::false_type>;
#else
using Causal = cute::tuple<cute::false_type, cute::false_type, cute::false_type>;
#endif

#ifdef SCHEDULE
using Kernel =
    natten::cuda::fna_hopper::KernelForward<cutlass::bfloat16_t, Causal, QueryTile::Type,
                                            KeyTile::Type, Product,
                                            natten::cuda::hopper::HopperKernelSchedule::SCHEDULE>;
#else
using Kernel = natten::cuda::fna_hopper::KernelBackward<cutlass::bfloat16_t, Causal,
                                                        QueryTile::Type, KeyTile::Type, Product>;
#endif

int product(const int32_t* n) {
  return axes<RANK>(n, [](auto... n) { return (n * ...); });
}

typename Kernel::Arguments arguments_of(Kernel& kernel, const AttentionCall& call) {
  auto tuple = [](const int32_t* n) {
    return axes<RANK>(n, [](auto... n) { return cute::make_tuple(static_cast<int>(n)...); });
  };
  const int32_t dilation[3] = {1, 1, 1};
  int device = 0;
  cudaGetDevice(&device);
  return kernel.initialize(call.query, call.key, call.value, call.output, call.lse,
#ifndef SCHEDULE
                           call.grad_query, call.grad_key, call.grad_value, call.grad_output,
#endif
                           call.batch, product(call.query_tokens), product(call.key_tokens),
                           call.heads, call.head_dim, tuple(call.query_tokens),
                           tuple(call.key_tokens), tuple(call.tokens), tuple(call.kernel_size),
                           tuple(call.stride), tuple(dilation), device, call.scale);
}

}  // namespace

#define JOINED(a, b) a##b
#define ENTRY(name, suffix) JOINED(name, suffix)

extern "C" int64_t ENTRY(NAME, _workspace)(const AttentionCall* call) {
  Kernel kernel;
  return static_cast<int64_t>(kernel.get_workspace_size(arguments_of(kernel, *call)));
}

extern "C" int ENTRY(NAME, _run)(const AttentionCall* call) {
  Kernel kernel;
  kernel.run(arguments_of(kernel, *call), call->workspace, static_cast<cudaStream_t>(call->stream));
  return cudaGetLastError();
}
