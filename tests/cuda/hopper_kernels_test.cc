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
    ASSERT_EQ(launches.size(), 1u);
    const KernelSource& source = launches[0].source;
    EXPECT_LE(launches[0].params_bytes, kMaxParamsBytes);
    Compiled compiled;
    const Status status =
        compiler->compile(source, compiler->facts().architecture(source, 90), &compiled);
    ASSERT_TRUE(status.ok()) << status.message();
    fmt::print("  {}: {} registers, {} bytes spilled, {}\n", row.line, compiled.resources.registers,
               compiled.resources.spill_bytes, source.config);
    EXPECT_EQ(compiled.resources.spill_bytes, 0) << row.line;
    EXPECT_EQ(compiled.resources.stack_bytes, 0) << row.line;
  }
}

}  // namespace
}  // namespace vecina::internal::cuda
