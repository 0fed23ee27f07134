// SPDX-License-Identifier: MIT
// The cpu backend against its limit and against itself: shares of the measured FMA peak, what a
// feature, a second thread and the backward pass cost, and a plain loop nest beside it.
// Both sides of a ratio run in turn within one process, in blocks of a few milliseconds.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "benchmarks/cpu/loop_nest.h"
#include "cli/bench.h"
#include "cli/calls.h"
#include "cli/conformance.h"
#include "cli/machine.h"
#include "cli/prediction.h"
#include "cli/text.h"

namespace vecina::benchmarks {
namespace {

using cli::ContextPtr;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

enum class Pass { forward, with_lse, backward, merge, loop_nest };

// What is timed: a pass of a problem line on a number of threads.
struct Work {
  Pass pass;
  std::string line;
  int threads = 1;
};

struct Share {
  std::string name;
  Work work;
};

// left <= goal * right for costs; left >= goal * right for speed-ups (is_speedup). After a pause:
// each call by itself, when the pool's threads sleep.
struct Ratio {
  std::string name;
  Work left, right;
  double goal;
  bool is_speedup = false, is_after_pause = false;
};

const std::string k1d = "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32";
const std::string k2d = "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32";
const std::string k2dHeads8 = "2d 32x32 kernel_size 7 batch 2 heads 8 head_dim 32";
const std::string k16x16 = "2d 16x16 kernel_size 16 batch 2 heads 4 head_dim 32";

Pass pass_of(cli::BenchKind kind) {
  switch (kind) {
    case cli::BenchKind::output:
      break;
    case cli::BenchKind::with_lse:
      return Pass::with_lse;
    case cli::BenchKind::merge:
      return Pass::merge;
  }
  return Pass::forward;
}

// The seed's configurations, larger ones, and the backward pass of some.
std::vector<Share> all_shares() {
  std::vector<Share> shares;
  for (const cli::BenchRow& row : cli::bench_rows({})) {
    shares.push_back({row.name, {pass_of(row.kind), row.problem}});
  }
  const auto add = [&](const char* name, const std::string& line, Pass pass = Pass::forward) {
    shares.push_back({name, {pass, line}});
  };
  const std::string k56x56 = "2d 56x56 kernel_size 7 batch 8 heads 4 head_dim 32";
  add("2-D 56x56", k56x56);
  add("2-D 128x128 k13 D64", "2d 128x128 kernel_size 13 heads 1 head_dim 64");
  add("3-D 8x16x16", "3d 8x16x16 kernel_size 3x5x5 heads 4 head_dim 32");
  add("1-D 8192 w512 D64", "1d 8192 kernel_size 512 heads 1 head_dim 64");
  add("music, D12 with bias", "1d 4096 kernel_size 5 heads 2 head_dim 12 bias");
  add("1-D backward", k1d, Pass::backward);
  add("2-D backward", k2d, Pass::backward);
  add("2-D 56x56 backward", k56x56, Pass::backward);
  add("dense 16x16 backward", k16x16, Pass::backward);
  return shares;
}

std::vector<Ratio> all_ratios() {
  const auto forward = [](const std::string& line, int threads = 1) {
    return Work{Pass::forward, line, threads};
  };
  const auto with_lse = [](const std::string& line) { return Work{Pass::with_lse, line}; };
  const auto backward = [](const std::string& line) { return Work{Pass::backward, line}; };
  const auto merge = [](const std::string& line) { return Work{Pass::merge, line}; };
  const auto nest = [](const std::string& line) { return Work{Pass::loop_nest, line}; };
  return {
      {"return_lse, 1-D", with_lse(k1d), forward(k1d), 1.02},
      {"return_lse, 2-D", with_lse(k2d), forward(k2d), 1.02},
      {"1 additional token, 1-D", forward(k1d + " additional 1"), forward(k1d), 1.2},
      {"1 additional token, 2-D", forward(k2d + " additional 1"), forward(k2d), 1.06},
      {"4 additional tokens, 2-D", forward(k2d + " additional 4"), forward(k2d), 1.15},
      {"GQA 4 of full heads, 1-D", forward(k1d + " heads_kv 2"), forward(k1d), 1.0},
      {"MQA of full heads, 1-D", forward(k1d + " heads_kv 1"), forward(k1d), 1.0},
      {"GQA 4 of full heads, 2-D", forward(k2dHeads8 + " heads_kv 2"), forward(k2dHeads8), 1.0},
      {"MQA of full heads, 2-D", forward(k2dHeads8 + " heads_kv 1"), forward(k2dHeads8), 1.0},
      {"bf16, 1-D", forward(k1d + " dtype bf16"), forward(k1d), 1.2},
      {"bf16, 2-D", forward(k2d + " dtype bf16"), forward(k2d), 1.05},
      {"dilation 2, 1-D", forward(k1d + " dilation 2"), forward(k1d), 1.15},
      {"dilation 2, 2-D", forward(k2d + " dilation 2"), forward(k2d), 1.15},
      {"causal, 1-D", forward(k1d + " causal"), forward(k1d), 1.1},
      {"causal, 2-D", forward(k2d + " causal"), forward(k2d), 1.1},
      {"merge of an lse row, 1-D", merge(k1d), with_lse(k1d), 2.4},
      {"merge of an lse row, 2-D", merge(k2d), with_lse(k2d), 2.15},
      {"backward of forward, 1-D", backward(k1d), forward(k1d), 0.0},
      {"backward of forward, 2-D", backward(k2d), forward(k2d), 2.6},
      {"backward of forward, dense 16x16", backward(k16x16), forward(k16x16), 2.8},
      {"2 threads, 2-D", forward(k2d, 2), forward(k2d), 1.85, true},
      {"2 threads, dense 16x16", forward(k16x16, 2), forward(k16x16), 1.85, true},
      {"2 threads after a pause, 1-D", forward(k1d, 2), forward(k1d), 1.0, true, true},
      {"2 threads after a pause, 2-D", forward(k2d, 2), forward(k2d), 1.0, true, true},
      {"2 threads; the loop nest on 1, 1-D", forward(k1d, 2), nest(k1d), 7.0, true},
      {"2 threads; the loop nest on 1, 2-D", forward(k2d, 2), nest(k2d), 8.5, true},
  };
}

// Longer than the threads of a pool wait before they sleep.
constexpr std::chrono::milliseconds kPause(2);

// A thing to call, with all that it needs.
class Runner {
 public:
  explicit Runner(const Work& work)
      : context_(cli::make_context("cpu", work.threads)),
        problem_(cli::parse_problem(work.line)),
        inputs_(cli::random_inputs(problem_, /*seed=*/1)),
        outputs_(cli::make_outputs(problem_)) {
    switch (work.pass) {
      case Pass::forward:
        outputs_.lse = {};
        [[fallthrough]];
      case Pass::with_lse: {
        auto call = std::make_shared<cli::ForwardCall>(context_.get(), problem_, inputs_, outputs_);
        describe(call->describe(), 1.0);
        run_ = [call] { call->run(); };
        break;
      }
      case Pass::backward: {
        cli::ForwardCall(context_.get(), problem_, inputs_, outputs_).run();
        gradients_ = cli::make_gradients(problem_);
        auto call = std::make_shared<cli::BackwardCall>(context_.get(), problem_, inputs_, outputs_,
                                                        gradients_);
        describe(call->describe(), cli::kBackwardFactor);
        run_ = [call] { call->run(); };
        break;
      }
      case Pass::merge: {
        auto call = std::make_shared<cli::MergeCall>(context_.get(), problem_, inputs_);
        describe(cli::ForwardCall(context_.get(), problem_, inputs_, outputs_).describe(), 2.0);
        predicted_ms_.reset();  // merging is not planned
        run_ = [call] { call->run(); };
        break;
      }
      case Pass::loop_nest:
        run_ = loop_nest();
        check_loop_nest();
        break;
    }
    run_();
  }
  Runner(const Runner&) = delete;  // run_ refers to the tensors
  Runner& operator=(const Runner&) = delete;

