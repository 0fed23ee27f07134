// SPDX-License-Identifier: MIT
// Kernels that are compiled ahead; needs the compiler and no GPU.
#include "cuda/build_ahead.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda/cache_folder.h"
#include "cuda/compiler.h"
#include "cuda/parsed_problem.h"

namespace vecina::internal::cuda {
namespace {

using Json = nlohmann::ordered_json;

class BuildAheadTest : public CacheFolderTest {
 protected:
  void SetUp() override {
    CacheFolderTest::SetUp();
    const Compiler* compiler = nullptr;
    const Status status = Compiler::load(&compiler);
    if (!status.ok()) GTEST_SKIP() << status.message();
  }
  Json build(const std::string& line, const KernelParts& parts) {
    Json list = Json::array();
    const Status status = build_ahead(parsed(line), parts, {}, 90, cache(), &list);
    EXPECT_TRUE(status.ok()) << status.message();
    return list;
  }
};

std::vector<std::string> passes_of(const Json& list) {
  std::vector<std::string> passes;
  for (const Json& entry : list) {
    if (passes.empty() || passes.back() != entry.at("pass")) passes.push_back(entry.at("pass"));
  }
  return passes;
}

const std::string kLine = "1d 9 kernel_size 3 batch 2 heads 2 head_dim 8 additional 1";

TEST_F(BuildAheadTest, SplitAndMerge) {
  const KernelParts parts = {false, false, true, true};
  const Json built = build(kLine, parts);
  EXPECT_EQ(passes_of(built), (std::vector<std::string>{"qk", "av", "qk_backward", "av_backward",
                                                        "merge", "merge_backward"}));
  EXPECT_EQ(built.front().at("kernel"), "split_weights");
  EXPECT_EQ(built.back().at("kernel"), "merge_gradient");
  const Json again = build(kLine, parts);
  ASSERT_EQ(again.size(), built.size());
  EXPECT_TRUE(std::all_of(again.begin(), again.end(),
                          [](const Json& entry) { return entry.at("was_on_disk").get<bool>(); }));
}

TEST_F(BuildAheadTest, OnlyWhatIsAskedFor) {
  EXPECT_EQ(passes_of(build(kLine, {true, false, false, false})),
            (std::vector<std::string>{"forward"}));
}

TEST_F(BuildAheadTest, AKernelOfSeveralLaunchesIsListedOnce) {
  const Json list = build("3d 16x32x32 kernel_size 9 batch 3 heads 8 head_dim 72 dtype bf16",
                          {true, false, false, false});
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].at("kernel"), "hopper_forward");
}

TEST_F(BuildAheadTest, TheSplitFormHasNoLengths) {
  const Json list = build(kLine + " lengths padded", {false, false, true, false});
  ASSERT_EQ(list.size(), 4u);
  for (const Json& entry : list) EXPECT_TRUE(entry.contains("why")) << entry.dump();
}

}  // namespace
}  // namespace vecina::internal::cuda
