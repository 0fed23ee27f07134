// SPDX-License-Identifier: MIT
// The tensors of vecina.hpp: element types of 8 and 16 bits, sizes, views; and what a failed call
// throws.
#ifndef VECINA_TENSOR_HPP_
#define VECINA_TENSOR_HPP_

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <ranges>
#include <span>  // one of the ways to give a tensor
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "vecina/vecina.h"

namespace vecina {

inline namespace v0 {
namespace detail {

// Conversions of a small float in the lowest bits of a word: a sign, exponents biased as IEEE's, a
// mantissa. Without infinities the last code is NaN, and what is too large becomes the largest.
template <int kWidth, int kMantissaBits, bool kHasInfinity>
struct SmallFloat {
  static constexpr uint32_t kSign = 1u << (kWidth - 1);
  static constexpr uint32_t kInfinity = kSign - (1u << kMantissaBits);  // where there is one
  static constexpr uint32_t kMost = kHasInfinity ? kInfinity : kSign - 2;
  static constexpr uint32_t kNan = kHasInfinity ? kInfinity | 1u << (kMantissaBits - 1) : kSign - 1;
  static constexpr int kBias = static_cast<int>(kSign >> (kMantissaBits + 1)) - 1;
  static constexpr int kShift = 23 - kMantissaBits;

  static constexpr uint32_t exponent(int power) { return static_cast<uint32_t>(127 + power) << 23; }
  static constexpr uint32_t kRebias = exponent(-kBias);
  static constexpr uint32_t kLeastNormal = exponent(1 - kBias);

  static float widen(uint32_t bits) {
    const uint32_t sign = (bits & kSign) << (32 - kWidth), magnitude = bits & (kSign - 1);
    if (magnitude > kMost || (kHasInfinity && magnitude == kInfinity)) {
      const uint32_t mantissa = kHasInfinity ? (magnitude << kShift) & 0x7fffffu : 0x400000u;
      return std::bit_cast<float>(sign | 0x7f800000u | mantissa);
    }
    if (magnitude >> kMantissaBits != 0) {
      return std::bit_cast<float>(sign | ((magnitude << kShift) + kRebias));
    }
    const auto least = std::bit_cast<float>(exponent(1 - kBias - kMantissaBits));
    const float value = static_cast<float>(magnitude) * least;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
  }

  // To nearest even.
  static uint32_t round(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    const uint32_t sign = (word >> (32 - kWidth)) & kSign, magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | kNan;  // NaN stays NaN
    if (magnitude < kLeastNormal) {
      // Subnormal: adding this power of two lines the result's last bit up with the float's.
      constexpr uint32_t kAligner = exponent(1 - kBias + kShift);
      const float shifted = std::bit_cast<float>(magnitude) + std::bit_cast<float>(kAligner);
      return sign | (std::bit_cast<uint32_t>(shifted) - kAligner);
    }
    const uint32_t odd = (magnitude >> kShift) & 1u, half = 1u << (kShift - 1);
    return sign | std::min((magnitude - kRebias + half - 1u + odd) >> kShift, kMost);
  }
};

}  // namespace detail
}  // namespace v0

// IEEE binary16 as it lies in memory; converts by rounding to nearest even.
struct float16 {
  uint16_t bits = 0;

  float16() = default;
  explicit float16(float value) : bits(static_cast<uint16_t>(Format::round(value))) {}
  explicit operator float() const { return Format::widen(bits); }

 private:
  using Format = detail::SmallFloat<16, 10, true>;
};

// The upper half of an IEEE binary32; converts by rounding to nearest even.
struct bfloat16 {
  uint16_t bits = 0;

  bfloat16() = default;
  explicit bfloat16(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((word >> 16) | 0x40u);  // NaN stays NaN
    } else {
      bits = static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
    }
  }
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};

// Experimental. Sign, 4 bits of exponent, 3 of mantissa, no infinities: VECINA_E4M3. Converts by
// rounding to nearest even; beyond 448, infinities too, to 448 with the sign.
struct float8_e4m3 {
  uint8_t bits = 0;

  float8_e4m3() = default;
  explicit float8_e4m3(float value) : bits(static_cast<uint8_t>(Format::round(value))) {}
  explicit operator float() const { return Format::widen(bits); }

 private:
  using Format = detail::SmallFloat<8, 3, false>;
};

