// SPDX-License-Identifier: MIT
#include "cuda/compiler.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <string_view>

#include "cuda/digest.h"
#include "cuda/embedded.h"

namespace vecina::internal::cuda {
namespace {

namespace fs = std::filesystem;

constexpr int kOldestMajor = 12;  // C++20, sm_90a
constexpr const char* kSonames[] = {"libnvrtc.so.13", "libnvrtc.so.12"};
// A lambda whose parameters are auto cannot say that it is for the device.
constexpr const char* kOptions[] = {"--std=c++20", "--device-as-default-execution-space",
                                    "--ptxas-options=-v"};

using Program = struct _nvrtcProgram*;

struct Functions {
  int (*version)(int* major, int* minor) = nullptr;
  int (*num_architectures)(int* count) = nullptr;
  int (*architectures)(int* capabilities) = nullptr;
  const char* (*error)(int result) = nullptr;
  int (*create)(Program* program, const char* source, const char* name, int num_headers,
                const char* const* headers, const char* const* header_names) = nullptr;
  int (*destroy)(Program* program) = nullptr;
  int (*compile)(Program program, int num_options, const char* const* options) = nullptr;
  int (*log_size)(Program program, size_t* bytes) = nullptr;
  int (*log)(Program program, char* text) = nullptr;
  int (*cubin_size)(Program program, size_t* bytes) = nullptr;
  int (*cubin)(Program program, char* image) = nullptr;
  int (*ptx_size)(Program program, size_t* bytes) = nullptr;
  int (*ptx)(Program program, char* image) = nullptr;
};
Functions nvrtc;

// Folders that may hold NVRTC, the likeliest first.
std::vector<fs::path> folders() {
  std::vector<fs::path> found;
  Dl_info self;
  if (dladdr(reinterpret_cast<const void*>(&folders), &self) != 0 && self.dli_fname != nullptr) {
    std::error_code ignored;
    fs::path folder = fs::absolute(self.dli_fname, ignored).parent_path();
    for (int level = 0; level < 2; ++level, folder = folder.parent_path()) {
      for (const char* wheel : {"nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"}) {
        found.push_back(folder / wheel);
      }
    }
  }
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    const char* home = std::getenv(variable);
    if (home != nullptr && home[0] != '\0') found.push_back(fs::path(home) / "lib64");
  }
  for (const char* folder : {"/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu",
                             "/usr/lib/aarch64-linux-gnu", "/usr/lib64"}) {
    found.push_back(folder);
  }
  return found;
}

// One that is in this process already (PyTorch brings it): of two copies the symbols would mix.
std::string loaded_library() {
  for (const char* soname : kSonames) {
    void* library = dlopen(soname, RTLD_NOW | RTLD_NOLOAD);
    link_map* map = nullptr;
    if (library != nullptr && dlinfo(library, RTLD_DI_LINKMAP, &map) == 0) return map->l_name;
  }
  return {};
}

std::string find_library() {
  const std::string loaded = loaded_library();
  if (!loaded.empty()) return loaded;
  const char* chosen = std::getenv("VECINA_NVRTC");
  if (chosen != nullptr && chosen[0] != '\0') return chosen;
  std::error_code ignored;
  for (const fs::path& folder : folders()) {
    for (const char* soname : kSonames) {
      if (fs::exists(folder / soname, ignored)) return (folder / soname).string();
    }
  }
  return {};
}

void* open_library() {
  const std::string path = Compiler::path();
  if (!path.empty()) return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  for (const char* soname : kSonames) {
    if (void* library = dlopen(soname, RTLD_NOW | RTLD_LOCAL)) return library;
  }
  return nullptr;
}

std::string find_functions(void* library) {
  std::string missing;
  const auto find = [&](const char* name, auto* function) {
    void* symbol = dlsym(library, name);
    if (symbol == nullptr && missing.empty()) missing = name;
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(symbol);
  };
  find("nvrtcVersion", &nvrtc.version);
  find("nvrtcGetNumSupportedArchs", &nvrtc.num_architectures);
  find("nvrtcGetSupportedArchs", &nvrtc.architectures);
  find("nvrtcGetErrorString", &nvrtc.error);
  find("nvrtcCreateProgram", &nvrtc.create);
  find("nvrtcDestroyProgram", &nvrtc.destroy);
  find("nvrtcCompileProgram", &nvrtc.compile);
  find("nvrtcGetProgramLogSize", &nvrtc.log_size);
  find("nvrtcGetProgramLog", &nvrtc.log);
  find("nvrtcGetCUBINSize", &nvrtc.cubin_size);
  find("nvrtcGetCUBIN", &nvrtc.cubin);
  find("nvrtcGetPTXSize", &nvrtc.ptx_size);
  find("nvrtcGetPTX", &nvrtc.ptx);
  return missing;
}

std::string log_of(Program program) {
  size_t bytes = 0;
  if (nvrtc.log_size(program, &bytes) != 0) return {};
  std::string log(bytes, '\0');
  if (nvrtc.log(program, log.data()) != 0) return {};
  while (!log.empty() && (log.back() == '\0' || log.back() == '\n')) log.pop_back();
  return log;
}

// The number before `label` in ptxas' words, "... 552 bytes spill stores, ...".
int number_before(std::string_view log, std::string_view label) {
  const size_t end = log.find(label);
  if (end == std::string_view::npos) return 0;
  size_t begin = end;
  while (begin > 0 && log[begin - 1] >= '0' && log[begin - 1] <= '9') --begin;
  return std::atoi(std::string(log.substr(begin, end - begin)).c_str());
}

Resources resources_of(std::string_view log) {
  return {number_before(log, " registers,"), number_before(log, " bytes stack frame"),
          number_before(log, " bytes spill stores") + number_before(log, " bytes spill loads")};
}

// "config.h", which gives a kernel its constants.
std::string config_text(const KernelSource& source) {
  return fmt::format(
      "#include \"{}\"\nnamespace vecina::cuda {{\ninline constexpr {} kConfig = {};\n}}\n",
      source.config_header, source.config_type, source.config);
}

}  // namespace

