// SPDX-License-Identifier: MIT
// The matrix form of both passes: by an emulation of AMX wherever there is AVX-512, and by its
// instructions where the CPU has them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cli/conformance.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/launch.h"
#include "cpu/matrix_tiles.h"
#include "cpu/scratch.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::internal::cpu {
namespace {

void choose_target_once() { static const cli::ContextPtr context = cli::make_context("cpu", 1); }

ForwardKernel kernel_of(MatrixTiles tiles) {
  choose_target_once();
  ForwardKernel kernel = forward_kernel(VECINA_BF16);
  kernel.run_matrix = matrix_function(tiles);
  kernel.matrix_everywhere = true;
  return kernel;
}

BackwardKernel backward_kernel_of(MatrixTiles tiles) {
  choose_target_once();
  BackwardKernel kernel = backward_kernel(VECINA_BF16);
  kernel.run_matrix = matrix_backward_function(tiles);
  kernel.matrix_everywhere = true;
  return kernel;
}

// Windows of up to 8 and 16 keys (forward: taken out of a step); tiles of several heads, rows and
// columns; more keys than are held at once; borders, causal ones too; rows that fill no tile; heads
// that were cut, and in the end some that were not, whose units write gradients of keys themselves.
constexpr const char* kLines[] = {
    "2d 32x32 kernel_size 7 heads 2 head_dim 32",
    "2d 19x33 kernel_size 6x8 heads 3 head_dim 64",
    "2d 20x40 kernel_size 13 heads 1 head_dim 64",
    "2d 21x70 kernel_size 5x33 heads 1 head_dim 32",
    "2d 16x16 kernel_size 16 heads 2 head_dim 32",
    "2d 9x8 kernel_size 7x8 heads 1 head_dim 32",
    "2d 24x20 kernel_size 5x7 heads 6 heads_kv 2 head_dim 40 head_dim_value 20 additional 3",
    "2d 24x20 kernel_size 7x7 causal 0x1 heads 1 head_dim 32",
    "2d 24x50 kernel_size 4x17 causal 1x1 heads 3 heads_kv 1 head_dim 32 additional 40",
    "2d 30x64 kernel_size 5x7 dilation 2x3 heads 1 head_dim 32",
    "2d 31x40 kernel_size 5x7 stride 3x1 heads 1 head_dim 32",
    "2d 31x40 kernel_size 5x7 dilation 1x2 output_stride 3x2 heads 1 head_dim 32",
    "3d 5x12x18 kernel_size 3x5x7 heads 1 head_dim 32 batch 2",
    "3d 6x1x40 kernel_size 3x1x9 heads 2 head_dim 2 head_dim_value 4",
    "1d 700 kernel_size 300 heads 1 head_dim 64",
    "1d 300 kernel_size 33 heads 2 head_dim 128",
    "1d 100 kernel_size 40 causal heads 2 head_dim 32 additional 1",
    "1d 90 kernel_size 90 causal heads 2 head_dim 32",
    "1d 5 kernel_size 1 heads 1 head_dim 32",
    "1d 70 kernel_size 1 heads 1 head_dim 32 additional 5",
    "2d 160x160 kernel_size 5x7 heads 1 head_dim 32",
    "3d 3x24x20 kernel_size 3x5x9 heads 1 head_dim 32",
    "1d 64 kernel_size 64 heads 4 heads_kv 1 head_dim 256",
    "1d 1 kernel_size 1 heads 1 head_dim 8",
    "attention 70x290 heads 2 head_dim 32",
    "attention 300x70 causal heads 2 head_dim 48",
    "attention 3x5 causal heads 2 heads_kv 1 head_dim 16 additional 2",
    "attention 31x51 causal heads 2 head_dim 12",
    "2d 40x24 kernel_size 7x5 batch 2 heads 2 head_dim 32 additional 3",
    "2d 61x20 kernel_size 5 stride 3x1 batch 4 heads 1 head_dim 32",
    "2d 61x20 kernel_size 5x7 output_stride 7x1 batch 4 heads 1 head_dim 32",
    "3d 9x6x20 kernel_size 3x3x5 batch 4 heads 1 head_dim 32",
    "3d 9x8x20 kernel_size 2x3x5 output_stride 4x5x1 batch 4 heads 1 head_dim 32",
    "2d 30x20 kernel_size 5 batch 2 heads 10 heads_kv 2 head_dim 32"};

class MatrixForms : public testing::Test {
 protected:
  void SetUp() override {
    if (emulated_.run_matrix == nullptr) GTEST_SKIP() << "this CPU has no AVX-512";
  }