  double flops() const { return flops_; }
  std::optional<double> predicted_ms() const { return predicted_ms_; }

  // Milliseconds a call, over a block of calls.
  double block(int calls) const {
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < calls; ++i) run_();
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count() / calls;
  }
  double call_after_pause() const {
    std::this_thread::sleep_for(kPause);
    return block(1);
  }
  int calls_for(double milliseconds) const {
    return std::max(1, static_cast<int>(milliseconds / std::max(block(1), 1e-4)));
  }

 private:
  void describe(const Json& plan, double forwards) {
    flops_ = forwards * plan.value("forward_flops", 0.0);
    predicted_ms_ = cli::predicted_ms(plan);
  }

  std::function<void()> loop_nest() {
    const int rank = problem_.rank;
    if (rank > 2 || problem_.heads_kv != problem_.heads) {
      throw std::invalid_argument("the loop nest takes 1-D and 2-D problems of full heads");
    }
    const auto floats = [](const cli::HostTensor& tensor) {
      return static_cast<float*>(tensor.view().data);
    };
    const LoopNest nest = {floats(inputs_.query),
                           floats(inputs_.key),
                           floats(inputs_.value),
                           floats(outputs_.output),
                           static_cast<int>(problem_.batch),
                           rank == 1 ? 1 : static_cast<int>(problem_.extent[0]),
                           static_cast<int>(problem_.extent[rank - 1]),
                           problem_.heads,
                           problem_.head_dim,
                           rank == 1 ? 1 : static_cast<int>(problem_.kernel_size[0]),
                           static_cast<int>(problem_.kernel_size[rank - 1])};
    return [nest] { run_loop_nest(nest); };
  }

