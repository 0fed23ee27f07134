// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/tensor.h"
#include "cuda/kernels/small_merge_config.h"
#include "cuda/kernels/small_merge_params.h"
#include "cuda/small_common.h"
#include "cuda/small_plan.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::MergeGradientParams;
using vecina::cuda::MergeRows;
using vecina::cuda::MergeShape;
using vecina::cuda::SmallMergeConfig;
using vecina::cuda::SmallMergeParams;

static_assert(kMaxSmallMerge == vecina::cuda::kMaxMerge);

constexpr int kThreads = 128;
constexpr int kMaxLanes = 32;
constexpr int kLoadBytes = 16;

std::string print(const SmallMergeConfig& c) {
  return fmt::format(
      "{{.dtype = {}, .count = {}, .num_dims = {}, .head_dim = {}, .vector = {}, .lanes = {}, "
      ".is_large = {}}}",
      c.dtype, c.count, c.num_dims, c.head_dim, c.vector, c.lanes, c.is_large);
}

bool wanted(const vecina_tensor* tensor) { return tensor != nullptr && given(*tensor); }

// One dimension of the rows: its size, and which of the tensors' dimensions has its stride.
struct Dimension {
  int64_t size;
  int stride_of;
};

// Innermost first; neighbours that are one in memory for every tensor become one.
std::vector<Dimension> fold(const std::vector<const vecina_tensor*>& tensors,
                            const vecina_tensor& shape) {
  std::vector<Dimension> folded;
  for (int d = shape.ndim - 2; d >= 0; --d) {
    if (shape.shape[d] == 1) continue;
    const bool is_one =
        !folded.empty() && std::all_of(tensors.begin(), tensors.end(), [&](auto* t) {
          return t->strides[d] == t->strides[folded.back().stride_of] * folded.back().size;
        });
    if (is_one) {
      folded.back().size *= shape.shape[d];
    } else {
      folded.push_back({shape.shape[d], d});
    }
  }
  if (folded.empty()) folded.push_back({1, 0});
  return folded;
}

MergeRows rows_of(const vecina_tensor& tensor, const std::vector<Dimension>& dimensions) {
  MergeRows rows = {};
  for (size_t d = 0; d < dimensions.size(); ++d) {
    if (dimensions[d].size > 1) {
      rows.stride[d] = tensor.strides[dimensions[d].stride_of] * dtype_bytes(tensor.dtype);
    }
  }
  return rows;
}

char* pointer(const vecina_tensor* tensor) { return wanted(tensor) ? address(*tensor) : nullptr; }

// Calls visit(tensor, its place among the parameters, whether it has columns).
template <typename Visit>
void for_tensors(const MergeArgs& args, SmallMergeParams* params, Visit visit) {
  for (int i = 0; i < args.count; ++i) {
    visit(&args.outputs[i], &params->outputs[i], true);
    visit(&args.lses[i], &params->lses[i], false);
  }
  visit(args.output, &params->output, true);
  visit(args.lse, &params->lse, false);
}
template <typename Visit>
void for_tensors(const MergeBackwardArgs& args, MergeGradientParams* params, Visit visit) {
  for (int i = 0; i < args.count; ++i) {
    visit(&args.outputs[i], &params->outputs[i], true);
    visit(&args.lses[i], &params->lses[i], false);
    visit(&args.grad_outputs[i], &params->grad_outputs[i], true);
    visit(&args.grad_lses[i], &params->grad_lses[i], false);
  }
  visit(args.grad_output, &params->grad_output, true);
  visit(args.grad_lse, &params->grad_lse, false);
}

template <typename Params, typename Args>
Status plan(const char* kernel, const Args& example, const DeviceFacts& facts,
            std::vector<KernelLaunch<Args>>* launches) {
  if (example.count > kMaxSmallMerge) {
    return unsupported(fmt::format("{} attentions to merge; at most {} at once: merge the merged.",
                                   example.count, kMaxSmallMerge));
  }
  const vecina_tensor& shape = example.outputs[0];
  if (num_elements(shape) == 0) return {};
  std::vector<const vecina_tensor*> tensors;
  SmallMergeConfig config = {};
  config.dtype = shape.dtype;
  config.count = example.count;
  config.head_dim = static_cast<int>(shape.shape[shape.ndim - 1]);
  config.vector = kLoadBytes;
  Params params = {};
  for_tensors(example, &params, [&](const vecina_tensor* tensor, MergeRows*, bool has_columns) {
    if (!wanted(tensor)) return;
    tensors.push_back(tensor);
    if (!has_columns) return;
    config.vector = std::min(config.vector, vector_elements({tensor}, config.head_dim, kLoadBytes));
  });

  const std::vector<Dimension> dimensions = fold(tensors, shape);
  MergeShape& rows = params.shape;
  rows.rows = 1;
  for (size_t d = 0; d < dimensions.size(); ++d) {
    rows.rows *= dimensions[d].size;
    rows.size[d] = dimensions[d].size;
  }
  config.is_large = rows.rows >= (int64_t{1} << 31);
  for (size_t d = 0; d < dimensions.size() && !config.is_large; ++d) {
    rows.sizes[d] = divider(dimensions[d].size);
  }
  config.num_dims = static_cast<int>(dimensions.size());
  config.lanes = 1;
  while (config.lanes < kMaxLanes && config.lanes * config.vector < config.head_dim) {
    config.lanes *= 2;
  }
  for_tensors(example, &params, [&](const vecina_tensor* tensor, MergeRows* of_tensor, bool) {
    if (wanted(tensor)) *of_tensor = rows_of(*tensor, dimensions);
  });

  const int64_t blocks = divide_up(rows.rows, kThreads / config.lanes);
  if (static_cast<double>(blocks) > kMaxBlocks) {
    return unsupported("the merge needs more than 2^31 - 1 blocks of threads");
  }
  KernelLaunch<Args> launch;
  launch.source = {fmt::format("{}.cu", kernel), kernel, "small_merge_config.h", "SmallMergeConfig",
                   print(config)};
  launch.grid[0] = static_cast<uint32_t>(blocks);
  launch.block[0] = kThreads;
  launch.is_programmatic = facts.compute_capability >= 90;
  launch.params_bytes = sizeof(Params);
  launch.fill = [params](const Args& args, void* memory) -> Status {
    Params filled = params;
    for_tensors(args, &filled, [](const vecina_tensor* tensor, MergeRows* of_tensor, bool) {
      of_tensor->data = pointer(tensor);
    });
    std::memcpy(memory, &filled, sizeof filled);
    return {};
  };
  launch.description = fmt::format(R"("threads_per_row": {}, "blocks": {})", config.lanes, blocks);
  launches->push_back(std::move(launch));
  return {};
}

}  // namespace

Status small_plan_merge(const MergeArgs& example, const DeviceFacts& facts,
                        std::vector<KernelLaunch<MergeArgs>>* launches) {
  return plan<SmallMergeParams>("small_merge", example, facts, launches);
}

Status small_plan_merge(const MergeBackwardArgs& example, const DeviceFacts& facts,
                        std::vector<KernelLaunch<MergeBackwardArgs>>* launches) {
  return plan<MergeGradientParams>("merge_gradient", example, facts, launches);
}

}  // namespace vecina::internal::cuda