  struct Run {
    cli::Outputs outputs;
    int64_t num_units;
  };
  // Units from the last to the first, each in scratch that others left NaN in.
  static Run run(const ForwardKernel& kernel, const vecina_problem& line, const cli::Inputs& inputs,
                 int64_t enough = 0) {
    Problem problem;
    EXPECT_TRUE(Problem::make(line, &problem).ok());
    Run run = {cli::make_outputs(line), 0};
    const vecina_forward_args args = cli::forward_args(inputs, run.outputs);
    const ForwardPlan plan = plan_forward(problem, args, kernel, enough);
    EXPECT_TRUE(plan.matrix.is_used());
    ScratchPool pool;
    const size_t bytes = plan.scratch.total * static_cast<size_t>(kernel.element_bytes);
    const ScratchPool::Lease scratch(&pool, bytes);
    run.num_units = plan.num_units();
    for (int64_t unit = run.num_units - 1; unit >= 0; --unit) {
      std::memset(scratch.data(), 0xff, bytes);
      kernel.run(plan, pointers_of(args), unit, scratch.data());
    }
    return run;
  }
  static std::pair<std::vector<uint64_t>, std::vector<uint64_t>> bits_of(const Run& run) {
    return {tests::bits_of(run.outputs.output), tests::bits_of(run.outputs.lse)};
  }
  static bool is_taken(const ForwardKernel& kernel, const vecina_problem& line) {
    Problem problem;
    EXPECT_TRUE(Problem::make(line, &problem).ok());
    vecina_forward_args args;
    imagine_arguments(problem, VECINA_CPU, &args);
    return plan_forward(problem, args, kernel, /*enough=*/1).matrix.is_used();
  }
  // In the same way, after forward; of all gradients, or those whose numbers are in `wanted`.
  static cli::Gradients run_backward(const BackwardKernel& kernel, const vecina_problem& line,
                                     const cli::Inputs& inputs, const cli::Outputs& outputs,
                                     unsigned wanted = ~0U) {
    Problem problem;
    EXPECT_TRUE(Problem::make(line, &problem).ok());
    cli::Gradients gradients = cli::make_gradients(line);
    unsigned number = 0;
    for (auto member : {&cli::Gradients::query, &cli::Gradients::key, &cli::Gradients::value,
                        &cli::Gradients::additional_key, &cli::Gradients::additional_value}) {
      if ((wanted >> number++ & 1) == 0) gradients.*member = {};
    }
    const vecina_backward_args args = cli::backward_args(inputs, outputs, gradients);
    const BackwardPlan plan = plan_backward(problem, args, kernel);
    EXPECT_TRUE(plan.matrix.is_used());
    ScratchPool pool;
    const auto bytes_of = [&](size_t elements) {
      return elements * static_cast<size_t>(kernel.element_bytes);
    };
    const size_t bytes = bytes_of(plan.scratch.total), shared_bytes = bytes_of(plan.shared_size());
    const ScratchPool::Lease scratch(&pool, bytes), shared(&pool, shared_bytes);
    if (shared_bytes > 0) std::memset(shared.data(), 0xff, shared_bytes);
    const BackwardPointers pointers = pointers_of(args, shared.data());
    const auto run_units = [&](BackwardFunction function, int64_t count) {
      for (int64_t unit = count - 1; unit >= 0; --unit) {
        std::memset(scratch.data(), 0xff, bytes);
        function(plan, pointers, unit, scratch.data());
      }
    };
    run_units(kernel.clear, plan.num_clears());
    run_units(kernel.run, plan.num_units());
    run_units(kernel.gather, plan.num_gathers());
    return gradients;
  }
  static std::vector<std::vector<uint64_t>> bits_of(const cli::Gradients& gradients) {
    std::vector<std::vector<uint64_t>> bits;
    for (const cli::NamedTensor& gradient : cli::named(gradients)) {
      bits.push_back(tests::bits_of(gradient.tensor));
    }
    return bits;
  }
  static bool is_taken(const BackwardKernel& kernel, const vecina_problem& line) {
    Problem problem;
    EXPECT_TRUE(Problem::make(line, &problem).ok());
    vecina_backward_args args;
    imagine_arguments(problem, VECINA_CPU, &args);
    return plan_backward(problem, args, kernel).matrix.is_used();
  }
  // Random problems of equal lengths that the kernel takes.
  template <class Kernel, class Visit>
  static void for_random_problems(const Kernel& kernel, uint64_t seed, int count,
                                  const Visit& visit) {
    cli::Random random(seed);
    int taken = 0;
    for (int i = 0; i < 40 * count && taken < count; ++i) {
      vecina_problem line = cli::random_problem(random);
      line.dtype = VECINA_BF16;
      line.lengths = VECINA_LENGTHS_EQUAL;
      if (!is_taken(kernel, line)) continue;
      SCOPED_TRACE(cli::print_problem(line));
      visit(line);
      ++taken;
    }
    EXPECT_EQ(taken, count);
  }

