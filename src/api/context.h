// SPDX-License-Identifier: MIT
// A context: one instance of every backend, the choice among them, and a cache of plans.
#ifndef VECINA_API_CONTEXT_H_
#define VECINA_API_CONTEXT_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/backend.h"
#include "core/problem.h"
#include "core/status.h"

namespace vecina::internal {

// A plan with what it was made from. Args is vecina_forward_args, vecina_backward_args or
// SplitArgs.
struct PlanRecord {
  Problem problem;
  Pass pass = Pass::forward;
  const char* backend = "";
  vecina_device device = VECINA_CPU;  // where it computes
  std::unique_ptr<Plan> plan;
  vecina_forward_args forward_example = {};
  vecina_backward_args backward_example = {};
  SplitArgs split_example = {};

  Status run(const vecina_forward_args& args, void* queue) const;
  Status run(const vecina_backward_args& args, void* queue) const;
  Status run(const SplitArgs& args, void* queue) const;
};

class Context {
 public:
  static Status make(const vecina_context_options& options, std::shared_ptr<Context>* context);

  // Checks everything, asks the backends in order, and lets the first that can make the plan.
  Status plan(const Problem& problem, const vecina_forward_args& example,
              std::shared_ptr<const PlanRecord>* record);
  Status plan(const Problem& problem, const vecina_backward_args& example,
              std::shared_ptr<const PlanRecord>* record);
  // The same through the cache. A thread keeps its last plan, so that a repeated call costs one
  // comparison; otherwise a shared lock is taken.
  Status cached_plan(const vecina_problem& problem, const vecina_forward_args& args,
                     std::shared_ptr<const PlanRecord>* record);
  Status cached_plan(const vecina_problem& problem, const vecina_backward_args& args,
                     std::shared_ptr<const PlanRecord>* record);
  Status cached_plan(const vecina_problem& problem, const SplitArgs& args,
                     std::shared_ptr<const PlanRecord>* record);

  // Calls from now on are planned anew: a backend would decide otherwise.
  void forget_plans();

  Status merge(const MergeArgs& args, void* queue);
  Status merge_backward(const MergeBackwardArgs& args, void* queue);

  // Why the named backend cannot run at all (problem nullptr) or not this problem; empty if it can.
  std::string why_not(const std::string& name, const Problem* problem) const;
  // The most that any backend that may be used needs: the tensors decide which one it is.
  Status workspace_bytes(const Problem& problem, Pass pass, size_t* bytes) const;
  const std::vector<std::unique_ptr<Backend>>& backends() const { return backends_; }

 private:
  using Key = std::vector<int64_t>;
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };

  explicit Context(const BackendOptions& options);
  Status choose(const Problem& problem, Pass pass, int32_t device, Backend** backend) const;
  // Calls `attempt` on each backend that may be used until one does not answer UNSUPPORTED.
  Status first_that_can(const char* what, int32_t device,
                        const std::function<Status(Backend&)>& attempt);
  template <typename Args>
  Status make_plan(const Problem& problem, const Args& example,
                   std::shared_ptr<const PlanRecord>* record);
  template <typename Args>
  Status find_plan(const vecina_problem& problem, const Args& args,
                   std::shared_ptr<const PlanRecord>* record);

  // Of this context and the plans that it knows; never reused, unlike an address.
  std::atomic<uint64_t> id_;
  std::string backend_;  // the only one to use; empty: the first that can
  std::vector<std::unique_ptr<Backend>> backends_;
  std::shared_mutex mutex_;  // guards plans_
  std::unordered_map<Key, std::shared_ptr<const PlanRecord>, KeyHash> plans_;
};

}  // namespace vecina::internal
#endif  // VECINA_API_CONTEXT_H_
