// SPDX-License-Identifier: MIT
// Windows of the split form by axis, and the steps that each of its calls consists of.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>

#include "core/tensor.h"
#include "cpu/split.h"

namespace vecina::internal::cpu {
namespace {

constexpr double kFlopsOfUnit = 2e5;  // some microseconds: enough to claim, few to wait for

// Who sees each key: within a dilation group both ends of a window only move forward, so the
// queries of a key follow each other.
void find_seers(SplitAxis* axis) {
  const auto num_queries = static_cast<int32_t>(axis->num_queries());
  std::vector<int64_t> next(static_cast<size_t>(axis->dilation), 0);  // first key not yet seen
  for (int32_t q = 0; q < num_queries; ++q) {
    const SplitAxis::Query& query = axis->queries[static_cast<size_t>(q)];
    int64_t& unseen = next[static_cast<size_t>(query.begin % axis->dilation)];
    const int64_t end = query.begin + axis->dilation * query.count;
    for (int64_t key = std::max(unseen, query.begin); key < end; key += axis->dilation) {
      axis->keys[static_cast<size_t>(key)].first = q;
    }
    unseen = std::max(unseen, end);
  }
  next.assign(next.size(), std::numeric_limits<int64_t>::max());  // the last key already seen
  for (int32_t q = num_queries - 1; q >= 0; --q) {
    const SplitAxis::Query& query = axis->queries[static_cast<size_t>(q)];
    int64_t& seen = next[static_cast<size_t>(query.begin % axis->dilation)];
    const int64_t end = query.begin + axis->dilation * query.count;
    for (int64_t key = query.begin; key < std::min(seen, end); key += axis->dilation) {
      SplitAxis::Seers& seers = axis->keys[static_cast<size_t>(key)];
      seers.count = (q - seers.first) / static_cast<int32_t>(axis->query_step) + 1;
    }
    seen = std::min(seen, query.begin);
  }
}

// Counts the queries and the keys that are alike.
void find_runs(SplitAxis* axis) {
  for (size_t q = axis->queries.size() - 1; q-- > 0;) {
    SplitAxis::Query& here = axis->queries[q];
    const SplitAxis::Query& next = axis->queries[q + 1];
    if (here.count == next.count && here.empty == next.empty && here.bias == next.bias &&
        here.begin + axis->output_stride == next.begin) {
      here.alike = next.alike + 1;
    }
  }
  for (size_t k = axis->keys.size() - 1; k-- > 0;) {
    SplitAxis::Seers& here = axis->keys[k];
    const SplitAxis::Seers& next = axis->keys[k + 1];
    bool same = here.count == next.count && here.first + 1 == next.first;
    for (int32_t i = 0; same && i < here.count; ++i) {
      const int64_t query = here.first + i * axis->query_step, key = static_cast<int64_t>(k);
      same = axis->slot(key, query) == axis->slot(key + 1, query + 1);
    }
    if (same) here.alike = next.alike + 1;
  }
}

SplitAxis make_axis(const Problem& problem, int a, bool right_aligned) {
  const Axis& given = problem.axis(a);
  SplitAxis axis;
  axis.kernel_size = given.kernel_size;
  axis.dilation = given.dilation;
  axis.query_step = given.dilation / std::gcd(given.dilation, given.output_stride);
  axis.query_extent = given.query_extent;
  axis.output_stride = given.output_stride;
  axis.queries.clear();
  for (int64_t q = 0; q < given.num_queries(); ++q) {
    const Window window = window_of(problem, a, q);
    const int64_t distance = window.begin - q * given.output_stride;
    const int64_t missing = given.kernel_size - window.count;
    axis.queries.push_back(
        {window.begin, static_cast<int32_t>(window.count),
         static_cast<int32_t>(right_aligned ? missing : 0),
         static_cast<int32_t>(distance / given.dilation + given.kernel_size - 1)});
  }
  axis.keys.assign(static_cast<size_t>(given.extent), {});
  find_seers(&axis);
  find_runs(&axis);
  return axis;
}

}  // namespace

SplitPlan::SplitPlan(const Problem& problem, bool right_aligned)
    : dtype(problem.dtype()),
      batch(problem.batch()),
      additional_tokens(problem.additional_tokens()),
      window(problem.num_slots() - problem.additional_tokens()),
      heads(problem.heads()),
      heads_kv(problem.heads_kv()) {
  for (int a = 0; a < problem.rank(); ++a) {
    SplitAxis& axis = axes[static_cast<size_t>(3 - problem.rank() + a)];
    axis = make_axis(problem, a, right_aligned);
    int64_t most = 0;
    for (const SplitAxis::Seers& seers : axis.keys) most = std::max<int64_t>(most, seers.count);
    most_seers *= most;
    num_queries *= axis.num_queries();
    num_keys *= axis.num_keys();
    bias_size *= 2 * axis.kernel_size - 1;
  }
  pairs =
      static_cast<double>(batch * heads * num_queries) * static_cast<double>(problem.num_slots());
}

int64_t SplitPlan::tokens_per_unit(int head_dim) const {
  const double flops = 2.0 * static_cast<double>(window + additional_tokens) * heads * head_dim;
  return std::max<int64_t>(1, static_cast<int64_t>(kFlopsOfUnit / flops));
}

int64_t SplitPlan::num_units(const SplitStep& step, int head_dim) const {
  const int64_t tokens = tokens_per_unit(head_dim);
  switch (step.kind) {
    case SplitKind::weights:
    case SplitKind::rows:
      return batch * ((num_queries + tokens - 1) / tokens);
    case SplitKind::keys:
      return batch * ((num_keys + tokens - 1) / tokens);
    case SplitKind::additional:
      return batch * heads_kv * additional_tokens;
    case SplitKind::bias:
      return heads;
  }
  return 0;
}

SplitScratch SplitPlan::scratch(int head_dim) const {
  const auto slots = static_cast<size_t>(window + additional_tokens);
  const size_t list = std::max({slots, static_cast<size_t>(most_seers * heads / heads_kv),
                                static_cast<size_t>(std::min(num_queries, kQueriesAtOnce))});
  const auto all_heads = static_cast<size_t>(heads);
  ScratchLayout place(1);
  SplitScratch at;
  at.offsets = place(list * sizeof(int64_t));
  at.places = place(list * sizeof(int64_t));
  at.bias_places = place(slots * sizeof(int64_t));
  at.additional_offsets = place(static_cast<size_t>(additional_tokens) * sizeof(int64_t));
  at.raw = place(list * sizeof(double));
  at.factors = place((list + kMaxLanes) * sizeof(double));
  at.row = place((static_cast<size_t>(head_dim) + kMaxLanes) * sizeof(double));
  const size_t pitch = all_heads * slots + kMaxLanes;
  at.weights = place(std::max(pitch, static_cast<size_t>(kStagedWeights)) * sizeof(double));
  at.bias_rows = place(pitch * sizeof(double));
  at.no_bias = place((static_cast<size_t>(additional_tokens) + kMaxLanes) * sizeof(double));
  at.table = place(static_cast<size_t>(bias_size) * sizeof(double));
  at.total = place.total();
  return at;
}

namespace {

SplitTensor tensor_of(const Problem& problem, const vecina_tensor& tensor,
                      bool of_queries = false) {
  if (!given(tensor)) return {};
  SplitTensor split;
  split.data = address(tensor);
  split.batch = tensor.strides[0];
  for (int a = 0; a < problem.rank(); ++a) {
    split.token[static_cast<size_t>(3 - problem.rank() + a)] =
        tensor.strides[1 + a] * (of_queries ? problem.axis(a).output_stride : 1);
  }
  split.head = tensor.strides[1 + problem.rank()];
  return split;
}
SplitTensor additional_of(const vecina_tensor& tensor) {
  if (!given(tensor)) return {};
  return {address(tensor), tensor.strides[0], tensor.strides[2], {0, 0, tensor.strides[1]}};
}
SplitTensor bias_of(const Problem& problem, const vecina_tensor& tensor) {
  if (!given(tensor)) return {};
  SplitTensor split;
  split.data = address(tensor);
  split.head = tensor.strides[0];
  for (int a = 0; a < problem.rank(); ++a) {
    split.token[static_cast<size_t>(3 - problem.rank() + a)] = tensor.strides[1 + a];
  }
  return split;
}

// The steps of a call, those that write something that is wanted.
constexpr int kMaxSteps = 4;
int list_steps(const Problem& problem, const SplitArgs& args, SplitStep (&steps)[kMaxSteps]) {
  const vecina_split_args& c = args.c;
  const double scale = problem.scale();
  const auto at = [&](const vecina_tensor& tensor) { return tensor_of(problem, tensor); };
  const auto at_queries = [&](const vecina_tensor& t) { return tensor_of(problem, t, true); };
  int count = 0;
  const auto add = [&](const vecina_tensor& written, const SplitStep& step) {
    if (given(written)) steps[count++] = step;
  };
  if (args.pass == Pass::qk) {
    add(c.weights, {SplitKind::weights, scale, -std::numeric_limits<double>::infinity(), true,
                    at_queries(c.query), at(c.key), additional_of(c.additional_key), at(c.weights),
                    bias_of(problem, c.bias)});
  } else if (args.pass == Pass::av) {
    add(c.output, {SplitKind::rows,
                   1.0,
                   0.0,
                   false,
                   at(c.output),
                   at(c.value),
                   additional_of(c.additional_value),
                   at(c.weights),
                   {}});
  } else if (args.pass == Pass::qk_backward) {
    const SplitTensor weights = at(c.grad_weights), query = at_queries(c.query);
    add(c.grad_query, {SplitKind::rows,
                       scale,
                       0.0,
                       true,
                       at_queries(c.grad_query),
                       at(c.key),
                       additional_of(c.additional_key),
                       weights,
                       {}});
    add(c.grad_key, {SplitKind::keys, scale, 0.0, true, query, at(c.grad_key), {}, weights, {}});
    add(c.grad_additional_key, {SplitKind::additional,
                                scale,
                                0.0,
                                true,
                                query,
                                {},
                                additional_of(c.grad_additional_key),
                                weights,
                                {}});
    add(c.grad_bias,
        {SplitKind::bias, 1.0, 0.0, true, {}, {}, {}, weights, bias_of(problem, c.grad_bias)});
  } else {
    const SplitTensor weights = at(c.weights), grad_output = at(c.grad_output);
    add(c.grad_weights, {SplitKind::weights,
                         1.0,
                         0.0,
                         false,
                         grad_output,
                         at(c.value),
                         additional_of(c.additional_value),
                         at(c.grad_weights),
                         {}});
    add(c.grad_value,
        {SplitKind::keys, 1.0, 0.0, false, grad_output, at(c.grad_value), {}, weights, {}});
    add(c.grad_additional_value, {SplitKind::additional,
                                  1.0,
                                  0.0,
                                  false,
                                  grad_output,
                                  {},
                                  additional_of(c.grad_additional_value),
                                  weights,
                                  {}});
  }
  return count;
}

class CpuSplitPlan final : public Plan {
 public:
  CpuSplitPlan(const Problem& problem, const SplitArgs& example, Resources* resources)
      : resources_(*resources),
        problem_(problem),
        plan_(problem, example.c.right_aligned != 0),
        head_dim_(example.pass == Pass::qk || example.pass == Pass::qk_backward
                      ? problem.head_dim()
                      : problem.head_dim_value()),
        scratch_(plan_.scratch(head_dim_)) {}