  const ForwardKernel emulated_ = kernel_of(MatrixTiles::emulated);
  const BackwardKernel emulated_backward_ = backward_kernel_of(MatrixTiles::emulated);
};

TEST_F(MatrixForms, ForwardIsRight) {
  cli::Checker checker("cpu", 1);
  const auto check = [&](const vecina_problem& line, uint64_t seed) {
    const Run run = this->run(emulated_, line, cli::random_inputs(line, seed));
    const cli::Verdict verdict = checker.judge_forward(
        line, seed, {{"output", run.outputs.output}, {"lse", run.outputs.lse}});
    EXPECT_TRUE(verdict.passed) << cli::print_problem(line) << ": " << verdict.detail;
  };
  for (const char* line : kLines) {
    check(cli::parse_problem(std::string(line) + " dtype bf16"), /*seed=*/3);
    check(cli::parse_problem(std::string(line) + " scale -0.3 dtype bf16"), /*seed=*/4);
  }
  // Logits of which a float has no digits behind the point.
  for (const char* line : {"1d 200 kernel_size 65 heads 1 head_dim 32 scale 1e9",
                           "2d 20x20 kernel_size 7 heads 1 head_dim 32 scale -1e12"}) {
    check(cli::parse_problem(std::string(line) + " dtype bf16"), /*seed=*/5);
  }
  uint64_t seed = 100;
  check(cli::parse_problem("3d 6x1x40 kernel_size 3x1x9 heads 2 head_dim 2 head_dim_value 1 dtype "
                           "bf16"),
        /*seed=*/3);
  for_random_problems(emulated_, 5, 100, [&](const vecina_problem& line) { check(line, ++seed); });
}

TEST_F(MatrixForms, BackwardIsRight) {
  cli::Checker checker("cpu", 1);
  const auto check = [&](const vecina_problem& line, uint64_t seed) {
    const cli::Inputs inputs = cli::random_inputs(line, seed);
    const cli::Outputs outputs = run(emulated_, line, inputs).outputs;
    const cli::Verdict verdict = checker.judge_backward(
        line, seed, cli::named(run_backward(emulated_backward_, line, inputs, outputs)));
    EXPECT_TRUE(verdict.passed) << cli::print_problem(line) << ": " << verdict.detail;
  };
  for (const char* line : kLines) {
    check(cli::parse_problem(std::string(line) + " dtype bf16"), /*seed=*/3);
    check(cli::parse_problem(std::string(line) + " scale -0.3 dtype bf16"), /*seed=*/4);
  }
  // Of which lse has no digits for probabilities.
  for (const char* line : {"1d 200 kernel_size 65 heads 1 head_dim 32 scale 1e9",
                           "1d 200 kernel_size 65 causal heads 1 head_dim 32 scale 1e6",
                           "1d 700 kernel_size 300 heads 1 head_dim 32 scale 1e6 additional 3",
                           "2d 20x20 kernel_size 7 heads 1 head_dim 32 scale -1e12"}) {
    check(cli::parse_problem(std::string(line) + " dtype bf16"), /*seed=*/5);
  }
  uint64_t seed = 100;
  for_random_problems(emulated_backward_, 6, 100,
                      [&](const vecina_problem& line) { check(line, ++seed); });
}

// A gradient has the same bits whichever others are wanted.
TEST_F(MatrixForms, GivesTheGradientsThatAreWanted) {
  for (const char* line :
       {"2d 20x40 kernel_size 5x7 heads 2 heads_kv 1 head_dim 32 additional 3 dtype bf16",
        "1d 200 kernel_size 120 causal heads 1 head_dim 32 additional 2 dtype bf16",
        "1d 300 kernel_size 40 heads 1 head_dim 32 head_dim_value 64 additional 1 dtype bf16"}) {
    const vecina_problem problem = cli::parse_problem(line);
    const cli::Inputs inputs = cli::random_inputs(problem, /*seed=*/1);
    const cli::Outputs outputs = run(emulated_, problem, inputs).outputs;
    const auto all = bits_of(run_backward(emulated_backward_, problem, inputs, outputs));
    ASSERT_EQ(all.size(), 5U);
    for (unsigned wanted = 1; wanted < 32; ++wanted) {
      std::vector<std::vector<uint64_t>> expected;
      for (size_t i = 0; i < all.size(); ++i) {
        if ((wanted >> i & 1) != 0) expected.push_back(all[i]);
      }
      EXPECT_TRUE(bits_of(run_backward(emulated_backward_, problem, inputs, outputs, wanted)) ==
                  expected)
          << line << ' ' << wanted;
    }
  }
}

// A caller who is alone runs fewer units than several threads share.
TEST_F(MatrixForms, GivesTheSameBitsHoweverItIsCut) {
  int num_cut = 0;
  for_random_problems(emulated_, 7, 150, [&](const vecina_problem& line) {
    const cli::Inputs inputs = cli::random_inputs(line, /*seed=*/1);
    const Run few = run(emulated_, line, inputs), many = run(emulated_, line, inputs, 21);
    EXPECT_TRUE(bits_of(few) == bits_of(many)) << few.num_units << " and " << many.num_units;
    num_cut += many.num_units > few.num_units;
  });
  EXPECT_GE(num_cut, 50) << "too few are cut: this tests little";
}

TEST_F(MatrixForms, InstructionsGiveTheBitsOfTheirEmulation) {
  if (!has_matrix_tiles() || !request_matrix_tiles()) GTEST_SKIP() << "this CPU has no AMX";
  const ForwardKernel kernel = kernel_of(MatrixTiles::amx);
  const BackwardKernel backward = backward_kernel_of(MatrixTiles::amx);
  for_random_problems(emulated_backward_, 9, 400, [&](const vecina_problem& line) {
    const cli::Inputs inputs = cli::random_inputs(line, /*seed=*/1);
    const Run emulated = run(emulated_, line, inputs);
    EXPECT_TRUE(bits_of(run(kernel, line, inputs)) == bits_of(emulated));
    const auto gradients = [&](const BackwardKernel& of) {
      return bits_of(run_backward(of, line, inputs, emulated.outputs));
    };
    EXPECT_TRUE(gradients(backward) == gradients(emulated_backward_));
  });
}

// Of 12x40 tokens, by windows of 5 keys, or so many, times 7.
bool sees(int64_t query, int64_t key, int64_t rows = 5) {
  const auto holds = [](int64_t q, int64_t k, int64_t extent, int64_t kernel_size) {
    const int64_t begin = std::clamp<int64_t>(q - kernel_size / 2, 0, extent - kernel_size);
    return k >= begin && k < begin + kernel_size;
  };
  return holds(query / 40, key / 40, 12, rows) && holds(query % 40, key % 40, 40, 7);
}

// Weights of keys that a query does not see are zero, which makes NaN of an infinite value.
TEST_F(MatrixForms, KeepsWhatIsNotFiniteToThoseWhoSeeIt) {
  const vecina_problem line =
      cli::parse_problem("2d 12x40 kernel_size 5x7 heads 1 head_dim 32 dtype bf16");
  const cli::Inputs inputs = cli::random_inputs(line, 1);
  const auto finite = tests::values_of(run(emulated_, line, inputs).outputs.output);
  for (const int64_t token : {0, 39, 40 * 5 + 3, 40 * 6 + 20, 40 * 11 + 39}) {
    cli::Inputs changed = cli::random_inputs(line, 1);
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    changed.value.set(token * 32, kInfinity);
    changed.value.set(token * 32 + 1, -kInfinity);
    changed.value.set(token * 32 + 2, std::nan(""));
    const auto actual = tests::values_of(run(emulated_, line, changed).outputs.output);
    for (int64_t query = 0; query < 12 * 40; ++query) {
      const bool is_seen = sees(query, token);
      for (int64_t e = 0; e < 32; ++e) {
        const auto i = static_cast<size_t>(query * 32 + e);
        if (is_seen && e == 2) {
          EXPECT_TRUE(std::isnan(actual[i])) << token << ' ' << query;
        } else if (is_seen && e < 2) {
          EXPECT_EQ(actual[i], e == 0 ? kInfinity : -kInfinity) << token << ' ' << query;
        } else {
          EXPECT_EQ(actual[i], finite[i]) << token << ' ' << query << ' ' << e;
        }
      }
    }
  }
}

// Infinite entries of one token: what only others see keeps its bits, and what sees it is not
// finite in the entries that it must not be in. With few keys delta is summed up, with more it is
// taken from output.
class NotFinite : public MatrixForms, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(RowsOfKeys, NotFinite, testing::Values(5, 11));
TEST_P(NotFinite, BackwardKeepsItToThoseWhoSeeIt) {
  constexpr int64_t kRows = 12, kColumns = 40, kDim = 32, kToken = 6 * kColumns + 20;
  const vecina_problem line = cli::parse_problem(fmt::format(
      "2d 12x40 kernel_size {}x7 heads 1 head_dim 32 additional 2 dtype bf16", GetParam()));
  const auto sees = [](int64_t query, int64_t key) { return cpu::sees(query, key, GetParam()); };
  const cli::Inputs inputs = cli::random_inputs(line, 1);
  const cli::Outputs outputs = run(emulated_, line, inputs).outputs;
  const cli::Gradients finite = run_backward(emulated_backward_, line, inputs, outputs);
  for (const auto member : {&cli::Inputs::query, &cli::Inputs::key, &cli::Inputs::value,
                            &cli::Inputs::grad_output, &cli::Inputs::additional_key}) {
    cli::Inputs changed = cli::random_inputs(line, 1);
    const bool is_additional = member == &cli::Inputs::additional_key;
    const bool is_value = member == &cli::Inputs::value;
    const bool is_key = is_additional || is_value || member == &cli::Inputs::key;
    const int64_t token = is_additional ? 1 : kToken;
    (changed.*member).set(token * kDim + 5, std::numeric_limits<double>::infinity());
    const cli::Gradients actual =
        run_backward(emulated_backward_, line, changed, run(emulated_, line, changed).outputs);
    const auto compare = [&](cli::HostTensor cli::Gradients::*tensor, const auto& is_reached) {
      const auto expected = tests::values_of(finite.*tensor),
                 got = tests::values_of(actual.*tensor);
      int64_t num_reached = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        const auto row = static_cast<int64_t>(i) / kDim;
        if (!is_reached(row)) {
          EXPECT_EQ(got[i], expected[i]) << row;
        } else {
          num_reached += !std::isfinite(got[i]);
        }
      }
      EXPECT_GT(num_reached, 0);
    };
    // A query of which something is not finite reaches all keys that it sees; a key the queries
    // that see it, and by these all keys that they see.
    const auto query_is_reached = [&](int64_t query) {
      return is_additional || (is_key ? sees(query, kToken) : query == kToken);
    };
    const auto key_is_reached = [&](int64_t key) {
      for (int64_t query = 0; query < kRows * kColumns; ++query) {
        if (query_is_reached(query) && sees(query, key)) return true;
      }
      return false;
    };
    compare(&cli::Gradients::query, query_is_reached);
    compare(&cli::Gradients::key, key_is_reached);
    if (!is_value) compare(&cli::Gradients::value, key_is_reached);  // P, that is
  }
}

