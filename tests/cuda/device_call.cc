// SPDX-License-Identifier: MIT
#include "device_call.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/tensor.h"

namespace vecina::internal::cuda {
namespace {

constexpr size_t kAlignment = 256;  // of the workspace
constexpr unsigned char kGuard = 0xa5, kNan = 0xff;

size_t guard_bytes() { return is_bare() ? 0 : 4096; }

void expect_success(const char* call, Result result) {
  const Status status = Driver::get().status(call, result);
  EXPECT_TRUE(status.ok()) << status.message();
}

bool is_all(DevicePointer from, size_t bytes, unsigned char value) {
  std::vector<unsigned char> read(bytes);
  if (bytes > 0) expect_success("copy", Driver::get().cuMemcpyDtoH_v2(read.data(), from, bytes));
  return std::all_of(read.begin(), read.end(), [&](unsigned char byte) { return byte == value; });
}

void fill(DevicePointer to, size_t bytes, unsigned char value) {
  if (bytes > 0) expect_success("fill", TestDriver::get().cuMemsetD8_v2(to, value, bytes));
}

}  // namespace

bool is_bare() {
  const char* value = std::getenv("VECINA_TESTS_BARE");
  return value != nullptr && value[0] != '\0';
}

const TestDriver& TestDriver::get() {
  static const TestDriver driver = [] {
    TestDriver found;
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    const auto find = [&](const char* name, auto* function) {
      void* symbol = library == nullptr ? nullptr : dlsym(library, name);
      *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(symbol);
    };
    find("cuCtxCreate_v2", &found.cuCtxCreate_v2);
    find("cuCtxDestroy_v2", &found.cuCtxDestroy_v2);
    find("cuLaunchHostFunc", &found.cuLaunchHostFunc);
    find("cuMemGetInfo_v2", &found.cuMemGetInfo_v2);
    find("cuMemcpyDtoD_v2", &found.cuMemcpyDtoD_v2);
    find("cuMemsetD8_v2", &found.cuMemsetD8_v2);
    find("cuStreamQuery", &found.cuStreamQuery);
    return found;
  }();
  return driver;
}

void OnDevice::SetUp() {
  const Status status = Device::open(0, &device_);
  if (status.code() == VECINA_UNSUPPORTED) GTEST_SKIP() << status.message();
  ASSERT_TRUE(status.ok()) << status.message();
  current_.emplace(*device_);
  ASSERT_TRUE(current_->status().ok()) << current_->status().message();
}

Stream::Stream() {
  constexpr unsigned kNonBlocking = 1;
  expect_success("cuStreamCreate", Driver::get().cuStreamCreate(&stream_, kNonBlocking));
}
Stream::~Stream() { Driver::get().cuStreamDestroy_v2(stream_); }
void Stream::wait() const {
  expect_success("cuStreamSynchronize", Driver::get().cuStreamSynchronize(stream_));
}

GuardedMemory::GuardedMemory(const Device& device, size_t bytes, size_t offset) : bytes_(bytes) {
  const size_t total = guard_bytes() + offset + bytes + guard_bytes();
  const Status status = DeviceMemory::allocate(device, std::max<size_t>(total, 1), &memory_);
  EXPECT_TRUE(status.ok()) << status.message();
  fill(memory_.address(), total, kGuard);
  address_ = memory_.address() + guard_bytes() + offset;
  end_ = memory_.address() + total;
}

bool GuardedMemory::is_intact() const {
  const DevicePointer after = address_ + bytes_;
  return is_bare() || (is_all(memory_.address(), address_ - memory_.address(), kGuard) &&
                       is_all(after, end_ - after, kGuard));
}

template <typename Args>
DeviceCall<Args>::DeviceCall(const Device& device, const Args& host, size_t workspace_bytes)
    : args(host) {
  NamedTensor list[kMaxTensors];
  const int count = list_tensors(args, list);
  for (int i = 0; i < count; ++i) {
    if (!given(*list[i].tensor)) continue;
    auto* tensor = const_cast<vecina_tensor*>(list[i].tensor);  // a member of args
    const ByteRange range = byte_range(*tensor);
    const auto bytes = static_cast<size_t>(range.end - range.begin);
    const size_t offset = reinterpret_cast<uintptr_t>(range.begin) % kAlignment;
    const auto first = static_cast<size_t>(internal::address(*tensor) - range.begin);
    twins_.push_back({list[i].name, list[i].is_output, range.begin, bytes,
                      GuardedMemory(device, bytes, offset)});
    tensor->data = reinterpret_cast<void*>(twins_.back().memory.address() + first);
    tensor->byte_offset = 0;
    tensor->device = VECINA_CUDA;
    tensor->device_index = device.index();
  }
  if (workspace_bytes == 0) return;
  workspace_.emplace(device, workspace_bytes);
  args.workspace = reinterpret_cast<void*>(workspace_->address());
  args.workspace_bytes = workspace_bytes;
}

template <typename Args>
void DeviceCall<Args>::upload() const {
  for (const Twin& twin : twins_) {
    if (twin.bytes == 0 || (twin.is_output && is_bare())) continue;
    expect_success("upload",
                   Driver::get().cuMemcpyHtoD_v2(twin.memory.address(), twin.host, twin.bytes));
  }
  if (workspace_ && !is_bare()) fill(workspace_->address(), args.workspace_bytes, kNan);
}

template <typename Args>
void DeviceCall<Args>::download() const {
  for (const Twin& twin : twins_) {
    if (twin.bytes == 0 || !twin.is_output) continue;
    expect_success("download",
                   Driver::get().cuMemcpyDtoH_v2(twin.host, twin.memory.address(), twin.bytes));
  }
}

template <typename Args>
std::string DeviceCall<Args>::damage() const {
  std::string found;
  for (const Twin& twin : twins_) {
    if (!twin.memory.is_intact()) found += std::string("beside ") + twin.name + "; ";
    if (twin.is_output || twin.bytes == 0) continue;
    std::vector<char> now(twin.bytes);
    expect_success("download",
                   Driver::get().cuMemcpyDtoH_v2(now.data(), twin.memory.address(), twin.bytes));
    if (std::memcmp(now.data(), twin.host, twin.bytes) != 0) {
      found += std::string("the input ") + twin.name + "; ";
    }
  }
  if (workspace_ && !workspace_->is_intact()) found += "beside the workspace; ";
  return found;
}

template class DeviceCall<vecina_forward_args>;
template class DeviceCall<vecina_backward_args>;

}  // namespace vecina::internal::cuda
