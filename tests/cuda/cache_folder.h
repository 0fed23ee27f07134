// SPDX-License-Identifier: MIT
// A test with an empty folder of its own for a disk cache.
#ifndef VECINA_TESTS_CUDA_CACHE_FOLDER_H_
#define VECINA_TESTS_CUDA_CACHE_FOLDER_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "cuda/disk_cache.h"

namespace vecina::internal::cuda {

class CacheFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() /
              ("vecina-" + std::string(test.name()) + "-" + std::to_string(getpid()));
    std::filesystem::remove_all(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  DiskCache cache() const { return DiskCache(folder_.string()); }
  static std::string bytes(const std::filesystem::path& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  static void replace(const std::filesystem::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  }

  std::filesystem::path folder_;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_TESTS_CUDA_CACHE_FOLDER_H_
