// SPDX-License-Identifier: MIT
#include "cuda/owners.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <numbers>
#include <numeric>

#include "core/tensor.h"
#include "cuda/gradient_plan.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {

using vecina::cuda::HaloParams;
using vecina::cuda::HaloRows;

std::string unsuitable_owners(const Problem& problem) {
  if (problem.num_samples() == 0) return "an empty batch";
  if (problem.dtype() != VECINA_F16 && problem.dtype() != VECINA_BF16) return "not f16 or bf16";
  if (query_rows(problem) > kMaxBlocks) return "2^31 rows or more";
  for (int a = 0; a < problem.rank(); ++a) {
    const Axis& axis = problem.axis(a);
    // Kernels multiply both, and strides of tokens, in 32 bits.
    if (axis.output_stride > axis.query_extent ||
        axis.dilation * axis.output_stride > std::numeric_limits<int32_t>::max()) {
      return "an output_stride that is longer than its axis or, times dilation, 2^31 or more";
    }
  }
  return {};
}

std::string unsuitable_offsets(const Problem& problem,
                               std::initializer_list<const vecina_tensor*> tensors) {
  double keys = 1.0, queries = 1.0;
  for (int a = 0; a < problem.rank(); ++a) {
    keys *= static_cast<double>(problem.axis(a).extent);
    queries *= static_cast<double>(problem.axis(a).query_extent);
  }
  const auto additional = static_cast<double>(problem.additional_tokens());
  const double most = std::max({keys, queries, additional});  // of a packed sample
  for (const vecina_tensor* tensor : tensors) {
    if (!given(*tensor)) continue;
    const auto bytes = static_cast<double>(dtype_bytes(tensor->dtype));
    double reach = 0.0;  // of one sample
    for (int d = 0; d < tensor->ndim; ++d) {
      if (tensor->shape[d] <= 1) continue;
      if (tensor->strides[d] < 0) return "a negative stride";
      const double stride = bytes * static_cast<double>(tensor->strides[d]);
      auto count = static_cast<double>(tensor->shape[d]);
      if (d == 1 && problem.lengths() == VECINA_LENGTHS_PACKED) count = std::min(count, most);
      if (d > 0) reach += stride * count;
    }
    if (reach >= 2147483647.0) return "a sample of 2^31 bytes or more";
  }
  return {};
}

std::string unsuitable_bias(const Problem& problem, const vecina_tensor& bias) {
  if (!given(bias)) return {};
  const ByteRange range = byte_range(bias);
  if (range.begin != address(bias)) return "a negative stride of the bias";
  // Tables of a block have entries for distances beyond the bias too.
  double reach = static_cast<double>(range.end - range.begin);
  for (int a = 0; a < problem.rank(); ++a) {
    reach += static_cast<double>(dtype_bytes(bias.dtype)) *
             static_cast<double>(bias.strides[a + 1]) * static_cast<double>(problem.axis(a).extent);
  }
  if (reach > std::numeric_limits<int32_t>::max()) return "a bias of 2^31 bytes or more";
  return {};
}

std::string unsuitable_strides(const Problem& problem,
                               std::initializer_list<const vecina_tensor*> rows, int head_dim) {
  if (std::string why = unsuitable_offsets(problem, rows); !why.empty()) return why;
  if (vector_elements(rows, head_dim, 16) < 8) {
    return "strides or addresses that are no multiples of 16 bytes";
  }
  return {};
}

QueryGroups query_groups(const Axis& axis) {
  const int64_t common = std::gcd(axis.dilation, axis.output_stride);
  const int64_t count = axis.dilation / common;
  return {count, divide_up(axis.num_queries(), count), axis.output_stride / common};
}

int64_t count_owner_tiles(const Axis& axis, bool of_keys, int owners) {
  if (of_keys) return axis.dilation * divide_up(divide_up(axis.extent, axis.dilation), owners);
  const QueryGroups groups = query_groups(axis);
  // If there are fewer queries than groups, the last groups have none.
  return std::min(groups.count, axis.num_queries()) * divide_up(groups.length, owners);
}

namespace {

HaloRows narrow(const SmallRows& wide) {
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
    params.*field.rows =
        narrow(token_rows(example.*field.tensor, field.is_additional ? 1 : token_rank(problem)));
  });
  params.bias = narrow(bias_rows(example.bias, problem.rank()));
  params.num_items_of_sample = owners.items_of_sample;
  params.items_of_sample = divider(params.num_items_of_sample);
  params.num_items = static_cast<int>(problem.num_samples()) * params.num_items_of_sample;
  params.heads = problem.heads();
  params.facts_bytes = static_cast<long long>(gradient_facts_bytes(problem));
  params.scale = static_cast<float>(problem.scale());
  params.scale_to_powers = static_cast<float>(problem.scale() * std::numbers::log2e);
  *blocks = static_cast<double>(divide_up(params.num_items, owners.items_of_block));
  for (int a = 0; a < 3; ++a) {
    const Axis axis = small_axis(problem, a);
    const int64_t tiles =
        count_owner_tiles(axis, owners.of_keys, owners.box[static_cast<size_t>(a)]);
    params.axes[a] = {static_cast<int>(axis.extent), static_cast<int>(tiles), divider(tiles)};
    *blocks *= static_cast<double>(tiles);
    params.num_outputs[a] = params.facts_extent[a] = static_cast<int>(axis.num_queries());
    params.query_extent[a] = static_cast<int>(axis.query_extent);
    if (problem.lengths() != VECINA_LENGTHS_PACKED) {
      for (HaloRows HaloParams::*rows : {&HaloParams::query, &HaloParams::grad_query}) {
        const int64_t stride = (params.*rows).token[a] * axis.output_stride;
        (params.*rows).token[a] = static_cast<int>(stride);
      }
    }
  }
  params.lengths = sample_lengths(problem, example);
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
    filled.bias.data = pointer(args.bias);
    filled.facts = workspace(args);
    set_lengths(args, &filled.lengths);
    std::memcpy(memory, &filled, sizeof filled);
    return {};
  };
}
template FillParams<vecina_forward_args> fill_params(const HaloParams&);
template FillParams<vecina_backward_args> fill_params(const HaloParams&);

}  // namespace vecina::internal::cuda
