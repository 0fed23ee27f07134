// SPDX-License-Identifier: MIT
// Thousands of random problems on a few hundred kernels that were compiled before: the reference
// and the GPU set the pace, not the compiler. VECINA_TESTS_RANDOM says how many problems (1600).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cli/conformance.h"
#include "core/problem.h"
#include "cuda/disk_cache.h"
#include "cuda/families.h"
#include "cuda/kernel_store.h"
#include "device_call.h"

namespace vecina::internal::cuda {
namespace {

constexpr size_t kMaxKernels = 200;
constexpr uint64_t kParts = 16;  // so that processes can share the problems
constexpr uint64_t kSeed = 31000;

uint64_t num_problems() {
  const char* value = std::getenv("VECINA_TESTS_RANDOM");
  return value == nullptr ? 1600 : std::strtoull(value, nullptr, 10);
}

using Sources = std::map<std::string, KernelSource>;  // by entry and constants

template <typename Args>
void add_sources(const Problem& problem, const Args& example, const DeviceFacts& facts,
                 Sources* sources) {
  const char* family = nullptr;
  std::vector<KernelLaunch<Args>> launches;
  const Status status = plan_launches(problem, example, facts, &family, &launches);
  EXPECT_TRUE(status.ok()) << problem.line() << ": " << status.message();
  for (const KernelLaunch<Args>& launch : launches) {
    sources->emplace(launch.source.entry + launch.source.config, launch.source);
  }
}

// Those of all that the checker runs for a problem and a seed.
Sources sources_of(const vecina_problem& problem, uint64_t seed, const DeviceFacts& facts) {
  Problem checked;
  EXPECT_TRUE(Problem::make(problem, &checked).ok());
  const cli::Placement placement = cli::random_placement(seed);
  const cli::Inputs inputs = cli::make_inputs(problem, placement);
  const cli::Outputs outputs = cli::make_outputs(problem, placement);
  const cli::Gradients gradients = cli::make_gradients(problem, placement);
  Sources sources;
  vecina_forward_args forward = cli::forward_args(inputs, outputs);
  add_sources(checked, forward, facts, &sources);
  forward.lse = {};
  add_sources(checked, forward, facts, &sources);
  add_sources(checked, cli::backward_args(inputs, outputs, gradients), facts, &sources);
  return sources;
}

bool is_taken(const vecina_problem& problem, const DeviceFacts& facts) {
  Problem checked;
  return Problem::make(problem, &checked).ok() && why_not(checked, Pass::forward, facts).empty() &&
         why_not(checked, Pass::backward, facts).empty();
}

struct Case {
  vecina_problem problem;
  uint64_t seed;  // of tensors and their placement
};

// Problems whose kernels all others have to get along with.
struct Pattern {
  std::vector<Case> cases;
  Sources sources;
};
Pattern make_pattern(const DeviceFacts& facts) {
  Pattern pattern;
  for (uint64_t seed = kSeed; pattern.sources.size() < kMaxKernels && seed < kSeed + 400; ++seed) {
    cli::Random random(seed);
    vecina_problem problem = cli::random_problem(random, /*everything=*/true);
    if (!is_taken(problem, facts)) problem = cli::random_problem(random);
    if (!is_taken(problem, facts)) continue;
    Sources both = sources_of(problem, seed, facts);
    both.insert(pattern.sources.begin(), pattern.sources.end());
    if (both.size() > kMaxKernels) continue;
    pattern.sources = std::move(both);
    pattern.cases.push_back({problem, seed});
  }
  return pattern;
}

// A problem like `like` in some fields and like none in others.
vecina_problem varied(const vecina_problem& like, bool keeps_windows, cli::Random& random) {
  vecina_problem problem = like;
  problem.batch = problem.lengths == VECINA_LENGTHS_PACKED ? 1 : random.integer(1, 4);
  const int32_t group = problem.heads / problem.heads_kv;
  problem.heads_kv = static_cast<int32_t>(random.integer(1, 4));
  problem.heads = problem.heads_kv * group;
  if (random.chance(0.5)) {
    problem.has_scale = 1;
    problem.scale = random.uniform() - 0.5;
  }
  for (int a = 0; a < problem.rank; ++a) {
    if (problem.kind == VECINA_ATTENTION) {
      problem.extent[a] = random.integer(1, 120);
      problem.query_extent[a] = random.integer(1, 120);
      continue;
    }
    if (!keeps_windows) {
      problem.kernel_size[a] = random.integer(1, problem.kernel_size[a] + 2);
      problem.stride[a] = std::min(problem.stride[a], problem.kernel_size[a]);
      problem.is_causal[a] = random.chance(0.25);
    }
    const int64_t least = problem.kernel_size[a] * problem.dilation[a];
    problem.extent[a] = random.integer(least, std::max<int64_t>(least + 6, like.extent[a]));
  }
  if (problem.additional_tokens > 0 && random.chance(0.5)) {
    problem.additional_tokens = random.integer(1, 5);
  }
  return problem;
}

class CudaRandom : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    checker_.emplace("cuda", 1);
    pattern_ = make_pattern(device().facts());
  }
  // True if kernels that were built before are enough for it.
  bool is_known(const Case& candidate) const {
    const Sources needed = sources_of(candidate.problem, candidate.seed, device().facts());
    return std::all_of(needed.begin(), needed.end(),
                       [&](const auto& source) { return pattern_.sources.contains(source.first); });
  }
  size_t num_built() const { return cache_.list().size(); }