// All queries see additional tokens, and what is not finite comes through however small a weight
// is.
TEST_F(MatrixForms, TakesAdditionalValuesThatAreNotFinite) {
  constexpr int64_t kHeads = 2, kDim = 32, kToken = 2, kHead = 1, kEntry = 7;
  const vecina_problem line =
      cli::parse_problem("2d 6x20 kernel_size 3x5 heads 2 head_dim 32 additional 3 dtype bf16");
  cli::Inputs inputs = cli::random_inputs(line, /*seed=*/1);
  for (int64_t i = 0; i < inputs.query.size(); ++i) inputs.query.set(i, 1.0);
  const int64_t row = (kToken * kHeads + kHead) * kDim;
  for (int64_t e = 0; e < kDim; ++e) inputs.additional_key.set(row + e, -18.0);  // weight e^-102
  const auto finite = tests::values_of(run(emulated_, line, inputs).outputs.output);
  inputs.additional_value.set(row + kEntry, std::numeric_limits<double>::infinity());
  const auto actual = tests::values_of(run(emulated_, line, inputs).outputs.output);
  for (size_t i = 0; i < actual.size(); ++i) {
    if (i % (kHeads * kDim) == kHead * kDim + kEntry) {
      EXPECT_EQ(actual[i], std::numeric_limits<double>::infinity()) << i;
    } else {
      EXPECT_EQ(actual[i], finite[i]) << i;
    }
  }
}

