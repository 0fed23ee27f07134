// SPDX-License-Identifier: MIT
// The disk cache gives back what was written or nothing, whatever happened to the files.
#include "cuda/disk_cache.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "cuda/cache_folder.h"

namespace vecina::internal::cuda {
namespace {

namespace fs = std::filesystem;

class DiskCacheTest : public CacheFolderTest {
 protected:
  static CacheKey key(const std::string& config = "{.head_dim = 32}") {
    return {{"small.cu", "small", "small_config.h", "SmallConfig", config}, "sm_90", "13.0"};
  }
  static Compiled kernel(char filler = 'k') {
    return {std::vector<char>(1000, filler), {40, 8, 16}};
  }
  fs::path path(const CacheKey& of) const { return folder_ / of.file_name(); }
  std::string bytes(const CacheKey& of) const { return CacheFolderTest::bytes(path(of)); }
  void replace(const CacheKey& of, const std::string& text) const {
    CacheFolderTest::replace(path(of), text);
  }
};

TEST_F(DiskCacheTest, GivesBackWhatWasWritten) {
  const DiskCache cache = this->cache();
  EXPECT_FALSE(cache.read(key()).has_value());
  cache.write(key(), kernel());
  const auto read = DiskCache(folder_.string()).read(key());
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->image, kernel().image);
  EXPECT_EQ(read->resources.registers, 40);
  EXPECT_EQ(read->resources.stack_bytes, 8);
  EXPECT_EQ(read->resources.spill_bytes, 16);
}

TEST_F(DiskCacheTest, EveryPartOfTheKeyCounts) {
  const DiskCache cache = this->cache();
  cache.write(key(), kernel());
  CacheKey other = key();
  other.architecture = "sm_90a";
  EXPECT_FALSE(cache.read(other).has_value());
  other = key();
  other.compiler_version = "12.8";
  EXPECT_FALSE(cache.read(other).has_value());
  other = key();
  other.source.entry = "another";
  EXPECT_FALSE(cache.read(other).has_value());
  EXPECT_FALSE(cache.read(key("{.head_dim = 64}")).has_value());
  EXPECT_TRUE(cache.read(key()).has_value());
}

TEST_F(DiskCacheTest, IsForItsOwnerAlone) {
  DiskCache(folder_.string()).write(key(), kernel());
  EXPECT_EQ(fs::status(folder_).permissions(), fs::perms::owner_all);
}

TEST_F(DiskCacheTest, RemovesWhatDoesNotReadBack) {
  const DiskCache cache = this->cache();
  cache.write(key(), kernel());
  const std::string whole = bytes(key());
  std::string flipped = whole;
  flipped[whole.size() - 10] ^= 1;
  std::string numbers = whole;
  numbers.replace(numbers.find("\"registers\":40"), 14, "\"registers\":{}");
  for (const std::string& broken :
       {std::string(), std::string("\n"), std::string("{}\n"), std::string("[1, 2]\nk"),
        whole.substr(0, whole.size() / 2), whole.substr(0, 20), flipped, whole + "k"}) {
    replace(key(), broken);
    EXPECT_FALSE(cache.read(key()).has_value()) << broken.size() << " bytes";
    EXPECT_FALSE(fs::exists(path(key())));
  }
  replace(key(), numbers);  // what is only told, not needed, may be nonsense
  EXPECT_TRUE(cache.read(key()).has_value());
}

TEST_F(DiskCacheTest, DoesNotTakeAnotherKernelForItsOwn) {
  const DiskCache cache = this->cache();
  cache.write(key(), kernel());
  const CacheKey other = key("{.head_dim = 64}");
  fs::copy_file(path(key()), path(other));
  EXPECT_FALSE(cache.read(other).has_value());
}

TEST_F(DiskCacheTest, AFolderThatCannotBeIsNoError) {
  fs::create_directories(folder_.parent_path());
  std::ofstream(folder_) << "a file";
  const DiskCache cache = this->cache();
  cache.write(key(), kernel());
  cache.note_compiler(folder_.string(), {"13.0", {80, 90}});
  EXPECT_FALSE(cache.read(key()).has_value());
  EXPECT_TRUE(cache.list().empty());
}

TEST_F(DiskCacheTest, ListsAndClears) {
  const DiskCache cache = this->cache();
  EXPECT_TRUE(cache.list().empty());
  cache.write(key("{.head_dim = 64}"), kernel());
  cache.write(key(), kernel());
  const std::vector<CacheEntry> entries = cache.list();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].config, "{.head_dim = 32}");
  EXPECT_EQ(entries[0].bytes, 1000u);
  EXPECT_TRUE(entries[0].is_current);
  std::ofstream(folder_ / "mine.txt") << "not a kernel";
  EXPECT_EQ(cache.clear(), 2);
  EXPECT_TRUE(cache.list().empty());
  EXPECT_TRUE(fs::exists(folder_ / "mine.txt"));
}

TEST_F(DiskCacheTest, NotesTheCompilerUntilItsFileChanges) {
  const DiskCache cache = this->cache();
  fs::create_directories(folder_);
  const fs::path library = folder_ / "libcompiler.so";
  std::ofstream(library) << "one";
  EXPECT_FALSE(cache.noted_compiler(library.string()).has_value());
  cache.note_compiler(library.string(), {"13.0", {80, 90}});
  const auto noted = cache.noted_compiler(library.string());
  ASSERT_TRUE(noted.has_value());
  EXPECT_EQ(noted->version, "13.0");
  EXPECT_EQ(noted->capabilities, (std::vector<int>{80, 90}));
  EXPECT_FALSE(cache.noted_compiler((folder_ / "libother.so").string()).has_value());
  std::ofstream(library) << "another";
  EXPECT_FALSE(cache.noted_compiler(library.string()).has_value());
  cache.note_compiler("", {"13.0", {}});  // a compiler on the loader's path has no file to compare
  EXPECT_FALSE(cache.noted_compiler("").has_value());
}

TEST_F(DiskCacheTest, ReadersNeverSeeHalfAKernel) {
  const DiskCache cache = this->cache();
  cache.write(key(), kernel('a'));
  std::vector<std::thread> writers;
  for (const char filler : {'a', 'b'}) {
    writers.emplace_back([&cache, filler] {
      for (int i = 0; i < 100; ++i) cache.write(key(), kernel(filler));
    });
  }
  for (int i = 0; i < 200; ++i) {
    const auto read = cache.read(key());
    ASSERT_TRUE(read.has_value());
    EXPECT_TRUE(read->image == kernel('a').image || read->image == kernel('b').image);
  }
  for (std::thread& writer : writers) writer.join();
}

TEST(Architecture, IsTheDevicesOwnOrTheNewestKnown) {
  const CompilerFacts facts = {"13.0", {75, 80, 86, 90, 100, 120}};
  KernelSource source;
  EXPECT_EQ(facts.architecture(source, 80), "sm_80");
  EXPECT_EQ(facts.architecture(source, 89), "sm_86");  // cubins run on later minor versions
  EXPECT_EQ(facts.architecture(source, 90), "sm_90");
  EXPECT_EQ(facts.architecture(source, 130), "compute_120");  // the driver compiles PTX
  source.is_architecture_specific = true;
  EXPECT_EQ(facts.architecture(source, 90), "sm_90a");
}

}  // namespace
}  // namespace vecina::internal::cuda
