// SPDX-License-Identifier: MIT
// What was tuned is found again for the same problem, device and library, whole or not at all.
#include "cuda/tuned_cuts.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "core/arguments.h"
#include "cuda/cache_folder.h"
#include "cuda/digest.h"
#include "cuda/hopper_plan.h"
#include "cuda/hopper_tiling.h"
#include "cuda/parsed_problem.h"

namespace vecina::internal::cuda {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDevice = "NVIDIA H200";

class TunedCutsTest : public CacheFolderTest {
 protected:
  fs::path path() const { return folder_ / TunedCuts(cache(), kDevice).file_name(problem_); }
  std::string bytes() const { return CacheFolderTest::bytes(path()); }
  void replace(const std::string& text) const { CacheFolderTest::replace(path(), text); }

  const Problem problem_ = parsed("2d 256x256 kernel_size 32 heads 24 head_dim 128 dtype bf16");
  // Not what is planned: the third by the prediction, and otherwise put together.
  const HopperConfig cut_ = hopper_variants(
      rank_hopper_tilings(problem_, DeviceFacts(), 3).back().config, DeviceFacts())[0];
};

TEST_F(TunedCutsTest, GivesBackWhatWasWritten) {
  const DiskCache disk = cache();
  const TunedCuts tuned(disk, kDevice);
  EXPECT_FALSE(tuned.read(problem_).has_value());
  tuned.write(problem_, {cut_, 2.25});
  const auto read = TunedCuts(disk, kDevice).read(problem_);
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->measured_ms, 2.25);
  HopperConfig config;
  ASSERT_TRUE(apply_cut(problem_, DeviceFacts(), read->cut, &config));
  EXPECT_EQ(print(config), print(cut_));
}

TEST_F(TunedCutsTest, ProblemAndDeviceCount) {
  const DiskCache disk = cache();
  const TunedCuts tuned(disk, kDevice);
  tuned.write(problem_, {cut_, 2.25});
  EXPECT_FALSE(TunedCuts(disk, "NVIDIA H100 PCIe").read(problem_).has_value());
  for (const char* rest : {"kernel_size 32 heads 24 head_dim 128 dtype f16",
                           "kernel_size 32 heads 25 head_dim 128 dtype bf16",
                           "kernel_size 32 heads 24 head_dim 128 dtype bf16 batch 2",
                           "kernel_size 32 heads 24 head_dim 128 dtype bf16 additional 1"}) {
    const Problem other = parsed(std::string("2d 256x256 ") + rest);
    EXPECT_FALSE(tuned.read(other).has_value()) << rest;
    fs::copy_file(path(), folder_ / tuned.file_name(other));  // under another's name
    EXPECT_FALSE(tuned.read(other).has_value()) << rest;
  }
  EXPECT_TRUE(tuned.read(problem_).has_value());
}

TEST_F(TunedCutsTest, WhatDoesNotReadBackCountsForNothing) {
  const DiskCache disk = cache();
  const TunedCuts tuned(disk, kDevice);
  tuned.write(problem_, {cut_, 2.25});
  const std::string whole = bytes();
  for (size_t i = 0; i < whole.size(); ++i) {
    replace(whole.substr(0, i));
    EXPECT_FALSE(tuned.read(problem_).has_value()) << "the first " << i << " bytes";
    std::string flipped = whole;
    flipped[i] ^= 1;
    replace(flipped);
    EXPECT_FALSE(tuned.read(problem_).has_value()) << "byte " << i << " changed";
  }
  replace(whole + "\n");
  EXPECT_FALSE(tuned.read(problem_).has_value());
  replace(whole);
  EXPECT_TRUE(tuned.read(problem_).has_value());
}

// Files whose checksum is right: of a format to come, or made by hand.
TEST_F(TunedCutsTest, NonsenseCountsForNothing) {
  const DiskCache disk = cache();
  const TunedCuts tuned(disk, kDevice);
  tuned.write(problem_, {cut_, 2.25});
  const std::string whole = bytes(), line = whole.substr(0, whole.find('\n'));
  const auto reads = [&](const std::string& text) {
    replace(text + "\n" + Digest().add(text).hex());
    return tuned.read(problem_).has_value();
  };
  ASSERT_TRUE(reads(line));
  using Change = std::pair<const char*, const char*>;
  for (const auto& [from, to] :
       {Change{"\"format\":1", "\"format\":2"}, Change{"\"stages\":", "\"levels\":"},
        Change{"\"stages\":", "\"stages\":\"\",\"levels\":"},
        Change{"\"query_box\":[", "\"query_box\":[],\"x\":["},
        Change{"\"cut\":{", "\"cut\":[],\"x\":{"},
        Change{"\"is_chained\":", "\"is_chained\":1,\"x\":"},
        Change{"\"measured_ms\":", "\"measured_ms\":null,\"x\":"}}) {
    std::string other = line;
    ASSERT_NE(other.find(from), std::string::npos) << from;
    other.replace(other.find(from), std::string(from).size(), to);
    EXPECT_FALSE(reads(other)) << other;
  }
  EXPECT_FALSE(reads(""));
  EXPECT_FALSE(reads("[]"));
  EXPECT_FALSE(reads(line + "}"));
}

