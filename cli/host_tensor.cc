// SPDX-License-Identifier: MIT
// Guarded host tensors: each is a mapping of its own whose last page is inaccessible; the tensor
// lies right before that page. Elements are read and written through double.
#include "cli/host_tensor.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <utility>

#include "cli/dtypes.h"
#include "vecina/vecina.hpp"

namespace vecina::cli {
namespace {

constexpr unsigned char kPattern = 0xff;

template <typename T>
T load(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
template <typename T>
void store(char* to, T value) {
  std::memcpy(to, &value, sizeof(value));
}

// The nearest number of the type; 0 for NaN.
template <typename Integer>
Integer to_integer(double value) {
  constexpr double kEnd = -2.0 * (static_cast<double>(std::numeric_limits<Integer>::min()) / 2.0);
  if (std::isnan(value)) return 0;
  if (value >= kEnd) return std::numeric_limits<Integer>::max();
  if (value < -kEnd) return std::numeric_limits<Integer>::min();
  return static_cast<Integer>(value);
}

// The float next to `value` on the side of zero, its last bit set if anything was cut off. Rounding
// that to fewer bits gives what rounding the double would have given (no double rounding).
float round_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || std::isnan(value)) return nearest;
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (std::abs(static_cast<double>(nearest)) > std::abs(value)) --bits;
  return std::bit_cast<float>(bits | 1u);
}

// Memory of `bytes` followed by an inaccessible page; the pages are filled with the pattern unless
// they are only reserved.
std::shared_ptr<char> map_guarded(size_t bytes, size_t page, bool is_reserved) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (is_reserved ? MAP_NORESERVE : 0);
  void* address = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (address == MAP_FAILED) throw std::bad_alloc();
  char* begin = static_cast<char*>(address);
  std::shared_ptr<char> mapping(begin, [bytes, page](char* p) { munmap(p, bytes + page); });
  if (mprotect(begin + bytes, page, PROT_NONE) != 0) throw std::bad_alloc();
  if (!is_reserved) std::memset(begin, kPattern, bytes);
  return mapping;
}

bool is_pattern(const char* begin, const char* end) {
  return std::all_of(begin, end, [](char c) { return static_cast<unsigned char>(c) == kPattern; });
}

}  // namespace

HostTensor::HostTensor(std::vector<int64_t> shape, int32_t dtype, Placement placement)
    : shape_(std::move(shape)), strides_(shape_.size()), dtype_(dtype), size_(1) {
  if (shape_.empty() || shape_.size() > std::size(vecina_tensor{}.shape)) {
    throw std::invalid_argument("a tensor has 1 to 6 dimensions.");
  }
  for (int64_t extent : shape_) size_ *= extent;
  const int64_t row = shape_.back();
  int64_t stride = row + placement.gap;
  strides_.back() = 1;
  for (size_t d = shape_.size() - 1; d-- > 0;) {
    strides_[d] = stride;
    stride *= shape_[d];
  }
  const int64_t rows = size_ == 0 ? 0 : size_ / row;
  const int64_t span = rows == 0 ? 0 : rows * (row + placement.gap) - placement.gap;

  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t bytes = static_cast<size_t>((span + placement.offset) * dtype_bytes(dtype));
  mapping_bytes_ = std::max<size_t>((bytes + page - 1) / page, 1) * page;
  storage_ = map_guarded(mapping_bytes_, page, placement.is_reserved);
  data_ = storage_.get() + mapping_bytes_ - bytes;
}

vecina_tensor HostTensor::view() const {
  vecina_tensor tensor = {};
  if (!given()) return tensor;
  tensor.data = data_;
  tensor.ndim = static_cast<int32_t>(shape_.size());
  tensor.dtype = dtype_;
  std::copy(shape_.begin(), shape_.end(), tensor.shape);
  std::copy(strides_.begin(), strides_.end(), tensor.strides);
  return tensor;
}

char* HostTensor::element(int64_t index) const {
  const int64_t row = shape_.back();
  const int64_t pitch = shape_.size() > 1 ? strides_[shape_.size() - 2] : row;
  return data_ + (index / row * pitch + index % row) * dtype_bytes(dtype_);
}

double HostTensor::get(int64_t index) const {
  const char* from = element(index);
  switch (dtype_) {
    case VECINA_F32:
      return static_cast<double>(load<float>(from));
    case VECINA_F64:
      return load<double>(from);
    case VECINA_F16:
      return static_cast<double>(static_cast<float>(load<float16>(from)));
    case VECINA_BF16:
      return static_cast<double>(static_cast<float>(load<bfloat16>(from)));
    case VECINA_E4M3:
      return static_cast<double>(static_cast<float>(load<float8_e4m3>(from)));
    case VECINA_I32:
      return static_cast<double>(load<int32_t>(from));
    default:
      return static_cast<double>(load<int64_t>(from));
  }
}

void HostTensor::set(int64_t index, double value) {
  char* to = element(index);
  switch (dtype_) {
    case VECINA_F32:
      return store(to, static_cast<float>(value));
    case VECINA_F64:
      return store(to, value);
    case VECINA_F16:
      return store(to, float16(round_to_odd(value)));
    case VECINA_BF16:
      return store(to, bfloat16(round_to_odd(value)));
    case VECINA_E4M3:
      return store(to, float8_e4m3(round_to_odd(value)));
    case VECINA_I32:
      return store(to, to_integer<int32_t>(value));
    default:
      return store(to, to_integer<int64_t>(value));
  }
}

void HostTensor::fill(double value) {
  for (int64_t i = 0; i < size_; ++i) set(i, value);
}

bool HostTensor::gaps_intact() const {
  const char* end = storage_.get() + mapping_bytes_;
  if (size_ == 0) return is_pattern(storage_.get(), end);
  const int64_t row = shape_.back();
  const char* checked = storage_.get();
  for (int64_t first = 0; first < size_; first += row) {
    const char* begin = element(first);
    if (!is_pattern(checked, begin)) return false;
    checked = begin + row * dtype_bytes(dtype_);
  }
  return is_pattern(checked, end);
}

}  // namespace vecina::cli