std::string CompilerFacts::architecture(const KernelSource& source, int compute_capability) const {
  const auto above = std::upper_bound(capabilities.begin(), capabilities.end(), compute_capability);
  const int known = above == capabilities.begin() ? compute_capability : *(above - 1);
  if (known / 10 != compute_capability / 10) return fmt::format("compute_{}", known);
  return fmt::format("sm_{}{}", known, source.is_architecture_specific ? "a" : "");
}

std::string Compiler::path() { return find_library(); }

Status Compiler::open(Compiler* compiler) {
  void* library = open_library();
  if (library == nullptr) {
    return unsupported(
        fmt::format("NVRTC was not found ({}); install a CUDA toolkit or the Python package "
                    "nvidia-cuda-nvrtc, or let VECINA_NVRTC point to the library",
                    path().empty() ? fmt::format("{}", fmt::join(kSonames, ", "))
                                   : path() + " cannot be opened"));
  }
  const std::string missing = find_functions(library);
  int major = 0, minor = 0;
  if (nvrtc.version != nullptr) nvrtc.version(&major, &minor);
  compiler->facts_.version = fmt::format("{}.{}", major, minor);
  if (major < kOldestMajor || !missing.empty()) {
    return unsupported(fmt::format("NVRTC {}{} is too old; 12.0 or newer is needed",
                                   compiler->facts_.version,
                                   missing.empty() ? "" : " without " + missing));
  }
  int count = 0;
  nvrtc.num_architectures(&count);
  compiler->facts_.capabilities.resize(static_cast<size_t>(count));
  nvrtc.architectures(compiler->facts_.capabilities.data());
  std::sort(compiler->facts_.capabilities.begin(), compiler->facts_.capabilities.end());
  return {};
}

Status Compiler::load(const Compiler** compiler) {
  static Compiler loaded;
  static const Status status = open(&loaded);
  if (status.ok()) *compiler = &loaded;
  return status;
}

Status Compiler::compile(const KernelSource& source, const std::string& architecture,
                         Compiled* compiled) const {
  const std::string config = config_text(source);
  std::vector<const char*> names = {"config.h"}, texts = {config.c_str()};
  const char* text = nullptr;
  for (const EmbeddedFile& file : embedded_files()) {
    if (source.file == file.name) text = file.text;
    names.push_back(file.name);
    texts.push_back(file.text);
  }
  if (text == nullptr) {
    return {VECINA_INTERNAL, fmt::format("no kernel file '{}' in this build.", source.file)};
  }
  Program program = nullptr;
  int result = nvrtc.create(&program, text, source.file.c_str(), static_cast<int>(names.size()),
                            texts.data(), names.data());
  const std::string target = "--gpu-architecture=" + architecture;
  std::vector<const char*> options(std::begin(kOptions), std::end(kOptions));
  options.push_back(target.c_str());
  if (result == 0) {
    result = nvrtc.compile(program, static_cast<int>(options.size()), options.data());
  }
  if (result != 0) {
    Status failed(VECINA_DEVICE_ERROR,
                  fmt::format("NVRTC {} could not compile {} for {} with {}: {}\n{}",
                              facts_.version, source.file, architecture, source.config,
                              nvrtc.error(result), program ? log_of(program) : ""));
    if (program != nullptr) nvrtc.destroy(&program);
    return failed;
  }
  const bool is_ptx = architecture.starts_with("compute_");
  size_t bytes = 0;
  result = (is_ptx ? nvrtc.ptx_size : nvrtc.cubin_size)(program, &bytes);
  if (result == 0) {
    compiled->image.resize(bytes);
    result = (is_ptx ? nvrtc.ptx : nvrtc.cubin)(program, compiled->image.data());
  }
  if (result != 0 || bytes == 0) {  // of no use on disk either
    nvrtc.destroy(&program);
    return {VECINA_DEVICE_ERROR,
            fmt::format("NVRTC {} gave no image of {} for {}: {}", facts_.version, source.file,
                        architecture, result == 0 ? "0 bytes" : nvrtc.error(result))};
  }
  const std::string log = log_of(program);
  compiled->resources = resources_of(log);
  compiled->serializes_products = log.find("instructions are serialized") != std::string::npos;
  nvrtc.destroy(&program);
  return {};
}

const std::string& kernels_fingerprint() {
  static const std::string fingerprint = [] {
    Digest digest;
    for (const char* option : kOptions) digest.add(option);
    for (const EmbeddedFile& file : embedded_files()) digest.add(file.name).add(file.text);
    return digest.hex();
  }();
  return fingerprint;
}

}  // namespace vecina::internal::cuda
