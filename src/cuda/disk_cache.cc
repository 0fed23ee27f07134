// SPDX-License-Identifier: MIT
#include "cuda/disk_cache.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/file.h"
#include "core/log.h"
#include "cuda/digest.h"

namespace vecina::internal::cuda {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kExtension = ".kernel";
constexpr const char* kCompilerNote = "compiler.json";
// Some 70 kB a kernel: far more than a user meets, little for a disk. The oldest go.
constexpr size_t kMaxEntries = 4096;
constexpr uintmax_t kMaxBytes = 512u << 20;
// A draft of a running process is renamed within moments.
constexpr std::chrono::hours kMaxDraftAge{1};

// Empty if there is none.
fs::path folder_of_user() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return fs::path(cache) / "vecina";
  const char* home = std::getenv("HOME");
  if (home != nullptr && home[0] == '/') return fs::path(home) / ".cache" / "vecina";
  return {};
}

// Every user of the machine knows its name, and may have made it before.
fs::path temporary_folder() {
  std::error_code error;
  const fs::path folder = fs::temp_directory_path(error);
  return (error ? "/tmp" : folder) / fmt::format("vecina-{}", geteuid());
}

// Not a link to one either.
bool is_of_this_user_alone(const struct stat& folder) {
  return S_ISDIR(folder.st_mode) && folder.st_uid == geteuid() &&
         (folder.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

bool is_draft(const std::string& name) {
  return name.find(std::string(kExtension) + ".") != std::string::npos ||
         name.find(std::string(kTunedExtension) + ".") != std::string::npos ||
         name.starts_with(std::string(kCompilerNote) + ".");
}

std::string checksum(std::string_view image) { return Digest().add(image).hex(); }

ordered_json header_of(const CacheKey& key) {
  return {{"file", key.source.file},          {"entry", key.source.entry},
          {"config", key.source.config},      {"architecture", key.architecture},
          {"compiler", key.compiler_version}, {"kernels", kernels_fingerprint()}};
}

// An empty object if the text is no object.
ordered_json parse_object(std::string_view text) {
  ordered_json object = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  return object.is_object() ? object : ordered_json::object();
}

std::string text_of(const ordered_json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

int number_of(const ordered_json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number_integer() ? found->get<int>() : 0;
}

// The header of an entry and its image; nothing if the file is not whole.
std::optional<std::pair<ordered_json, std::string>> parse_entry(const std::string& bytes) {
  const size_t end = bytes.find('\n');
  if (end == std::string::npos) return std::nullopt;
  ordered_json header = parse_object(std::string_view(bytes).substr(0, end));
  std::string image = bytes.substr(end + 1);
  if (text_of(header, "checksum") != checksum(image)) return std::nullopt;
  return std::pair(std::move(header), std::move(image));
}

bool is_of(const ordered_json& header, const ordered_json& wanted) {
  return std::all_of(wanted.items().begin(), wanted.items().end(), [&](const auto& member) {
    return header.contains(member.key()) && header[member.key()] == member.value();
  });
}

Resources resources_of(const ordered_json& header) {
  return {number_of(header, "registers"), number_of(header, "stack_bytes"),
          number_of(header, "spill_bytes")};
}

// Size and time of a library: another one at the same path has another note.
ordered_json identity_of(const std::string& path) {
  std::error_code error;
  const uintmax_t bytes = fs::file_size(path, error);
  const auto time = fs::last_write_time(path, error);
  if (error) return nullptr;
  return {{"path", path}, {"bytes", bytes}, {"time", time.time_since_epoch().count()}};
}

}  // namespace

std::string CacheKey::file_name() const {
  return Digest().add(header_of(*this).dump()).hex() + kExtension;
}

DiskCache::DiskCache(const std::string& folder)
    : folder_(folder.empty() ? folder_of_user() : fs::path(folder)) {
  if (!folder_.empty()) return;
  folder_ = temporary_folder();
  is_temporary_ = true;
  struct stat found = {};
  if (lstat(folder_.c_str(), &found) == 0 && !is_of_this_user_alone(found) && is_logged("cache")) {
    log_line("cache", 2,
             fmt::format("compiled kernels are not kept: {} is not a folder of this user alone; "
                         "set VECINA_CACHE_DIR",
                         folder_.string()));
  }
}

bool DiskCache::may_use() const {
  struct stat found = {};
  return !is_temporary_ || (lstat(folder_.c_str(), &found) == 0 && is_of_this_user_alone(found));
}

std::string DiskCache::read_file(const std::string& name) const {
  return may_use() ? internal::read_file(folder_ / name) : std::string();
}

std::optional<Compiled> DiskCache::read(const CacheKey& key) const {
  const fs::path path = folder_ / key.file_name();
  std::error_code ignored;
  if (!may_use() || !fs::exists(path, ignored)) return std::nullopt;
  auto entry = parse_entry(internal::read_file(path));
  if (!entry || !is_of(entry->first, header_of(key))) {
    fs::remove(path, ignored);
    return std::nullopt;
  }
  fs::last_write_time(path, fs::file_time_type::clock::now(), ignored);  // the oldest go first
  return Compiled{{entry->second.begin(), entry->second.end()}, resources_of(entry->first)};
}

void DiskCache::write(const CacheKey& key, const Compiled& compiled) const {
  const std::string image(compiled.image.begin(), compiled.image.end());
  ordered_json header = header_of(key);
  header["registers"] = compiled.resources.registers;
  header["stack_bytes"] = compiled.resources.stack_bytes;
  header["spill_bytes"] = compiled.resources.spill_bytes;
  header["checksum"] = checksum(image);
  write_file(key.file_name(), header.dump() + "\n" + image);
  keep_within_limits();
}

bool DiskCache::make_folder() const {
  std::error_code error;
  if (is_temporary_) {
    mkdir(folder_.c_str(), S_IRWXU);
    return may_use();
  }
  if (fs::create_directories(folder_, error)) {
    fs::permissions(folder_, fs::perms::owner_all, error);
  }
  return fs::is_directory(folder_, error);
}

void DiskCache::write_file(const std::string& name, const std::string& bytes) const {
  static std::atomic<unsigned> serial{0};
  if (!make_folder()) return;
  const fs::path draft = folder_ / fmt::format("{}.{}.{}", name, getpid(), serial++);
  std::error_code error;
  if (!internal::write_file(draft, bytes)) error = std::make_error_code(std::errc::io_error);
  if (!error) fs::rename(draft, folder_ / name, error);
  if (error) fs::remove(draft, error);
}

std::vector<fs::directory_entry> DiskCache::list_files() const {
  std::vector<fs::directory_entry> files;
  if (!may_use()) return files;
  std::error_code error;
  for (fs::directory_iterator at(folder_, error); !error && at != fs::directory_iterator();
       at.increment(error)) {
    files.push_back(*at);
  }
  return files;
}

void DiskCache::keep_within_limits() const {
  struct File {
    fs::file_time_type time;
    uintmax_t bytes;
    fs::path path;
  };
  std::vector<File> files;
  uintmax_t total = 0;
  const auto now = fs::file_time_type::clock::now();
  std::error_code error;
  for (const fs::directory_entry& entry : list_files()) {
    const bool is_kernel = entry.path().extension() == kExtension;
    if (!is_kernel && !is_draft(entry.path().filename().string())) continue;
    const auto time = entry.last_write_time(error);
    if (error) continue;  // another process has removed it
    const uintmax_t bytes = entry.file_size(error);
    if (error) continue;
    if (is_kernel) {
      files.push_back({time, bytes, entry.path()});
      total += bytes;
    } else if (now - time > kMaxDraftAge) {  // its process was killed
      fs::remove(entry.path(), error);
    }
  }
  std::sort(files.begin(), files.end(),
            [](const File& a, const File& b) { return a.time > b.time; });
  while (files.size() > kMaxEntries || (total > kMaxBytes && files.size() > 1)) {
    fs::remove(files.back().path, error);
    total -= files.back().bytes;
    files.pop_back();
  }
}

std::vector<CacheEntry> DiskCache::list() const {
  std::vector<CacheEntry> entries;
  for (const fs::directory_entry& file : list_files()) {
    if (file.path().extension() != kExtension) continue;
    const auto entry = parse_entry(internal::read_file(file.path()));
    if (!entry) continue;
    const ordered_json& header = entry->first;
    entries.push_back({text_of(header, "file"), text_of(header, "config"),
                       text_of(header, "architecture"), text_of(header, "compiler"),
                       entry->second.size(), resources_of(header),
                       text_of(header, "kernels") == kernels_fingerprint()});
  }
  std::sort(entries.begin(), entries.end(), [](const CacheEntry& a, const CacheEntry& b) {
    return std::tie(a.file, a.config, a.architecture) < std::tie(b.file, b.config, b.architecture);
  });
  return entries;
}

int DiskCache::clear() const {
  const int removed = remove_files(kExtension);
  remove_files(kCompilerNote);
  return removed;
}

int DiskCache::remove_files(const std::string& extension) const {
  int removed = 0;
  std::error_code error;
  for (const fs::directory_entry& file : list_files()) {
    // Drafts of processes that were killed carry the extension in the middle of their names.
    if (file.path().filename().string().find(extension) == std::string::npos) continue;
    removed += fs::remove(file.path(), error);
  }
  return removed;
}

std::optional<CompilerFacts> DiskCache::noted_compiler(const std::string& path) const {
  const ordered_json identity = identity_of(path);
  const ordered_json note = parse_object(read_file(kCompilerNote));
  if (identity.is_null() || !note.contains("library") || note["library"] != identity) return {};
  try {
    return CompilerFacts{note.at("version"), note.at("capabilities")};
  } catch (const ordered_json::exception&) {
    return {};
  }
}

void DiskCache::note_compiler(const std::string& path, const CompilerFacts& facts) const {
  const ordered_json identity = identity_of(path);
  if (identity.is_null()) return;
  write_file(kCompilerNote, ordered_json{{"library", identity},
                                         {"version", facts.version},
                                         {"capabilities", facts.capabilities}}
                                .dump());
}

}  // namespace vecina::internal::cuda