// Delta is taken from output, whose NaN then reaches the gradients, but not of tiles whose first
// query sees few keys: there its rounding would show.
TEST_F(MatrixForms, BackwardReadsOutputWhereItIsExactEnough) {
  struct Case {
    const char* line;
    int64_t token;
    bool is_read;
  };
  for (const Case& given : std::vector<Case>{
           {"1d 200 kernel_size 63 heads 1 head_dim 32", 90, false},
           {"1d 200 kernel_size 64 heads 1 head_dim 32", 90, true},
           {"1d 200 kernel_size 62 heads 1 head_dim 32 additional 2", 90, true},
           {"1d 200 kernel_size 100 causal heads 1 head_dim 32", 0, false},
           {"1d 200 kernel_size 100 causal heads 1 head_dim 32", 63, false},
           {"1d 200 kernel_size 100 causal heads 1 head_dim 32", 64, true},
           {"1d 200 kernel_size 200 causal heads 1 head_dim 32", 63, false},
           {"1d 200 kernel_size 200 causal heads 1 head_dim 32", 64, true},
           {"2d 20x40 kernel_size 9 causal 1x0 heads 1 head_dim 32", 6 * 40 + 39, false},
           {"2d 20x40 kernel_size 9 causal 1x0 heads 1 head_dim 32", 7 * 40, true},
           {"3d 3x4x40 kernel_size 2x3x11 causal 1x0x0 heads 1 head_dim 32", 4 * 40 - 1, false},
           {"3d 3x4x40 kernel_size 2x3x11 causal 1x0x0 heads 1 head_dim 32", 4 * 40, true}}) {
    SCOPED_TRACE(fmt::format("{}, token {}", given.line, given.token));
    const vecina_problem line = cli::parse_problem(std::string(given.line) + " dtype bf16");
    const cli::Inputs inputs = cli::random_inputs(line, /*seed=*/1);
    cli::Outputs outputs = run(emulated_, line, inputs).outputs;
    const auto expected = bits_of(run_backward(emulated_backward_, line, inputs, outputs));
    const int64_t size = outputs.output.size() / (outputs.lse.size());
    outputs.output.set(given.token * size, std::nan(""));
    const auto actual = bits_of(run_backward(emulated_backward_, line, inputs, outputs));
    EXPECT_EQ(actual != expected, given.is_read);
  }
}

