// SPDX-License-Identifier: MIT
// The CPU backend's face: what it takes, its plans, and how their units reach the threads.
#include "cpu/cpu.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>

#include "cpu/backward.h"
#include "cpu/cores.h"
#include "cpu/forward.h"
#include "cpu/launch.h"
#include "cpu/merge.h"
#include "cpu/peak.h"
#include "cpu/sample_plans.h"
#include "cpu/scratch.h"
#include "cpu/split.h"
#include "cpu/work.h"

namespace vecina::internal {
namespace {

using cpu::Resources;

// What the plan computes, needed or not: the direct form of one dimension takes whole vectors of
// keys and of head_dim, of which few keys and short rows fill little.
double computed_flops(const Problem& problem, const cpu::ForwardPlan& plan) {
  if (!plan.direct.one_row) return problem.forward_flops();
  const double slots =
      static_cast<double>(plan.direct.weights_pitch + problem.additional_tokens()) *
      static_cast<double>(problem.axis(0).num_queries()) * problem.heads();
  const int elements = cpu::round_up(problem.head_dim(), plan.lanes) +
                       cpu::round_up(problem.head_dim_value(), plan.lanes);
  return 2.0 * slots * elements * static_cast<double>(problem.batch());
}

class CpuForwardPlan : public Plan {
 public:
  CpuForwardPlan(const Problem& problem, const vecina_forward_args& example, Resources* resources)
      : resources_(*resources),
        kernel_(cpu::forward_kernel(problem.dtype())),
        alone_(cpu::plan_forward(problem, example, kernel_, /*enough=*/0)),
        flops_(computed_flops(problem, alone_)) {
    const int64_t enough = resources->enough_units();
    if (alone_.num_units() < enough) {
      shared_ =
          std::make_unique<cpu::ForwardPlan>(cpu::plan_forward(problem, example, kernel_, enough));
      if (shared_->num_units() == alone_.num_units()) shared_.reset();
    }
    plan_end(problem, example);
  }

  Status run(const vecina_forward_args& args, void*) const override {
    const ThreadPool::Call call = resources_.call(flops_);
    const cpu::ForwardPlan& plan = call.is_shared() ? shared_plan() : alone_;
    Job job = {this, &plan, cpu::pointers_of(args), plan.num_units()};
    int64_t units = job.before_end;
    if (call.is_shared() && end_ != nullptr) {
      job.before_end = before_end_;
      units = shared_units();
    }
    call.parallel_for(units, &run_unit, &job);
    return job.failed.load(std::memory_order_relaxed) ? cpu::no_memory(scratch_bytes()) : Status();
  }

