// SPDX-License-Identifier: MIT
// Compiled kernels on disk, shared by all processes of a user. One file a kernel: a line of JSON
// that says what it is, then the image. Written beside its place and renamed, so that no reader
// sees half of one; anything that does not read back as written is removed and built again.
#ifndef VECINA_CUDA_DISK_CACHE_H_
#define VECINA_CUDA_DISK_CACHE_H_

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cuda/compiler.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

// All that a compiled kernel depends on.
struct CacheKey {
  KernelSource source;
  std::string architecture, compiler_version;

  std::string file_name() const;
};

struct CacheEntry {
  std::string file, config, architecture, compiler_version;
  uint64_t bytes = 0;
  Resources resources;
  bool is_current = false;  // made by this build of the library
};

inline constexpr const char* kTunedExtension =
    ".tuned";  // of what tuned_cuts.h keeps beside kernels

class DiskCache {
 public:
  // An empty folder: $XDG_CACHE_HOME/vecina, else ~/.cache/vecina. Without a home one of the
  // temporary folder, where others could put kernels of theirs: used only while it is the user's
  // and nobody else may write there.
  explicit DiskCache(const std::string& folder);

  const std::filesystem::path& folder() const { return folder_; }
  std::optional<Compiled> read(const CacheKey& key) const;
  // Best effort: a full disk or a read-only folder costs time, not correctness.
  void write(const CacheKey& key, const Compiled& compiled) const;

  std::vector<CacheEntry> list() const;
  int clear() const;  // how many were removed

  // What was noted of the compiler at `path`, if it is the same library still, so that a start
  // with a warm cache need not load it.
  std::optional<CompilerFacts> noted_compiler(const std::string& path) const;
  void note_compiler(const std::string& path, const CompilerFacts& facts) const;

  // Of any file in the folder, whole or not at all; best effort.
  void write_file(const std::string& name, const std::string& bytes) const;
  std::string read_file(const std::string& name) const;  // empty if it cannot be read
  // Those with an extension, and drafts of them; how many were removed.
  int remove_files(const std::string& extension) const;

 private:
  bool may_use() const;
  bool make_folder() const;
  std::vector<std::filesystem::directory_entry> list_files() const;  // as far as that works
  void keep_within_limits() const;
  std::filesystem::path folder_;
  bool is_temporary_ = false;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_DISK_CACHE_H_
