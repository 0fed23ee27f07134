// SPDX-License-Identifier: MIT
// The loops that calls of the cpu backend are made of, as their benchmark sees them: something to
// run again and again, what a run does, and whether its results are right.
#ifndef VECINA_BENCHMARKS_CPU_INNER_H_
#define VECINA_BENCHMARKS_CPU_INNER_H_

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <new>
#include <numbers>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cli/conformance.h"
#include "core/problem.h"
#include "cpu/scratch.h"
#include "vecina/vecina.h"

namespace vecina::benchmarks {

// Logits are exponents of two.
inline constexpr double kLog2E = std::numbers::log2e;

inline internal::Problem parsed(const std::string& line) {
  internal::Problem problem;
  if (!internal::Problem::parse(line, &problem).ok()) throw std::invalid_argument(line);
  return problem;
}

// Of one run.
struct Work {
  double multiply_adds = 0.0;  // those of the definition
  double exponentials = 0.0;
  double bytes = 0.0;  // read and written, each once
};

struct InnerLoop {
  std::function<void()> run;  // as often as one likes
  // After the first run: what a plain loop finds wrong with the results; empty if nothing.
  std::function<std::string()> mistake;
  Work work;
};

struct InnerCase {
  std::string name;
  vecina_dtype dtype;
  std::function<InnerLoop()> make;
};

// Names end with the dtype, so that one of them picks the same loops of both.
class Cases {
 public:
  using Condition = std::function<bool(const internal::Problem&)>;
  // Those of problems that do not meet it are left out.
  explicit Cases(Condition condition = nullptr) : condition_(std::move(condition)) {}

  template <typename Element, typename Make>
  void add(const std::string& name, const std::string& line, Make make) {
    constexpr bool kIsDouble = std::is_same_v<Element, double>;
    constexpr vecina_dtype kDtype = kIsDouble                        ? VECINA_F64
                                    : std::is_same_v<Element, float> ? VECINA_F32
                                                                     : VECINA_BF16;
    const char* dtype = kIsDouble ? "f64" : kDtype == VECINA_F32 ? "f32" : "bf16";
    const std::string problem = line + " dtype " + dtype;
    if (condition_ && !condition_(parsed(problem))) return;
    cases_.push_back({name + "/" + dtype, kDtype, [make, problem] { return make(problem); }});
  }
  std::vector<InnerCase> take() { return std::move(cases_); }

 private:
  const Condition condition_;
  std::vector<InnerCase> cases_;
};

// For the instruction set that was chosen (cpu::choose_target()); those that it lacks are left out.
std::vector<InnerCase> forward_cases();
std::vector<InnerCase> direct_cases();
std::vector<InnerCase> backward_cases();
std::vector<InnerCase> merge_cases();

// The first of some results that is not finite or not what a plain loop expects.
class Comparison {
 public:
  // tolerance: allowed error as a share of the magnitude of what was added up.
  explicit Comparison(double tolerance) : tolerance_(tolerance) {}

  void add(double actual, double expected, double magnitude) {
    const bool is_right = std::abs(actual - expected) <= tolerance_ * magnitude;  // NaN is not
    if (!is_right && mistake_.empty()) {
      mistake_ = fmt::format("result {} is {}, a plain loop's {}", count_, actual, expected);
    }
    ++count_;
  }
  std::string mistake() const { return count_ == 0 ? "nothing was compared" : mistake_; }

 private:
  const double tolerance_;
  int64_t count_ = 0;
  std::string mistake_;
};

// Numbers are rounded to float, or to double, once for each of up to some hundred additions.
inline double tolerance(vecina_dtype dtype) { return dtype == VECINA_F64 ? 1e-14 : 1e-5; }

// A problem's random tensors, and outputs of the right shapes.
struct Tensors {
  explicit Tensors(const std::string& line)
      : problem(parsed(line)),
        inputs(cli::random_inputs(cli::parse_problem(line), /*seed=*/1)),
        outputs(cli::make_outputs(cli::parse_problem(line))),
        gradients(cli::make_gradients(cli::parse_problem(line))),
        forward(cli::forward_args(inputs, outputs)),
        backward(cli::backward_args(inputs, outputs, gradients)) {}

  internal::Problem problem;
  cli::Inputs inputs;
  cli::Outputs outputs;
  cli::Gradients gradients;
  vecina_forward_args forward;
  vecina_backward_args backward;
};

// Working memory as a unit of a plan gets it, zeros at first.
class Memory {
 public:
  explicit Memory(size_t bytes) : lease_(&pool_, bytes) {
    if (lease_.data() == nullptr) throw std::bad_alloc();
    std::memset(lease_.data(), 0, bytes);
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(lease_.data());
  }

 private:
  internal::cpu::ScratchPool pool_;
  internal::cpu::ScratchPool::Lease lease_;
};

}  // namespace vecina::benchmarks
#endif  // VECINA_BENCHMARKS_CPU_INNER_H_