TEST_F(MatrixForms, BackwardNeedsAnEvenHeadDimValue) {
  const vecina_problem line =
      cli::parse_problem("1d 90 kernel_size 40 heads 1 head_dim 32 head_dim_value 33 dtype bf16");
  EXPECT_TRUE(is_taken(emulated_, line));
  EXPECT_FALSE(is_taken(emulated_backward_, line));
}

// A query that sees nothing but logits of -infinity has output 0 and lse -infinity.
TEST_F(MatrixForms, MakesNothingOfEmptyRows) {
  const vecina_problem line =
      cli::parse_problem("1d 40 kernel_size 40 heads 1 head_dim 32 dtype bf16");
  cli::Inputs inputs = cli::random_inputs(line, /*seed=*/1);
  for (int64_t i = 0; i < inputs.query.size(); ++i) inputs.query.set(i, 1.0);
  for (int64_t i = 0; i < inputs.key.size(); i += 32) {
    inputs.key.set(i, -std::numeric_limits<double>::infinity());
  }
  const Run run = this->run(emulated_, line, inputs);
  for (const double lse : tests::values_of(run.outputs.lse)) {
    EXPECT_EQ(lse, -std::numeric_limits<double>::infinity());
  }
  for (const double output : tests::values_of(run.outputs.output)) EXPECT_EQ(output, 0.0);
  const cli::Gradients gradients = run_backward(emulated_backward_, line, inputs, run.outputs);
  for (const double gradient : tests::values_of(gradients.value)) EXPECT_EQ(gradient, 0.0);
  for (const double gradient : tests::values_of(gradients.key)) EXPECT_EQ(gradient, 0.0);
}

