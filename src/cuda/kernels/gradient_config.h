// SPDX-License-Identifier: MIT
// What the kernels gradient_*.cu are compiled for.
#ifndef VECINA_CUDA_KERNELS_GRADIENT_CONFIG_H_
#define VECINA_CUDA_KERNELS_GRADIENT_CONFIG_H_

namespace vecina::cuda {

struct GradientConfig {
  int dtype;  // vecina_dtype
  int rank;
  int head_dim, head_dim_value;
  int vector;  // neighbouring elements of a thread; divides both head dims
  int piece;   // elements of one load or store, as alignment allows
  int warps;   // of a block
  int lanes;   // threads that share a row, a power of two up to 32
  // Groups of so many lanes that share an owner, each with a partner at a time: all of a warp, but
  // in gradient_span.cu.
  int query_groups, key_groups;
  int lengths;  // vecina_lengths
  bool has_bias;
  bool has_grad_lse;
  bool is_stored;        // that of query is wanted, not the facts alone
  bool keeps_facts;      // gradient_span.cu: other launches need them
  bool of_additional;    // gradient_key.cu: an additional token's, not a key's
  bool of_part;          // of those: sums of a part of the queries
  bool has_wide_number;  // more than 2^31 rows get a gradient
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GRADIENT_CONFIG_H_
