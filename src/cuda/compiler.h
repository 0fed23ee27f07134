// SPDX-License-Identifier: MIT
// NVRTC, opened at run time where it lies: in this process already, where VECINA_NVRTC points, in
// the `nvidia` wheels beside this library, in a CUDA toolkit, or on the loader's path. Compiles
// embedded kernels.
#ifndef VECINA_CUDA_COMPILER_H_
#define VECINA_CUDA_COMPILER_H_

#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

// What a kernel takes of a multiprocessor, as ptxas says; not known for PTX.
struct Resources {
  int registers = 0;  // a thread
  int stack_bytes = 0, spill_bytes = 0;
};

struct Compiled {
  std::vector<char> image;  // a cubin, or PTX where the device is newer than the compiler
  Resources resources;
  bool serializes_products = false;  // of a warpgroup: each waits for the one before
};

// What a cache must know of the compiler without loading it.
struct CompilerFacts {
  std::string version;            // "13.0"
  std::vector<int> capabilities;  // that it knows, ascending

  // What to compile for: "sm_90", "sm_90a" for kernels that ask for it, or "compute_120" (PTX)
  // for a device whose generation it does not know.
  std::string architecture(const KernelSource& source, int compute_capability) const;
};

class Compiler {
 public:
  // The library that would be loaded; empty if none is found in a file. Loads nothing.
  static std::string path();

  // Loaded on first use, then the same for the process; `compiler` is set on success only.
  static Status load(const Compiler** compiler);

  const CompilerFacts& facts() const { return facts_; }
  Status compile(const KernelSource& source, const std::string& architecture,
                 Compiled* compiled) const;

 private:
  Compiler() = default;
  static Status open(Compiler* compiler);
  CompilerFacts facts_;
};

// Changes whenever an embedded file or an option of the compilation does.
const std::string& kernels_fingerprint();

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_COMPILER_H_
