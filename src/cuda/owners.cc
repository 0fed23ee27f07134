// SPDX-License-Identifier: MIT
#include "cuda/owners.h"

#include <cstring>
#include <numbers>

#include "core/tensor.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {

using vecina::cuda::HaloParams;
using vecina::cuda::HaloRows;

std::string unsuitable_owners(const Problem& problem) {
  if (problem.lengths() != VECINA_LENGTHS_EQUAL) return "lengths of samples";
  if (problem.batch() == 0) return "an empty batch";
  if (problem.dtype() != VECINA_F16 && problem.dtype() != VECINA_BF16) return "not f16 or bf16";
  if (problem.has_bias()) return "relative position bias";
  double tokens = 1.0;
  for (int a = 0; a < problem.rank(); ++a) {
    const Axis& axis = problem.axis(a);
    if (axis.output_stride > 1) return "output_stride";
    if (axis.query_extent != axis.extent) return "queries that are not as many as keys";
    tokens *= static_cast<double>(axis.extent);
  }
  if (static_cast<double>(problem.batch()) * problem.heads() * tokens > kMaxBlocks) {
    return "2^31 rows or more";
  }
  return {};
}

std::string unsuitable_strides(std::initializer_list<const vecina_tensor*> rows, int head_dim) {
  for (const vecina_tensor* tensor : rows) {
    if (!given(*tensor)) continue;
    double reach = 0.0;  // of one sample
    for (int d = 0; d < tensor->ndim; ++d) {
      if (tensor->shape[d] <= 1) continue;
      if (tensor->strides[d] < 0) return "a negative stride";
      const double stride = 2.0 * static_cast<double>(tensor->strides[d]);
      if (d > 0) reach += stride * static_cast<double>(tensor->shape[d]);
    }
    if (reach >= 2147483647.0) return "a sample of 2^31 bytes or more";
  }
  if (vector_elements(rows, head_dim, 16) < 8) {
    return "strides or addresses that are no multiples of 16 bytes";
  }
  return {};
}

int64_t count_owner_tiles(const Axis& axis, int owners) {
  return axis.dilation * divide_up(divide_up(axis.extent, axis.dilation), owners);
}

HaloRows halo_rows(const vecina_tensor& tensor, int rank) {
  const SmallRows wide = token_rows(tensor, rank);
  return {nullptr,
          wide.batch,
          static_cast<int>(wide.head),
          {static_cast<int>(wide.token[0]), static_cast<int>(wide.token[1]),
           static_cast<int>(wide.token[2])}};
}

HaloParams owner_params(const Problem& problem, const Owners& owners, double* blocks) {
  HaloParams params = {};
  params.num_items_of_sample = owners.items_of_sample;
  params.items_of_sample = divider(params.num_items_of_sample);
  params.num_items = static_cast<int>(problem.batch()) * params.num_items_of_sample;
  params.heads = problem.heads();
  params.scale = static_cast<float>(problem.scale());
  params.scale_to_powers = static_cast<float>(problem.scale() * std::numbers::log2e);
  *blocks = static_cast<double>(divide_up(params.num_items, owners.items_of_block));
  for (int a = 0; a < 3; ++a) {
    const Axis axis = small_axis(problem, a);
    const int64_t tiles = count_owner_tiles(axis, owners.box[static_cast<size_t>(a)]);
    params.axes[a] = {static_cast<int>(axis.extent), static_cast<int>(tiles), divider(tiles)};
    *blocks *= static_cast<double>(tiles);
  }
  return params;
}

HaloParams gradient_params(const Problem& problem, const vecina_backward_args& example,
                           const Owners& owners, double* blocks) {
  HaloParams params = owner_params(problem, owners, blocks);
  const int rank = problem.rank();
  params.query = halo_rows(example.query, rank);
  params.key = halo_rows(example.key, rank);
  params.value = halo_rows(example.value, rank);
  params.additional_key = halo_rows(example.additional_key, 1);
  params.additional_value = halo_rows(example.additional_value, 1);
  params.output = halo_rows(example.output, rank);
  params.lse = halo_rows(example.lse, rank);
  params.grad_output = halo_rows(example.grad_output, rank);
  params.grad_lse = halo_rows(example.grad_lse, rank);
  params.grad_query = halo_rows(example.grad_query, rank);
  params.grad_key = halo_rows(example.grad_key, rank);
  params.grad_value = halo_rows(example.grad_value, rank);
  return params;
}

FillParams<vecina_backward_args> fill_gradient(const HaloParams& params) {
  return [params](const vecina_backward_args& args, void* memory) -> Status {
    HaloParams filled = params;
    filled.query.data = pointer(args.query);
    filled.key.data = pointer(args.key);
    filled.value.data = pointer(args.value);
    filled.additional_key.data = pointer(args.additional_key);
    filled.additional_value.data = pointer(args.additional_value);
    filled.output.data = pointer(args.output);
    filled.lse.data = pointer(args.lse);
    filled.grad_output.data = pointer(args.grad_output);
    filled.grad_lse.data = pointer(args.grad_lse);
    filled.grad_query.data = pointer(args.grad_query);
    filled.grad_key.data = pointer(args.grad_key);
    filled.grad_value.data = pointer(args.grad_value);
    filled.facts = static_cast<char*>(args.workspace);
    std::memcpy(memory, &filled, sizeof filled);
    return {};
  };
}

}  // namespace vecina::internal::cuda
