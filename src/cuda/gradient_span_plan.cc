// SPDX-License-Identifier: MIT
#include "cuda/gradient_span_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/tensor.h"
#include "core/window.h"
#include "cuda/gather_common.h"
#include "cuda/small_common.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::GradientConfig;

constexpr size_t kFactsBytes = 48 * 1024;  // of shared memory, without opt-in
// Queries or keys of all samples and heads. More were not measured; with so many it takes half the
// time. In 16 bits tensor cores take more, and
// more keys; it gains 5 % at the limit.
constexpr double kMostRows = 1 << 18, kMostHalfRows = 1 << 13, kMostHalfKeys = 16.0;

struct Counts {
  double query_keys, key_queries;  // that a query sees, and that see a key, at most
};
Counts count_partners(const Problem& problem) {
  Counts counts = {1.0, static_cast<double>(problem.head_group())};
  for (int a = 0; a < problem.rank(); ++a) {
    const Axis& axis = problem.axis(a);
    counts.query_keys *= static_cast<double>(axis.kernel_size);
    counts.key_queries *= static_cast<double>(
        problem.is_attention() ? axis.query_extent : std::min(axis.kernel_size, axis.extent));
  }
  counts.query_keys += static_cast<double>(problem.additional_tokens());
  return counts;
}

// Cycles and instructions of a warp, fitted to an H200's times of all forms of 21 problems
// (benchmarks/results/h200-small-backward-forms.json): half of these err by less than a tenth, f64
// is counted 1.4 times too long. Instructions: for a pair of each of its groups, for its owners, to
// halve the groups once.
struct Instructions {
  double pair, owner, halving;
};
Instructions count_instructions(const GradientConfig& config) {
  const auto columns = static_cast<double>(
      divide_up(std::max(config.head_dim, config.head_dim_value), config.lanes));
  const double each = config.dtype == VECINA_F64 ? 2.5 : 1.0;
  return {each * 35.0 * columns, each * 450.0, each * (5.0 + 6.5 * columns)};
}
double count_steps(double owners, double at_once, double partners, int groups,
                   const Instructions& of) {
  return std::ceil(owners / at_once) *
         (of.owner + std::ceil(partners / groups) * of.pair + std::log2(groups) * of.halving);
}
// Of warps, so many of which a scheduler has at once: alone each waits for itself.
double cycles_of(double instructions, double warps, double warps_at_once, int multiprocessors) {
  constexpr double kAlone = 3.0, kSchedulers = 4.0;
  const double of_scheduler = warps / (kSchedulers * multiprocessors);
  return std::ceil(of_scheduler / warps_at_once) * instructions *
         std::max(std::min(of_scheduler, warps_at_once), kAlone);
}
// A multiprocessor has two blocks of gradient_span.cu, or one in f64.
double warps_at_once(int32_t dtype) { return dtype == VECINA_F64 ? 2.0 : 4.0; }
// Of the launch, with all that its kernel waits for once; of each of the two others, and how much
// longer these take than is counted.
constexpr double kLaunch = 5800.0, kEachOfTwo = 1400.0, kTwoLaunches = 1.4;

// Chooses for one problem.
class Chooser {
 public:
  Chooser(const Problem& problem, const GradientConfig& config, const DeviceFacts& facts)
      : problem_(problem),
        config_(config),
        multiprocessors_(facts.multiprocessors),
        partners_(count_partners(problem)),
        instructions_(count_instructions(config)),
        rows_(count_rows(problem)) {
    for (int a = 0; a < problem.rank(); ++a) {
      num_keys_ *= problem.axis(a).extent;
      num_queries_ *= problem.axis(a).query_extent;
    }
  }

  GradientSpan choose() const {
    GradientSpan best;
    if (!is_measured()) return best;
    const int most_groups = 32 / config_.lanes;
    double least =
        kTwoLaunches * (2.0 * kEachOfTwo + cycles_of_rows(partners_.query_keys, rows_.query) +
                        cycles_of_rows(partners_.key_queries, rows_.key));
    // Of equal ones the one with fewer blocks, which finds fewer facts twice.
    for (int64_t keys = 1; keys <= 32 * kSpanWarps / config_.lanes; keys *= 2) {
      GradientSpan span = span_of(keys);
      if (span.facts_bytes > kFactsBytes) continue;
      for (span.query_groups = 1; span.query_groups <= most_groups; span.query_groups *= 2) {
        for (span.key_groups = 1; span.key_groups <= most_groups; span.key_groups *= 2) {
          const double cycles = one_launch(span);
          if (cycles > least || (cycles == least && span.keys == best.keys)) continue;
          least = cycles;
          best = span;
        }
      }
    }
    return best;
  }

