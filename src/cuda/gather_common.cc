// SPDX-License-Identifier: MIT
#include "cuda/gather_common.h"

#include <algorithm>

#include "core/tensor.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {
namespace {

// Of shared memory, where the warps of a block meet: to have more of them, and at most.
constexpr int kGatheredBytes = 20 * 1024, kMostGatheredBytes = 48 * 1024;
constexpr int kColumnsOfLane = 8;  // of a row in a thread, where 32 threads are enough for that

}  // namespace

vecina::cuda::GatherGeometry gather_geometry(const Problem& problem) {
  vecina::cuda::GatherGeometry geometry = {};
  for (int a = 0; a < 3; ++a) {
    const Axis axis = small_axis(problem, a);
    geometry.axes[a] = {static_cast<int>(axis.extent),
                        static_cast<int>(axis.num_queries()),
                        static_cast<int>(axis.kernel_size),
                        static_cast<int>(axis.stride),
                        static_cast<int>(axis.dilation),
                        static_cast<int>(axis.output_stride),
                        axis.is_causal ? 1 : 0};
    geometry.query_extent[a] = static_cast<int>(axis.query_extent);
  }
  geometry.samples = static_cast<int>(problem.num_samples());
  geometry.heads = problem.heads();
  geometry.heads_kv = problem.heads_kv();
  geometry.additional_tokens = static_cast<int>(problem.additional_tokens());
  geometry.is_attention = problem.is_attention();
  return geometry;
}

RowCounts count_rows(const Problem& problem) {
  const auto samples = static_cast<double>(problem.num_samples());
  RowCounts rows = {samples * problem.heads(), samples * problem.heads_kv(),
                    samples * problem.heads_kv() * static_cast<double>(problem.additional_tokens()),
                    static_cast<double>(problem.heads())};
  for (int a = 0; a < problem.rank(); ++a) {
    const Axis& axis = problem.axis(a);
    rows.query *= static_cast<double>(axis.query_extent);
    rows.key *= static_cast<double>(axis.extent);
    rows.bias *= 2.0 * static_cast<double>(axis.kernel_size) - 1.0;
  }
  return rows;
}

std::string too_many_rows(const Problem& problem) {
  const RowCounts rows = count_rows(problem);
  if (std::max(rows.query, rows.key) > kGatherWarps * kMaxNumber ||
      std::max(rows.additional, rows.bias) > kMaxNumber) {
    return "more rows to sum up than a grid has threads";
  }
  return {};
}

int gather_lanes(int columns, int vector) {
  int lanes = 1;
  while (lanes < 32 && columns > lanes * std::max(kColumnsOfLane, vector)) lanes *= 2;
  return lanes;
}

int most_gather_warps(int32_t dtype, int columns) {
  const auto bytes = static_cast<int>(dtype_bytes(lse_dtype(dtype)));
  int warps = dtype == VECINA_F64 ? kMostGatherWarps / 2 : kMostGatherWarps;
  while (warps > kGatherWarps && warps * bytes * columns > kGatheredBytes) warps /= 2;
  return warps;
}

int meeting_warps(int warps, int32_t dtype, int vector, std::initializer_list<int> columns) {
  const int lanes = gather_lanes(std::max(columns), vector);
  int64_t elements = 0;  // of a warp; rows of one length meet in the same place
  for (const int* row = columns.begin(); row != columns.end(); ++row) {
    if (std::find(columns.begin(), row, *row) != row) continue;
    elements += divide_up(*row, int64_t{vector} * lanes) * vector * lanes;
  }
  const int64_t bytes = elements * dtype_bytes(lse_dtype(dtype));
  while (warps > 1 && warps * bytes > kMostGatheredBytes) warps /= 2;
  return warps;
}

}  // namespace vecina::internal::cuda
