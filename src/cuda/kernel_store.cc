// SPDX-License-Identifier: MIT
#include "cuda/kernel_store.h"

#include <fmt/format.h>

#include <chrono>

namespace vecina::internal::cuda {
namespace {

Status compiler_facts(const DiskCache& cache, CompilerFacts* facts) {
  if (const auto noted = cache.noted_compiler(Compiler::path())) {
    *facts = *noted;
    return {};
  }
  const Compiler* compiler = nullptr;
  VECINA_RETURN_IF_ERROR(Compiler::load(&compiler));
  *facts = compiler->facts();
  cache.note_compiler(Compiler::path(), *facts);
  return {};
}

std::string slot_name(const KernelSource& source) {
  return fmt::format("{}\n{}\n{}", source.file, source.entry, source.config);
}

// Loading a kernel enqueues nothing, so that a stream which is being captured does not mind.
class WhileCapturing {
 public:
  WhileCapturing() { Driver::get().cuThreadExchangeStreamCaptureMode(&mode_); }
  ~WhileCapturing() { Driver::get().cuThreadExchangeStreamCaptureMode(&mode_); }
  WhileCapturing(const WhileCapturing&) = delete;
  WhileCapturing& operator=(const WhileCapturing&) = delete;

 private:
  int mode_ = kCaptureRelaxed;  // then the one before
};

int major_of(const std::string& version) { return std::atoi(version.c_str()); }

}  // namespace

int nvrtc_version(const DiskCache& cache) {
  CompilerFacts facts;
  if (!compiler_facts(cache, &facts).ok()) return 0;
  const size_t point = facts.version.find('.');
  const int minor = point == std::string::npos ? 0 : std::atoi(facts.version.c_str() + point + 1);
  return 100 * major_of(facts.version) + minor;
}

Status build_kernel(const KernelSource& source, int compute_capability, const DiskCache& cache,
                    Built* built) {
  CompilerFacts facts;
  VECINA_RETURN_IF_ERROR(compiler_facts(cache, &facts));
  CacheKey key = {source, facts.architecture(source, compute_capability), facts.version};
  built->architecture = key.architecture;
  if (auto compiled = cache.read(key)) {
    built->compiled = std::move(*compiled);
    built->was_on_disk = true;
    return {};
  }
  const Compiler* compiler = nullptr;
  VECINA_RETURN_IF_ERROR(Compiler::load(&compiler));
  // Another library may have come into the process since it was asked for its version.
  key.architecture = compiler->facts().architecture(source, compute_capability);
  key.compiler_version = compiler->facts().version;
  built->architecture = key.architecture;
  const auto start = std::chrono::steady_clock::now();
  VECINA_RETURN_IF_ERROR(compiler->compile(source, key.architecture, &built->compiled));
  built->compile_ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  cache.write(key, built->compiled);
  return {};
}

KernelStore::~KernelStore() {
  const Device::Current current(device_);
  for (const auto& [name, slot] : slots_) {
    if (slot->library != nullptr) Driver::get().cuLibraryUnload(slot->library);
  }
}

Status KernelStore::load(const KernelSource& source, Slot* slot) const {
  const Driver& driver = Driver::get();
  Built built;
  VECINA_RETURN_IF_ERROR(build_kernel(source, device_.compute_capability(), cache_, &built));
  LibraryHandle library = nullptr;
  const Result loaded = driver.cuLibraryLoadData(&library, built.compiled.image.data(), nullptr,
                                                 nullptr, 0, nullptr, nullptr, 0);
  if (loaded != kSuccess) {
    CompilerFacts facts;
    VECINA_RETURN_IF_ERROR(compiler_facts(cache_, &facts));
    std::string message = driver.status("cuLibraryLoadData", loaded).message();
    if (major_of(facts.version) > driver.version / 1000) {
      message += fmt::format(
          "; NVRTC {} is newer than this driver (CUDA {}.{}): install NVRTC {} or a newer driver.",
          facts.version, driver.version / 1000, driver.version % 1000 / 10, driver.version / 1000);
    }
    return {VECINA_DEVICE_ERROR, message};
  }
  const auto find = [&]() -> Status {
    KernelHandle kernel = nullptr;
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuLibraryGetKernel,
                                (&kernel, library, source.entry.c_str()));
    VECINA_CUDA_RETURN_IF_ERROR(driver, cuKernelGetFunction, (&slot->kernel.function, kernel));
    return {};
  };
  Status found = find();
  if (!found.ok()) {  // the next call loads it again
    driver.cuLibraryUnload(library);
    return found;
  }
  slot->library = library;
  slot->kernel.resources = built.compiled.resources;
  slot->is_loaded = true;
  return {};
}

Status KernelStore::get(const KernelSource& source, uint32_t shared_bytes, Kernel* kernel) {
  Slot* slot = nullptr;
  {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<Slot>& found = slots_[slot_name(source)];
    if (found == nullptr) found = std::make_unique<Slot>();
    slot = found.get();
  }
  const std::lock_guard lock(slot->mutex);
  const Device::Current current(device_);
  VECINA_RETURN_IF_ERROR(current.status());
  const WhileCapturing relaxed;
  if (!slot->is_loaded) VECINA_RETURN_IF_ERROR(load(source, slot));
  if (shared_bytes > slot->shared_bytes) {  // beyond 48 KiB with a kernel's own needs consent
    VECINA_CUDA_RETURN_IF_ERROR(
        Driver::get(), cuFuncSetAttribute,
        (slot->kernel.function, static_cast<int>(FunctionAttribute::max_dynamic_shared_bytes),
         static_cast<int>(shared_bytes)));
    slot->shared_bytes = shared_bytes;
  }
  *kernel = slot->kernel;
  return {};
}

}  // namespace vecina::internal::cuda
