// SPDX-License-Identifier: MIT
// The part of the DLPack 1.3 ABI that is read here: borrowed tensors through the C exchange API
// that a tensor type offers as `__dlpack_c_exchange_api__`
// (https://data-apis.org/array-api/draft/API_specification). Names and layout are the standard's.
#ifndef VECINA_PYTHON_DLPACK_H_
#define VECINA_PYTHON_DLPACK_H_

#include <cstdint>

namespace vecina::python::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kVulkan = 7, kMetal = 8 };
enum TypeCode : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4, kFloat8E4m3fn = 10 };

struct Device {
  int32_t type;  // DeviceType
  int32_t index;
};
struct DataType {
  uint8_t code;  // TypeCode
  uint8_t bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; nullptr: contiguous
  uint64_t byte_offset;
};

struct ApiHeader {
  uint32_t major, minor;
  ApiHeader* previous;
};
struct ExchangeApi {
  ApiHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  int (*tensor_from_py_object_no_sync)(void* object, Tensor* tensor);  // borrowed; may be nullptr
  int (*current_work_stream)(int32_t device_type, int32_t device_index, void** stream);
};
inline constexpr const char* kCapsuleName = "dlpack_exchange_api";

}  // namespace vecina::python::dlpack
#endif  // VECINA_PYTHON_DLPACK_H_
