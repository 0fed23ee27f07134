// SPDX-License-Identifier: MIT
// What the plans share of kernels whose warps gather one row each (kernels/gather.cuh).
#ifndef VECINA_CUDA_GATHER_COMMON_H_
#define VECINA_CUDA_GATHER_COMMON_H_

#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/problem.h"
#include "cuda/kernels/gather_params.h"

namespace vecina::internal::cuda {

// Everything but num_rows and the lengths.
vecina::cuda::GatherGeometry gather_geometry(const Problem& problem);

// Rows that are gathered; as doubles, since they may exceed 64 bits before they are refused.
struct RowCounts {
  double query, key, additional, bias;
};
RowCounts count_rows(const Problem& problem);
// Why a grid has not that many threads; empty if it has.
std::string too_many_rows(const Problem& problem);

inline constexpr int kGatherWarps = 4;       // of a block, each with a row of its own
inline constexpr int kMostGatherWarps = 16;  // of a block that owns one row
inline constexpr double kMaxNumber = 2147483647.0;

// Threads that share a row of so many columns, `vector` neighbouring ones each: a power of two up
// to 32.
int gather_lanes(int columns, int vector);
// Of a block that owns one row of so many columns and walks all queries.
int most_gather_warps(int32_t dtype, int columns);
// As many of `warps`, at least one, as can meet in shared memory to add up rows of these columns
// (sum_over_warps), which lanes hold as gather_lanes() says: any row fits one warp's registers.
int meeting_warps(int warps, int32_t dtype, int vector, std::initializer_list<int> columns);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_GATHER_COMMON_H_