// `vecina tune` measures samples that are all as long as the longest.
TEST_F(TunedCutsTest, SamplesOfDifferentLengthTakeTheCutOfTheLongest) {
  const DiskCache disk = cache();
  const TunedCuts tuned(disk, kDevice);
  const std::string window = "2d 128x128 kernel_size 31 heads 8 head_dim 128 dtype bf16";
  const Problem longest = parsed(window + " batch 4");
  const HopperConfig cut = rank_hopper_tilings(longest, DeviceFacts(), 3).back().config;
  for (const char* lengths : {" batch 4 lengths padded", " lengths packed:4"}) {
    const Problem problem = parsed(window + lengths);
    EXPECT_EQ(with_longest_samples(problem), longest) << lengths;
    DeviceFacts facts;
    vecina_forward_args args;
    imagine_arguments(problem, VECINA_CUDA, &args);
    std::vector<ForwardLaunch> planned, kept;
    ASSERT_TRUE(hopper_plan_forward(problem, args, facts, &planned).ok());
    EXPECT_EQ(planned.back().description.find(describe_cut(cut)), std::string::npos);
    tuned.write(longest, {cut, 2.25});
    facts.tuned = &tuned;
    ASSERT_TRUE(hopper_plan_forward(problem, args, facts, &kept).ok());
    EXPECT_NE(kept.back().description.find(describe_cut(cut)), std::string::npos)
        << kept.back().description;
  }
}

TEST_F(TunedCutsTest, AFolderThatCannotBeIsNoError) {
  std::ofstream(folder_) << "a file";
  const DiskCache disk = cache();
  const TunedCuts tuned(disk, kDevice);
  tuned.write(problem_, {cut_, 2.25});
  EXPECT_FALSE(tuned.read(problem_).has_value());
  EXPECT_EQ(TunedCuts::clear(disk), 0);
}

TEST_F(TunedCutsTest, AreClearedApartFromKernels) {
  const DiskCache disk = cache();
  const TunedCuts tuned(disk, kDevice);
  const CacheKey kernel = {
      {"small.cu", "small", "small_config.h", "SmallConfig", "{}"}, "sm_90", "13.0"};
  disk.write(kernel, {{'k'}, {}});
  tuned.write(problem_, {cut_, 2.25});
  TunedCuts(disk, "another").write(problem_, {cut_, 2.25});
  EXPECT_EQ(TunedCuts::clear(disk), 2);
  EXPECT_FALSE(tuned.read(problem_).has_value());
  EXPECT_TRUE(disk.read(kernel).has_value());
  tuned.write(problem_, {cut_, 2.25});
  EXPECT_EQ(disk.clear(), 1);
  EXPECT_TRUE(tuned.read(problem_).has_value());
}

TEST_F(TunedCutsTest, ReadersNeverSeeHalf) {
  const DiskCache disk = cache();
  const TunedCuts tuned(disk, kDevice);
  tuned.write(problem_, {cut_, 1.0});
  std::vector<std::thread> writers;
  for (const double ms : {1.0, 2.0}) {
    writers.emplace_back([&tuned, this, ms] {
      for (int i = 0; i < 100; ++i) tuned.write(problem_, {cut_, ms});
    });
  }
  for (int i = 0; i < 200; ++i) {
    const auto read = tuned.read(problem_);
    ASSERT_TRUE(read.has_value());
    EXPECT_TRUE(read->measured_ms == 1.0 || read->measured_ms == 2.0);
  }
  for (std::thread& writer : writers) writer.join();
}

// ---- What plans make of it.

class TunedPlans : public TunedCutsTest {
 protected:
  // The one launch, with what was tuned for `problem`.
  ForwardLaunch plan(const Problem& problem) const {
    const DiskCache disk = cache();
    const TunedCuts tuned(disk, kDevice);
    DeviceFacts facts;
    facts.tuned = &tuned;
    vecina_forward_args example;
    imagine_arguments(problem, VECINA_CUDA, &example);
    std::vector<ForwardLaunch> launches;
    EXPECT_TRUE(hopper_plan_forward(problem, example, facts, &launches).ok());
    EXPECT_EQ(launches.size(), 1u);
    return launches.empty() ? ForwardLaunch() : launches[0];
  }
  void keep(const Problem& problem, const HopperConfig& cut) const {
    const DiskCache disk = cache();
    TunedCuts(disk, kDevice).write(problem, {cut, 2.25});
  }
};

TEST_F(TunedPlans, TakeWhatWasTuned) {
  const ForwardLaunch before = plan(problem_);
  EXPECT_NE(before.source.config, print(cut_));
  EXPECT_NE(before.description.find("\"tuned\": false"), std::string::npos) << before.description;
  keep(problem_, cut_);
  const ForwardLaunch after = plan(problem_);
  EXPECT_EQ(after.source.config, print(cut_));
  EXPECT_NE(after.description.find("\"tuned\": true"), std::string::npos) << after.description;
}

// A file can be whole and its cut still not be one that the kernel computes this problem with.
TEST_F(TunedPlans, DoNotTakeWhatCannotRun) {
  const ForwardLaunch planned = plan(problem_);
  const auto is_refused = [&](auto change) {
    HopperConfig cut = cut_;
    change(&cut);
    keep(problem_, cut);
    return plan(problem_).source.config == planned.source.config;
  };
  EXPECT_FALSE(is_refused([](HopperConfig*) {}));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->warpgroups = 1; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->warpgroups = 4; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->pair_axis = 0; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->pair_axis = 3; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->stages = 1; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->stages = 5; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->stages = 4; })) << "shared memory";
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->packed_heads = 0; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->packed_heads = 2; })) << "no groups";
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->query_box[0] = 2; })) << "no such axis";
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->query_box[1] = 65; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->query_box[2] = -8; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->key_box[1] = 0; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) { cut->key_box[2] = 2147483647; }));
  EXPECT_TRUE(is_refused([](HopperConfig* cut) {
    cut->key_box[1] = 14;
    cut->key_box[2] = 14;
  })) << "196 keys";
}

}  // namespace
}  // namespace vecina::internal::cuda
