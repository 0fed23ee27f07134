// SPDX-License-Identifier: MIT
// What a run writes for its kernels: of its tensors only the addresses are read, all else is the
// plan's. No GPU is needed.
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "core/arguments.h"
#include "core/tensor.h"
#include "cuda/families.h"
#include "cuda/hopper_cases.h"
#include "cuda/kernels/halo_params.h"
#include "cuda/parsed_problem.h"
#include "imagined.h"
#include "plan_cases.h"

namespace vecina::internal::cuda {
namespace {

using tests::imagined;
using tests::Rest;
using vecina::cuda::HaloParams;

// Beside those of every family: parts of values, a launch for each sample, lengths, what else has a
// kernel of its own.
constexpr const char* kLines[] = {
    "2d 48x48 kernel_size 21 batch 2 heads 2 head_dim 64 head_dim_value 320 additional 3 dtype f16",
    "1d 4096 kernel_size 1024 batch 2 heads 2 head_dim 320 bias dtype bf16",
    "3d 30x40x40 kernel_size 9 heads 16 batch 2 head_dim 40 dtype bf16",
    "2d 64x64 kernel_size 13 heads 4 head_dim 64 bias dtype f16",
    "2d 256x256 kernel_size 80 heads 2 head_dim 128 allow nondeterministic dtype bf16",
    "2d 256x256 kernel_size 80 heads 2 head_dim 128 dtype bf16 query_key_dtype e4m3",
    "2d 256x256 kernel_size 80 batch 2 heads 24 head_dim 128 lengths padded dtype bf16",
    "3d 30x48x80 kernel_size 18x24x24 heads 4 head_dim 128 lengths packed:3 dtype bf16",
    "2d 9x8 kernel_size 3 batch 3 heads 2 head_dim 8 bias additional 1 lengths padded",
    "1d 20 kernel_size 5 output_stride 3 heads 2 head_dim 8 lengths packed:4",
    "attention 300x700 batch 4 heads 1 head_dim 64 lengths padded dtype f16",
};

DeviceFacts facts_of(int compute_capability) {
  DeviceFacts facts;
  facts.compute_capability = compute_capability;
  return facts;
}

template <typename Args>
Args make_example(const Problem& problem) {
  Args args = imagined<Args>(problem, int64_t{1} << 36);
  args.workspace = static_cast<char*>(args.query.data) + (int64_t{1} << 42);
  return args;
}

template <typename Args>
Args addresses_alone(Args args, Rest rest) {
  NamedTensor list[kMaxTensors];
  const int count = list_tensors(args, list);
  for (int i = 0; i < count; ++i) {
    auto* tensor = const_cast<vecina_tensor*>(list[i].tensor);  // a member of args
    *tensor = tests::address_alone(*tensor, rest);
  }
  return args;
}

// Without a driver nothing makes Hopper's maps; what needs none is there by then.
template <typename Args>
std::vector<char> filled(const KernelLaunch<Args>& launch, const Args& args) {
  std::vector<char> params(launch.params_bytes);
  static_cast<void>(launch.fill(args, params.data()));
  return params;
}

template <typename Args>
void expect_only_addresses_are_read(const std::string& line, int compute_capability,
                                    std::set<std::string>* files) {
  SCOPED_TRACE(line);
  const Problem problem = parsed(line);
  const Args example = make_example<Args>(problem);
  const char* family = "";
  std::vector<KernelLaunch<Args>> launches;
  const Status status =
      plan_launches(problem, example, facts_of(compute_capability), &family, &launches);
  if (status.code() == VECINA_UNSUPPORTED) return;
  ASSERT_TRUE(status.ok()) << status.message();
  for (size_t i = 0; i < launches.size(); ++i) {
    const std::vector<char> wanted = filled(launches[i], example);
    for (const Rest rest : {Rest::is_missing, Rest::is_misleading}) {
      EXPECT_TRUE(filled(launches[i], addresses_alone(example, rest)) == wanted)
          << launches[i].source.file << ", launch " << i
          << (rest == Rest::is_missing ? ", missing" : ", misleading");
    }
    files->insert(launches[i].source.file);
  }
}

TEST(Fill, ReadsOnlyAddresses) {
  std::set<std::string> files;
  const auto expect = [&](const std::string& line) {
    for (const int compute_capability : {80, 90}) {
      expect_only_addresses_are_read<vecina_forward_args>(line, compute_capability, &files);
      expect_only_addresses_are_read<vecina_backward_args>(line, compute_capability, &files);
    }
  };
  for (const char* line : tests::kCallLines) expect(line);
  for (const char* line : kSmallest) expect(line);
  for (const char* line : kLines) expect(line);
  for (const char* file :
       {"gradient_bias.cu", "gradient_key.cu", "gradient_query.cu", "gradient_span.cu",
        "halo_forward.cu", "halo_gradient_key.cu", "halo_gradient_query.cu", "hopper_forward.cu",
        "hopper_gradient.cu", "hopper_samples.cu", "small_fragments.cu", "small_lanes.cu",
        "tiles_forward.cu", "tiles_gradient_bias.cu", "tiles_gradient_key.cu",
        "tiles_gradient_query.cu", "tiles_gradient_rows.cu"}) {
    EXPECT_EQ(files.count(file), 1u) << file;
  }
}

template <typename Args>
HaloParams halo_params(const KernelLaunch<Args>& launch, const Args& args) {
  HaloParams params = {};
  EXPECT_EQ(launch.params_bytes, sizeof params);
  EXPECT_TRUE(launch.fill(args, &params).ok());
  return params;
}

// Each begins at its own columns, of a run's tensors too; keys and queries are those of the whole.
TEST(Fill, OfPartsOfValuesBeginsAtTheirColumns) {
  const Problem problem = parsed(kLines[0]);
  const char* family = "";
  const auto forward = make_example<vecina_forward_args>(problem);
  std::vector<ForwardLaunch> launches;
  ASSERT_TRUE(plan_launches(problem, forward, facts_of(80), &family, &launches).ok());
  ASSERT_EQ(launches.size(), 2u);
  for (int64_t part = 0; part < 2; ++part) {
    const HaloParams params = halo_params(launches[static_cast<size_t>(part)],
                                          addresses_alone(forward, Rest::is_missing));
    const int64_t bytes = part * 160 * 2;
    EXPECT_EQ(params.query.data, address(forward.query));
    EXPECT_EQ(params.key.data, address(forward.key));
    EXPECT_EQ(params.additional_key.data, address(forward.additional_key));
    EXPECT_EQ(params.value.data, address(forward.value) + bytes);
    EXPECT_EQ(params.additional_value.data, address(forward.additional_value) + bytes);
    EXPECT_EQ(params.output.data, address(forward.output) + bytes);
    EXPECT_EQ(params.lse.data, part == 0 ? address(forward.lse) : nullptr);
  }
  auto backward = make_example<vecina_backward_args>(problem);
  backward.grad_query = backward.grad_key = {};  // those of values follow the facts
  std::vector<BackwardLaunch> gradients;
  ASSERT_TRUE(plan_launches(problem, backward, facts_of(80), &family, &gradients).ok());
  std::vector<int64_t> begins;
  for (const BackwardLaunch& launch : gradients) {
    if (launch.source.file != "tiles_gradient_key.cu") continue;
    const HaloParams params = halo_params(launch, addresses_alone(backward, Rest::is_misleading));
    EXPECT_EQ(params.lse.data, address(backward.lse));
    begins.push_back(params.grad_value.data - address(backward.grad_value));
    EXPECT_EQ(params.grad_output.data - address(backward.grad_output), begins.back());
  }
  EXPECT_EQ(begins, (std::vector<int64_t>{0, 160 * 2}));
}

}  // namespace
}  // namespace vecina::internal::cuda
