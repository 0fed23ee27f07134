// SPDX-License-Identifier: MIT
#include "cuda/owners.h"

#include <array>
#include <cstring>
#include <numbers>

#include "core/tensor.h"
#include "cuda/gradient_plan.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {

using vecina::cuda::HaloParams;
using vecina::cuda::HaloRows;

std::string unsuitable_owners(const Problem& problem) {
  if (problem.lengths() != VECINA_LENGTHS_EQUAL) return "lengths of samples";
  if (problem.batch() == 0) return "an empty batch";
  if (problem.dtype() != VECINA_F16 && problem.dtype() != VECINA_BF16) return "not f16 or bf16";
  if (problem.has_bias()) return "relative position bias";
  for (int a = 0; a < problem.rank(); ++a) {
    const Axis& axis = problem.axis(a);
    if (axis.output_stride > 1) return "output_stride";
    if (axis.query_extent != axis.extent) return "queries that are not as many as keys";
  }
  if (query_rows(problem) > kMaxBlocks) return "2^31 rows or more";
  return {};
}

std::string unsuitable_offsets(std::initializer_list<const vecina_tensor*> tensors) {
  for (const vecina_tensor* tensor : tensors) {
    if (!given(*tensor)) continue;
    const auto bytes = static_cast<double>(dtype_bytes(tensor->dtype));
    double reach = 0.0;  // of one sample
    for (int d = 0; d < tensor->ndim; ++d) {
      if (tensor->shape[d] <= 1) continue;
      if (tensor->strides[d] < 0) return "a negative stride";
      const double stride = bytes * static_cast<double>(tensor->strides[d]);
      if (d > 0) reach += stride * static_cast<double>(tensor->shape[d]);
    }
    if (reach >= 2147483647.0) return "a sample of 2^31 bytes or more";
  }
  return {};
}

std::string unsuitable_strides(std::initializer_list<const vecina_tensor*> rows, int head_dim) {
  if (std::string why = unsuitable_offsets(rows); !why.empty()) return why;
  if (vector_elements(rows, head_dim, 16) < 8) {
    return "strides or addresses that are no multiples of 16 bytes";
  }
  return {};
}

int64_t count_owner_tiles(const Axis& axis, int owners) {
  return axis.dilation * divide_up(divide_up(axis.extent, axis.dilation), owners);
}

namespace {

HaloRows halo_rows(const vecina_tensor& tensor, int rank) {
  const SmallRows wide = token_rows(tensor, rank);
  return {nullptr,
          wide.batch,
          static_cast<int>(wide.head),
          {static_cast<int>(wide.token[0]), static_cast<int>(wide.token[1]),
           static_cast<int>(wide.token[2])}};
}

// A tensor of a call and its place among the parameters.
template <typename Args>
struct Field {
  vecina_tensor Args::*tensor;
  HaloRows HaloParams::*rows;
  bool is_additional = false;  // has one axis
};
// What both passes read.
template <typename Args>
constexpr auto common_fields() {
  using P = HaloParams;
  return std::to_array<Field<Args>>({{&Args::query, &P::query},
                                     {&Args::key, &P::key},
                                     {&Args::value, &P::value},
                                     {&Args::additional_key, &P::additional_key, true},
                                     {&Args::additional_value, &P::additional_value, true},
                                     {&Args::output, &P::output},
                                     {&Args::lse, &P::lse}});
}
constexpr std::array<Field<vecina_forward_args>, 0> own_fields(const vecina_forward_args&) {
  return {};
}
constexpr auto own_fields(const vecina_backward_args&) {
  using A = vecina_backward_args;
  using P = HaloParams;
  return std::to_array<Field<A>>({{&A::grad_output, &P::grad_output},
                                  {&A::grad_lse, &P::grad_lse},
                                  {&A::grad_query, &P::grad_query},
                                  {&A::grad_key, &P::grad_key},
                                  {&A::grad_value, &P::grad_value}});
}

template <typename Args, typename F>
void for_fields(const Args& args, const F& f) {
  for (const Field<Args>& field : common_fields<Args>()) f(field);
  for (const Field<Args>& field : own_fields(args)) f(field);
}

char* workspace(const vecina_forward_args&) { return nullptr; }
char* workspace(const vecina_backward_args& args) { return static_cast<char*>(args.workspace); }

}  // namespace

template <typename Args>
HaloParams owner_params(const Problem& problem, const Args& example, const Owners& owners,
                        double* blocks) {
  HaloParams params = {};
  for_fields(example, [&](const Field<Args>& field) {
    params.*field.rows = halo_rows(example.*field.tensor, field.is_additional ? 1 : problem.rank());
  });
  params.num_items_of_sample = owners.items_of_sample;
  params.items_of_sample = divider(params.num_items_of_sample);
  params.num_items = static_cast<int>(problem.batch()) * params.num_items_of_sample;
  params.heads = problem.heads();
  params.facts_bytes = static_cast<long long>(gradient_facts_bytes(problem));
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
template HaloParams owner_params(const Problem&, const vecina_forward_args&, const Owners&,
                                 double*);
template HaloParams owner_params(const Problem&, const vecina_backward_args&, const Owners&,
                                 double*);

template <typename Args>
FillParams<Args> fill_params(const HaloParams& params) {
  return [params](const Args& args, void* memory) -> Status {
    HaloParams filled = params;
    for_fields(args, [&](const Field<Args>& field) {
      (filled.*field.rows).data = pointer(args.*field.tensor);
    });
    filled.facts = workspace(args);
    std::memcpy(memory, &filled, sizeof filled);
    return {};
  };
}
template FillParams<vecina_forward_args> fill_params(const HaloParams&);
template FillParams<vecina_backward_args> fill_params(const HaloParams&);

}  // namespace vecina::internal::cuda
