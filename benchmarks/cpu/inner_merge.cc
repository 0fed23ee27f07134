// SPDX-License-Identifier: MIT
// Rows of merging, through the call that folds tensors and computes their weights: a chunk of rows,
// which L2 holds.
#include <memory>

#include "benchmarks/cpu/inner.h"
#include "core/backend.h"
#include "cpu/merge.h"
#include "cpu/thread_pool.h"

namespace vecina::benchmarks {
namespace {

constexpr int kBranches = 2, kRows = 256;

// Two branches, with heads and tokens as neighbours in memory, so that all rows are one piece.
struct Merged {
  explicit Merged(const std::string& line) : threads(one_thread()) {
    for (const int seed : {1, 2}) {
      const vecina_problem problem = cli::parse_problem(line);
      inputs.push_back(cli::random_inputs(problem, static_cast<uint64_t>(seed)));
      outputs.push_back(cli::make_outputs(problem));
    }
    for (int i = 0; i < kBranches; ++i) {
      const auto of = static_cast<size_t>(i);
      parts[i] = inputs[of].query.view();
      lses[i] = inputs[of].grad_lse.view();
    }
    output = outputs[0].output.view();
    lse = outputs[0].lse.view();
  }
  static internal::BackendOptions one_thread() {
    internal::BackendOptions options;
    options.threads = 1;
    return options;
  }

  std::vector<cli::Inputs> inputs;
  std::vector<cli::Outputs> outputs;
  vecina_tensor parts[kBranches], lses[kBranches], output, lse;
  internal::ThreadPool threads;
};

InnerLoop merge_rows(const std::string& line, int head_dim) {
  const auto merged = std::make_shared<Merged>(line);
  const auto run = [=] {
    internal::cpu::merge({kBranches, merged->parts, merged->lses, &merged->output, &merged->lse},
                         &merged->threads);
  };
  const auto mistake = [=] {
    Comparison comparison(tolerance(VECINA_F32));
    for (int64_t row = 0; row < kRows; ++row) {
      double weights[kBranches], sum = 0.0;
      for (size_t i = 0; i < kBranches; ++i) {
        weights[i] = std::exp(merged->inputs[i].grad_lse.get(row));
        sum += weights[i];
      }
      comparison.add(merged->outputs[0].lse.get(row), std::log(sum), 1.0 + std::abs(std::log(sum)));
      for (int64_t k = row * head_dim; k < (row + 1) * head_dim; ++k) {
        double expected = 0.0, magnitude = 0.0;
        for (size_t i = 0; i < kBranches; ++i) {
          const double part = weights[i] / sum * merged->inputs[i].query.get(k);
          expected += part;
          magnitude += std::abs(part);
        }
        comparison.add(merged->outputs[0].output.get(k), expected, magnitude);
      }
    }
    return comparison.mistake();
  };
  Work work;
  work.bytes = (kBranches + 1.0) * kRows * (head_dim + 1.0) * sizeof(float);
  return {run, mistake, work};
}

}  // namespace

std::vector<InnerCase> merge_cases() {
  Cases cases;
  for (const int head_dim : {32, 64, 128}) {
    cases.add<float>(fmt::format("merge/branches:{}/head_dim:{}", kBranches, head_dim),
                     fmt::format("1d {} kernel_size 3 heads 1 head_dim {}", kRows, head_dim),
                     [head_dim](const std::string& line) { return merge_rows(line, head_dim); });
  }
  return cases.take();
}

}  // namespace vecina::benchmarks
