// SPDX-License-Identifier: MIT
// What the plans of all forms share: the parameters of a run, tiles of queries, vector widths.
#ifndef VECINA_CUDA_SMALL_COMMON_H_
#define VECINA_CUDA_SMALL_COMMON_H_

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "core/problem.h"
#include "cuda/kernels/small_params.h"
#include "cuda/launch.h"
#include "vecina/vecina.h"

namespace vecina::internal::cuda {

using vecina::cuda::Divider;
using vecina::cuda::SmallRows;
using WideParams = vecina::cuda::SmallParams<long long>;

Divider divider(int64_t divisor);  // 1 to 2^31 - 1

inline int64_t divide_up(int64_t n, int64_t d) { return (n + d - 1) / d; }

// The problem's axis, or one token for the axes before its first.
Axis small_axis(const Problem& problem, int a);

// Of query or output: queries of all samples and heads. May exceed what an int holds.
double query_rows(const Problem& problem);

// Keys that a query sees at most, with additional tokens.
double visible_keys(const Problem& problem);
inline constexpr double kMinTensorCoreKeys = 17.0;  // fewer are faster without

// How queries are cut into blocks.
struct SmallTiles {
  std::array<int, 3> tile = {1, 1, 1};       // queries of a block along each axis
  std::array<int64_t, 3> count = {1, 1, 1};  // tiles along each axis
  int heads = 1;  // of a block; divide the heads of a key head, or these are one
  int64_t column_tiles = 1;
};
// Tiles of neighbouring output tokens.
SmallTiles make_tiles(const Problem& problem, const std::array<int, 3>& tile);
// Blocks of the whole problem; may exceed what a grid can have.
double count_blocks(const Problem& problem, const SmallTiles& tiles);
inline constexpr double kMaxBlocks = 2147483647.0;

// Spreads `queries`, a power of two, over the axes, as near to a cube as their lengths allow.
std::array<int, 3> spread_queries(const Problem& problem, int queries);

// Strides of [batch, tokens..., heads, columns] or [batch, tokens..., heads], no pointer; zeros for
// a tensor that is not given. Additional tokens are tokens of rank 1.
SmallRows token_rows(const vecina_tensor& tensor, int rank);
// Strides of a bias: relative positions as tokens.
SmallRows bias_rows(const vecina_tensor& tensor, int rank);
// Axes of tokens that a tensor has: one where the samples are packed.
int token_rank(const Problem& problem);
// nullptr if it is not given.
char* pointer(const vecina_tensor& tensor);

// Where the lengths of a call are; zeros if its samples are equal. No addresses.
template <typename Args>
vecina::cuda::SampleLengths sample_lengths(const Problem& problem, const Args& example);
// Adds those.
template <typename Args>
void set_lengths(const Args& args, vecina::cuda::SampleLengths* lengths);

// Everything of the parameters but the pointers.
WideParams make_params(const Problem& problem, const vecina_forward_args& example,
                       const SmallTiles& tiles);
// Sets block and what fills the parameters of a kernel of `rank` axes, with wide offsets or narrow.
void set_launch(const WideParams& params, int rank, bool is_wide, uint32_t threads,
                const DeviceFacts& facts, ForwardLaunch* launch);
// Sets the grid of at most kMaxBlocks blocks; true if it is flat (small_geometry.cuh).
bool set_grid(const Problem& problem, const SmallTiles& tiles, ForwardLaunch* launch);

inline constexpr int kLoadBytes = 16;  // that a thread can load at once
// Neighbouring elements of a row that one thread takes: 1, 2, 4, ... up to `bytes`, a divisor of
// head_dim. Independent of addresses and strides, since it decides the order of sums.
int row_vector(int32_t dtype, int64_t head_dim, int bytes);
// Elements that one load may move (1, 2, 4, ... up to `bytes`): divides head_dim, strides and
// 16-byte alignment of all tensors.
int vector_elements(std::initializer_list<const vecina_tensor*> tensors, int64_t head_dim,
                    int bytes);

// A stride, or the reach of one sample (or of the bias), does not fit 32 bits of bytes.
bool has_wide_offsets(const vecina_forward_args& example);

// "{1, 2, 3}"
std::string braces(std::span<const int, 3> values);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_SMALL_COMMON_H_
