// SPDX-License-Identifier: MIT
// Python objects as vecina_tensor, without copies: by the DLPack C exchange API where the type has
// it, by data_ptr() and its neighbours for other tensors of PyTorch, else by the buffer protocol.
#ifndef VECINA_PYTHON_TENSORS_H_
#define VECINA_PYTHON_TENSORS_H_

#include <nanobind/nanobind.h>

#include <array>
#include <cstddef>

#include "vecina/vecina.h"

namespace vecina::python {

namespace nb = nanobind;

// The tensors of one call. Holds the buffers that it took until it goes; needs the GIL then.
class Tensors {
 public:
  Tensors() = default;
  ~Tensors();
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;

  // None is a tensor that is not given. Throws a Python error that names the argument.
  vecina_tensor read(const char* name, nb::handle object, bool is_written = false);

  // The work queue that belongs to the tensors' device (CUDA: the caller's current stream).
  void* queue() const { return queue_; }

 private:
  bool read_exchanged(const char* name, nb::handle object, vecina_tensor* tensor);
  void read_pointer(const char* name, nb::handle object, vecina_tensor* tensor);
  void read_buffer(const char* name, nb::handle object, bool is_written, vecina_tensor* tensor);

  static constexpr size_t kMaxBuffers = 20;  // tensors of a backward call
  std::array<Py_buffer, kMaxBuffers> buffers_;
  size_t num_buffers_ = 0;
  void* queue_ = nullptr;
};

}  // namespace vecina::python
#endif  // VECINA_PYTHON_TENSORS_H_
