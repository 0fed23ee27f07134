// SPDX-License-Identifier: MIT
// The disk cache gives back what was written or nothing, whatever happened to the files.
#include "cuda/disk_cache.h"

#include <dirent.h>
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>
#include <vector>

#include "core/log.h"
#include "cuda/cache_folder.h"

namespace {
int num_listed = -1;  // files of a folder until it cannot be listed further; negative: no end
}  // namespace

// Stands before the C library's.
extern "C" __attribute__((visibility("default"))) dirent* readdir(DIR* folder) {
  static const auto next = reinterpret_cast<dirent* (*)(DIR*)>(dlsym(RTLD_NEXT, "readdir"));
  if (num_listed == 0) {
    errno = ESTALE;
    return nullptr;
  }
  if (num_listed > 0) --num_listed;
  return next(folder);
}

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

TEST_F(DiskCacheTest, AFolderThatCannotBeListedToItsEndIsNoError) {
  const DiskCache cache = this->cache();
  for (int i = 0; i < 4; ++i) cache.write(key(std::to_string(i)), kernel());
  const auto with_a_stale_folder = [](const auto& work) {
    num_listed = 4;  // two may be the folder itself and the one above
    EXPECT_NO_THROW(work());
    EXPECT_EQ(num_listed, 0);
    num_listed = -1;
  };
  with_a_stale_folder([&] { EXPECT_LE(cache.list().size(), 4u); });
  with_a_stale_folder([&] { cache.write(key(), kernel()); });
  with_a_stale_folder([&] { EXPECT_LE(cache.clear(), 4); });
}

TEST_F(DiskCacheTest, DraftsOfKilledProcessesGo) {
  const DiskCache cache = this->cache();
  cache.write(key(), kernel());
  const auto draft = [&](const std::string& name, std::chrono::hours age) {
    std::ofstream(folder_ / name) << "half";
    fs::last_write_time(folder_ / name, fs::file_time_type::clock::now() - age);
    return folder_ / name;
  };
  const fs::path old = draft(key().file_name() + ".17.0", std::chrono::hours(2)),
                 old_note = draft("compiler.json.17.1", std::chrono::hours(2)),
                 young = draft(key().file_name() + ".18.0", std::chrono::hours(0)),
                 other = draft("mine.17.0", std::chrono::hours(2));
  cache.write(key("{.head_dim = 64}"), kernel());
  EXPECT_FALSE(fs::exists(old));
  EXPECT_FALSE(fs::exists(old_note));
  EXPECT_TRUE(fs::exists(young)) << "it may be renamed soon";
  EXPECT_TRUE(fs::exists(other));
  EXPECT_TRUE(cache.read(key()).has_value());
}

// A process without a home, whose cache lies where others may write.
class HomelessCacheTest : public DiskCacheTest {
 protected:
  void SetUp() override {
    DiskCacheTest::SetUp();
    fs::create_directories(folder_);
    for (const char* name : {"XDG_CACHE_HOME", "HOME", "TMPDIR"}) {
      if (const char* value = std::getenv(name)) before_[name] = value;
      unsetenv(name);
    }
    setenv("TMPDIR", folder_.c_str(), 1);
    set_log([](void* user, int, const char* line) { *static_cast<std::string*>(user) += line; },
            &log_);
  }
  void TearDown() override {
    set_log(nullptr, nullptr);
    unsetenv("TMPDIR");
    for (const auto& [name, value] : before_) setenv(name.c_str(), value.c_str(), 1);
    DiskCacheTest::TearDown();
  }
  fs::path place() const { return folder_ / ("vecina-" + std::to_string(geteuid())); }
  void expect_unused(const char* why) {
    log_.clear();
    const DiskCache cache("");
    cache.write(key(), kernel());
    cache.note_compiler("/proc/self/exe", {"13.0", {80}});
    EXPECT_FALSE(cache.read(key()).has_value()) << why;
    EXPECT_TRUE(cache.list().empty()) << why;
    EXPECT_EQ(cache.clear(), 0) << why;
    EXPECT_NE(log_.find(place().string()), std::string::npos) << why << ": " << log_;
  }

  std::string log_;

 private:
  std::map<std::string, std::string> before_;
};

TEST_F(HomelessCacheTest, HasAFolderOfItsOwn) {
  DiskCache("").write(key(), kernel());
  EXPECT_EQ(fs::status(place()).permissions(), fs::perms::owner_all);
  EXPECT_TRUE(DiskCache("").read(key()).has_value());
  EXPECT_EQ(log_, "");
}

TEST_F(HomelessCacheTest, DoesNotUseWhatOthersMayWrite) {
  DiskCache("").write(key(), kernel());
  for (const fs::perms others : {fs::perms::group_write, fs::perms::others_write}) {
    fs::permissions(place(), fs::perms::owner_all | others);
    expect_unused("others may write");
    EXPECT_TRUE(fs::exists(place() / key().file_name()));
  }
  fs::permissions(place(), fs::perms::owner_all | fs::perms::group_read);
  EXPECT_TRUE(DiskCache("").read(key()).has_value());
  if (geteuid() != 0) return;  // only root gives a folder away
  ASSERT_EQ(chown(place().c_str(), 1, 1), 0);
  expect_unused("another user's");
}

TEST_F(HomelessCacheTest, DoesNotFollowALink) {
  const fs::path elsewhere = folder_ / "elsewhere";
  fs::create_directories(elsewhere);
  fs::permissions(elsewhere, fs::perms::owner_all);
  fs::create_directory_symlink(elsewhere, place());
  expect_unused("a link");
  EXPECT_TRUE(fs::is_empty(elsewhere));
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
