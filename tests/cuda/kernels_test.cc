// SPDX-License-Identifier: MIT
// Every kernel that the table of problems leads to is compiled, for the oldest, the Hopper and the
// newest architecture that NVRTC knows; no GPU is needed. Prints what each takes of a device.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cases.h"
#include "core/arguments.h"
#include "core/problem.h"
#include "core/tensor.h"
#include "cuda/compiler.h"
#include "cuda/device.h"
#include "cuda/families.h"
#include "cuda/parsed_problem.h"
#include "cuda/small_plan.h"

namespace vecina::internal::cuda {
namespace {

using Sources = std::map<std::string, KernelSource>;

template <typename Args>
void add_launches(const std::vector<KernelLaunch<Args>>& launches, const DeviceFacts& facts,
                  Sources* sources) {
  for (const KernelLaunch<Args>& launch : launches) {
    EXPECT_LE(launch.params_bytes, kMaxParamsBytes);
    EXPECT_LE(launch.shared_bytes, static_cast<uint32_t>(facts.shared_bytes_per_block));
    EXPECT_LE(launch.block[0] * launch.block[1] * launch.block[2], 1024u);
    sources->emplace(launch.source.entry + launch.source.config, launch.source);
  }
}

template <typename Args>
void add_sources(const Problem& problem, Args example, const DeviceFacts& facts, Sources* sources) {
  imagine_arguments(problem, VECINA_CUDA, &example);
  const char* family = nullptr;
  std::vector<KernelLaunch<Args>> launches;
  const Status status = plan_launches(problem, example, facts, &family, &launches);
  ASSERT_TRUE(status.ok()) << problem.line() << ": " << status.message();
  add_launches(launches, facts, sources);
}

// Two attentions of [3, 4, columns] each. Rows without columns have an lse to merge; a caller may
// give them an address or not.
template <typename Args>
void add_merge(const Args& args, const DeviceFacts& facts, Sources* sources) {
  std::vector<KernelLaunch<Args>> launches;
  ASSERT_TRUE(small_plan_merge(args, facts, &launches).ok());
  ASSERT_EQ(launches.size(), 1u);
  add_launches(launches, facts, sources);
}
void add_merges(int32_t dtype, int64_t columns, bool has_address, const DeviceFacts& facts,
                Sources* sources) {
  vecina_tensor output = {}, lse = {};
  output.data = has_address ? &output : nullptr;
  lse.data = &lse;
  output.dtype = dtype;
  lse.dtype = lse_dtype(dtype);
  output.ndim = 3;
  lse.ndim = 2;
  const int64_t shape[] = {3, 4, columns};
  for (int d = 0; d < 3; ++d) {
    output.shape[d] = shape[d];
    output.strides[d] = d == 0 ? 4 * columns : d == 1 ? columns : 1;
    if (d == 2) continue;
    lse.shape[d] = shape[d];
    lse.strides[d] = d == 0 ? 4 : 1;
  }
  const vecina_tensor outputs[] = {output, output}, lses[] = {lse, lse};
  add_merge(MergeArgs{2, outputs, lses, &output, &lse}, facts, sources);
  add_merge(MergeBackwardArgs{2, outputs, lses, &output, &lse, outputs, lses}, facts, sources);
}

void add_passes(const char* line, const DeviceFacts& facts, Sources* sources) {
  add_sources(parsed(line), vecina_forward_args{}, facts, sources);
  add_sources(parsed(line), vecina_backward_args{}, facts, sources);
}
std::vector<KernelSource> list_of(const Sources& sources) {
  std::vector<KernelSource> list;
  for (const auto& [name, source] : sources) list.push_back(source);
  return list;
}

// Whose tiles have few partners where a block has little shared memory.
constexpr const char* kLongRows[] = {
    "2d 40x44 kernel_size 15 heads 2 head_dim 256 dtype bf16",
    "2d 40x44 kernel_size 15 heads 2 head_dim 160 head_dim_value 104 dtype f16",
    "2d 40x44 kernel_size 15 dilation 1x2 bias heads 2 head_dim 256 dtype bf16",
    "2d 40x44 kernel_size 15 heads 2 head_dim 320 head_dim_value 264 dtype bf16",
};

std::vector<KernelSource> sources_for(const DeviceFacts& facts) {
  Sources sources;
  for (const tests::Case& row : tests::all_cases()) {
    Problem problem;
    EXPECT_TRUE(Problem::make(row.problem, &problem).ok()) << row.line;
    add_sources(problem, vecina_forward_args{}, facts, &sources);
    add_sources(problem, vecina_backward_args{}, facts, &sources);
    if (problem.lengths() != VECINA_LENGTHS_EQUAL) continue;
    for (const Pass pass : {Pass::qk, Pass::av, Pass::qk_backward, Pass::av_backward}) {
      add_sources(problem, SplitArgs{pass, {}}, facts, &sources);
    }
  }
  // The table's problems are small: fields that change the kernels of large ones.
  for (const char* line :
       {"2d 40x44 kernel_size 15 dilation 1x2 bias heads 4 heads_kv 2 head_dim 128 dtype bf16",
        "2d 60x44 kernel_size 15 output_stride 3x2 causal 0x1 heads 2 head_dim 64 dtype f16",
        "3d 14x18x20 kernel_size 7x9x8 stride 2x1x1 batch 3 heads 2 head_dim 72 lengths padded "
        "dtype bf16",
        "1d 900 kernel_size 90 output_stride 2 dilation 3 heads 2 head_dim 64 additional 70 bias "
        "lengths packed:4 dtype bf16",
        "attention 700x1500 causal heads 2 head_dim 128 dtype bf16",
        // Neighbours in a thread.
        "1d 256 kernel_size 7 batch 4 heads 8 head_dim 32 additional 4",
        "2d 64x64 kernel_size 3 batch 2 heads 8 head_dim 32 dtype bf16",
        "3d 5x6x7 kernel_size 2 batch 40 heads 4 head_dim 20 head_dim_value 12 dtype f16",
        "1d 1024 kernel_size 5 batch 2 heads 8 head_dim 32 dtype f64"}) {
    add_passes(line, facts, &sources);
  }
  for (const char* line : kLongRows) add_passes(line, facts, &sources);
  for (const int32_t dtype : {VECINA_F32, VECINA_F64, VECINA_F16, VECINA_BF16}) {
    for (const int64_t columns : {8, 0}) add_merges(dtype, columns, true, facts, &sources);
    add_merges(dtype, 0, false, facts, &sources);
  }
  return list_of(sources);
}

void compile_all(const Compiler& compiler, int compute_capability,
                 const std::vector<KernelSource>& sources) {
  ASSERT_FALSE(sources.empty());
  std::vector<std::string> lines(sources.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < sources.size(); i = next++) {
      Compiled compiled;
      const Status status = compiler.compile(
          sources[i], compiler.facts().architecture(sources[i], compute_capability), &compiled);
      EXPECT_TRUE(status.ok()) << status.message();
      const Resources& resources = compiled.resources;
      lines[i] = fmt::format("{} {}: {} registers, {} bytes of stack, {} spilled", sources[i].entry,
                             sources[i].config, resources.registers, resources.stack_bytes,
                             resources.spill_bytes);
    }
  };
  std::thread other(work);
  work();
  other.join();
  fmt::print("{} kernels for compute capability {}:\n", sources.size(), compute_capability);
  for (const std::string& line : lines) fmt::print("  {}\n", line);
}

class KernelsTest : public testing::Test {
 protected:
  void SetUp() override {
    const Status status = Compiler::load(&compiler_);
    if (!status.ok()) GTEST_SKIP() << status.message();
  }
  const Compiler* compiler_ = nullptr;
};

TEST_F(KernelsTest, Ampere) { compile_all(*compiler_, 80, sources_for(imagined_facts(80))); }
TEST_F(KernelsTest, Hopper) { compile_all(*compiler_, 90, sources_for(imagined_facts(90))); }
TEST_F(KernelsTest, Newest) {
  const int newest = compiler_->facts().capabilities.back();
  compile_all(*compiler_, newest, sources_for(imagined_facts(newest)));
}

// Rows of value that eight warps keep beside sums of both gradients.
TEST_F(KernelsTest, KeptRowsOfValueLeaveRoomForTheRest) {
  for (const int capability : {80, 90}) {
    Sources sources;
    for (const char* line :
         {"2d 256x256 kernel_size 80 heads 8 head_dim 128 dtype bf16",
          "3d 30x48x80 kernel_size 18x24x24 heads 8 heads_kv 2 head_dim 128 "
          "dtype f16",
          "1d 32768 kernel_size 2048 causal heads 8 head_dim 112 dtype bf16",
          "2d 256x256 kernel_size 80 stride 2x3 additional 3 heads 8 head_dim 128 "
          "head_dim_value 48 dtype bf16"}) {
      const Problem problem = parsed(line);
      // Facts of 80 for both: not Hopper's own kernels.
      add_sources(problem, vecina_backward_args{}, imagined_facts(80), &sources);
    }
    int count = 0;
    for (const auto& [name, source] : sources) {
      if (source.entry != "tiles_gradient_key") continue;
      ++count;
      EXPECT_NE(source.config.find(".shares_value = false"), std::string::npos) << source.config;
      Compiled compiled;
      const Status status = compiler_->compile(
          source, compiler_->facts().architecture(source, capability), &compiled);
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_EQ(compiled.resources.spill_bytes, 0) << source.config;
    }
    EXPECT_EQ(count, 4);
  }
}

TEST_F(KernelsTest, LongRowsInLittleSharedMemory) {
  Sources sources;
  for (const char* line : kLongRows) add_passes(line, imagined_facts(86), &sources);
  std::set<std::string> of_few_partners;
  for (const auto& [name, source] : sources) {
    if (source.config.find(".partners = 16,") != std::string::npos) {
      of_few_partners.insert(source.entry);
    }
  }
  EXPECT_EQ(of_few_partners,
            (std::set<std::string>{"tiles_forward", "tiles_gradient_key", "tiles_gradient_query"}));
  compile_all(*compiler_, 86, list_of(sources));
}

// Of rows whose sums a thread has no registers for.
TEST_F(KernelsTest, SumsOfManyColumnsInParts) {
  for (const int capability : {80, 90}) {
    Sources sources;
    for (const char* line : {"2d 40x44 kernel_size 15 heads 2 head_dim 512 dtype bf16",
                             "1d 900 kernel_size 90 bias heads 4 head_dim 192 head_dim_value 328 "
                             "additional 2 lengths packed:3 dtype f16"}) {
      add_passes(line, imagined_facts(capability), &sources);
    }
    compile_all(*compiler_, capability, list_of(sources));
  }
}

// Whose warps have little shared memory to meet in.
TEST_F(KernelsTest, LongRowsOfAdditionalTokens) {
  const DeviceFacts facts = imagined_facts(90);
  Sources sources;
  std::set<std::string> warps;
  const auto keep = [&](const Sources& from) {
    int kept = 0;
    for (const auto& [name, source] : from) {
      if (source.config.find(".of_additional = true") == std::string::npos) continue;
      sources.emplace(name, source);
      const size_t at = source.config.find(".warps = ");
      warps.insert(source.config.substr(at, source.config.find(',', at) - at));
      ++kept;
    }
    EXPECT_EQ(kept, 1);
  };
  for (const char* line :
       {"head_dim 1024 head_dim_value 768 dtype f64", "head_dim 2048 head_dim_value 1536 dtype f64",
        "head_dim 3080 dtype f32", "head_dim 1536 dtype f64"}) {
    Sources backward, split;
    const Problem problem =
        parsed(fmt::format("1d 64 kernel_size 3 heads 1 additional 1 {}", line));
    add_sources(problem, vecina_backward_args{}, facts, &backward);
    add_sources(problem, SplitArgs{Pass::qk_backward, {}}, facts, &split);
    keep(backward);
    keep(split);
  }
  EXPECT_EQ(warps, (std::set<std::string>{".warps = 1", ".warps = 2", ".warps = 4"}));
  compile_all(*compiler_, 90, list_of(sources));
}

TEST_F(KernelsTest, AKernelThatDoesNotCompileSaysWhere) {
  KernelSource source = sources_for({}).front();
  source.config = "{.no_such_field = 1}";
  Compiled compiled;
  const Status status = compiler_->compile(source, "sm_90", &compiled);
  EXPECT_EQ(status.code(), VECINA_DEVICE_ERROR);
  EXPECT_NE(status.message().find("no_such_field"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("sm_90"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace vecina::internal::cuda