 private:
  bool is_measured() const {
    const double rows = std::max(rows_.query, rows_.key);
    if (std::min(rows_.query, rows_.key) == 0.0) return false;
    if (dtype_bytes(config_.dtype) > 2) return rows <= kMostRows;
    return rows <= kMostHalfRows && partners_.query_keys <= kMostHalfKeys;
  }
  GradientSpan span_of(int64_t keys) const {
    GradientSpan span;
    span.keys = std::min(keys, num_keys_);
    span.spans = divide_up(num_keys_, span.keys);
    span.queries = num_keys_ == num_queries_ ? span.keys : divide_up(num_queries_, span.spans);
    span.seeing_queries = count_seeing_queries(problem_, span.keys, span.queries);
    span.facts_bytes = static_cast<size_t>(span.seeing_queries * problem_.head_group()) *
                       facts_bytes_of_query(problem_);
    return span;
  }
  double steps(double owners, double at_once, double partners, int groups) const {
    return count_steps(owners, at_once, partners, groups, instructions_);
  }
  double one_launch(const GradientSpan& span) const {
    const double at_once = 32.0 * kSpanWarps / config_.lanes;  // groups
    const auto queries = static_cast<double>(span.seeing_queries * problem_.head_group());
    const auto blocks =
        static_cast<double>(span.spans * problem_.num_samples() * problem_.heads_kv());
    return kLaunch + cycles_of(steps(queries, at_once / span.query_groups, partners_.query_keys,
                                     span.query_groups) +
                                   steps(static_cast<double>(span.keys), at_once / span.key_groups,
                                         partners_.key_queries, span.key_groups),
                               blocks * kSpanWarps, warps_at_once(config_.dtype), multiprocessors_);
  }
  // Of a launch with a warp for each row.
  double cycles_of_rows(double partners, double rows) const {
    constexpr double kWarpsAtOnce = 4.0;
    return cycles_of(steps(1, 1, partners, 32 / config_.lanes), rows, kWarpsAtOnce,
                     multiprocessors_);
  }

  const Problem& problem_;
  const GradientConfig& config_;
  int multiprocessors_;
  Counts partners_;
  Instructions instructions_;
  RowCounts rows_;
  int64_t num_keys_ = 1, num_queries_ = 1;
};

}  // namespace

int64_t count_seeing_queries(const Problem& problem, int64_t keys, int64_t queries) {
  const Axis& axis = problem.axis(0);
  int64_t keys_inside = 1, queries_inside = 1;
  for (int a = 1; a < problem.rank(); ++a) {
    keys_inside *= problem.axis(a).extent;
    queries_inside *= problem.axis(a).query_extent;
  }
  if (problem.is_attention()) return axis.query_extent * queries_inside;
  // A query and a key that it sees are at most a window and a stride apart.
  const bool is_plain = problem.lengths() == VECINA_LENGTHS_EQUAL;
  const int64_t reach = (axis.kernel_size - 1 + axis.stride) * axis.dilation;
  int64_t most = 0;
  const int64_t num_keys = axis.extent * keys_inside;
  const int64_t num_queries = axis.query_extent * queries_inside;
  const auto seeing = [&](int64_t token, int64_t* begin, int64_t* end) {
    if (!is_plain) {
      *begin = std::max<int64_t>(token - reach, 0);
      *end = std::min(token + reach + 1, axis.query_extent);
      return;
    }
    const auto dilation = static_cast<int>(axis.dilation);
    const int group = static_cast<int>(token) % dilation,
              index = static_cast<int>(token) / dilation;
    const NaAxis dense = {na_group_length(static_cast<int>(axis.extent), dilation, group),
                          static_cast<int>(axis.kernel_size), static_cast<int>(axis.stride),
                          axis.is_causal};
    *begin = na_group_to_axis(na_query_begin(dense, index), dilation, group);
    *end = na_group_to_axis(na_query_end(dense, index) - 1, dilation, group) + 1;
  };
  // Between the borders spans are like the one that lies so many keys before.
  const int64_t period = axis.stride * axis.dilation, border = 2 * reach + period;
  const int64_t repeat = std::lcm(keys, keys_inside * period);
  const int64_t inner_begin = border * keys_inside, inner_end = num_keys - inner_begin - keys;
  for (int64_t first = 0, own = 0; first < num_keys; first += keys, own += queries) {
    if (first >= inner_begin + repeat && first < inner_end) {
      const int64_t skipped = (inner_end - first) / repeat * repeat;
      first += skipped;
      own += skipped / keys * queries;
    }
    int64_t begin = std::min(own, num_queries) / queries_inside;
    int64_t end = divide_up(std::min(own + queries, num_queries), queries_inside);
    const int64_t last = (std::min(first + keys, num_keys) - 1) / keys_inside;
    for (int64_t token = first / keys_inside; token <= last; ++token) {
      int64_t from = 0, to = 0;
      seeing(token, &from, &to);
      if (from >= to) continue;
      begin = std::min(begin, from);
      end = std::max(end, to);
    }
    most = std::max(most, (end - begin) * queries_inside);
  }
  return most;
}

size_t facts_bytes_of_query(const Problem& problem) {
  constexpr size_t kFacts = 4;
  return kFacts * static_cast<size_t>(dtype_bytes(lse_dtype(problem.dtype())));
}

GradientSpan choose_gradient_span(const Problem& problem, const GradientConfig& config,
                                  const DeviceFacts& facts) {
  return Chooser(problem, config, facts).choose();
}

}  // namespace vecina::internal::cuda