  // A yardstick that computes something else would measure nothing.
  void check_loop_nest() {
    run_();
    const cli::Outputs expected = cli::make_outputs(problem_);
    cli::ForwardCall(context_.get(), problem_, inputs_, expected).run();
    const auto* nest = static_cast<const float*>(outputs_.output.view().data);
    const auto* library = static_cast<const float*>(expected.output.view().data);
    for (int64_t i = 0; i < expected.output.size(); ++i) {
      if (!(std::abs(nest[i] - library[i]) <= 1e-4f)) {
        throw std::runtime_error(fmt::format("the loop nest's output {} is {}, the library's {}", i,
                                             nest[i], library[i]));
      }
    }
  }

  ContextPtr context_;
  vecina_problem problem_;
  cli::Inputs inputs_;
  cli::Outputs outputs_;
  cli::Gradients gradients_;
  double flops_ = 0.0;
  std::optional<double> predicted_ms_;
  std::function<void()> run_;
};

struct Options {
  double seconds = 1.0;
  std::string json, only;
};

constexpr double kBlockMs = 3.0;
// Calls before a block, not timed: the block's are then calls of many in a row, which find the
// threads of their pool awake.
constexpr int kUntimedCalls = 5;
// The peak comes from windows of some 40 us, so a share's blocks are not much longer: else a busy
// neighbour falls on the one and not on the other.
constexpr double kShareBlockMs = 0.1;

template <typename Block>
void repeat_for(double seconds, Block&& block) {
  const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(seconds));
  int rounds = 0;
  while (Clock::now() < end || rounds < 3) {
    block();
    ++rounds;
  }
}

Json measure_share(const Share& share, double peak_gflops, const Options& options) {
  const Runner runner(share.work);
  const int calls = runner.calls_for(kShareBlockMs);
  std::vector<double> times_ms;
  repeat_for(options.seconds, [&] { times_ms.push_back(runner.block(calls)); });
  const cli::Times times = cli::summarize(std::move(times_ms));
  const double at_peak_ms = runner.flops() / (peak_gflops * 1e6);
  const double median_share = at_peak_ms / times.median_ms, best_share = at_peak_ms / times.min_ms;
  Json row = {{"name", share.name},
              {"problem", share.work.line},
              {"median_ms", times.median_ms},
              {"best_ms", times.min_ms},
              {"useful_gflops", median_share * peak_gflops},
              {"median_share", median_share},
              {"best_share", best_share}};
  std::string predicted = "n/a";
  if (runner.predicted_ms()) {
    row["predicted_ms"] = *runner.predicted_ms();
    predicted = fmt::format("{} {:+.0f} %", cli::format_ms(*runner.predicted_ms()),
                            100.0 * (*runner.predicted_ms() / times.median_ms - 1.0));
  }
  fmt::print("{:<24} {:>9} {:>9} {:>8.1f} {:>7.1f} % {:>6.1f} %   {:>16}\n", share.name,
             cli::format_ms(times.median_ms), cli::format_ms(times.min_ms),
             median_share * peak_gflops, 100.0 * median_share, 100.0 * best_share, predicted);
  return row;
}

