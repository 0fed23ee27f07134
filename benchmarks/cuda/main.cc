// SPDX-License-Identifier: MIT
// What features and calls cost on a GPU.
//   cuda_benchmark              ratios of GPU times of calls that are chained as on a stream (by
//                               themselves: benchmarks/small.py), and what a warm call costs its
//                               thread beside a bare launch through the same driver
//   cuda_benchmark --first      of a new process: its first call, after the context was made; run
//                               with an empty VECINA_CACHE_DIR, then again with the full one
#include <dlfcn.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cli/calls.h"
#include "cli/conformance.h"
#include "cli/dtypes.h"
#include "cli/errors.h"
#include "cli/text.h"

namespace vecina::benchmarks {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The calls of the CUDA driver that a program without the library needs for a bare launch.
struct LaunchAttribute {  // CUlaunchAttribute
  int id;
  char padding[4];
  union {
    char bytes[64];
    int is_allowed;
  } value;
};
struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  unsigned num_attributes;
};
// clang-format off
#define VECINA_BENCHMARK_CALLS(CALL)                                                              \
  CALL(cuInit, (unsigned flags))                                                                  \
  CALL(cuDriverGetVersion, (int* version))                                                        \
  CALL(cuDeviceGet, (int* device, int index))                                                     \
  CALL(cuDeviceGetName, (char* name, int size, int device))                                       \
  CALL(cuDevicePrimaryCtxRetain, (void** context, int device))                                    \
  CALL(cuCtxPushCurrent_v2, (void* context))                                                      \
  CALL(cuMemAlloc_v2, (uint64_t* address, size_t bytes))                                          \
  CALL(cuMemFree_v2, (uint64_t address))                                                          \
  CALL(cuMemcpyHtoD_v2, (uint64_t to, const void* from, size_t bytes))                            \
  CALL(cuStreamCreate, (void** stream, unsigned flags))                                           \
  CALL(cuStreamSynchronize, (void* stream))                                                       \
  CALL(cuLibraryLoadData, (void** library, const void* image, int* jit_options,                   \
                           void** jit_values, unsigned num_jit, int* options, void** values,      \
                           unsigned num_options))                                                 \
  CALL(cuLibraryGetKernel, (void** kernel, void* library, const char* name))                      \
  CALL(cuKernelGetFunction, (void** function, void* kernel))                                      \
  CALL(cuLaunchKernelEx, (const LaunchConfig* config, void* function, void** params, void** extra))
// clang-format on