  using Plan::run;
  Status run(const SplitArgs& args, void* /*queue*/) const override {
    SplitStep steps[kMaxSteps];
    const int count = list_steps(problem_, args, steps);
    std::atomic<bool> failed{false};
    const ThreadPool::Call call = resources_.call(2.0 * plan_.pairs * head_dim_ * count);
    for (int i = 0; i < count; ++i) {
      Job job = {this, &steps[i], &failed};
      call.parallel_for(plan_.num_units(steps[i], head_dim_), &run_unit, &job);
    }
    return failed.load(std::memory_order_relaxed) ? no_memory(scratch_.total) : Status();
  }

  std::string describe() const override {
    return fmt::format(
        R"({{"kernel": "split", "target": "{}", "threads": {}, "scratch_bytes_per_thread": {}, )"
        R"("why": "first in order that takes the problem"}})",
        forward_kernel(plan_.dtype).target, resources_.threads.threads(), scratch_.total);
  }

 private:
  struct Job {
    const CpuSplitPlan* plan;
    const SplitStep* step;
    std::atomic<bool>* failed;
  };

  static void run_unit(int64_t unit, void* user) {
    const Job& job = *static_cast<Job*>(user);
    const CpuSplitPlan& self = *job.plan;
    const ScratchPool::Lease scratch(&self.resources_.scratch, self.scratch_.total);
    if (scratch.data() == nullptr) {
      job.failed->store(true, std::memory_order_relaxed);
    } else {
      run_split_unit({self.plan_, *job.step, self.scratch_, self.head_dim_, unit,
                      static_cast<char*>(scratch.data())});
    }
  }

  Resources& resources_;
  const Problem problem_;
  const SplitPlan plan_;
  const int head_dim_;
  const SplitScratch scratch_;
};

}  // namespace

std::unique_ptr<Plan> make_split_plan(const Problem& problem, const SplitArgs& example,
                                      Resources* resources) {
  return std::make_unique<CpuSplitPlan>(problem, example, resources);
}

}  // namespace vecina::internal::cpu