TEST_F(MatrixForms, IsTakenWhereItCanAndWhereItIsFaster) {
  ForwardKernel kernel = emulated_;
  BackwardKernel backward = emulated_backward_;
  kernel.matrix_everywhere = backward.matrix_everywhere = false;
  struct Case {
    const char* line;
    bool can, is_faster, is_backward_faster;
  };
  for (const Case& given : std::vector<Case>{
           {"2d 16x16 kernel_size 16 heads 4 head_dim 32", true, true, true},
           {"1d 8192 kernel_size 512 heads 1 head_dim 64", true, true, true},
           {"2d 32x32 kernel_size 7 heads 4 head_dim 64", true, true, false},
           {"2d 32x32 kernel_size 8 heads 4 head_dim 64", true, true, true},
           {"2d 8x8 kernel_size 8 heads 4 head_dim 16", true, true, true},
           {"2d 8x8 kernel_size 8 heads 4 head_dim 14", true, true, false},
           {"1d 512 kernel_size 512 heads 4 head_dim 14 head_dim_value 64", true, true, false},
           {"1d 512 kernel_size 512 heads 4 head_dim 64 head_dim_value 14", true, true, false},
           {"1d 512 kernel_size 512 heads 4 head_dim 16 head_dim_value 64", true, true, true},
           {"2d 40x40 kernel_size 9 causal 1x0 heads 4 head_dim 64", true, true, true},
           {"1d 512 kernel_size 512 causal heads 4 head_dim 64", true, true, true},
           {"1d 2048 kernel_size 33 heads 4 head_dim 32", true, true, true},
           {"1d 2048 kernel_size 17 heads 4 head_dim 64", true, true, true},
           {"1d 2048 kernel_size 16 heads 4 head_dim 64", true, false, false},
           {"1d 2048 kernel_size 33 heads 4 head_dim 64 additional 4", true, true, true},
           {"2d 32x32 kernel_size 7 heads 4 head_dim 64 additional 4", true, false, false},
           {"2d 28x28 kernel_size 7 heads 4 head_dim 64", true, false, false},
           {"2d 32x32 kernel_size 7 heads 4 head_dim 32", true, false, false},
           {"2d 64x64 kernel_size 21 heads 2 head_dim 32", true, false, true},
           {"1d 16 kernel_size 16 heads 8 head_dim 32", true, false, false},
           {"1d 256 kernel_size 7 heads 4 head_dim 64", true, false, false},
           {"1d 300 kernel_size 63 output_stride 2 heads 1 head_dim 64", false, false, false},
           {"1d 300 kernel_size 63 stride 2 heads 1 head_dim 64", false, false, false},
           {"1d 300 kernel_size 63 heads 1 head_dim 63", false, false, false},
           {"2d 32x32 kernel_size 9 heads 4 head_dim 32", true, false, true},
           {"2d 32x32 kernel_size 5 heads 4 head_dim 128", true, true, false},
           {"2d 16x16 kernel_size 16 heads 4 head_dim 32 bias", false, false, false}}) {
    const vecina_problem line = cli::parse_problem(std::string(given.line) + " dtype bf16");
    EXPECT_EQ(is_taken(emulated_, line), given.can) << given.line;
    EXPECT_EQ(is_taken(kernel, line), given.is_faster) << given.line;
    EXPECT_EQ(is_taken(emulated_backward_, line), given.can) << given.line;
    EXPECT_EQ(is_taken(backward, line), given.is_backward_faster) << given.line;
  }
}

}  // namespace
}  // namespace vecina::internal::cpu
