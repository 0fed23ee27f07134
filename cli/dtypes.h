// SPDX-License-Identifier: MIT
// Names and sizes of the element types, as the command line spells them.
#ifndef VECINA_CLI_DTYPES_H_
#define VECINA_CLI_DTYPES_H_

#include <cstdint>
#include <string>

#include "vecina/vecina.h"

namespace vecina::cli {

struct DtypeName {
  int32_t dtype;
  const char* name;
  const char* natten_name;  // as NATTEN's profiler says it; empty if it has none
  int64_t bytes;
};
inline constexpr DtypeName kDtypeNames[] = {
    {VECINA_F32, "f32", "fp32", 4}, {VECINA_F64, "f64", "fp64", 8},
    {VECINA_F16, "f16", "fp16", 2}, {VECINA_BF16, "bf16", "bf16", 2},
    {VECINA_I32, "i32", "", 4},     {VECINA_I64, "i64", "", 8},
    {VECINA_E4M3, "e4m3", "", 1},
};

inline int64_t dtype_bytes(int32_t dtype) {
  for (const DtypeName& row : kDtypeNames) {
    if (row.dtype == dtype) return row.bytes;
  }
  return 0;
}
inline const char* dtype_name(int32_t dtype) {
  for (const DtypeName& row : kDtypeNames) {
    if (row.dtype == dtype) return row.name;
  }
  return "unknown";
}
// -1 if `name` is no dtype of a problem.
inline int32_t find_dtype(const std::string& name) {
  for (const DtypeName& row : kDtypeNames) {
    const bool is_float = row.natten_name[0] != '\0';
    if (is_float && (name == row.name || name == row.natten_name)) return row.dtype;
  }
  return -1;
}
// Of lse, its gradient, the bias and head_scale.
inline int32_t lse_dtype(int32_t dtype) { return dtype == VECINA_F64 ? VECINA_F64 : VECINA_F32; }

}  // namespace vecina::cli
#endif  // VECINA_CLI_DTYPES_H_
