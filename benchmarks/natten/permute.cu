// SPDX-License-Identifier: MIT
// NATTEN's copies of tokens into the order of tiles and back, behind C entry points.
#include <natten/cuda/tokperm/tokperm.hpp>

#include "call.h"

namespace {

template <int Rank, typename Element>
int permute(const PermuteCall& call) {
  auto tuple = [](const int32_t* n) {
    return axes<Rank>(n, [](auto... n) { return cute::make_tuple(static_cast<int>(n)...); });
  };
  const int32_t ones[3] = {1, 1, 1};
  auto tokens = tuple(call.tokens), tile = tuple(call.tile), dilation = tuple(ones);
  auto* from = static_cast<Element*>(call.from);
  auto* to = static_cast<Element*>(call.to);
  const auto stream = static_cast<cudaStream_t>(call.stream);
  if (call.is_inverse)
    return natten::tokperm::token_unpermute_op(from, to, call.batch, call.heads, call.columns,
                                               tokens, tile, dilation, true, stream);
  const int padded = cute::size(
      cute::transform(tokens, tile, [](int n, int t) { return cute::ceil_div(n, t) * t; }));
  return natten::tokperm::token_permute_op(from, to, call.batch, call.heads, padded, call.columns,
                                           tokens, tile, dilation, true, stream);
}

template <typename Element>
int permute(int rank, const PermuteCall& call) {
  switch (rank) {
    case 1:
      return permute<1, Element>(call);
    case 2:
      return permute<2, Element>(call);
    case 3:
      return permute<3, Element>(call);
  }
  return 0;
}

}  // namespace

// 1 if the copy was launched.
extern "C" int permute_bf16(int rank, const PermuteCall* call) {
  return permute<cutlass::bfloat16_t>(rank, *call);
}

extern "C" int permute_f32(int rank, const PermuteCall* call) {
  return permute<float>(rank, *call);
}
