// SPDX-License-Identifier: MIT
// Lengths are data of a call. Each distinct length gets a plan of its own, as of a problem of batch
// 1, and the units of all samples become the units of one call. Plans are remembered by length, and
// the last call's list of them by all of its lengths: the same lengths again allocate nothing.
#include "cpu/sample_plans.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <vector>

#include "core/tensor.h"
#include "cpu/layout.h"
#include "cpu/samples.h"

namespace vecina::internal::cpu {
namespace {

constexpr size_t kMaxPlans = 512;  // of one problem; then they are forgotten

// What differs between the passes.
struct ForwardPass {
  using Args = vecina_forward_args;
  using Kernel = ForwardKernel;
  using SamplePlan = ForwardPlan;
  static constexpr const char* kName = "forward";
  static constexpr size_t kStages = 1;

  static Kernel kernel(int32_t dtype) { return forward_kernel(dtype); }
  static std::array<ForwardFunction, kStages> functions(const Kernel& kernel) {
    return {kernel.run};
  }
  static SamplePlan plan(const Problem& problem, const Args& example, const Kernel& kernel,
                         int64_t enough) {
    return plan_forward(problem, example, kernel, enough);
  }
  static std::array<int64_t, kStages> counts(const SamplePlan& plan) { return {plan.num_units()}; }
  static size_t shared_size(const SamplePlan& /*plan*/) { return 0; }
  static ForwardPointers pointers(const Args& args, void* /*shared*/) { return pointers_of(args); }
  static double flops(const Problem& problem) { return problem.forward_flops(); }
  static vecina_tensor* grad_bias(Args& /*args*/) { return nullptr; }
};

struct BackwardPass {
  using Args = vecina_backward_args;
  using Kernel = BackwardKernel;
  using SamplePlan = BackwardPlan;
  static constexpr const char* kName = "backward";
  static constexpr size_t kStages = 3;

  static Kernel kernel(int32_t dtype) { return backward_kernel(dtype); }
  static std::array<BackwardFunction, kStages> functions(const Kernel& kernel) {
    return {kernel.clear, kernel.run, kernel.gather};
  }
  static SamplePlan plan(const Problem& problem, const Args& example, const Kernel& kernel,
                         int64_t /*enough*/) {
    return plan_backward(problem, example, kernel);
  }
  static std::array<int64_t, kStages> counts(const SamplePlan& plan) {
    return {plan.num_clears(), plan.num_units(), plan.num_gathers()};
  }
  static size_t shared_size(const SamplePlan& plan) { return plan.shared_size(); }
  static BackwardPointers pointers(const Args& args, void* shared) {
    return pointers_of(args, shared);
  }
  static double flops(const Problem& problem) { return backward_flops(problem); }
  // nullptr: not wanted.
  static vecina_tensor* grad_bias(Args& args) {
    return given(args.grad_bias) ? &args.grad_bias : nullptr;
  }
};

// The samples of one call and the plan of each.
template <class Pass>
struct Schedule {
  struct Entry {
    Sample sample;
    std::shared_ptr<const typename Pass::SamplePlan> plan;  // nullptr: nothing to compute
    std::array<int64_t, Pass::kStages> first_unit = {};
    size_t bias_sums = 0, shared = 0;  // in shared memory, in elements
  };
  std::vector<int64_t> lengths;
  std::vector<Entry> entries;
  std::array<int64_t, Pass::kStages> num_units = {};
  size_t scratch_size = 0, shared_size = 0;  // elements
  double flops = 0.0;
};

void make_contiguous(vecina_tensor* tensor) {
  int64_t stride = 1;
  for (int d = tensor->ndim - 1; d >= 0; --d) {
    tensor->strides[d] = stride;
    stride *= tensor->shape[d];
  }
}

template <class Pass>
class SamplesPlan final : public Plan {
 public:
  using Args = typename Pass::Args;

  SamplesPlan(const Problem& problem, const Args& example, Resources* resources)
      : resources_(*resources),
        problem_(problem),
        example_(example),
        kernel_(Pass::kernel(problem.dtype())) {}

