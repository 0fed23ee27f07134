// SPDX-License-Identifier: MIT
// What the plans of halo kernels and of tiles kernels share (kernels/owners.cuh): problems and
// strides that neither takes, and their parameters.
#ifndef VECINA_CUDA_OWNERS_H_
#define VECINA_CUDA_OWNERS_H_

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/problem.h"
#include "cuda/kernels/halo_params.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

// Why they do not take the problem, whatever its windows and rows; empty if they may.
std::string unsuitable_owners(const Problem& problem);
// Strides that the kernels' narrow offsets cannot follow.
std::string unsuitable_offsets(const Problem& problem,
                               std::initializer_list<const vecina_tensor*> tensors);
std::string unsuitable_bias(const Problem& problem, const vecina_tensor& bias);
// Those of rows, and strides or addresses that do not allow reading and writing them by 16 bytes.
std::string unsuitable_strides(const Problem& problem,
                               std::initializer_list<const vecina_tensor*> rows, int head_dim);

// How queries that have an output lie in the dilation groups of an axis.
struct QueryGroups {
  int64_t count;     // groups that have any
  int64_t length;    // queries of the longest
  int64_t position;  // of the next one, in the group
};
QueryGroups query_groups(const Axis& axis);
// Boxes of `owners` keys (or queries that have an output) along an axis, of all dilation groups.
int64_t count_owner_tiles(const Axis& axis, bool of_keys, int owners);

// How owners are cut into blocks: an item is some heads of a sample.
struct Owners {
  bool of_keys = false;
  int items_of_sample = 1, items_of_block = 1;
  std::array<int, 3> box = {1, 1, 1};  // of a block
};

// Everything but addresses, for the strides of a call's arguments (forward or backward); *blocks is
// the size of the grid.
template <typename Args>
vecina::cuda::HaloParams owner_params(const Problem& problem, const Args& example,
                                      const Owners& owners, double* blocks);
// Adds the addresses of a run's tensors and workspace.
template <typename Args>
FillParams<Args> fill_params(const vecina::cuda::HaloParams& params);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_OWNERS_H_