  const DiskCache cache_{std::getenv("VECINA_CACHE_DIR") ? std::getenv("VECINA_CACHE_DIR") : ""};
  std::optional<cli::Checker> checker_;
  Pattern pattern_;
};

TEST_F(CudaRandom, KernelsAreBuiltBefore) {
  ASSERT_GT(pattern_.cases.size(), 40u);
  ASSERT_LE(pattern_.sources.size(), kMaxKernels);
  std::vector<const KernelSource*> list;
  for (const auto& [name, source] : pattern_.sources) list.push_back(&source);
  std::atomic<size_t> next{0}, num_compiled{0};
  std::vector<std::thread> threads(std::max(1u, std::thread::hardware_concurrency()));
  for (std::thread& thread : threads) {
    thread = std::thread([&] {
      for (size_t i = next++; i < list.size(); i = next++) {
        Built built;
        const Status status = build_kernel(*list[i], device().compute_capability(), cache_, &built);
        EXPECT_TRUE(status.ok()) << status.message();
        if (!built.was_on_disk) ++num_compiled;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  fmt::print("{} kernels of {} problems, {} compiled now\n", list.size(), pattern_.cases.size(),
             num_compiled.load());
}

class CudaRandomPart : public CudaRandom, public testing::WithParamInterface<uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Part, CudaRandomPart, testing::Range(uint64_t{0}, kParts));

TEST_P(CudaRandomPart, ProblemsAreRight) {
  const size_t before = num_built();
  uint64_t num_checked = 0, num_varied = 0;
  for (uint64_t i = GetParam(); i < num_problems(); i += kParts) {
    cli::Random random(kSeed + 1000 + i);
    const Case& like = pattern_.cases[i % pattern_.cases.size()];
    Case drawn = like;
    constexpr int kAttempts = 60;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      const Case candidate = {varied(like.problem, 2 * attempt > kAttempts, random), random.bits()};
      if (!cli::is_quick(candidate.problem) || !is_known(candidate)) continue;
      drawn = candidate;
      ++num_varied;
      break;
    }
    const cli::Verdict forward = checker_->check_forward(drawn.problem, drawn.seed);
    EXPECT_TRUE(forward.passed) << cli::print_problem(drawn.problem) << " seed " << drawn.seed
                                << "\n"
                                << forward.detail;
    const cli::Verdict backward = checker_->check_backward(drawn.problem, drawn.seed);
    EXPECT_TRUE(backward.passed) << cli::print_problem(drawn.problem) << " seed " << drawn.seed
                                 << " backward\n"
                                 << backward.detail;
    ++num_checked;
  }
  fmt::print("{} problems, {} of them varied\n", num_checked, num_varied);
  EXPECT_GE(num_varied * 10, num_checked * 7);
  EXPECT_EQ(num_built(), before) << "kernels that were not built before";
}

}  // namespace
}  // namespace vecina::internal::cuda