  using Plan::run;
  Status run(const Args& args, void* /*queue*/) const override {
    Job job = {*this, at_addresses(args, example_)};
    job.schedule = schedule_of(job.args);
    const size_t shared_bytes = job.schedule->shared_size * element_bytes();
    const ScratchPool::Lease shared(&resources_.shared, shared_bytes);
    if (shared_bytes > 0 && shared.data() == nullptr) return no_memory(shared_bytes);
    job.shared = static_cast<char*>(shared.data());

    const ThreadPool::Call call = resources_.call(job.schedule->flops);
    call.parallel_for(static_cast<int64_t>(job.schedule->entries.size()), &clear_unit, &job);
    for (job.stage = 0; job.stage < Pass::kStages; ++job.stage) {
      call.parallel_for(job.schedule->num_units[job.stage], &run_unit, &job);
    }
    if (job.failed.load(std::memory_order_relaxed)) return no_memory(scratch_bytes(job));
    if (const vecina_tensor* gradient = Pass::grad_bias(job.args)) {
      if (gradient->dtype == VECINA_F64) {
        add_bias_sums<double>(job, *gradient);
      } else {
        add_bias_sums<float>(job, *gradient);
      }
    }
    return {};
  }

  std::string describe() const override {
    return fmt::format(
        R"({{"kernel": "{}", "target": "{}", "lanes": {}, "threads": {}, "samples": {}, )"
        R"("why": "first in order that takes the problem; units are cut when a call brings )"
        R"(lengths{}{}"}})",
        Pass::kName, kernel_.target, kernel_.lanes, resources_.threads.threads(),
        example_.lengths.shape[0],
        kernel_.run_matrix == nullptr ? "" : ", and samples that gain by it take tiles of ",
        kernel_.matrix_target);
  }

 private:
  using SamplePlan = typename Pass::SamplePlan;
  using Entry = typename Schedule<Pass>::Entry;
  using PlanKey = std::array<int64_t, 6>;  // extents of key and query

  struct Job {
    const SamplesPlan& self;
    Args args;
    std::shared_ptr<const Schedule<Pass>> schedule = nullptr;
    char* shared = nullptr;
    size_t stage = 0;
    std::atomic<bool> failed{false};
  };

  size_t element_bytes() const { return static_cast<size_t>(kernel_.element_bytes); }
  size_t scratch_bytes(const Job& job) const {
    return job.schedule->scratch_size * element_bytes();
  }

  static void clear_unit(int64_t unit, void* user) {
    const Job& job = *static_cast<Job*>(user);
    clear_beyond(job.self.problem_, job.schedule->entries[static_cast<size_t>(unit)].sample,
                 job.args);
  }

  static void run_unit(int64_t unit, void* user) {
    Job& job = *static_cast<Job*>(user);
    const SamplesPlan& self = job.self;
    const ScratchPool::Lease scratch(&self.resources_.scratch, self.scratch_bytes(job));
    if (scratch.data() == nullptr) {
      job.failed.store(true, std::memory_order_relaxed);
      return;
    }
    const std::vector<Entry>& entries = job.schedule->entries;
    // The last one that begins here or before; those without units begin where the next one does.
    const Entry& entry = *std::prev(std::upper_bound(
        entries.begin(), entries.end(), unit,
        [&](int64_t wanted, const Entry& each) { return wanted < each.first_unit[job.stage]; }));
    Args args = args_of_sample(self.problem_, entry.sample, job.args);
    if (vecina_tensor* gradient = Pass::grad_bias(args)) {
      gradient->data = job.shared + entry.bias_sums * self.element_bytes();
      gradient->byte_offset = 0;
    }
    Pass::functions(self.kernel_)[job.stage](
        *entry.plan, Pass::pointers(args, job.shared + entry.shared * self.element_bytes()),
        unit - entry.first_unit[job.stage], scratch.data());
  }

  // Each sample has its own gradient of the bias, contiguous: adds them up in the samples' order.
  template <typename T>
  void add_bias_sums(const Job& job, const vecina_tensor& gradient) const {
    const int64_t count = num_elements(gradient);
    for (int64_t i = 0; i < count; ++i) {
      T sum = 0;
      for (const Entry& entry : job.schedule->entries) {
        if (entry.plan == nullptr) continue;
        sum += reinterpret_cast<const T*>(job.shared)[entry.bias_sums + static_cast<size_t>(i)];
      }
      int64_t offset = 0;
      for (int64_t rest = i, d = gradient.ndim - 1; d >= 0; rest /= gradient.shape[d], --d) {
        offset += rest % gradient.shape[d] * gradient.strides[d];
      }
      reinterpret_cast<T*>(address(gradient))[offset] = sum;
    }
  }

  std::shared_ptr<const Schedule<Pass>> schedule_of(Args& args) const {
    {
      const std::lock_guard lock(mutex_);
      if (last_ != nullptr && has_lengths(*last_, args)) return last_;
    }
    auto schedule = std::make_shared<Schedule<Pass>>();
    for_each_length(problem_, args.lengths, args.query_lengths,
                    [&](int64_t length) { schedule->lengths.push_back(length); });
    const vecina_tensor* grad_bias = Pass::grad_bias(args);
    const auto bias_size = static_cast<size_t>(grad_bias == nullptr ? 0 : num_elements(*grad_bias));
    for (const Sample& sample : samples_of(problem_, schedule->lengths)) {
      add_entry(args, sample, bias_size, schedule.get());
    }
    const std::lock_guard lock(mutex_);
    last_ = schedule;
    return schedule;
  }

  bool has_lengths(const Schedule<Pass>& schedule, const Args& args) const {
    bool is_same = true;
    size_t i = 0;
    for_each_length(problem_, args.lengths, args.query_lengths, [&](int64_t length) {
      is_same = is_same && schedule.lengths[i] == length;
      ++i;
    });
    return is_same;
  }

  void add_entry(const Args& args, const Sample& sample, size_t bias_size,
                 Schedule<Pass>* schedule) const {
    Entry entry;
    entry.sample = sample;
    entry.first_unit = schedule->num_units;
    if (sample.has_queries) {
      const Problem problem = problem_.of_sample(sample.key.extent, sample.query.extent);
      entry.plan = plan_of(problem, args, sample);
      const auto counts = Pass::counts(*entry.plan);
      for (size_t stage = 0; stage < Pass::kStages; ++stage) {
        schedule->num_units[stage] += counts[stage];
      }
      entry.bias_sums = take(bias_size, schedule);
      entry.shared = take(Pass::shared_size(*entry.plan), schedule);
      schedule->scratch_size = std::max(schedule->scratch_size, entry.plan->scratch.total);
      schedule->flops += Pass::flops(problem);
    }
    schedule->entries.push_back(std::move(entry));
  }

  // Whole cache lines of shared memory.
  size_t take(size_t elements, Schedule<Pass>* schedule) const {
    const size_t begin = schedule->shared_size;
    schedule->shared_size += round_up(elements, kLineBytes / element_bytes());
    return begin;
  }

  std::shared_ptr<const SamplePlan> plan_of(const Problem& problem, const Args& args,
                                            const Sample& sample) const {
    PlanKey key;
    std::copy_n(sample.key.extent.begin(), 3, key.begin());
    std::copy_n(sample.query.extent.begin(), 3, key.begin() + 3);
    {
      const std::lock_guard lock(mutex_);
      const auto found = plans_.find(key);
      if (found != plans_.end()) return found->second;
    }
    Args example = args_of_sample(problem_, sample, args);
    if (vecina_tensor* gradient = Pass::grad_bias(example)) make_contiguous(gradient);
    const int64_t samples = args.lengths.shape[0];
    const int64_t enough = (resources_.enough_units() + samples - 1) / samples;
    auto plan = std::make_shared<const SamplePlan>(Pass::plan(problem, example, kernel_, enough));
    const std::lock_guard lock(mutex_);
    if (plans_.size() >= kMaxPlans) plans_.clear();
    plans_.emplace(key, plan);
    return plan;
  }

  Resources& resources_;
  const Problem problem_;
  const Args example_;
  const typename Pass::Kernel kernel_;
  mutable std::mutex mutex_;  // of what follows
  mutable std::map<PlanKey, std::shared_ptr<const SamplePlan>> plans_;
  mutable std::shared_ptr<const Schedule<Pass>> last_;
};

}  // namespace

std::unique_ptr<Plan> make_samples_plan(const Problem& problem, const vecina_forward_args& example,
                                        Resources* resources) {
  return std::make_unique<SamplesPlan<ForwardPass>>(problem, example, resources);
}

std::unique_ptr<Plan> make_samples_plan(const Problem& problem, const vecina_backward_args& example,
                                        Resources* resources) {
  return std::make_unique<SamplesPlan<BackwardPass>>(problem, example, resources);
}

}  // namespace vecina::internal::cpu