  std::string describe() const override {
    return fmt::format(
        R"({{"kernel": "{}", "target": "{}", "lanes": {}, "last_lanes": {}, "threads": {}, )"
        R"("units": {}, "keys_at_once": {}, "scratch_bytes_per_thread": {}, {}"why": "first in )"
        R"(order that takes the problem"}})",
        kernel_name(), is_matrix() ? kernel_.matrix_target : kernel_.target, alone_.lanes,
        alone_.last_lanes(), resources_.threads.threads(), shared_units(), alone_.max_slots,
        scratch_bytes(), prediction());
  }

 private:
  std::string prediction() const {
    const std::optional<cpu::Peak> peak = cpu::known_peak();
    if (!peak || (is_matrix() && peak->tile_gflops == 0.0)) return "";  // emulated
    return resources_.prediction(cpu::predict_ms(alone_, kernel_, *peak), flops_, shared_units());
  }

  struct Job {
    const CpuForwardPlan* self;
    const cpu::ForwardPlan* plan;
    cpu::ForwardPointers pointers;
    int64_t before_end;  // units of `plan`; those behind them are of end_
    std::atomic<bool> failed{false};
  };

  // Where threads have few units, those of as many heads as there are threads are cut further, and
  // taken last: a thread that is done waits for a smaller part.
  void plan_end(const Problem& problem, const vecina_forward_args& example) {
    constexpr int64_t kFewUnits = 8;  // of a thread
    const cpu::ForwardPlan& plan = shared_plan();
    const int64_t threads = resources_.threads.threads(), units = plan.num_units();
    const auto boxes = static_cast<int64_t>(plan.boxes.size());
    if (threads == 1 || units == 0 || units >= kFewUnits * threads || units / boxes < 2 * threads) {
      return;
    }
    end_ =
        std::make_unique<cpu::ForwardPlan>(cpu::plan_forward(problem, example, kernel_, 2 * units));
    const auto end_boxes = static_cast<int64_t>(end_->boxes.size());
    if (end_->heads_at_once != plan.heads_at_once || end_boxes == boxes) return end_.reset();
    before_end_ = units - threads * boxes;
    first_of_end_ = before_end_ / boxes * end_boxes;
  }

  bool is_matrix() const { return alone_.matrix.is_used(); }
  const char* kernel_name() const {
    if (is_matrix()) return "forward_matrix";
    return alone_.direct.is_used ? "forward_direct" : "forward";
  }
  const cpu::ForwardPlan& shared_plan() const { return shared_ ? *shared_ : alone_; }
  int64_t shared_units() const {
    if (end_ == nullptr) return shared_plan().num_units();
    return before_end_ + end_->num_units() - first_of_end_;
  }
  // Of any plan: which one a call takes must not make it allocate.
  size_t scratch_bytes() const {
    size_t most = std::max(alone_.scratch.total, shared_plan().scratch.total);
    if (end_ != nullptr) most = std::max(most, end_->scratch.total);
    return most * static_cast<size_t>(kernel_.element_bytes);
  }

  static void run_unit(int64_t unit, void* user) {
    Job& job = *static_cast<Job*>(user);
    const CpuForwardPlan& self = *job.self;
    const cpu::ScratchPool::Lease scratch(&self.resources_.scratch, self.scratch_bytes());
    if (scratch.data() == nullptr) {
      job.failed.store(true, std::memory_order_relaxed);
    } else if (unit < job.before_end) {
      self.kernel_.run(*job.plan, job.pointers, unit, scratch.data());
    } else {
      self.kernel_.run(*self.end_, job.pointers, self.first_of_end_ + unit - job.before_end,
                       scratch.data());
    }
  }

  Resources& resources_;
  const cpu::ForwardKernel kernel_;
  // More units cost a little, which a caller who is alone need not pay.
  const cpu::ForwardPlan alone_;
  const double flops_;
  std::unique_ptr<const cpu::ForwardPlan> shared_;  // if it differs
  std::unique_ptr<const cpu::ForwardPlan> end_;     // of the last units
  int64_t before_end_ = 0;                          // units of the shared plan then
  int64_t first_of_end_ = 0;                        // unit of the end's plan
};

class CpuBackwardPlan : public Plan {
 public:
  CpuBackwardPlan(const Problem& problem, const vecina_backward_args& example, Resources* resources)
      : resources_(*resources),
        kernel_(cpu::backward_kernel(problem.dtype())),
        plan_(cpu::plan_backward(problem, example, kernel_)),
        flops_(cpu::backward_flops(problem)) {}

  Status run(const vecina_backward_args& args, void*) const override {
    const cpu::ScratchPool::Lease shared(&resources_.shared, shared_bytes());
    if (shared_bytes() > 0 && shared.data() == nullptr) return cpu::no_memory(shared_bytes());
    Job job = {this, nullptr, cpu::pointers_of(args, shared.data())};
    const ThreadPool::Call call = resources_.call(flops_);
    const auto run_units = [&](int64_t count, cpu::BackwardFunction function) {
      job.function = function;
      call.parallel_for(count, &run_unit, &job);
    };
    run_units(plan_.num_clears(), kernel_.clear);
    run_units(plan_.num_units(), kernel_.run);
    run_units(plan_.num_gathers(), kernel_.gather);
    return job.failed.load(std::memory_order_relaxed) ? cpu::no_memory(scratch_bytes()) : Status();
  }

