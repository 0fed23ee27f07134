// SPDX-License-Identifier: MIT
// The CUDA driver, opened at run time: the calls that this backend uses, declared here after the
// driver API's documentation, so that building needs no toolkit and running needs none either.
#ifndef VECINA_CUDA_DRIVER_H_
#define VECINA_CUDA_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/status.h"

namespace vecina::internal::cuda {

using Result = int;  // CUresult
inline constexpr Result kSuccess = 0;
inline constexpr Result kOutOfMemory = 2;

using DeviceHandle = int;        // CUdevice
using DevicePointer = uint64_t;  // CUdeviceptr
using ContextHandle = struct CUctx_st*;
using StreamHandle = struct CUstream_st*;
using EventHandle = struct CUevent_st*;
using LibraryHandle = struct CUlib_st*;
using KernelHandle = struct CUkern_st*;
using FunctionHandle = struct CUfunc_st*;
using GraphHandle = struct CUgraph_st*;
using GraphExecHandle = struct CUgraphExec_st*;

enum class DeviceAttribute : int {
  multiprocessors = 16,
  l2_bytes = 38,
  compute_capability_major = 75,
  compute_capability_minor = 76,
  shared_bytes_per_block_optin = 97,
};
enum class FunctionAttribute : int {
  local_bytes = 3,
  registers = 4,
  max_dynamic_shared_bytes = 8,
};

// How strict a thread is while some stream is captured (CUstreamCaptureMode).
inline constexpr int kCaptureThreadLocal = 1, kCaptureRelaxed = 2;

inline constexpr int kProgrammaticStreamSerialization = 6;
struct LaunchAttribute {  // CUlaunchAttribute
  int id;
  char padding[4];
  union {
    char bytes[64];
    int is_allowed;
  } value;
};
struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  StreamHandle stream;
  LaunchAttribute* attributes;
  unsigned num_attributes;
};

struct alignas(128) TensorMap {  // CUtensorMap: opaque, read by the hardware
  uint64_t words[16];
};

// clang-format off
#define VECINA_CUDA_DRIVER_CALLS(CALL)                                                            \
  CALL(cuInit, (unsigned flags))                                                                  \
  CALL(cuDriverGetVersion, (int* version))                                                        \
  CALL(cuGetErrorName, (Result error, const char** name))                                         \
  CALL(cuGetErrorString, (Result error, const char** text))                                       \
  CALL(cuDeviceGetCount, (int* count))                                                            \
  CALL(cuDeviceGet, (DeviceHandle* device, int index))                                            \
  CALL(cuDeviceGetName, (char* name, int size, DeviceHandle device))                              \
  CALL(cuDeviceGetAttribute, (int* value, int attribute, DeviceHandle device))                    \
  CALL(cuDevicePrimaryCtxRetain, (ContextHandle* context, DeviceHandle device))                   \
  CALL(cuDevicePrimaryCtxRelease_v2, (DeviceHandle device))                                       \
  CALL(cuCtxGetCurrent, (ContextHandle* context))                                                 \
  CALL(cuCtxPushCurrent_v2, (ContextHandle context))                                              \
  CALL(cuCtxPopCurrent_v2, (ContextHandle* context))                                              \
  CALL(cuLibraryLoadData, (LibraryHandle* library, const void* image, int* jit_options,           \
                           void** jit_values, unsigned num_jit, int* options, void** values,      \
                           unsigned num_options))                                                 \
  CALL(cuLibraryUnload, (LibraryHandle library))                                                  \
  CALL(cuLibraryGetKernel, (KernelHandle* kernel, LibraryHandle library, const char* name))       \
  CALL(cuKernelGetFunction, (FunctionHandle* function, KernelHandle kernel))                      \
  CALL(cuFuncSetAttribute, (FunctionHandle function, int attribute, int value))                   \
  CALL(cuFuncGetAttribute, (int* value, int attribute, FunctionHandle function))                  \
  CALL(cuLaunchKernelEx, (const LaunchConfig* config, FunctionHandle function, void** params,     \
                          void** extra))                                                          \
  CALL(cuMemAlloc_v2, (DevicePointer* pointer, size_t bytes))                                     \
  CALL(cuMemFree_v2, (DevicePointer pointer))                                                     \
  CALL(cuMemcpyHtoD_v2, (DevicePointer to, const void* from, size_t bytes))                       \
  CALL(cuMemcpyDtoH_v2, (void* to, DevicePointer from, size_t bytes))                             \
  CALL(cuStreamCreate, (StreamHandle* stream, unsigned flags))                                    \
  CALL(cuStreamDestroy_v2, (StreamHandle stream))                                                 \
  CALL(cuStreamSynchronize, (StreamHandle stream))                                                \
  CALL(cuStreamBeginCapture_v2, (StreamHandle stream, int mode))                                  \
  CALL(cuStreamEndCapture, (StreamHandle stream, GraphHandle* graph))                             \
  CALL(cuThreadExchangeStreamCaptureMode, (int* mode))                                            \
  CALL(cuGraphInstantiateWithFlags, (GraphExecHandle* exec, GraphHandle graph,                    \
                                     unsigned long long flags))                                   \
  CALL(cuGraphLaunch, (GraphExecHandle exec, StreamHandle stream))                                \
  CALL(cuGraphExecDestroy, (GraphExecHandle exec))                                                \
  CALL(cuGraphDestroy, (GraphHandle graph))                                                       \
  CALL(cuEventCreate, (EventHandle* event, unsigned flags))                                       \
  CALL(cuEventDestroy_v2, (EventHandle event))                                                    \
  CALL(cuEventRecord, (EventHandle event, StreamHandle stream))                                   \
  CALL(cuEventSynchronize, (EventHandle event))                                                   \
  CALL(cuEventElapsedTime, (float* ms, EventHandle begin, EventHandle end))                       \
  CALL(cuTensorMapEncodeTiled, (TensorMap* map, int dtype, unsigned rank, void* address,          \
                                const uint64_t* extents, const uint64_t* byte_strides,            \
                                const uint32_t* box, const uint32_t* element_strides,             \
                                int interleave, int swizzle, int l2_promotion, int fill))
// clang-format on

struct Driver {
#define VECINA_CUDA_DECLARE(name, parameters) Result(*name) parameters = nullptr;
  VECINA_CUDA_DRIVER_CALLS(VECINA_CUDA_DECLARE)
#undef VECINA_CUDA_DECLARE

  std::string why_not;  // why there is no usable driver here; empty if there is one
  int version = 0;      // 1000 * major + 10 * minor, what the driver speaks at most
  int num_devices = 0;

  // Opened and initialised on first use, then the same for the process.
  static const Driver& get();

  // "cuMemAlloc failed: out of memory (CUDA_ERROR_OUT_OF_MEMORY)."; OK for kSuccess.
  Status status(const char* call, Result result) const;
};

#define VECINA_CUDA_RETURN_IF_ERROR(driver, call, arguments)                         \
  do {                                                                               \
    const ::vecina::internal::cuda::Result vecina_result_ = (driver).call arguments; \
    if (vecina_result_ != ::vecina::internal::cuda::kSuccess) {                      \
      return (driver).status(#call, vecina_result_);                                 \
    }                                                                                \
  } while (0)

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_DRIVER_H_