struct Driver {
#define VECINA_BENCHMARK_DECLARE(name, parameters) int(*name) parameters = nullptr;
  VECINA_BENCHMARK_CALLS(VECINA_BENCHMARK_DECLARE)
#undef VECINA_BENCHMARK_DECLARE

  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error("no NVIDIA driver (libcuda.so.1) here.");
#define VECINA_BENCHMARK_FIND(name, parameters) \
  name = reinterpret_cast<int(*) parameters>(dlsym(library, #name));
    VECINA_BENCHMARK_CALLS(VECINA_BENCHMARK_FIND)
#undef VECINA_BENCHMARK_FIND
  }
};

void require(const char* call, int result) {
  if (result != 0) throw std::runtime_error(fmt::format("{} failed: error {}", call, result));
}

// The first device's primary context, current from then on: what PyTorch would have made.
void make_context_current(const Driver& driver) {
  int device = 0;
  void* context = nullptr;
  require("cuInit", driver.cuInit(0));
  require("cuDeviceGet", driver.cuDeviceGet(&device, 0));
  require("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(&context, device));
  require("cuCtxPushCurrent", driver.cuCtxPushCurrent_v2(context));
}

// GPU times: left <= goal * right. 0: no goal.
struct Ratio {
  std::string name, left, right;
  double goal;
  bool has_lse = false;  // the left one
};

const std::string k1d = "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32";
const std::string k2d = "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32";
const std::string k2dHeads8 = "2d 32x32 kernel_size 7 batch 2 heads 8 head_dim 32";

std::vector<Ratio> all_ratios() {
  return {
      {"return_lse, 1-D", k1d, k1d, 1.03, true},
      {"return_lse, 2-D", k2d, k2d, 1.03, true},
      {"1 additional token, 1-D", k1d + " additional 1", k1d, 1.15},
      {"4 additional tokens, 1-D", k1d + " additional 4", k1d, 1.15},
      {"1 additional token, 2-D", k2d + " additional 1", k2d, 1.15},
      {"1 additional token, GQA 4, 1-D", k1d + " heads_kv 2 additional 1", k1d + " heads_kv 2",
       1.15},
      {"GQA 4 of full heads, 1-D", k1d + " heads_kv 2", k1d, 1.0},
      {"MQA of full heads, 1-D", k1d + " heads_kv 1", k1d, 1.0},
      {"GQA 4 of full heads, 2-D", k2dHeads8 + " heads_kv 2", k2dHeads8, 1.0},
      {"MQA of full heads, 2-D", k2dHeads8 + " heads_kv 1", k2dHeads8, 1.0},
      {"bf16 of f32, 1-D", k1d + " dtype bf16", k1d, 0.0},
      {"bf16 of f32, 2-D", k2d + " dtype bf16", k2d, 0.9},
  };
}

// A forward pass that the GPU's clock times, in a graph of dependent calls.
class Timed {
 public:
  Timed(vecina_context* context, const std::string& line, bool has_lse)
      : problem_(cli::parse_problem(line)),
        inputs_(cli::random_inputs(problem_, /*seed=*/1)),
        outputs_(without_lse_unless(has_lse, cli::make_outputs(problem_))),
        call_(context, problem_, inputs_, outputs_) {}
  double median_us() const { return call_.time({0, /*repeats=*/30}).median_ms * 1000.0; }

 private:
  static cli::Outputs without_lse_unless(bool has_lse, cli::Outputs outputs) {
    if (!has_lse) outputs.lse = {};
    return outputs;
  }
  vecina_problem problem_;
  cli::Inputs inputs_;
  cli::Outputs outputs_;
  cli::ForwardCall call_;
};

Json measure_ratios(int rounds) {
  const cli::ContextPtr context = cli::make_context("cuda", 1);
  Json rows = Json::array();
  for (const Ratio& ratio : all_ratios()) {
    const Timed left(context.get(), ratio.left, ratio.has_lse);
    const Timed right(context.get(), ratio.right, false);
    std::vector<double> left_us, right_us, ratios;
    left.median_us();  // wakes the GPU
    for (int i = 0; i < rounds; ++i) {
      left_us.push_back(left.median_us());
      right_us.push_back(right.median_us());
      ratios.push_back(left_us.back() / right_us.back());
    }
    const double found = median_of(ratios);
    const char* verdict = ratio.goal == 0.0 ? "" : found <= ratio.goal ? "met" : "missed";
    fmt::print("{:<32} {:6.2f} us of {:6.2f} us: {:.3f}x, goal {:.2f} {}\n", ratio.name,
               median_of(left_us), median_of(right_us), found, ratio.goal, verdict);
    rows.push_back({{"name", ratio.name},
                    {"left", ratio.left + (ratio.has_lse ? ", with lse" : "")},
                    {"right", ratio.right},
                    {"left_us", median_of(left_us)},
                    {"right_us", median_of(right_us)},
                    {"ratio", found},
                    {"goal", ratio.goal}});
  }
  return rows;
}

// A problem with its tensors on the device.
class OnDevice {
 public:
  OnDevice(const Driver& driver, const std::string& line)
      : driver_(driver),
        problem_(cli::parse_problem(line)),
        inputs_(cli::random_inputs(problem_, /*seed=*/1)),
        outputs_(cli::make_outputs(problem_)),
        args_(cli::forward_args(inputs_, outputs_)) {
    args_.lse = {};
    for (const auto& [host, tensor] : {std::pair(&inputs_.query, &args_.query),
                                       {&inputs_.key, &args_.key},
                                       {&inputs_.value, &args_.value},
                                       {&outputs_.output, &args_.output}}) {
      const auto bytes = static_cast<size_t>(host->size() * cli::dtype_bytes(host->dtype()));
      uint64_t& memory = memories_.emplace_back();
      require("cuMemAlloc", driver_.cuMemAlloc_v2(&memory, bytes));
      require("cuMemcpyHtoD", driver_.cuMemcpyHtoD_v2(memory, tensor->data, bytes));
      tensor->data = reinterpret_cast<void*>(memory);
      tensor->device = VECINA_CUDA;
    }
  }
  ~OnDevice() {
    for (const uint64_t memory : memories_) driver_.cuMemFree_v2(memory);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  const vecina_problem& problem() const { return problem_; }
  const vecina_forward_args& args() const { return args_; }

 private:
  const Driver& driver_;
  vecina_problem problem_;
  cli::Inputs inputs_;
  cli::Outputs outputs_;
  vecina_forward_args args_;
  std::vector<uint64_t> memories_;
};

// A kernel that does nothing, with a parameter of so many bytes.
void* empty_kernel(const Driver& driver, int param_bytes) {
  const std::string text = fmt::format(
      ".version 7.8\n.target sm_80\n.address_size 64\n"
      ".visible .entry nothing(.param .align 8 .b8 params[{}]) {{ ret; }}\n",
      param_bytes);
  void *library = nullptr, *kernel = nullptr, *function = nullptr;
  require("cuLibraryLoadData", driver.cuLibraryLoadData(&library, text.c_str(), nullptr, nullptr, 0,
                                                        nullptr, nullptr, 0));
  require("cuLibraryGetKernel", driver.cuLibraryGetKernel(&kernel, library, "nothing"));
  require("cuKernelGetFunction", driver.cuKernelGetFunction(&function, kernel));
  return function;
}

struct Contestant {
  std::string name;
  std::function<void()> call;
  std::vector<double> us;
};

// Time of the calling thread for one call; the GPU keeps up with so few calls before it is waited
// for.
Json measure_calls(const Driver& driver, int rounds) {
  constexpr int kCalls = 200;
  constexpr int kParamBytes = 480;  // about what a small problem's kernel gets
  constexpr unsigned kNonBlocking = 1;
  void* stream = nullptr;
  require("cuStreamCreate", driver.cuStreamCreate(&stream, kNonBlocking));
  void* const with_pointer = empty_kernel(driver, 8);
  void* const with_params = empty_kernel(driver, kParamBytes);
  const OnDevice small(driver, "1d 16 kernel_size 16 batch 1 heads 2 head_dim 32");
  const cli::ContextPtr context = cli::make_context("", 1);
  vecina_plan* planned = nullptr;
  cli::throw_if_failed(
      vecina_plan_forward(context.get(), &small.problem(), &small.args(), &planned));
  const std::unique_ptr<vecina_plan, void (*)(vecina_plan*)> plan(planned, vecina_plan_destroy);

  alignas(8) char params[kParamBytes] = {};
  constexpr int kProgrammaticStreamSerialization = 6;
  LaunchAttribute attribute = {kProgrammaticStreamSerialization, {}, {}};
  attribute.value.is_allowed = 1;
  const auto launch = [&](void* function, unsigned num_attributes) {
    const LaunchConfig config = {{2, 1, 1}, {128, 1, 1}, 0, stream, &attribute, num_attributes};
    void* pointers[] = {params};
    require("cuLaunchKernelEx", driver.cuLaunchKernelEx(&config, function, pointers, nullptr));
  };
  Contestant contestants[] = {
      {"bare launch, 8 bytes", [&] { launch(with_pointer, 0); }, {}},
      {"bare launch, as the library's", [&] { launch(with_params, 1); }, {}},
      {"vecina_run_forward",
       [&] { cli::throw_if_failed(vecina_run_forward(plan.get(), &small.args(), stream)); },
       {}},
      {"vecina_forward",
       [&] {
         cli::throw_if_failed(
             vecina_forward(context.get(), &small.problem(), &small.args(), stream));
       },
       {}},
  };
  for (int round = -5; round < rounds; ++round) {
    for (Contestant& contestant : contestants) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < kCalls; ++i) contestant.call();
      const double us = microseconds_since(start) / kCalls;
      if (round >= 0) contestant.us.push_back(us);
      require("cuStreamSynchronize", driver.cuStreamSynchronize(stream));
    }
  }
  Json rows = Json::array();
  for (const Contestant& contestant : contestants) {
    const double median = median_of(contestant.us);
    const double best = *std::min_element(contestant.us.begin(), contestant.us.end());
    fmt::print("{:<32} {:.3f} us a call, best {:.3f}\n", contestant.name, median, best);
    rows.push_back({{"name", contestant.name}, {"median_us", median}, {"best_us", best}});
  }
  return rows;
}

// The process must have done nothing else.
Json measure_first_call(const std::string& line) {
  const Clock::time_point start = Clock::now();
  const Driver driver;
  make_context_current(driver);
  const OnDevice problem(driver, line);
  require("cuStreamSynchronize", driver.cuStreamSynchronize(nullptr));
  const double context_ms = microseconds_since(start) / 1000.0;

  const Clock::time_point begin = Clock::now();
  const cli::ContextPtr context = cli::make_context("", 1);
  cli::throw_if_failed(vecina_forward(context.get(), &problem.problem(), &problem.args(), nullptr));
  require("cuStreamSynchronize", driver.cuStreamSynchronize(nullptr));
  const double first_ms = microseconds_since(begin) / 1000.0;
  fmt::print("context {:.1f} ms, first call {:.1f} ms: {}\n", context_ms, first_ms, line);
  return {{"problem", line}, {"context_ms", context_ms}, {"first_call_ms", first_ms}};
}

int run(int argc, char** argv) {
  CLI::App app("What features and calls cost on a GPU");
  std::string json, line = k2d;
  bool is_first = false;
  int rounds = 15;
  app.add_flag("--first", is_first, "Only the first call of this process");
  app.add_option("--problem", line, "The problem of --first");
  app.add_option("--rounds", rounds, "Turns of each side of a ratio (15)")
      ->check(CLI::Range(1, 9999));
  app.add_option("--json", json, "Write JSON to this file");
  CLI11_PARSE(app, argc, argv);
  Json found;
  if (is_first) {
    found["first"] = measure_first_call(line);
  } else {
    const Driver driver;
    make_context_current(driver);
    char name[256] = "";
    int version = 0;
    require("cuDeviceGetName", driver.cuDeviceGetName(name, sizeof(name), 0));
    require("cuDriverGetVersion", driver.cuDriverGetVersion(&version));
    found["device"] = name;
    found["driver_cuda"] = version;
    found["ratios"] = measure_ratios(rounds);
    found["calls"] = measure_calls(driver, 10 * rounds);
  }
  if (!json.empty()) cli::write_file(json, found.dump(1) + "\n");
  return 0;
}

}  // namespace
}  // namespace vecina::benchmarks

int main(int argc, char** argv) {
  try {
    return vecina::benchmarks::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "cuda_benchmark: {}\n", error.what());
    return 1;
  }
}
