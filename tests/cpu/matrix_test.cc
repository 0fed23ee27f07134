// SPDX-License-Identifier: MIT
// The matrix form of the forward pass: by an emulation of AMX wherever there is AVX-512, and by its
// instructions where the CPU has them.
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
#include "cpu/forward.h"
#include "cpu/launch.h"
#include "cpu/matrix_tiles.h"
#include "cpu/scratch.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::internal::cpu {
namespace {

ForwardKernel kernel_of(MatrixTiles tiles) {
  static const cli::ContextPtr context = cli::make_context("cpu", 1);  // chooses the target
  ForwardKernel kernel = forward_kernel(VECINA_BF16);
  kernel.run_matrix = matrix_function(tiles);
  kernel.matrix_everywhere = true;
  return kernel;
}

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
    EXPECT_EQ(plan.matrix.run, kernel.run_matrix);
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
  // Random problems of equal lengths that the form can take.
  template <class Visit>
  void for_random_problems(uint64_t seed, int count, const Visit& visit) const {
    cli::Random random(seed);
    int taken = 0;
    for (int i = 0; i < 40 * count && taken < count; ++i) {
      vecina_problem line = cli::random_problem(random);
      line.dtype = VECINA_BF16;
      line.lengths = VECINA_LENGTHS_EQUAL;
      if (!is_taken(emulated_, line)) continue;
      SCOPED_TRACE(cli::print_problem(line));
      visit(line);
      ++taken;
    }
    EXPECT_EQ(taken, count);
  }

  const ForwardKernel emulated_ = kernel_of(MatrixTiles::emulated);
};

TEST_F(MatrixForms, IsRight) {
  cli::Checker checker("cpu", 1);
  const auto check = [&](const vecina_problem& line, uint64_t seed) {
    const Run run = this->run(emulated_, line, cli::random_inputs(line, seed));
    const cli::Verdict verdict = checker.judge_forward(
        line, seed, {{"output", run.outputs.output}, {"lse", run.outputs.lse}});
    EXPECT_TRUE(verdict.passed) << cli::print_problem(line) << ": " << verdict.detail;
  };
  // Windows of up to 8 and 16 keys, which are taken out of a step; pairs of heads, rows and
  // columns; more keys than are held at once; borders, causal ones too; rows that fill no tile.
  for (const char* line :
       {"2d 32x32 kernel_size 7 heads 2 head_dim 32",
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
        "3d 6x1x40 kernel_size 3x1x9 heads 2 head_dim 2 head_dim_value 1",
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
        "1d 70 kernel_size 1 heads 1 head_dim 32 additional 5",
        "2d 160x160 kernel_size 5x7 heads 1 head_dim 32",
        "3d 3x24x20 kernel_size 3x5x9 heads 1 head_dim 32",
        "attention 70x290 heads 2 head_dim 32",
        "attention 300x70 causal heads 2 head_dim 48",
        "attention 3x5 causal heads 2 heads_kv 1 head_dim 16 additional 2"}) {
    check(cli::parse_problem(std::string(line) + " dtype bf16"), /*seed=*/3);
    check(cli::parse_problem(std::string(line) + " scale -0.3 dtype bf16"), /*seed=*/4);
  }
  // Logits of which a float has no digits behind the point.
  for (const char* line : {"1d 200 kernel_size 65 heads 1 head_dim 32 scale 1e9",
                           "2d 20x20 kernel_size 7 heads 1 head_dim 32 scale -1e12"}) {
    check(cli::parse_problem(std::string(line) + " dtype bf16"), /*seed=*/5);
  }
  uint64_t seed = 100;
  for_random_problems(5, 100, [&](const vecina_problem& line) { check(line, ++seed); });
}

// A caller who is alone runs fewer units than several threads share.
TEST_F(MatrixForms, GivesTheSameBitsHoweverItIsCut) {
  int num_cut = 0;
  for_random_problems(7, 150, [&](const vecina_problem& line) {
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
  for_random_problems(9, 400, [&](const vecina_problem& line) {
    const cli::Inputs inputs = cli::random_inputs(line, /*seed=*/1);
    EXPECT_TRUE(bits_of(run(kernel, line, inputs)) == bits_of(run(emulated_, line, inputs)));
  });
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
      const auto sees = [](int64_t q, int64_t key, int64_t extent, int64_t kernel_size) {
        const int64_t begin = std::clamp<int64_t>(q - kernel_size / 2, 0, extent - kernel_size);
        return key >= begin && key < begin + kernel_size;
      };
      const bool is_seen =
          sees(query / 40, token / 40, 12, 5) && sees(query % 40, token % 40, 40, 7);
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
}

TEST_F(MatrixForms, IsTakenWhereItCanAndWhereItIsFaster) {
  ForwardKernel kernel = emulated_;
  kernel.matrix_everywhere = false;
  struct Case {
    const char* line;
    bool can, is_faster;
  };
  for (const Case& given : std::vector<Case>{
           {"2d 16x16 kernel_size 16 heads 4 head_dim 32", true, true},
           {"1d 8192 kernel_size 512 heads 1 head_dim 64", true, true},
           {"2d 32x32 kernel_size 7 heads 4 head_dim 64", true, true},
           {"2d 32x32 kernel_size 7 heads 4 head_dim 64 additional 4", true, false},
           {"2d 28x28 kernel_size 7 heads 4 head_dim 64", true, false},
           {"2d 32x32 kernel_size 7 heads 4 head_dim 32", true, false},
           {"2d 64x64 kernel_size 21 heads 2 head_dim 32", true, false},
           {"1d 16 kernel_size 16 heads 8 head_dim 32", true, false},
           {"1d 256 kernel_size 7 heads 4 head_dim 64", true, false},
           {"1d 300 kernel_size 63 output_stride 2 heads 1 head_dim 64", false, false},
           {"1d 300 kernel_size 63 stride 2 heads 1 head_dim 64", false, false},
           {"1d 300 kernel_size 63 heads 1 head_dim 63", false, false},
           {"2d 16x16 kernel_size 16 heads 4 head_dim 32 bias", false, false}}) {
    const vecina_problem line = cli::parse_problem(std::string(given.line) + " dtype bf16");
    EXPECT_EQ(is_taken(emulated_, line), given.can) << given.line;
    EXPECT_EQ(is_taken(kernel, line), given.is_faster) << given.line;
  }
}

}  // namespace
}  // namespace vecina::internal::cpu