Json measure_ratio(const Ratio& ratio, const Options& options) {
  const Runner left(ratio.left), right(ratio.right);
  const int left_calls = left.calls_for(kBlockMs), right_calls = right.calls_for(kBlockMs);
  std::vector<double> left_ms, right_ms;
  const auto measure = [&](const Runner& runner, int calls) {
    if (ratio.is_after_pause) return runner.call_after_pause();
    runner.block(kUntimedCalls);
    return runner.block(calls);
  };
  repeat_for(2.0 * options.seconds, [&] {
    left_ms.push_back(measure(left, left_calls));
    right_ms.push_back(measure(right, right_calls));
  });
  const cli::Times a = cli::summarize(std::move(left_ms)), b = cli::summarize(std::move(right_ms));
  const double median = ratio.is_speedup ? b.median_ms / a.median_ms : a.median_ms / b.median_ms;
  const double best = ratio.is_speedup ? b.min_ms / a.min_ms : a.min_ms / b.min_ms;
  std::string goal;
  if (ratio.goal > 0.0) {
    goal = fmt::format("goal {} {:.2f}", ratio.is_speedup ? ">=" : "<=", ratio.goal);
  }
  fmt::print("{:<36} median {:>6.2f}x  best {:>6.2f}x   {}\n", ratio.name, median, best, goal);
  return {{"name", ratio.name},      {"median", median},         {"best", best},
          {"goal", ratio.goal},      {"left_ms", a.median_ms},   {"right_ms", b.median_ms},
          {"left", ratio.left.line}, {"right", ratio.right.line}};
}

int run(const Options& options) {
  const auto wanted = [&](const std::string& name) {
    return name.find(options.only) != std::string::npos;
  };
  const ContextPtr context = cli::make_context("cpu", 1);
  const double peak =
      cli::context_info(context.get(), "peak").at("cpu").at("fma_gflops_per_core_f32");
  Json report = {{"device", cli::cpu_model()},
                 {"fma_gflops_per_core_f32", peak},
                 {"shares", Json::array()},
                 {"ratios", Json::array()}};
  fmt::print("{}; one core's multiply-adds: {:.1f} GFLOP/s\n\n", cli::cpu_model(), peak);
  fmt::print("{:<24} {:>9} {:>9} {:>8} {:>9} {:>8}   {:>16}\n", "one thread", "median", "best",
             "GFLOP/s", "of that", "at best", "predicted");
  for (const Share& share : all_shares()) {
    if (wanted(share.name)) report["shares"].push_back(measure_share(share, peak, options));
  }
  fmt::print("\nratios of two measured in turn\n");
  for (const Ratio& ratio : all_ratios()) {
    if (wanted(ratio.name)) report["ratios"].push_back(measure_ratio(ratio, options));
  }
  if (!options.json.empty()) cli::write_file(options.json, report.dump(2) + "\n");
  return 0;
}

}  // namespace
}  // namespace vecina::benchmarks

int main(int argc, char** argv) {
  vecina::benchmarks::Options options;
  CLI::App app("Shares of the limit and ratios of the cpu backend");
  app.add_option("--seconds", options.seconds, "Time for each share, and each side of a ratio (1)");
  app.add_option("--only", options.only, "Only rows whose name holds this text");
  app.add_option("--json", options.json, "Write the figures as JSON");
  CLI11_PARSE(app, argc, argv);
  try {
    return vecina::benchmarks::run(options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "cpu_benchmark: {}\n", error.what());
    return 1;
  }
}
