// SPDX-License-Identifier: MIT
// Contexts and problems from text, the rule, and the checker that applies it.
//
// "Exact" is the reference in double on the same (rounded) inputs, so that its own rounding to the
// problem's dtype does not hide the error of what is checked.
#include "cli/conformance.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "cli/dtypes.h"
#include "cli/errors.h"
#include "cli/split.h"
#include "cli/text.h"

namespace vecina::cli {

ContextPtr make_context(const std::string& backend, int threads) {
  vecina_context_options options = {};
  options.struct_size = sizeof(options);
  options.backend = backend.empty() ? nullptr : backend.c_str();
  options.threads = threads;
  vecina_context* context = nullptr;
  throw_if_failed(vecina_context_create(&options, &context));
  return {context, vecina_context_destroy};
}

vecina_problem parse_problem(const std::string& line) {
  vecina_problem problem = {};
  problem.struct_size = sizeof(problem);
  if (vecina_problem_parse(line.c_str(), &problem) != VECINA_OK) {
    throw std::invalid_argument(vecina_last_error());
  }
  return problem;
}

std::string print_problem(const vecina_problem& problem) {
  return read_text(
      [&](char* text, size_t size) { return vecina_problem_print(&problem, text, size); });
}

namespace {

void require_same_size(const HostTensor& a, const HostTensor& b) {
  if (a.size() != b.size()) throw std::invalid_argument("compared tensors differ in size.");
}

// Empty if a and b are finite, or not finite in the same way (which of NaN and +infinity is left
// open; -infinity is the lse of a query that sees nothing and must be exactly that).
std::string mismatch(const std::string& name, int64_t index, double actual, double exact) {
  const bool both_finite = std::isfinite(actual) && std::isfinite(exact);
  const bool neither_finite = !std::isfinite(actual) && !std::isfinite(exact);
  const double lowest = -std::numeric_limits<double>::infinity();
  if (both_finite || (neither_finite && (exact == lowest) == (actual == lowest))) return {};
  return fmt::format("{}[{}] is {}, exact {}", name, index, actual, exact);
}

// Error as a share of what is allowed; no error is always allowed.
double share(double error, double allowed) {
  if (error == 0.0) return 0.0;
  return allowed > 0.0 ? error / allowed : std::numeric_limits<double>::infinity();
}

Verdict failed(std::string detail) {
  return {false, std::numeric_limits<double>::infinity(), std::move(detail)};
}

void add(Verdict& sum, const Verdict& verdict) {
  sum.passed = sum.passed && verdict.passed;
  sum.worst = std::max(sum.worst, verdict.worst);
  if (verdict.detail.empty()) return;
  if (!sum.detail.empty()) sum.detail += "; ";
  sum.detail += verdict.detail;
}

HostTensor widened(const HostTensor& tensor, vecina_dtype dtype) {
  const bool is_integer = tensor.dtype() == VECINA_I32 || tensor.dtype() == VECINA_I64;
  const bool is_kept = is_integer || tensor.dtype() == dtype || tensor.dtype() == VECINA_E4M3;
  if (!tensor.given() || is_kept) return tensor;
  HostTensor wide(tensor.shape(), dtype);
  for (int64_t i = 0; i < tensor.size(); ++i) wide.set(i, tensor.get(i));
  return wide;
}

struct NamedGradient {
  const char* name;
  HostTensor Gradients::*tensor;
};
constexpr NamedGradient kGradients[] = {{"grad_query", &Gradients::query},
                                        {"grad_key", &Gradients::key},
                                        {"grad_value", &Gradients::value},
                                        {"grad_additional_key", &Gradients::additional_key},
                                        {"grad_additional_value", &Gradients::additional_value},
                                        {"grad_bias", &Gradients::bias}};

Outputs run_forward(vecina_context* context, const vecina_problem& problem, const Inputs& inputs,
                    Placement placement, bool with_lse) {
  Outputs outputs = make_outputs(problem, placement);
  if (!with_lse) outputs.lse = {};
  const vecina_forward_args args = forward_args(inputs, outputs);
  throw_if_failed(vecina_forward(context, &problem, &args, nullptr));
  return outputs;
}

Gradients run_backward(vecina_context* context, const vecina_problem& problem, const Inputs& inputs,
                       const Outputs& outputs, Placement placement) {
  Gradients gradients = make_gradients(problem, placement);
  const vecina_backward_args args = backward_args(inputs, outputs, gradients);
  throw_if_failed(vecina_backward(context, &problem, &args, nullptr));
  return gradients;
}

// By which the rule judges.
int32_t judged_dtype(const vecina_problem& problem) {
  const bool is_half = problem.dtype == VECINA_F16 || problem.dtype == VECINA_BF16;
  return is_half && problem.query_key_dtype == VECINA_E4M3 ? VECINA_E4M3 : problem.dtype;
}

// How many draws of numbers say what plain maths errs by, before a result fails.
constexpr uint64_t kDraws = 8;

// Of two tensors, where both are finite.
double largest_error(const HostTensor& plain, const HostTensor& exact) {
  require_same_size(plain, exact);
  double largest = 0.0;
  for (int64_t i = 0; i < exact.size(); ++i) {
    const double error = std::abs(plain.get(i) - exact.get(i));
    if (std::isfinite(error)) largest = std::max(largest, error);
  }
  return largest;
}

void append(Results& results, const char* name, const HostTensor& tensor) {
  if (tensor.given()) results.push_back({name, tensor});
}

Results named(const SplitResults& split) {
  Results results;
  append(results, "weights", split.logits);
  append(results, "output", split.output);
  append(results, "grad_weights", split.grad_weights);
  for (NamedTensor& gradient : named(split.gradients)) results.push_back(std::move(gradient));
  return results;
}

Results named(const Outputs& with_lse, const Outputs& without_lse) {
  return {{"output", with_lse.output},
          {"lse", with_lse.lse},
          {"output without lse", without_lse.output}};
}

Results run_both_passes(vecina_context* context, const vecina_problem& problem,
                        const Inputs& inputs, Placement placement) {
  const Outputs outputs = run_forward(context, problem, inputs, placement, /*with_lse=*/true);
  return named(run_backward(context, problem, inputs, outputs, placement));
}

void check_gaps(Verdict& verdict, const std::string& name, const HostTensor& tensor) {
  if (tensor.given() && !tensor.gaps_intact()) {
    add(verdict, failed(name + ": bytes outside of the rows were written"));
  }
}

}  // namespace

Results named(const Gradients& gradients) {
  Results results;
  for (const NamedGradient& gradient : kGradients) {
    append(results, gradient.name, gradients.*gradient.tensor);
  }
  return results;
}

Inputs widened(const Inputs& inputs, vecina_dtype dtype) {
  Inputs wide;
  for (auto member :
       {&Inputs::query, &Inputs::key, &Inputs::value, &Inputs::additional_key,
        &Inputs::additional_value, &Inputs::bias, &Inputs::lengths, &Inputs::query_lengths,
        &Inputs::head_scale, &Inputs::grad_output, &Inputs::grad_lse}) {
    wide.*member = widened(inputs.*member, dtype);
  }
  return wide;
}

vecina_problem widened(vecina_problem problem, vecina_dtype dtype) {
  problem.dtype = dtype;
  problem.flags &= ~static_cast<uint32_t>(VECINA_ALLOW_TF32);
  return problem;
}

Placement random_placement(uint64_t seed) {
  Random random(seed + 1);
  constexpr int64_t kChoices[] = {0, 0, 0, 1, 3, 8};
  Placement placement;
  placement.gap = kChoices[random.integer(0, 5)];
  placement.offset = kChoices[random.integer(0, 5)];
  return placement;
}

Verdict compare(const std::string& name, const HostTensor& actual, const HostTensor& exact,
                const HostTensor& plain, int32_t problem_dtype, double plain_error) {
  require_same_size(actual, exact);
  require_same_size(plain, exact);
  double error = 0.0, magnitude = 0.0;
  int64_t worst_index = 0;
  for (int64_t i = 0; i < exact.size(); ++i) {
    const double wanted = exact.get(i), got = actual.get(i), plainly = plain.get(i);
    // Beyond the dtype's range: the plain result overflows too.
    if (std::isfinite(wanted) && !std::isfinite(plainly) && !std::isnan(got)) continue;
    const std::string problem = mismatch(name, i, got, wanted);
    if (!problem.empty()) return failed(problem);
    if (!std::isfinite(wanted)) continue;
    magnitude = std::max(magnitude, std::abs(wanted));
    plain_error = std::max(plain_error, std::abs(plainly - wanted));
    if (std::abs(got - wanted) > error) {
      error = std::abs(got - wanted);
      worst_index = i;
    }
  }
  const double floor = problem_dtype == VECINA_F64 ? 1e-13 : 1e-6;
  const double allowed = 2.0 * plain_error + floor * magnitude;
  Verdict verdict = {error <= allowed, share(error, allowed), {}};
  if (!verdict.passed) {
    verdict.detail = fmt::format(
        "{}: largest error {:.3g} exceeds {:.3g} (twice the plain error {:.3g} + {:.0e} of "
        "{:.3g}); "
        "{}[{}] is {}, exact {}",
        name, error, allowed, plain_error, floor, magnitude, name, worst_index,
        actual.get(worst_index), exact.get(worst_index));
  }
  return verdict;
}

Verdict compare_lse(const HostTensor& actual, const HostTensor& exact, const HostTensor& plain,
                    int32_t problem_dtype, double plain_error) {
  require_same_size(actual, exact);
  const bool is_half = problem_dtype == VECINA_F16 || problem_dtype == VECINA_BF16;
  const bool is_e4m3 = problem_dtype == VECINA_E4M3;
  const double tolerance = problem_dtype == VECINA_F64 ? 1e-12 : is_half || is_e4m3 ? 1e-5 : 2e-6;
  plain_error = is_half ? 0.0 : std::max(plain_error, largest_error(plain, exact));
  Verdict verdict = {true, 0.0, {}};
  for (int64_t i = 0; i < exact.size(); ++i) {
    const double wanted = exact.get(i), got = actual.get(i);
    const std::string problem = mismatch("lse", i, got, wanted);
    if (!problem.empty()) return failed(problem);
    if (!std::isfinite(wanted)) continue;
    const double allowed = std::max(tolerance * std::max(1.0, std::abs(wanted)), 2.0 * plain_error);
    const double part = share(std::abs(got - wanted), allowed);
    if (part > 1.0 && part > verdict.worst) {
      verdict.passed = false;
      verdict.detail = fmt::format("lse[{}] is {}, exact {}: error {:.3g} exceeds {:.3g}", i, got,
                                   wanted, std::abs(got - wanted), allowed);
    }
    verdict.worst = std::max(verdict.worst, part);
  }
  return verdict;
}

Verdict judge(const Results& actual, uint64_t seed, int32_t problem_dtype,
              const std::function<Yardsticks(uint64_t)>& draw) {
  const Yardsticks yardsticks = draw(seed);
  std::vector<double> plain_errors(actual.size(), 0.0);  // on other numbers
  const auto verdict_now = [&] {
    Verdict verdict = {true, 0.0, {}};
    for (size_t i = 0; i < actual.size(); ++i) {
      const auto& [name, tensor] = actual[i];
      const HostTensor &exact = yardsticks.exact[i].tensor, &plain = yardsticks.plain[i].tensor;
      add(verdict, name == "lse"
                       ? compare_lse(tensor, exact, plain, problem_dtype, plain_errors[i])
                       : compare(name, tensor, exact, plain, problem_dtype, plain_errors[i]));
      check_gaps(verdict, name, tensor);
    }
    return verdict;
  };
  Verdict verdict = verdict_now();
  for (uint64_t k = 1; k < kDraws && !verdict.passed && std::isfinite(verdict.worst); ++k) {
    const Yardsticks others = draw(seed + (k << 32));
    for (size_t i = 0; i < actual.size(); ++i) {
      plain_errors[i] =
          std::max(plain_errors[i], largest_error(others.plain[i].tensor, others.exact[i].tensor));
    }
    verdict = verdict_now();
  }
  return verdict;
}

Checker::Checker(const std::string& backend, int threads)
    : backend_(backend),
      actual_(make_context(backend, threads)),
      reference_(make_context("reference", 1)),
      plain_(make_context("plain", 1)) {}

std::string Checker::why_not(const vecina_problem& problem) const {
  return read_text([&](char* text, size_t size) {
    return vecina_backend_why_not(actual_.get(), backend_.c_str(), &problem, text, size);
  });
}

Verdict Checker::check_forward(const vecina_problem& problem, uint64_t seed) {
  Placement placement = random_placement(seed);
  if (problem.query_key_dtype == VECINA_E4M3) {
    placement.gap *= 16;  // what is fast takes rows aligned to 16 bytes alone
    placement.offset *= 16;
  }
  const Inputs inputs = random_inputs(problem, seed, placement);
  Results actual;
  try {
    actual = named(run_forward(actual_.get(), problem, inputs, placement, /*with_lse=*/true),
                   run_forward(actual_.get(), problem, inputs, placement, /*with_lse=*/false));
  } catch (const std::runtime_error& error) {
    return failed(error.what());
  }
  Verdict verdict = judge_forward(problem, seed, actual);
  for (const HostTensor* input : {&inputs.query, &inputs.key, &inputs.value}) {
    check_gaps(verdict, "an input", *input);
  }
  return verdict;
}

Verdict Checker::judge_forward(const vecina_problem& problem, uint64_t seed,
                               const Results& actual) {
  const int32_t dtype = judged_dtype(problem);
  const HostTensor head_scale = random_inputs(problem, seed).head_scale;  // how large logits are
  return judge(actual, seed, dtype, [&](uint64_t other_seed) -> Yardsticks {
    Inputs others = random_inputs(problem, other_seed);
    others.head_scale = head_scale;
    const Outputs exact =
        run_forward(reference_.get(), widened(problem), widened(others), {}, /*with_lse=*/true);
    Outputs plain = run_forward(plain_.get(), problem, others, {}, /*with_lse=*/true);
    if (dtype == VECINA_E4M3) {  // logits in 16 bits would hide what sums of products err by
      plain.lse = run_forward(plain_.get(), widened(problem, VECINA_F32),
                              widened(others, VECINA_F32), {}, /*with_lse=*/true)
                      .lse;
    }
    return {named(exact, exact), named(plain, plain)};
  });
}

Verdict Checker::check_backward(const vecina_problem& problem, uint64_t seed) {
  const Placement placement = random_placement(seed);
  return judge_backward(
      problem, seed,
      run_both_passes(actual_.get(), problem, random_inputs(problem, seed, placement), placement));
}

Verdict Checker::judge_backward(const vecina_problem& problem, uint64_t seed,
                                const Results& actual) {
  return judge(actual, seed, problem.dtype, [&](uint64_t other_seed) -> Yardsticks {
    const Inputs others = random_inputs(problem, other_seed);
    return {run_both_passes(reference_.get(), widened(problem), widened(others), {}),
            run_both_passes(plain_.get(), problem, others, {})};
  });
}

Verdict Checker::check_split(const vecina_problem& problem, uint64_t seed) {
  const Placement placement = random_placement(seed);
  const bool right_aligned = seed % 3 == 0;
  const auto split_inputs = [&](const Inputs& inputs, uint64_t which, Placement where) {
    const HostTensor logits = run_qk(reference_.get(), problem, inputs, right_aligned);
    return random_split_inputs(logits, right_aligned, which, where);
  };
  const Inputs inputs = random_inputs(problem, seed, placement);
  const SplitResults actual =
      run_split(actual_.get(), problem, inputs, split_inputs(inputs, seed, placement), placement);
  return judge(named(actual), seed, problem.dtype, [&](uint64_t other_seed) -> Yardsticks {
    const Inputs others = random_inputs(problem, other_seed);
    const SplitInputs split = split_inputs(others, other_seed, {});
    const SplitInputs wide = {widened(split.weights, VECINA_F64),
                              widened(split.grad_weights, VECINA_F64), right_aligned};
    return {named(run_split(reference_.get(), widened(problem), widened(others), wide)),
            named(run_split(plain_.get(), problem, others, split))};
  });
}

}  // namespace vecina::cli
