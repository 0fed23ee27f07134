// SPDX-License-Identifier: MIT
// That what Hopper's kernels compile to keeps everything in registers: NVRTC is needed, a GPU is
// not. Prints what each takes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <vector>

#include "core/arguments.h"
#include "core/problem.h"
#include "cuda/compiler.h"
#include "cuda/hopper_cases.h"
#include "cuda/hopper_plan.h"

namespace vecina::internal::cuda {
namespace {

// Compiles a launch and says what it takes.
void expect_everything_in_registers(const Compiler& compiler, const KernelSource& source,
                                    const char* line) {
  Compiled compiled;
  const Status status =
      compiler.compile(source, compiler.facts().architecture(source, 90), &compiled);
  ASSERT_TRUE(status.ok()) << status.message();
  fmt::print("  {}: {} registers, {} bytes spilled, {}\n", line, compiled.resources.registers,
             compiled.resources.spill_bytes, source.config);
  EXPECT_EQ(compiled.resources.spill_bytes, 0) << line;
  EXPECT_EQ(compiled.resources.stack_bytes, 0) << line;
  EXPECT_FALSE(compiled.serializes_products) << line;
}

TEST(HopperKernels, KeepEverythingInRegisters) {
  const Compiler* compiler = nullptr;
  const Status loaded = Compiler::load(&compiler);
  if (!loaded.ok()) GTEST_SKIP() << loaded.message();
  for (const Chosen& row : kChosen) {
    Problem problem;
    ASSERT_TRUE(Problem::parse(row.line, &problem).ok()) << row.line;
    ASSERT_EQ(hopper_why_not(problem, Pass::forward, {}), "") << row.line;
    vecina_forward_args example;
    imagine_arguments(problem, VECINA_CUDA, &example);
    std::vector<ForwardLaunch> launches;
    const Status planned = hopper_plan_forward(problem, example, {}, &launches);
    ASSERT_TRUE(planned.ok()) << row.line << ": " << planned.message();
    ASSERT_EQ(launches.size(), problem.lengths() == VECINA_LENGTHS_EQUAL ? 1u : 2u) << row.line;
    for (const ForwardLaunch& launch : launches) {
      EXPECT_LE(launch.params_bytes, kMaxParamsBytes);
      expect_everything_in_registers(*compiler, launch.source, row.line);
    }
  }
}

// What `vecina tune` measures besides what is planned.
TEST(HopperKernels, VariantsKeepEverythingInRegisters) {
  const Compiler* compiler = nullptr;
  const Status loaded = Compiler::load(&compiler);
  if (!loaded.ok()) GTEST_SKIP() << loaded.message();
  const char* line = "2d 256x256 kernel_size 32 heads 24 head_dim 128 dtype bf16";
  Problem problem;
  ASSERT_TRUE(Problem::parse(line, &problem).ok());
  vecina_forward_args example;
  imagine_arguments(problem, VECINA_CUDA, &example);
  const HopperConfig planned = choose_hopper_tiling(problem, {}).config;
  for (const HopperConfig& variant : hopper_variants(planned, {})) {
    std::vector<ForwardLaunch> launches;
    ASSERT_TRUE(
        hopper_launch(problem, example, {}, hopper_choice(problem, {}, variant), &launches).ok());
    expect_everything_in_registers(*compiler, launches.at(0).source, line);
  }
}

}  // namespace
}  // namespace vecina::internal::cuda
