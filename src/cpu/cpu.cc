// SPDX-License-Identifier: MIT
// The CPU backend's face: what it takes, its plans, and how their units reach the threads.
#include "cpu/cpu.h"

#include <fmt/format.h>

#include <atomic>

#include "core/tensor.h"
#include "cpu/backward.h"
#include "cpu/cores.h"
#include "cpu/forward.h"
#include "cpu/merge.h"
#include "cpu/peak.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace vecina::internal {
namespace {

// Below this many floating-point operations a call is over before another thread has joined in
// (some 3 us at 100 GFLOP/s), below the second before a parked one has woken.
constexpr double kFlopsForThreads = 3e5;
constexpr double kFlopsForParkedThreads = 3e6;

struct Resources {
  ThreadPool threads;
  cpu::ScratchPool scratch;
  cpu::ScratchPool shared;  // what the threads of one call hand to each other

  explicit Resources(const BackendOptions& options) : threads(options) {}
};

cpu::ForwardKernel forward_kernel(int32_t dtype) {
  switch (dtype) {
    case VECINA_F64:
      return cpu::forward_kernel_f64();
    case VECINA_F16:
      return cpu::forward_kernel_f16();
    case VECINA_BF16:
      return cpu::forward_kernel_bf16();
    default:
      return cpu::forward_kernel_f32();
  }
}

cpu::BackwardKernel backward_kernel(int32_t dtype) {
  switch (dtype) {
    case VECINA_F64:
      return cpu::backward_kernel_f64();
    case VECINA_F16:
      return cpu::backward_kernel_f16();
    case VECINA_BF16:
      return cpu::backward_kernel_bf16();
    default:
      return cpu::backward_kernel_f32();
  }
}

char* pointer(const vecina_tensor& tensor) { return given(tensor) ? address(tensor) : nullptr; }

Status no_memory(size_t bytes) {
  return out_of_memory(
      fmt::format("the host has no {} bytes of working memory for a thread.", bytes));
}

class CpuForwardPlan : public Plan {
 public:
  CpuForwardPlan(const Problem& problem, const vecina_forward_args& example, Resources* resources)
      : resources_(*resources),
        kernel_(forward_kernel(problem.dtype())),
        plan_(cpu::plan_forward(problem, example, kernel_, resources->threads.threads())),
        flops_(problem.forward_flops()) {}

  Status run(const vecina_forward_args& args, void*) const override {
    Job job = {this,
               {pointer(args.query), pointer(args.key), pointer(args.value),
                pointer(args.additional_key), pointer(args.additional_value), pointer(args.bias),
                pointer(args.output), pointer(args.lse)}};
    const int64_t units = plan_.num_units();
    if (flops_ < kFlopsForThreads) {
      for (int64_t unit = 0; unit < units; ++unit) run_unit(unit, &job);
    } else {
      resources_.threads.parallel_for(units, flops_ >= kFlopsForParkedThreads, &run_unit, &job);
    }
    return job.failed.load(std::memory_order_relaxed) ? no_memory(scratch_bytes()) : Status();
  }

  std::string describe() const override {
    return fmt::format(
        R"({{"kernel": "forward", "target": "{}", "lanes": {}, "threads": {}, "units": {}, )"
        R"("keys_at_once": {}, "scratch_bytes_per_thread": {}, "why": "first in order that takes )"
        R"(the problem"}})",
        kernel_.target, kernel_.lanes, resources_.threads.threads(), plan_.num_units(),
        plan_.max_slots, scratch_bytes());
  }

 private:
  struct Job {
    const CpuForwardPlan* plan;
    cpu::ForwardPointers pointers;
    std::atomic<bool> failed{false};
  };

  size_t scratch_bytes() const {
    return plan_.scratch.total * static_cast<size_t>(kernel_.element_bytes);
  }

  static void run_unit(int64_t unit, void* user) {
    Job& job = *static_cast<Job*>(user);
    const CpuForwardPlan& self = *job.plan;
    const cpu::ScratchPool::Lease scratch(&self.resources_.scratch, self.scratch_bytes());
    if (scratch.data() == nullptr) {
      job.failed.store(true, std::memory_order_relaxed);
    } else {
      self.kernel_.run(self.plan_, job.pointers, unit, scratch.data());
    }
  }

  Resources& resources_;
  const cpu::ForwardKernel kernel_;
  const cpu::ForwardPlan plan_;
  const double flops_;
};

