// SPDX-License-Identifier: MIT
// The inner loops of the cpu backend one by one, one thread, in the first two caches, with the
// arguments that plans of real problems give them; each beside the limit of the core that it could
// meet. Each is compared with a plain loop before it is timed.
#include "benchmarks/cpu/inner.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cpu/peak.h"

namespace vecina::benchmarks {
namespace {

using internal::cpu::Peak;

bool has_failed = false;

// As the benchmark's own times are: what others take of the core does not count.
double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// One loop at a time is kept: Google Benchmark calls a function again for more iterations.
const InnerLoop& kept_loop(const InnerCase& inner) {
  static const InnerCase* of = nullptr;
  static InnerLoop loop;
  static std::string mistake;
  if (of != &inner) {
    of = nullptr;
    loop = {};
    loop = inner.make();
    loop.run();
    mistake = loop.mistake();
    if (!mistake.empty()) throw std::runtime_error(mistake);
    of = &inner;
  }
  return loop;
}

void time_loop(benchmark::State& state, const InnerCase& inner, const Peak& peak) {
  const InnerLoop* loop = nullptr;
  try {
    loop = &kept_loop(inner);
  } catch (const std::exception& error) {
    has_failed = true;  // an error of a benchmark does not fail the program
    state.SkipWithError(error.what());
    return;
  }
  const double start = cpu_seconds();
  for (auto _ : state) {
    loop->run();
    benchmark::ClobberMemory();
  }
  const double runs_per_second = static_cast<double>(state.iterations()) / (cpu_seconds() - start);
  const auto add = [&](const char* name, double of_one_run, double limit) {  // a nanosecond
    state.counters[name] = of_one_run * runs_per_second * 1e-9 / limit;
  };
  const auto add_rate = [&](const char* name, double of_one_run) {
    using benchmark::Counter;
    state.counters[name] = Counter(of_one_run, Counter::kIsIterationInvariantRate);
  };
  const Work& work = loop->work;
  if (work.multiply_adds > 0.0) {
    add_rate("multiply_adds", work.multiply_adds);
    const bool is_double = inner.dtype == VECINA_F64;
    add("of_fma_peak", 2.0 * work.multiply_adds, peak.fma_gflops / (is_double ? 2.0 : 1.0));
  }
  if (work.exponentials > 0.0) {
    add_rate("exponentials", work.exponentials);
    // Those of f64 are longer polynomials.
    if (inner.dtype != VECINA_F64) add("of_exp_peak", work.exponentials, peak.exp_gops);
  }
  if (work.bytes > 0.0) {
    add_rate("bytes", work.bytes);
    add("of_l1_reads", work.bytes, peak.l1_gbs);
    add("of_l2_reads", work.bytes, peak.l2_gbs);
  }
}

Peak measure_peak() {
  const Peak peak = internal::cpu::measure_peak();
  const auto described = nlohmann::json::parse(json_of(peak));
  for (const auto& [name, value] : described.items()) {
    benchmark::AddCustomContext(name, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return peak;
}

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  internal::cpu::choose_target();
  if (const std::string problem = internal::cpu::target_problem(); !problem.empty()) {
    fmt::print(stderr, "cpu_inner_benchmark: {}\n", problem);
    return 1;
  }
  const Peak peak = measure_peak();
  std::vector<InnerCase> all;
  for (const auto& cases : {forward_cases(), direct_cases(), backward_cases(), merge_cases()}) {
    all.insert(all.end(), cases.begin(), cases.end());
  }
  for (const InnerCase& inner : all) {
    benchmark::RegisterBenchmark(inner.name.c_str(), [&inner, &peak](benchmark::State& state) {
      time_loop(state, inner, peak);
    })->ComputeStatistics("max", [](const std::vector<double>& of) {
      return *std::max_element(of.begin(), of.end());
    });
  }
  const size_t count = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return count == 0 || has_failed ? 1 : 0;
}

}  // namespace
}  // namespace vecina::benchmarks

int main(int argc, char** argv) {
  try {
    return vecina::benchmarks::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "cpu_inner_benchmark: {}\n", error.what());
    return 1;
  }
}
