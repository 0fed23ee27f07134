// SPDX-License-Identifier: MIT
// The text of everything NVRTC may be given: src/cuda/kernels/ and core/window.h, written into the
// library by tools/embed.cmake.
#ifndef VECINA_CUDA_EMBEDDED_H_
#define VECINA_CUDA_EMBEDDED_H_

#include <span>

namespace vecina::internal::cuda {

struct EmbeddedFile {
  const char* name;  // as kernels include it
  const char* text;
};
std::span<const EmbeddedFile> embedded_files();

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_EMBEDDED_H_
