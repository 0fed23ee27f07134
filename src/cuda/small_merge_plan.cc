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

using vecina::cuda::MergeRows;
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

}  // namespace

Status small_plan_merge(const MergeArgs& example, const DeviceFacts& facts,
                        std::vector<KernelLaunch<MergeArgs>>* launches) {
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
  for (int i = 0; i < example.count; ++i) {
    tensors.push_back(&example.outputs[i]);
    tensors.push_back(&example.lses[i]);
    config.vector = std::min(config.vector,
                             vector_elements({&example.outputs[i]}, config.head_dim, kLoadBytes));
  }
  if (wanted(example.output)) {
    tensors.push_back(example.output);
    config.vector =
        std::min(config.vector, vector_elements({example.output}, config.head_dim, kLoadBytes));
  }
  if (wanted(example.lse)) tensors.push_back(example.lse);

  const std::vector<Dimension> dimensions = fold(tensors, shape);
  SmallMergeParams params = {};
  params.rows = 1;
  for (size_t d = 0; d < dimensions.size(); ++d) {
    params.rows *= dimensions[d].size;
    params.size[d] = dimensions[d].size;
  }
  config.is_large = params.rows >= (int64_t{1} << 31);
  for (size_t d = 0; d < dimensions.size() && !config.is_large; ++d) {
    params.sizes[d] = divider(dimensions[d].size);
  }
  config.num_dims = static_cast<int>(dimensions.size());
  config.lanes = 1;
  while (config.lanes < kMaxLanes && config.lanes * config.vector < config.head_dim) {
    config.lanes *= 2;
  }
  for (int i = 0; i < example.count; ++i) {
    params.outputs[i] = rows_of(example.outputs[i], dimensions);
    params.lses[i] = rows_of(example.lses[i], dimensions);
  }
  if (wanted(example.output)) params.output = rows_of(*example.output, dimensions);
  if (wanted(example.lse)) params.lse = rows_of(*example.lse, dimensions);

  const int64_t blocks = divide_up(params.rows, kThreads / config.lanes);
  if (static_cast<double>(blocks) > kMaxBlocks) {
    return unsupported("the merge needs more than 2^31 - 1 blocks of threads");
  }
  KernelLaunch<MergeArgs> launch;
  launch.source = {"small_merge.cu", "small_merge", "small_merge_config.h", "SmallMergeConfig",
                   print(config)};
  launch.grid[0] = static_cast<uint32_t>(blocks);
  launch.block[0] = kThreads;
  launch.is_programmatic = facts.compute_capability >= 90;
  launch.params_bytes = sizeof(SmallMergeParams);
  launch.fill = [params](const MergeArgs& args, void* memory) -> Status {
    SmallMergeParams filled = params;
    for (int i = 0; i < args.count; ++i) {
      filled.outputs[i].data = address(args.outputs[i]);
      filled.lses[i].data = address(args.lses[i]);
    }
    filled.output.data = pointer(args.output);
    filled.lse.data = pointer(args.lse);
    std::memcpy(memory, &filled, sizeof filled);
    return {};
  };
  launch.description = fmt::format(R"("threads_per_row": {}, "blocks": {})", config.lanes, blocks);
  launches->push_back(std::move(launch));
  return {};
}

}  // namespace vecina::internal::cuda