// In the symbols' names: code that was compiled with a later, different header stays apart.
inline namespace v0 {

// What a call that failed throws: the status of vecina.h and the library's sentence.
class Error : public std::runtime_error {
 public:
  Error(vecina_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  vecina_status status() const noexcept { return status_; }

 private:
  vecina_status status_;
};

class Sizes;
template <typename R>
concept SizeRange =
    std::ranges::contiguous_range<R> && !std::same_as<std::remove_cvref_t<R>, Sizes> &&
    std::same_as<std::ranges::range_value_t<R>, std::int64_t>;

// Sizes or strides of a tensor, at most 6: {2, 256, 8, 32}, or a contiguous range of int64_t.
// More than 6 throw Error.
class Sizes {
 public:
  static constexpr std::size_t kMax = 6;

  Sizes() = default;
  Sizes(std::initializer_list<std::int64_t> sizes) {
    for (std::int64_t size : sizes) append(size);
  }
  template <SizeRange R>
  Sizes(R&& sizes) {  // NOLINT: a vector of sizes is meant to convert
    for (std::int64_t size : sizes) append(size);
  }

  void append(std::int64_t size) {
    if (count_ == kMax) throw Error(VECINA_INVALID_ARGUMENT, "a tensor has at most 6 dimensions.");
    sizes_[count_++] = size;
  }
  std::size_t ndim() const { return count_; }
  bool empty() const { return count_ == 0; }
  std::int64_t operator[](std::size_t i) const { return sizes_[i]; }
  const std::int64_t* begin() const { return sizes_; }
  const std::int64_t* end() const { return sizes_ + count_; }

  // Elements of a tensor of these sizes; the largest std::size_t if that number is larger still.
  std::size_t count() const {
    std::size_t product = 1;
    for (std::int64_t size : *this) {
      if (size <= 0) return 0;
      if (product > std::numeric_limits<std::size_t>::max() / static_cast<std::size_t>(size)) {
        return std::numeric_limits<std::size_t>::max();
      }
      product *= static_cast<std::size_t>(size);
    }
    return product;
  }
  std::string text() const {  // "[2, 256, 8, 32]"
    std::string text = "[";
    for (std::int64_t size : *this) {
      if (text.size() > 1) text += ", ";
      text += std::to_string(size);
    }
    return text + "]";
  }

 private:
  std::int64_t sizes_[kMax] = {};
  std::size_t count_ = 0;
};

namespace detail {

template <typename T>
constexpr bool always_false = false;

template <typename T>
constexpr vecina_dtype dtype_of() {
  if constexpr (std::is_same_v<T, float>) {
    return VECINA_F32;
  } else if constexpr (std::is_same_v<T, double>) {
    return VECINA_F64;
  } else if constexpr (std::is_same_v<T, float16>) {
    return VECINA_F16;
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return VECINA_BF16;
  } else if constexpr (std::is_same_v<T, float8_e4m3>) {
    return VECINA_E4M3;
  } else if constexpr (std::is_same_v<T, std::int32_t>) {
    return VECINA_I32;
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    return VECINA_I64;
  } else {
    static_assert(always_false<T>, "not an element type of vecina");
  }
}

}  // namespace detail

// The element types: float, double, float16, bfloat16, float8_e4m3, std::int32_t, std::int64_t.
template <typename T>
concept Element = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, float16> ||
    std::same_as<T, bfloat16> || std::same_as<T, float8_e4m3> || std::same_as<T, std::int32_t> ||
    std::same_as<T, std::int64_t>;

// The vecina_dtype of an element type.
template <Element T>
inline constexpr vecina_dtype dtype_of = detail::dtype_of<T>();

// Contiguous elements that outlive the expression: an lvalue container, or a span.
template <typename R>
concept ElementRange = std::ranges::contiguous_range<R> && std::ranges::sized_range<R> &&
    std::ranges::borrowed_range<R> && Element<std::ranges::range_value_t<R>>;

template <typename R>
concept MutableElementRange =
    ElementRange<R> && !std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<R>>>;

// A tensor that is read. Owns nothing; what it views must outlive it. Made from a contiguous range
// (the shape comes from the problem), by view(), or from a vecina_tensor (device memory, say).
// Default: not given.
class ConstTensorView {
 public:
  ConstTensorView() = default;
  ConstTensorView(const vecina_tensor& tensor) : tensor_(tensor) {}
  template <ElementRange R>
  ConstTensorView(R&& range)  // NOLINT: a span is meant to convert
      : has_shape_(false), count_(std::ranges::size(range)) {
    tensor_.data = address(std::ranges::data(range));
    tensor_.dtype = dtype_of<std::ranges::range_value_t<R>>;
  }

  bool given() const { return tensor_.data != nullptr; }
  // With the shape it was made with, or as one axis of all elements.
  vecina_tensor c_tensor() const {
    if (has_shape_) return tensor_;
    return with_shape({static_cast<std::int64_t>(count_)}, "the tensor");
  }

  // For the functions below: this tensor in `shape`, unless it has one of its own.
  vecina_tensor with_shape(const Sizes& shape, const char* name) const {
    if (has_shape_) return tensor_;
    if (shape.empty()) {
      throw Error(VECINA_INVALID_ARGUMENT,
                  std::string(name) + " needs a shape here: view(data, shape).");
    }
    if (count_ != shape.count()) {
      throw Error(VECINA_INVALID_ARGUMENT, std::string(name) + " has " + std::to_string(count_) +
                                               " elements, but its shape " + shape.text() +
                                               " has " + std::to_string(shape.count()) + ".");
    }
    vecina_tensor tensor = tensor_;
    tensor.ndim = static_cast<std::int32_t>(shape.ndim());
    std::int64_t stride = 1;
    for (std::size_t i = shape.ndim(); i-- > 0;) {
      tensor.shape[i] = shape[i];
      tensor.strides[i] = stride;
      stride *= std::max<std::int64_t>(shape[i], 1);
    }
    return tensor;
  }
  bool has_shape() const { return has_shape_; }
  std::size_t count() const { return count_; }  // elements; 0 if it has a shape

 private:
  // vecina_tensor serves inputs and outputs alike; inputs are only read. An empty range may have no
  // address, but it was given.
  template <typename T>
  static void* address(T* data) {
    static std::remove_const_t<T> empty{};
    return data != nullptr ? const_cast<std::remove_const_t<T>*>(data) : &empty;
  }

  vecina_tensor tensor_ = {};
  bool has_shape_ = true;
  std::size_t count_ = 0;
};

// A tensor that is written: an output or a gradient. Otherwise as ConstTensorView.
class TensorView : public ConstTensorView {
 public:
  TensorView() = default;
  TensorView(const vecina_tensor& tensor) : ConstTensorView(tensor) {}
  template <MutableElementRange R>
  TensorView(R&& range)  // NOLINT: a span is meant to convert
      : ConstTensorView(std::forward<R>(range)) {}
};

namespace detail {

inline vecina_tensor shaped(const ConstTensorView& elements, const Sizes& shape,
                            const Sizes& strides) {
  if (strides.empty()) return elements.with_shape(shape, "the view");
  if (strides.ndim() != shape.ndim()) {
    throw Error(VECINA_INVALID_ARGUMENT, "strides " + strides.text() + " and shape " +
                                             shape.text() + " have different lengths.");
  }
  vecina_tensor tensor = elements.c_tensor();
  tensor.ndim = static_cast<std::int32_t>(shape.ndim());
  std::size_t needed = shape.count() == 0 ? 0 : 1;
  for (std::size_t i = 0; i < shape.ndim(); ++i) {
    if (strides[i] < 0) {
      throw Error(VECINA_INVALID_ARGUMENT, "strides " + strides.text() + " hold a negative one.");
    }
    tensor.shape[i] = shape[i];
    tensor.strides[i] = strides[i];
    if (needed == 0) continue;
    const std::size_t reach = Sizes{shape[i] - 1, strides[i]}.count();
    needed += std::min(reach, std::numeric_limits<std::size_t>::max() - needed);
  }
  if (needed > elements.count()) {
    throw Error(VECINA_INVALID_ARGUMENT, "the view has " + std::to_string(elements.count()) +
                                             " elements, but shape " + shape.text() +
                                             " with strides " + strides.text() + " reaches over " +
                                             std::to_string(needed) + ".");
  }
  return tensor;
}

}  // namespace detail

// A view of `data` (a contiguous range) with a shape of its own. Without strides it is contiguous
// and data must hold exactly that many elements; strides are in elements, one for each dimension,
// and data must hold all that they reach. Throws Error otherwise. Const data gives a
// ConstTensorView.
template <MutableElementRange R>
TensorView view(R&& data, const Sizes& shape, const Sizes& strides = {}) {
  return detail::shaped(TensorView(std::forward<R>(data)), shape, strides);
}
template <ElementRange R>
ConstTensorView view(R&& data, const Sizes& shape, const Sizes& strides = {}) {
  return detail::shaped(ConstTensorView(std::forward<R>(data)), shape, strides);
}

}  // namespace v0
}  // namespace vecina
#endif  // VECINA_TENSOR_HPP_
