// SPDX-License-Identifier: MIT
#include "tensors.h"

#include <cstring>
#include <string>

#include "dlpack.h"

namespace vecina::python {
namespace {

[[noreturn]] void refuse(const std::string& sentence) { throw nb::value_error(sentence.c_str()); }

int32_t device_of(const char* name, int32_t type) {
  switch (type) {
    case dlpack::kCpu:
    case dlpack::kCudaHost:
      return VECINA_CPU;
    case dlpack::kCuda:
      return VECINA_CUDA;
    case dlpack::kVulkan:
      return VECINA_VULKAN;
    case dlpack::kMetal:
      return VECINA_METAL;
    default:
      refuse(std::string(name) + " is on a device that vecina does not know (DLPack type " +
             std::to_string(type) + ").");
  }
}

int32_t dtype_of(const char* name, const dlpack::DataType& type) {
  if (type.lanes == 1) {
    switch (type.code * 256 + type.bits) {
      case dlpack::kFloat * 256 + 32:
        return VECINA_F32;
      case dlpack::kFloat * 256 + 64:
        return VECINA_F64;
      case dlpack::kFloat * 256 + 16:
        return VECINA_F16;
      case dlpack::kBfloat * 256 + 16:
        return VECINA_BF16;
      case dlpack::kFloat8E4m3fn * 256 + 8:
        return VECINA_E4M3;
      case dlpack::kInt * 256 + 32:
        return VECINA_I32;
      case dlpack::kInt * 256 + 64:
        return VECINA_I64;
    }
  }
  refuse(std::string(name) +
         " has a dtype that is not float16, bfloat16, float32, float64, float8_e4m3fn, int32 or "
         "int64.");
}

// A tensor that the framework did not hand over: its error may be pages of C++ where it is no dense
// one.
[[noreturn]] void refuse_unreadable(const char* name, nb::handle object) {
  const nb::python_error error;  // of the framework; what follows may ask Python
  const auto is = [&](const char* what) {
    return nb::cast<bool>(nb::getattr(object, what, nb::bool_(false)));
  };
  const std::string layout = nb::str(nb::getattr(object, "layout", nb::str(""))).c_str();
  std::string kind = layout == "torch.strided" ? "" : layout;
  if (is("is_nested")) kind = "nested";
  if (is("is_quantized")) kind = "quantized";
  if (kind.empty() || is("is_meta")) throw error;
  PyErr_SetString(PyExc_NotImplementedError,
                  (std::string(name) + " is " + kind + ": not yet; use a dense tensor.").c_str());
  throw nb::python_error();
}

// Room of vecina_tensor.
void check_ndim(const char* name, int64_t ndim) {
  if (ndim < 0 || ndim > 6) {
    refuse(std::string(name) + " has " + std::to_string(ndim) + " dimensions; at most 6.");
  }
}

// A type that offered the API, and the API; tensor types are few and live as long as the process.
struct KnownType {
  PyTypeObject* type;
  const dlpack::ExchangeApi* api;  // nullptr: the type has none
};
constexpr size_t kMaxKnownTypes = 16;
KnownType known_types[kMaxKnownTypes];  // guarded by the GIL
size_t num_known_types = 0;

const dlpack::ExchangeApi* find_api(PyTypeObject* type) {
  const nb::object capsule = nb::getattr(nb::handle(reinterpret_cast<PyObject*>(type)),
                                         "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsuleName)) return nullptr;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
  while (api != nullptr && api->header.major != 1) {
    api = reinterpret_cast<const dlpack::ExchangeApi*>(api->header.previous);
  }
  return api != nullptr && api->tensor_from_py_object_no_sync != nullptr ? api : nullptr;
}

const dlpack::ExchangeApi* api_of(PyTypeObject* type) {
  for (size_t i = 0; i < num_known_types; ++i) {
    if (known_types[i].type == type) return known_types[i].api;
  }
  const dlpack::ExchangeApi* api = find_api(type);
  if (num_known_types < kMaxKnownTypes) {
    Py_INCREF(reinterpret_cast<PyObject*>(type));
    known_types[num_known_types++] = {type, api};
  }
  return api;
}

int32_t dtype_of_torch(const char* name, const std::string& text) {
  static constexpr struct {
    const char* name;
    int32_t dtype;
  } kRows[] = {{"torch.float32", VECINA_F32},       {"torch.float64", VECINA_F64},
               {"torch.float16", VECINA_F16},       {"torch.bfloat16", VECINA_BF16},
               {"torch.int32", VECINA_I32},         {"torch.int64", VECINA_I64},
               {"torch.float8_e4m3fn", VECINA_E4M3}};
  for (const auto& row : kRows) {
    if (text == row.name) return row.dtype;
  }
  refuse(std::string(name) + " has dtype " + text +
         "; float16, bfloat16, float32, float64, float8_e4m3fn, int32 or int64.");
}

int32_t dtype_of_format(const char* name, const char* format, Py_ssize_t bytes) {
  if (*format == '<' || *format == '=' || *format == '@') ++format;
  if (std::strlen(format) == 1) {
    switch (*format) {
      case 'f':
        return VECINA_F32;
      case 'd':
        return VECINA_F64;
      case 'e':
        return VECINA_F16;
      case 'H':
        return VECINA_BF16;
      case 'B':
        return VECINA_E4M3;
      case 'i':
      case 'l':
      case 'q':
        if (bytes == 4) return VECINA_I32;
        if (bytes == 8) return VECINA_I64;
    }
  }
  refuse(std::string(name) + " has elements of format '" + format +
         "'; float16, float32, float64, int32, int64, uint16 that holds bfloat16 or uint8 that "
         "holds float8_e4m3fn, in the machine's byte order.");
}

}  // namespace

Tensors::~Tensors() {
  for (size_t i = 0; i < num_buffers_; ++i) PyBuffer_Release(&buffers_[i]);
}

bool Tensors::read_exchanged(const char* name, nb::handle object, vecina_tensor* tensor) {
  const dlpack::ExchangeApi* api = api_of(Py_TYPE(object.ptr()));
  if (api == nullptr) return false;
  dlpack::Tensor from;
  if (api->tensor_from_py_object_no_sync(object.ptr(), &from) != 0) refuse_unreadable(name, object);
  check_ndim(name, from.ndim);
  tensor->data = from.data;
  tensor->byte_offset = static_cast<int64_t>(from.byte_offset);
  tensor->ndim = from.ndim;
  int64_t contiguous = 1;
  for (int d = from.ndim - 1; d >= 0; --d) {
    tensor->shape[d] = from.shape[d];
    tensor->strides[d] = from.strides != nullptr ? from.strides[d] : contiguous;
    contiguous *= from.shape[d];
  }
  // PyTorch's zero tensors, which have no memory. (contiguous is the number of elements by now.)
  if (from.data == nullptr && contiguous != 0) {
    refuse(std::string(name) + " has no memory of its own, only a shape; clone it.");
  }
  tensor->dtype = dtype_of(name, from.dtype);
  tensor->device = device_of(name, from.device.type);
  tensor->device_index = tensor->device == VECINA_CPU ? 0 : from.device.index;
  if (tensor->device == VECINA_CUDA && queue_ == nullptr && api->current_work_stream != nullptr &&
      api->current_work_stream(from.device.type, from.device.index, &queue_) != 0) {
    throw nb::python_error();
  }
  return true;
}

void Tensors::read_pointer(const char* name, nb::handle object, vecina_tensor* tensor) {
  const nb::object shape = object.attr("shape"), strides = object.attr("stride")();
  check_ndim(name, static_cast<int64_t>(nb::len(shape)));
  tensor->ndim = static_cast<int32_t>(nb::len(shape));
  for (int d = 0; d < tensor->ndim; ++d) {
    tensor->shape[d] = nb::cast<int64_t>(shape[d]);
    tensor->strides[d] = nb::cast<int64_t>(strides[d]);
  }
  tensor->data = reinterpret_cast<void*>(nb::cast<uintptr_t>(object.attr("data_ptr")()));
  tensor->dtype = dtype_of_torch(name, nb::str(object.attr("dtype")).c_str());
  const std::string device = nb::str(object.attr("device").attr("type")).c_str();
  if (device != "cpu") {
    refuse(std::string(name) + " is on '" + device +
           "'; this PyTorch has no DLPack C exchange "
           "API, so only tensors on the CPU can be passed. Use PyTorch 2.10 or later.");
  }
  tensor->device = VECINA_CPU;
}

void Tensors::read_buffer(const char* name, nb::handle object, bool is_written,
                          vecina_tensor* tensor) {
  if (num_buffers_ == kMaxBuffers) refuse("more than 20 arrays in one call.");
  Py_buffer& buffer = buffers_[num_buffers_];
  if (PyObject_GetBuffer(object.ptr(), &buffer, is_written ? PyBUF_RECORDS : PyBUF_RECORDS_RO) !=
      0) {
    throw nb::python_error();
  }
  ++num_buffers_;
  check_ndim(name, buffer.ndim);
  tensor->data = buffer.buf;
  tensor->ndim = buffer.ndim;
  tensor->dtype = dtype_of_format(name, buffer.format, buffer.itemsize);
  for (int d = 0; d < buffer.ndim; ++d) {
    if (buffer.strides[d] % buffer.itemsize != 0) {
      refuse(std::string(name) + " has a stride of " + std::to_string(buffer.strides[d]) +
             " bytes, which is no multiple of its elements' size.");
    }
    tensor->shape[d] = buffer.shape[d];
    tensor->strides[d] = buffer.strides[d] / buffer.itemsize;
  }
  tensor->device = VECINA_CPU;
}

vecina_tensor Tensors::read(const char* name, nb::handle object, bool is_written) {
  vecina_tensor tensor = {};
  if (object.is_none()) return tensor;
  if (read_exchanged(name, object, &tensor)) return tensor;
  if (nb::hasattr(object, "data_ptr")) {
    read_pointer(name, object, &tensor);
  } else if (PyObject_CheckBuffer(object.ptr())) {
    read_buffer(name, object, is_written, &tensor);
  } else {
    refuse(std::string(name) + " is a " + nb::type_name(object.type()).c_str() +
           "; a tensor or an array is needed.");
  }
  return tensor;
}

}  // namespace vecina::python