  std::string describe() const override {
    return fmt::format(
        R"({{"kernel": "{}", "target": "{}", "lanes": {}, "threads": {}, "units": {}, )"
        R"("gathers": {}, "keys_at_once": {}, "scratch_bytes_per_thread": {}, "shared_bytes": {}, )"
        R"({}"why": "first in order that takes the problem"}})",
        is_matrix() ? "backward_matrix" : "backward",
        is_matrix() ? kernel_.matrix_target : kernel_.target, plan_.lanes,
        resources_.threads.threads(), plan_.num_units(), plan_.num_gathers(), plan_.max_slots,
        scratch_bytes(), shared_bytes(), prediction());
  }

 private:
  std::string prediction() const {
    const std::optional<cpu::Peak> peak = cpu::known_peak();
    if (!peak || (is_matrix() && peak->tile_gflops == 0.0)) return "";  // emulated
    return resources_.prediction(cpu::predict_ms(plan_, kernel_, *peak), flops_, plan_.num_units());
  }

  struct Job {
    const CpuBackwardPlan* plan;
    cpu::BackwardFunction function;
    cpu::BackwardPointers pointers;
    std::atomic<bool> failed{false};
  };

  bool is_matrix() const { return plan_.matrix.is_used(); }
  size_t scratch_bytes() const {
    return plan_.scratch.total * static_cast<size_t>(kernel_.element_bytes);
  }
  size_t shared_bytes() const {
    return plan_.shared_size() * static_cast<size_t>(kernel_.element_bytes);
  }

  static void run_unit(int64_t unit, void* user) {
    Job& job = *static_cast<Job*>(user);
    const CpuBackwardPlan& self = *job.plan;
    const cpu::ScratchPool::Lease scratch(&self.resources_.scratch, self.scratch_bytes());
    if (scratch.data() == nullptr) {
      job.failed.store(true, std::memory_order_relaxed);
    } else {
      job.function(self.plan_, job.pointers, unit, scratch.data());
    }
  }

  Resources& resources_;
  const cpu::BackwardKernel kernel_;
  const cpu::BackwardPlan plan_;
  const double flops_;
};

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options) : resources_(options) {}

  const char* name() const override { return "cpu"; }

  std::string misconfigured() const override { return cpu::target_problem(); }

  std::string why_not(const Problem& problem, Pass pass) const override {
    return e4m3_why_not(problem, pass);
  }

  Status plan(const Problem& problem, const vecina_forward_args& example,
              std::unique_ptr<Plan>* plan) override {
    if (problem.lengths() == VECINA_LENGTHS_EQUAL) {
      *plan = std::make_unique<CpuForwardPlan>(problem, example, &resources_);
    } else {
      *plan = cpu::make_samples_plan(problem, example, &resources_);
    }
    return {};
  }

  Status plan(const Problem& problem, const vecina_backward_args& example,
              std::unique_ptr<Plan>* plan) override {
    if (problem.lengths() == VECINA_LENGTHS_EQUAL) {
      *plan = std::make_unique<CpuBackwardPlan>(problem, example, &resources_);
    } else {
      *plan = cpu::make_samples_plan(problem, example, &resources_);
    }
    return {};
  }

  Status plan(const Problem& problem, const SplitArgs& example,
              std::unique_ptr<Plan>* plan) override {
    *plan = cpu::make_split_plan(problem, example, &resources_);
    return {};
  }

  Status merge(const MergeArgs& args, void*) override {
    cpu::merge(args, &resources_.threads);
    return {};
  }
  Status merge_backward(const MergeBackwardArgs& args, void*) override {
    cpu::merge_backward(args, &resources_.threads);
    return {};
  }

  std::string info() const override {
    return fmt::format(
        R"({{"model": "{}", "cores_usable": {}, "threads": {}, "target": "{}", "matrix_target": "{}", )"
        R"("lanes_f32": {}, "l1_bytes": {}, "l2_bytes": {}, "l3_bytes": {}}})",
        cpu_model(), usable_cores(), resources_.threads.threads(), cpu::forward_kernel_f32().target,
        cpu::forward_kernel_bf16().matrix_target, cpu::forward_kernel_f32().lanes, cache_bytes(1),
        cache_bytes(2), cache_bytes(3));
  }

  std::string peak() override { return json_of(cpu::measure_peak()); }

 private:
  mutable Resources resources_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  cpu::choose_target();
  return std::make_unique<CpuBackend>(options);
}

}  // namespace vecina::internal
