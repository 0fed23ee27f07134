// SPDX-License-Identifier: MIT
#include "cuda/build_ahead.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <type_traits>
#include <vector>

#include "core/arguments.h"
#include "core/pass.h"
#include "cuda/families.h"
#include "cuda/kernel_store.h"
#include "cuda/small_plan.h"

namespace vecina::internal::cuda {
namespace {

using nlohmann::ordered_json;

constexpr int kMerged = 2;  // attentions of a merge that is built ahead

const char* pass_name(Pass pass) {
  switch (pass) {
    case Pass::forward:
      return "forward";
    case Pass::backward:
      return "backward";
    case Pass::qk:
      return "qk";
    case Pass::av:
      return "av";
    case Pass::qk_backward:
      return "qk_backward";
    case Pass::av_backward:
      return "av_backward";
  }
  return "";
}

class Builder {
 public:
  Builder(const Problem& problem, const DeviceFacts& facts, int compute_capability,
          const DiskCache& cache, ordered_json* list)
      : problem_(problem),
        facts_(facts),
        compute_capability_(compute_capability),
        cache_(cache),
        list_(list) {}

  template <typename Args>
  Status build(Pass pass, Args example) const {
    const bool has_lengths = problem_.lengths() != VECINA_LENGTHS_EQUAL;
    std::string why = is_split(pass) && has_lengths ? "lengths of samples" : "";
    if (why.empty()) why = why_not(problem_, pass, facts_);
    if (!why.empty()) {
      list_->push_back({{"pass", pass_name(pass)}, {"why", why}});
      return {};
    }
    imagine_arguments(problem_, VECINA_CUDA, &example);
    const char* family = "";
    std::vector<KernelLaunch<Args>> launches;
    VECINA_RETURN_IF_ERROR(plan_launches(problem_, example, facts_, &family, &launches));
    if constexpr (std::is_same_v<Args, vecina_forward_args>) {  // other kernels, perhaps
      std::vector<KernelLaunch<Args>> without_lse;
      example.lse = {};
      VECINA_RETURN_IF_ERROR(plan_launches(problem_, example, facts_, &family, &without_lse));
      std::move(without_lse.begin(), without_lse.end(), std::back_inserter(launches));
    }
    return build_launches(pass_name(pass), family, launches);
  }

  Status build_merge() const {
    vecina_forward_args attention = {};
    imagine_arguments(problem_, VECINA_CUDA, &attention);
    const std::vector<vecina_tensor> outputs(kMerged, attention.output);
    const std::vector<vecina_tensor> lses(kMerged, attention.lse);
    VECINA_RETURN_IF_ERROR(plan_and_build("merge", MergeArgs{kMerged, outputs.data(), lses.data(),
                                                             &attention.output, &attention.lse}));
    return plan_and_build("merge_backward",
                          MergeBackwardArgs{kMerged, outputs.data(), lses.data(), &attention.output,
                                            &attention.lse, outputs.data(), lses.data()});
  }

 private:
  template <typename Args>
  Status plan_and_build(const char* name, const Args& args) const {
    std::vector<KernelLaunch<Args>> launches;
    VECINA_RETURN_IF_ERROR(small_plan_merge(args, facts_, &launches));
    return build_launches(name, "merge", launches);
  }

  template <typename Args>
  Status build_launches(const char* name, const char* family,
                        const std::vector<KernelLaunch<Args>>& launches) const {
    for (const std::vector<size_t>& group : group_by_kernel(launches)) {
      const KernelLaunch<Args>& launch = launches[group.front()];
      Built built;
      VECINA_RETURN_IF_ERROR(build_kernel(launch.source, compute_capability_, cache_, &built));
      list_->push_back({{"pass", name},
                        {"family", family},
                        {"kernel", launch.source.entry},
                        {"config", launch.source.config},
                        {"architecture", built.architecture},
                        {"bytes", built.compiled.image.size()},
                        {"registers", built.compiled.resources.registers},
                        {"stack_bytes", built.compiled.resources.stack_bytes},
                        {"spill_bytes", built.compiled.resources.spill_bytes},
                        {"was_on_disk", built.was_on_disk},
                        {"compile_ms", built.compile_ms}});
    }
    return {};
  }

  const Problem& problem_;
  const DeviceFacts& facts_;
  const int compute_capability_;
  const DiskCache& cache_;
  ordered_json* list_;
};

}  // namespace

Status build_ahead(const Problem& problem, const KernelParts& parts, const DeviceFacts& facts,
                   int compute_capability, const DiskCache& cache, ordered_json* list) {
  const Builder builder(problem, facts, compute_capability, cache, list);
  if (parts.forward) VECINA_RETURN_IF_ERROR(builder.build(Pass::forward, vecina_forward_args{}));
  if (parts.backward) {
    VECINA_RETURN_IF_ERROR(builder.build(Pass::backward, vecina_backward_args{}));
  }
  if (parts.split) {
    for (const Pass pass : {Pass::qk, Pass::av, Pass::qk_backward, Pass::av_backward}) {
      VECINA_RETURN_IF_ERROR(builder.build(pass, SplitArgs{pass, {}}));
    }
  }
  return parts.merge ? builder.build_merge() : Status();
}

}  // namespace vecina::internal::cuda
