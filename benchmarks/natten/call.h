// SPDX-License-Identifier: MIT
// What natten_hopper.py gives to the entry points in this folder. Shapes are those of the axes that
// there are, in order; the rest of each array is not read.
#pragma once

#include <cstdint>

struct AttentionCall {
  // [batch, tokens in order of tiles, heads, head_dim], bf16; lse f32 without head_dim. The
  // gradients and what they need are null in a forward.
  void *query, *key, *value, *output, *lse;
  void *grad_query, *grad_key, *grad_value, *grad_output;
  int32_t batch, heads, head_dim;
  int32_t tokens[3], query_tokens[3], key_tokens[3];  // given; padded to whole tiles
  int32_t kernel_size[3], stride[3];
  float scale;
  void *workspace, *stream;
};

struct PermuteCall {
  void *from, *to;
  int32_t batch, heads, columns;
  int32_t tokens[3], tile[3];
  int32_t is_inverse;  // from order of tiles to the given one
  void* stream;
};

// The first Rank of them, as what NATTEN takes.
template <int Rank, typename Of>
auto axes(const int32_t* n, Of of) {
  if constexpr (Rank == 1) return of(n[0]);
  if constexpr (Rank == 2) return of(n[0], n[1]);
  if constexpr (Rank == 3) return of(n[0], n[1], n[2]);
}
