// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "cuda/kernels/small_merge_config.h"
#include "cuda/kernels/small_merge_params.h"
#include "cuda/small_common.h"
#include "cuda/small_plan.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::SmallMergeConfig;

static_assert(kMaxSmallMerge == vecina::cuda::kMaxMerge);

constexpr int kThreads = 128;
constexpr int kMaxLanes = 32;
constexpr int64_t kMaxRowBytes = 2147483647;  // kernels number a row's bytes in 32 bits

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

char* pointer(const vecina_tensor* tensor) { return wanted(tensor) ? address(*tensor) : nullptr; }

// Calls visit(tensor, whether it has columns), in the order of MergeTensors.
template <typename Visit>
void for_tensors(const MergeArgs& args, Visit visit) {
  visit(args.output, true);
  visit(args.lse, false);
  for (int i = 0; i < args.count; ++i) {
    visit(&args.outputs[i], true);
    visit(&args.lses[i], false);
  }
}
// In the order of MergeGradientTensors.
template <typename Visit>
void for_tensors(const MergeBackwardArgs& args, Visit visit) {
  visit(args.grad_output, true);
  visit(args.grad_lse, false);
  for (int i = 0; i < args.count; ++i) {
    visit(&args.outputs[i], true);
    visit(&args.lses[i], false);
    visit(&args.grad_outputs[i], true);
    visit(&args.grad_lses[i], false);
  }
}

// The words of vecina::cuda::MergeParams; addresses are written for a run.
std::vector<int64_t> make_params(const std::vector<const vecina_tensor*>& tensors,
                                 const std::vector<Dimension>& dimensions, int64_t rows) {
  std::vector<int64_t> words = {rows};
  words.resize(1 + tensors.size());
  for (const Dimension& dimension : dimensions) {
    for (const vecina_tensor* tensor : tensors) {
      const bool has_stride = wanted(tensor) && dimension.size > 1;
      words.push_back(has_stride ? tensor->strides[dimension.stride_of] * dtype_bytes(tensor->dtype)
                                 : 0);
    }
  }
  for (const Dimension& dimension : dimensions) words.push_back(dimension.size);
  for (const Dimension& dimension : dimensions) {
    const bool is_small = rows < (int64_t{1} << 31);
    words.push_back(is_small ? std::bit_cast<int64_t>(divider(dimension.size)) : 0);
  }
  return words;
}

template <typename Args>
Status plan(const char* kernel, const Args& example, const DeviceFacts& facts,
            std::vector<KernelLaunch<Args>>* launches) {
  if (example.count > kMaxSmallMerge) {
    return unsupported(fmt::format("{} attentions to merge; at most {} at once: merge the merged.",
                                   example.count, kMaxSmallMerge));
  }
  const vecina_tensor& shape = example.outputs[0];
  const int64_t* const columns = shape.shape + shape.ndim - 1;  // rows without them have an lse
  if (std::find(shape.shape, columns, 0) != columns) return {};
  if (*columns > kMaxRowBytes / dtype_bytes(shape.dtype)) {
    return unsupported(fmt::format(
        "rows to merge of {} columns have 2^31 bytes or more; backend cpu merges them.", *columns));
  }
  std::vector<const vecina_tensor*> all, given_ones;
  SmallMergeConfig config = {};
  config.dtype = shape.dtype;
  config.count = example.count;
  config.head_dim = static_cast<int>(*columns);
  config.vector = row_vector(config.dtype, *columns, kLoadBytes);  // without columns none is given
  for_tensors(example, [&](const vecina_tensor* tensor, bool has_columns) {
    all.push_back(tensor);
    if (!wanted(tensor)) return;
    given_ones.push_back(tensor);
    if (!has_columns) return;
    config.vector = std::min(config.vector, vector_elements({tensor}, config.head_dim, kLoadBytes));
  });

  const std::vector<Dimension> dimensions = fold(given_ones, shape);
  int64_t rows = 1;
  for (const Dimension& dimension : dimensions) rows *= dimension.size;
  config.is_large = rows >= (int64_t{1} << 31);
  config.num_dims = static_cast<int>(dimensions.size());
  config.lanes = 1;
  while (config.lanes < kMaxLanes && config.lanes * config.vector < config.head_dim) {
    config.lanes *= 2;
  }
  const int64_t blocks = divide_up(rows, kThreads / config.lanes);
  if (static_cast<double>(blocks) > kMaxBlocks) {
    return unsupported("the merge needs more than 2^31 - 1 blocks of threads");
  }
  KernelLaunch<Args> launch;
  launch.source = {fmt::format("{}.cu", kernel), kernel, "small_merge_config.h", "SmallMergeConfig",
                   print(config)};
  launch.grid[0] = static_cast<uint32_t>(blocks);
  launch.block[0] = kThreads;
  launch.is_programmatic = facts.compute_capability >= 90;
  std::vector<int64_t> words = make_params(all, dimensions, rows);
  launch.params_bytes = words.size() * sizeof(int64_t);
  launch.fill = [words = std::move(words)](const Args& args, void* memory) -> Status {
    std::memcpy(memory, words.data(), words.size() * sizeof(int64_t));
    char** address = reinterpret_cast<char**>(memory) + 1;
    for_tensors(args, [&](const vecina_tensor* tensor, bool) { *address++ = pointer(tensor); });
    return {};
  };
  launch.description = fmt::format(R"("threads_per_row": {}, "blocks": {})", config.lanes, blocks);
  launches->push_back(std::move(launch));
  return {};
}

}  // namespace

Status small_plan_merge(const MergeArgs& example, const DeviceFacts& facts,
                        std::vector<KernelLaunch<MergeArgs>>* launches) {
  return plan("small_merge", example, facts, launches);
}

Status small_plan_merge(const MergeBackwardArgs& example, const DeviceFacts& facts,
                        std::vector<KernelLaunch<MergeBackwardArgs>>* launches) {
  return plan("merge_gradient", example, facts, launches);
}

}  // namespace vecina::internal::cuda
