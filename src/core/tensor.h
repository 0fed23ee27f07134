// SPDX-License-Identifier: MIT
// Small facts about vecina_tensor and its element types; a new dtype is one row of kDtypes.
#ifndef VECINA_CORE_TENSOR_H_
#define VECINA_CORE_TENSOR_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "vecina/vecina.h"

namespace vecina::internal {

struct DtypeRow {
  vecina_dtype dtype;
  const char* name;
  int bytes;
  bool is_float;  // may be the dtype of a problem
};
inline constexpr std::array<DtypeRow, 7> kDtypes = {{
    {VECINA_F32, "f32", 4, true},
    {VECINA_F64, "f64", 8, true},
    {VECINA_F16, "f16", 2, true},
    {VECINA_BF16, "bf16", 2, true},
    {VECINA_I32, "i32", 4, false},
    {VECINA_I64, "i64", 8, false},
    {VECINA_E4M3, "e4m3", 1, false},
}};

// Row of `dtype`, nullptr if there is none.
inline const DtypeRow* dtype_row(int32_t dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.dtype == dtype) return &row;
  }
  return nullptr;
}
inline const char* dtype_name(int32_t dtype) {
  const DtypeRow* row = dtype_row(dtype);
  return row ? row->name : "unknown";
}
inline int64_t dtype_bytes(int32_t dtype) {
  const DtypeRow* row = dtype_row(dtype);
  return row ? row->bytes : 0;
}
// lse, its gradient, the bias and head_scale: f64 for f64 problems, f32 otherwise.
inline int32_t lse_dtype(int32_t dtype) { return dtype == VECINA_F64 ? VECINA_F64 : VECINA_F32; }

inline bool given(const vecina_tensor& tensor) { return tensor.data != nullptr; }
inline char* address(const vecina_tensor& tensor) {
  return static_cast<char*>(tensor.data) + tensor.byte_offset;
}
// A plan's tensor where a run has it: of that one only the address is read.
inline vecina_tensor at_address(vecina_tensor planned, const vecina_tensor& of_run) {
  planned.data = of_run.data;
  planned.byte_offset = of_run.byte_offset;
  return planned;
}
// lengths[sample, axis] of an i32 or i64 tensor in host memory.
inline int64_t length_at(const vecina_tensor& lengths, int64_t sample, int axis) {
  const int64_t index = sample * lengths.strides[0] + axis * lengths.strides[1];
  return lengths.dtype == VECINA_I32 ? reinterpret_cast<const int32_t*>(address(lengths))[index]
                                     : reinterpret_cast<const int64_t*>(address(lengths))[index];
}
inline int64_t num_elements(const vecina_tensor& tensor) {
  int64_t count = 1;
  for (int d = 0; d < tensor.ndim; ++d) count *= tensor.shape[d];
  return count;
}

// The bytes that a tensor spans, [begin, end), if its first element is there; empty if it has none.
struct ByteRange {
  char* begin;
  char* end;
  bool overlaps(const ByteRange& other) const { return begin < other.end && other.begin < end; }
};
inline ByteRange byte_range(const vecina_tensor& tensor, char* first) {
  const int64_t bytes = dtype_bytes(tensor.dtype);
  char* low = first;
  char* high = low + bytes;
  for (int d = 0; d < tensor.ndim; ++d) {
    if (tensor.shape[d] == 0) return {low, low};
    const int64_t reach = (tensor.shape[d] - 1) * tensor.strides[d] * bytes;
    (reach < 0 ? low : high) += reach;
  }
  return {low, high};
}
inline ByteRange byte_range(const vecina_tensor& tensor) {
  return byte_range(tensor, address(tensor));
}

// "[2, 32, 32, 4, 32] f32", as error messages show tensors.
std::string describe(const vecina_tensor& tensor);

}  // namespace vecina::internal
#endif  // VECINA_CORE_TENSOR_H_