class CpuBackwardPlan : public Plan {
 public:
  CpuBackwardPlan(const Problem& problem, const vecina_backward_args& example, Resources* resources)
      : resources_(*resources),
        kernel_(backward_kernel(problem.dtype())),
        plan_(cpu::plan_backward(problem, example, kernel_)),
        flops_(kProducts / 2.0 * problem.forward_flops()) {}

  Status run(const vecina_backward_args& args, void*) const override {
    const cpu::ScratchPool::Lease shared(&resources_.shared, shared_bytes());
    if (shared_bytes() > 0 && shared.data() == nullptr) return no_memory(shared_bytes());
    Job job = {this,
               nullptr,
               {pointer(args.query), pointer(args.key), pointer(args.value),
                pointer(args.additional_key), pointer(args.additional_value), pointer(args.bias),
                pointer(args.output), pointer(args.lse), pointer(args.grad_output),
                pointer(args.grad_lse), pointer(args.grad_query), pointer(args.grad_key),
                pointer(args.grad_value), pointer(args.grad_additional_key),
                pointer(args.grad_additional_value), pointer(args.grad_bias), shared.data()}};
    run_units(plan_.num_clears(), kernel_.clear, &job);
    run_units(plan_.num_units(), kernel_.run, &job);
    run_units(plan_.num_gathers(), kernel_.gather, &job);
    return job.failed.load(std::memory_order_relaxed) ? no_memory(scratch_bytes()) : Status();
  }

  std::string describe() const override {
    return fmt::format(
        R"({{"kernel": "backward", "target": "{}", "lanes": {}, "threads": {}, "units": {}, )"
        R"("gathers": {}, "keys_at_once": {}, "scratch_bytes_per_thread": {}, "shared_bytes": {}, )"
        R"("why": "first in order that takes the problem"}})",
        kernel_.target, kernel_.lanes, resources_.threads.threads(), plan_.num_units(),
        plan_.num_gathers(), plan_.max_slots, scratch_bytes(), shared_bytes());
  }

 private:
  static constexpr double kProducts = 5.0;  // where forward has two

  struct Job {
    const CpuBackwardPlan* plan;
    cpu::BackwardFunction function;
    cpu::BackwardPointers pointers;
    std::atomic<bool> failed{false};
  };

  size_t scratch_bytes() const {
    return plan_.scratch.total * static_cast<size_t>(kernel_.element_bytes);
  }
  size_t shared_bytes() const {
    return plan_.shared_size() * static_cast<size_t>(kernel_.element_bytes);
  }

  void run_units(int64_t count, cpu::BackwardFunction function, Job* job) const {
    job->function = function;
    if (flops_ < kFlopsForThreads) {
      for (int64_t unit = 0; unit < count; ++unit) run_unit(unit, job);
    } else {
      resources_.threads.parallel_for(count, flops_ >= kFlopsForParkedThreads, &run_unit, job);
    }
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

  std::string why_not(const Problem& problem, Pass /*pass*/) const override {
    if (problem.lengths() != VECINA_LENGTHS_EQUAL) return "lengths of samples: not yet";
    return {};
  }

  Status plan(const Problem& problem, const vecina_forward_args& example,
              std::unique_ptr<Plan>* plan) override {
    *plan = std::make_unique<CpuForwardPlan>(problem, example, &resources_);
    return {};
  }

  Status plan(const Problem& problem, const vecina_backward_args& example,
              std::unique_ptr<Plan>* plan) override {
    *plan = std::make_unique<CpuBackwardPlan>(problem, example, &resources_);
    return {};
  }

  Status merge(const MergeArgs& args, void*) override {
    cpu::merge(args, &resources_.threads);
    return {};
  }

  std::string info() const override {
    return fmt::format(
        R"({{"model": "{}", "cores_usable": {}, "threads": {}, "target": "{}", "lanes_f32": {}, )"
        R"("l1_bytes": {}, "l2_bytes": {}, "l3_bytes": {}}})",
        cpu_model(), usable_cores(), resources_.threads.threads(), cpu::forward_kernel_f32().target,
        cpu::forward_kernel_f32().lanes, cache_bytes(1), cache_bytes(2), cache_bytes(3));
  }

  std::string peak() override { return cpu::measure_peak(); }

 private:
  mutable Resources resources_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  cpu::choose_target();
  return std::make_unique<CpuBackend>(options);
}

}  // namespace vecina::internal
