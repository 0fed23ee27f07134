// SPDX-License-Identifier: MIT
// How tiles_plan.h's kernels cut a problem: the shapes that there are, what each needs of a
// multiprocessor, and which costs least by a model. Needs no device.
#ifndef VECINA_CUDA_TILES_SHAPE_H_
#define VECINA_CUDA_TILES_SHAPE_H_

#include <array>

#include "core/problem.h"
#include "cuda/kernels/tiles_config.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

inline constexpr int kMaxSummedColumns = 256;  // whose sums fit a thread's registers

// gradient_key: of key and value; the next two: of one alone, where sums of both would take more
// registers than there are. gradient_all: of both, and adds to that of query.
enum class TilesKernel {
  forward,
  gradient_query,
  gradient_key,
  gradient_key_alone,
  gradient_value_alone,
  gradient_all,
  gradient_bias
};

// How owners (queries, or keys) and the partners that they meet are cut.
struct TilesShape {
  std::array<int, 3> box = {1, 1, 1};  // of a warp, 16 owners (forward: or 32); of a warpgroup, 64
  std::array<int, 3> boxes = {1, 1, 1};        // of a block
  std::array<int, 3> partner_box = {1, 1, 1};  // of a tile
  int partners = 0;                            // of a tile with what pads it
};
// The shape with the least estimated cost.
TilesShape choose_tiles_shape(const Problem& problem, TilesKernel kernel, const DeviceFacts& facts);

// Queries and keys are not the same tokens, or not one window.
bool has_own_queries(const Problem& problem);
// Kernels that are given facts of queries, or add to their gradients, take no more than that.
bool has_plain_queries(const Problem& problem);
// Delta need not be found in the kernel of query's gradients.
bool gives_delta(const Problem& problem);

int padded_columns(int columns);  // to whole products
// Of head_dim, in a gradient's kernel. Where delta is not given, two sums make that of query.
int part_of_key(const Problem& problem, TilesKernel kernel);
// Columns that a thread of a gradient's kernel has sums of in registers.
int columns_of_sums(const Problem& problem, TilesKernel kernel);

vecina::cuda::TilesConfig make_tiles_config(const Problem& problem, TilesKernel kernel,
                                            const TilesShape& shape);
// A box of 64 is a warpgroup's, whose kernels run on Hopper alone.
bool has_warpgroups(const vecina::cuda::TilesConfig& config);
int tiles_warps(const vecina::cuda::TilesConfig& config);  // of a block
// Blocks that a multiprocessor has room for; 0 if not one.
int tiles_blocks(const Problem& problem, const vecina::cuda::TilesConfig& config,
                 TilesKernel kernel, const DeviceFacts& facts);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_TILES_SHAPE_H_
