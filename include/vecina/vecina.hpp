// SPDX-License-Identifier: MIT
// Vecina in C++20: RAII, std::span and exceptions over the C interface (vecina.h). Header-only.
//
//   vecina::Context context;  // the best backend here
//   const auto problem = vecina::Problem::parse("1d 256 kernel_size 7 heads 8 head_dim 32");
//   std::vector<float> output(problem.output_shape().count());
//   vecina::forward(context, problem,
//                   {.query = query, .key = key, .value = value, .output = output});
//
// A tensor is given as anything contiguous (std::vector, std::span, std::array) and then has the
// shape that the problem says, or as view(data, shape, strides). Shapes, strides and dtypes are
// those of vecina.h. Every function that can fail throws vecina::Error; nothing else is thrown but
// std::bad_alloc. Tensors are never copied and never owned.
#ifndef VECINA_VECINA_HPP_
#define VECINA_VECINA_HPP_

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <ranges>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "vecina/vecina.h"

namespace vecina {

// IEEE binary16 as it lies in memory; converts by rounding to nearest even.
struct float16 {
  uint16_t bits = 0;

  float16() = default;
  explicit float16(float value) : bits(round(value)) {}
  explicit operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu;
    const uint32_t mantissa = bits & 0x3ffu;
    if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) {
      return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
    }
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }

 private:
  static uint16_t round(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    const uint16_t sign = static_cast<uint16_t>((word >> 16) & 0x8000u);
    const uint32_t magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // NaN stays NaN
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
    if (magnitude < 0x38800000u) {
      // Subnormal: adding 0.5 lines the result's last bit up with the float's last bit.
      const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
      return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000u);
    }
    const uint32_t odd = (magnitude >> 13) & 1u;
    return sign | static_cast<uint16_t>((magnitude - 0x38000000u + 0xfffu + odd) >> 13);
  }
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

inline void check(vecina_status status) {
  if (status != VECINA_OK) throw Error(status, vecina_last_error());
}

// Text of a function that follows the rule of vecina_problem_print.
template <typename Print>
std::string text_of(Print print) {
  std::string text(4096, '\0');  // large enough for nearly all, so that print runs once
  std::size_t needed = print(text.data(), text.size());
  if (needed >= text.size()) {
    text.resize(needed + 1);
    needed = print(text.data(), text.size());
  }
  text.resize(needed);
  return text;
}

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
  } else if constexpr (std::is_same_v<T, std::int32_t>) {
    return VECINA_I32;
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    return VECINA_I64;
  } else {
    static_assert(always_false<T>, "not an element type of vecina");
  }
}

}  // namespace detail

// The element types: float, double, float16, bfloat16, std::int32_t, std::int64_t.
template <typename T>
concept Element = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, float16> ||
    std::same_as<T, bfloat16> || std::same_as<T, std::int32_t> || std::same_as<T, std::int64_t>;

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

// One number for all axes, or one for each, outermost first: kernel_size(7), kernel_size({7, 5}).
class PerAxis {
 public:
  template <std::integral T>
  PerAxis(T value) : values_{static_cast<std::int64_t>(value)}, is_one_(true) {}
  PerAxis(std::initializer_list<std::int64_t> values) : values_(values) {}

  template <typename T>
  void write(const char* name, std::int32_t rank, T (&field)[3]) const {
    const auto axes = static_cast<std::size_t>(std::clamp(rank, 0, 3));
    if (!is_one_ && values_.ndim() != axes) {
      throw Error(VECINA_INVALID_ARGUMENT, std::string(name) + " " + values_.text() + " has " +
                                               std::to_string(values_.ndim()) +
                                               " numbers; the problem has rank " +
                                               std::to_string(rank) + ".");
    }
    for (std::size_t a = 0; a < axes; ++a) field[a] = static_cast<T>(values_[is_one_ ? 0 : a]);
  }

 private:
  Sizes values_;
  bool is_one_ = false;
};

// What is computed, without pointers: a vecina_problem with setters that chain.
//   Problem(2).extent({32, 32}).kernel_size(7).batch(2).heads(4).head_dim(32)
// Setters only write; the rules are checked by check() and by every function that takes a problem.
class Problem {
 public:
  // Neighborhood attention over 1, 2 or 3 axes, everything else as vecina_problem_init leaves it.
  explicit Problem(int rank) { vecina_problem_init(&fields_, sizeof(fields_), rank); }
  // Dense attention: each of `queries` tokens sees each of `keys`.
  static Problem attention(std::int64_t queries, std::int64_t keys) {
    Problem problem(1);
    problem.fields_.kind = VECINA_ATTENTION;
    problem.fields_.query_extent[0] = queries;
    problem.fields_.extent[0] = keys;
    return problem;
  }
  // From a problem line: "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32". Throws Error with
  // the word that does not fit.
  static Problem parse(const std::string& line) {
    Problem problem(1);
    detail::check(vecina_problem_parse(line.c_str(), &problem.fields_));
    return problem;
  }
  explicit Problem(const vecina_problem& fields) : fields_(fields) {}

  Problem& extent(const PerAxis& v) { return axes("extent", v, fields_.extent); }
  Problem& kernel_size(const PerAxis& v) { return axes("kernel_size", v, fields_.kernel_size); }
  Problem& stride(const PerAxis& v) { return axes("stride", v, fields_.stride); }
  Problem& output_stride(const PerAxis& v) {
    return axes("output_stride", v, fields_.output_stride);
  }
  Problem& dilation(const PerAxis& v) { return axes("dilation", v, fields_.dilation); }
  Problem& is_causal(const PerAxis& v = true) { return axes("is_causal", v, fields_.is_causal); }
  Problem& batch(std::int64_t v) { return set(fields_.batch, v); }
  Problem& heads(std::int32_t v) { return set(fields_.heads, v); }
  Problem& heads_kv(std::int32_t v) { return set(fields_.heads_kv, v); }
  Problem& head_dim(std::int32_t v) { return set(fields_.head_dim, v); }
  Problem& head_dim_value(std::int32_t v) { return set(fields_.head_dim_value, v); }
  Problem& additional_tokens(std::int64_t v) { return set(fields_.additional_tokens, v); }
  Problem& dtype(vecina_dtype v) { return set(fields_.dtype, v); }
  Problem& scale(double v) { return set(fields_.has_scale, 1).set(fields_.scale, v); }
  Problem& bias(bool v = true) { return set(fields_.has_bias, v); }
  Problem& lengths_padded() { return set(fields_.lengths, VECINA_LENGTHS_PADDED); }
  Problem& lengths_packed(std::int32_t samples) {
    return set(fields_.lengths, VECINA_LENGTHS_PACKED).set(fields_.samples, samples);
  }
  Problem& allow(vecina_flags v) { return set(fields_.flags, fields_.flags | v); }

  vecina_problem& fields() { return fields_; }
  const vecina_problem& fields() const { return fields_; }

  // Throws Error with the first rule that is broken.
  void check() const { detail::check(vecina_problem_check(&fields_)); }
  // The problem line; parse() reads it back. Throws Error if the problem is not valid.
  std::string line() const {
    check();
    return detail::text_of([this](char* text, std::size_t size) {
      return vecina_problem_print(&fields_, text, size);
    });
  }

  // Shapes of the tensors (vecina.h lists them); count() says how many elements to allocate.
  // Packed lengths: only the caller knows the number of tokens, so these throw Error.
  Sizes query_shape() const {
    return tokens("query", true, false, fields_.heads, fields_.head_dim);
  }
  Sizes key_shape() const { return tokens("key", false, false, heads_kv_or(), fields_.head_dim); }
  Sizes value_shape() const {
    return tokens("value", false, false, heads_kv_or(), head_dim_value_or());
  }
  Sizes output_shape() const {
    return tokens("output", true, true, fields_.heads, head_dim_value_or());
  }
  Sizes lse_shape() const { return tokens("lse", true, true, fields_.heads, 0); }
  Sizes weights_shape() const {
    Sizes shape = lse_shape();
    std::int64_t slots = 1;
    for (int a = 0; a < rank(); ++a) {
      slots *= fields_.kind == VECINA_ATTENTION ? fields_.extent[a] : fields_.kernel_size[a];
    }
    shape.append(slots + fields_.additional_tokens);
    return shape;
  }
  Sizes additional_key_shape() const {
    return {fields_.batch, fields_.additional_tokens, heads_kv_or(), fields_.head_dim};
  }
  Sizes additional_value_shape() const {
    return {fields_.batch, fields_.additional_tokens, heads_kv_or(), head_dim_value_or()};
  }
  Sizes bias_shape() const {
    Sizes shape{fields_.heads};
    for (int a = 0; a < rank(); ++a) shape.append(2 * fields_.kernel_size[a] - 1);
    return shape;
  }
  Sizes lengths_shape() const {
    const bool is_packed = fields_.lengths == VECINA_LENGTHS_PACKED;
    return {is_packed ? fields_.samples : fields_.batch, rank()};
  }

 private:
  template <typename T>
  Problem& axes(const char* name, const PerAxis& values, T (&field)[3]) {
    values.write(name, fields_.rank, field);
    return *this;
  }
  template <typename Field, typename T>
  Problem& set(Field& field, T value) {
    field = static_cast<Field>(value);
    return *this;
  }
  int rank() const {
    if (fields_.rank < 1 || fields_.rank > 3) check();  // throws
    return fields_.rank;
  }
  std::int32_t heads_kv_or() const { return fields_.heads_kv ? fields_.heads_kv : fields_.heads; }
  std::int32_t head_dim_value_or() const {
    return fields_.head_dim_value ? fields_.head_dim_value : fields_.head_dim;
  }
  Sizes tokens(const char* name, bool of_query, bool of_output, std::int32_t heads,
               std::int32_t last) const {
    if (fields_.lengths == VECINA_LENGTHS_PACKED) {
      throw Error(VECINA_INVALID_ARGUMENT,
                  std::string(name) + " has packed lengths, so the problem does not hold its " +
                      "shape. Give it one: view(data, {1, tokens, heads, ...}).");
    }
    Sizes shape{fields_.batch};
    for (int a = 0; a < rank(); ++a) {
      std::int64_t size = fields_.extent[a];
      if (of_query && fields_.query_extent[a] != 0) size = fields_.query_extent[a];
      if (of_output) {
        const std::int64_t step = std::max<std::int64_t>(fields_.output_stride[a], 1);
        size = size / step + (size % step != 0);
      }
      shape.append(size);
    }
    shape.append(heads);
    if (last != 0) shape.append(last);
    return shape;
  }

  vecina_problem fields_ = {};
};

// Keys that one query sees along one axis: begin, begin + step, ..., count of them, in tokens.
struct Window {
  std::int64_t begin = 0, step = 1, count = 0;
};
// The window of query `index` (counted in output tokens) along axis `axis`, 0 the outermost.
// Throws Error for a problem that is not valid or an index outside of it.
inline Window window(const Problem& problem, int axis, std::int64_t index) {
  Window window;
  detail::check(
      vecina_window(&problem.fields(), axis, index, &window.begin, &window.step, &window.count));
  return window;
}

// "0.1.0": the library's version, not the header's.
inline std::string version() { return vecina_version(); }

// Names of the backends in this library, in order of preference.
inline std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (std::int32_t i = 0; i < vecina_backend_count(); ++i) names.push_back(vecina_backend_name(i));
  return names;
}

// Empty and 0 mean: the environment variable of vecina.h, else the library's choice.
struct ContextOptions {
  std::string backend = {};  // "cpu", "reference", ...
  int device_index = 0;      // where tensors are on the host; otherwise the tensors decide
  int threads = 0;           // the caller's included
  std::string cache_dir = {};
  // The host's own pool: calls body(i, user_body) for i in [0, count), returns when all are done.
  void (*parallel_for)(void* user, std::int64_t count,
                       void (*body)(std::int64_t i, void* user_body), void* user_body) = nullptr;
  void* parallel_for_user = nullptr;
};

// A backend choice, worker threads, scratch and caches. Make one and keep it; it may be used from
// many threads at once.
class Context {
 public:
  // The best backend here. Throws Error if the machine has none, or options name an unknown one.
  Context() : Context(ContextOptions{}) {}
  explicit Context(const ContextOptions& options) {
    vecina_context_options c = {};
    c.struct_size = sizeof(c);
    c.backend = options.backend.empty() ? nullptr : options.backend.c_str();
    c.device_index = options.device_index;
    c.threads = options.threads;
    c.cache_dir = options.cache_dir.empty() ? nullptr : options.cache_dir.c_str();
    c.parallel_for = options.parallel_for;
    c.parallel_for_user = options.parallel_for_user;
    vecina_context* context = nullptr;
    detail::check(vecina_context_create(&c, &context));
    context_.reset(context);
  }

  // Why backend `name` cannot run at all here; empty if it can.
  std::string why_not(const std::string& name) const { return why_not(name, nullptr); }
  // Why backend `name` cannot run this problem here; empty if it can.
  std::string why_not(const std::string& name, const Problem& problem) const {
    return why_not(name, &problem.fields());
  }
  // JSON: version, backends, instruction sets, cores.
  std::string info() const { return text("info"); }
  // JSON: the measured peak of the machine; takes a second.
  std::string peak() const { return text("peak"); }

  vecina_context* get() const { return context_.get(); }

 private:
  struct Destroy {
    void operator()(vecina_context* context) const { vecina_context_destroy(context); }
  };
  std::string why_not(const std::string& name, const vecina_problem* problem) const {
    return detail::text_of([&](char* text, std::size_t size) {
      return vecina_backend_why_not(get(), name.c_str(), problem, text, size);
    });
  }
  std::string text(const char* what) const {
    return detail::text_of(
        [&](char* text, std::size_t size) { return vecina_info(get(), what, text, size); });
  }

  std::unique_ptr<vecina_context, Destroy> context_;
};

// Tensors of a forward call. dtype of query, key, value, output and the additional tokens: the
// problem's; lse and bias: f32, f64 for f64 problems; lengths: int32 or int64.
struct ForwardArgs {
  ConstTensorView query = {}, key = {}, value = {};
  ConstTensorView additional_key = {}, additional_value = {};  // both, if the problem has them
  ConstTensorView bias = {};
  ConstTensorView lengths = {}, query_lengths = {};
  TensorView output = {};
  TensorView lse = {};        // optional
  void* workspace = nullptr;  // device memory; the backends of the CPU need none
  std::size_t workspace_bytes = 0;
};

// Tensors of a backward call. output and lse are what forward wrote. Gradients have the shapes and
// dtypes of what they belong to; those that are given are overwritten, the others not computed.
struct BackwardArgs {
  ConstTensorView query = {}, key = {}, value = {};
  ConstTensorView additional_key = {}, additional_value = {};
  ConstTensorView bias = {};
  ConstTensorView lengths = {}, query_lengths = {};
  ConstTensorView output = {}, lse = {};
  ConstTensorView grad_output = {};
  ConstTensorView grad_lse = {};  // optional
  TensorView grad_query = {}, grad_key = {}, grad_value = {};
  TensorView grad_additional_key = {}, grad_additional_value = {}, grad_bias = {};
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

// Tensors of the split form, vecina_split_args: each call reads and writes those named for it and
// ignores the others. weights [batch, queries..., heads, slots] have the problem's dtype.
struct SplitArgs {
  ConstTensorView query = {}, key = {}, additional_key = {};  // qk, qk_backward
  ConstTensorView bias = {};                                  // qk
  ConstTensorView value = {}, additional_value = {};          // av, av_backward
  TensorView weights = {};                                    // written by qk, else read
  TensorView output = {};                                     // written by av
  TensorView grad_weights = {};      // read by qk_backward; av_backward writes it if given
  ConstTensorView grad_output = {};  // av_backward
  TensorView grad_query = {}, grad_key = {}, grad_additional_key = {}, grad_bias = {};
  TensorView grad_value = {}, grad_additional_value = {};
  bool right_aligned = false;  // empty slots of a causal window come first, not last
};

namespace detail {

// The C form of the arguments: spans get the shapes that the problem says.
template <typename Shape>
void fill(vecina_tensor* to, const ConstTensorView& from, const char* name, Shape shape) {
  if (from.given()) *to = from.has_shape() ? from.c_tensor() : from.with_shape(shape(), name);
}

#define VECINA_FILL(name, shape) \
  fill(&c.name, args.name, #name, [&problem] { return problem.shape(); })

template <typename To, typename From>
void fill_inputs(To& c, const Problem& problem, const From& args) {
  VECINA_FILL(query, query_shape);
  VECINA_FILL(key, key_shape);
  VECINA_FILL(value, value_shape);
  VECINA_FILL(additional_key, additional_key_shape);
  VECINA_FILL(additional_value, additional_value_shape);
  VECINA_FILL(bias, bias_shape);
  VECINA_FILL(lengths, lengths_shape);
  VECINA_FILL(query_lengths, lengths_shape);
  VECINA_FILL(output, output_shape);
  VECINA_FILL(lse, lse_shape);
  c.workspace = args.workspace;
  c.workspace_bytes = args.workspace_bytes;
}

inline vecina_forward_args to_c(const Problem& problem, const ForwardArgs& args) {
  vecina_forward_args c = {};
  c.struct_size = sizeof(c);
  fill_inputs(c, problem, args);
  return c;
}

inline vecina_backward_args to_c(const Problem& problem, const BackwardArgs& args) {
  vecina_backward_args c = {};
  c.struct_size = sizeof(c);
  fill_inputs(c, problem, args);
  VECINA_FILL(grad_output, output_shape);
  VECINA_FILL(grad_lse, lse_shape);
  VECINA_FILL(grad_query, query_shape);
  VECINA_FILL(grad_key, key_shape);
  VECINA_FILL(grad_value, value_shape);
  VECINA_FILL(grad_additional_key, additional_key_shape);
  VECINA_FILL(grad_additional_value, additional_value_shape);
  VECINA_FILL(grad_bias, bias_shape);
  return c;
}

inline vecina_split_args to_c(const Problem& problem, const SplitArgs& args) {
  vecina_split_args c = {};
  c.struct_size = sizeof(c);
  VECINA_FILL(query, query_shape);
  VECINA_FILL(key, key_shape);
  VECINA_FILL(additional_key, additional_key_shape);
  VECINA_FILL(bias, bias_shape);
  VECINA_FILL(value, value_shape);
  VECINA_FILL(additional_value, additional_value_shape);
  VECINA_FILL(weights, weights_shape);
  VECINA_FILL(output, output_shape);
  VECINA_FILL(grad_weights, weights_shape);
  VECINA_FILL(grad_output, output_shape);
  VECINA_FILL(grad_query, query_shape);
  VECINA_FILL(grad_key, key_shape);
  VECINA_FILL(grad_additional_key, additional_key_shape);
  VECINA_FILL(grad_bias, bias_shape);
  VECINA_FILL(grad_value, value_shape);
  VECINA_FILL(grad_additional_value, additional_value_shape);
  c.right_aligned = args.right_aligned;
  return c;
}
#undef VECINA_FILL

}  // namespace detail

// Bytes of device workspace that a call needs (0 on the CPU).
inline std::size_t workspace_bytes(const Context& context, const Problem& problem,
                                   bool backward = false) {
  return vecina_workspace_bytes(context.get(), &problem.fields(), backward);
}

// Attention: writes args.output, and args.lse if given. Plans are kept in the context, so the first
// call of a problem costs more than the next. `queue` is a CUstream for CUDA; the CPU ignores it
// and is done on return. Throws Error: VECINA_INVALID_ARGUMENT if a shape, dtype or size does not
// fit (nothing was written), VECINA_UNSUPPORTED if no backend takes the problem.
inline void forward(const Context& context, const Problem& problem, const ForwardArgs& args,
                    void* queue = nullptr) {
  const vecina_forward_args c = detail::to_c(problem, args);
  detail::check(vecina_forward(context.get(), &problem.fields(), &c, queue));
}

// The gradients that args asks for. Errors as in forward.
inline void backward(const Context& context, const Problem& problem, const BackwardArgs& args,
                     void* queue = nullptr) {
  const vecina_backward_args c = detail::to_c(problem, args);
  detail::check(vecina_backward(context.get(), &problem.fields(), &c, queue));
}

// The split form: weights = scale * query . key + bias over each query's window, -inf in slots that
// causality leaves empty; then output = sum of weights * value. vecina_split_args says how weights
// are laid out. Errors as in forward; lengths must be equal.
inline void qk(const Context& context, const Problem& problem, const SplitArgs& args,
               void* queue = nullptr) {
  const vecina_split_args c = detail::to_c(problem, args);
  detail::check(vecina_qk(context.get(), &problem.fields(), &c, queue));
}
inline void av(const Context& context, const Problem& problem, const SplitArgs& args,
               void* queue = nullptr) {
  const vecina_split_args c = detail::to_c(problem, args);
  detail::check(vecina_av(context.get(), &problem.fields(), &c, queue));
}
// The gradients that args asks for.
inline void qk_backward(const Context& context, const Problem& problem, const SplitArgs& args,
                        void* queue = nullptr) {
  const vecina_split_args c = detail::to_c(problem, args);
  detail::check(vecina_qk_backward(context.get(), &problem.fields(), &c, queue));
}
inline void av_backward(const Context& context, const Problem& problem, const SplitArgs& args,
                        void* queue = nullptr) {
  const vecina_split_args c = detail::to_c(problem, args);
  detail::check(vecina_av_backward(context.get(), &problem.fields(), &c, queue));
}

template <typename Args>
concept PassArgs = std::same_as<Args, ForwardArgs> || std::same_as<Args, BackwardArgs>;

// Everything decided once, for calls of the same problem with tensors of the same shapes, strides,
// dtypes and alignment. Immutable, usable from many threads. Keeps its context alive.
class Plan {
 public:
  // Errors as in vecina::forward; the example's tensors are not read or written.
  static Plan forward(const Context& context, const Problem& problem, const ForwardArgs& example) {
    const vecina_forward_args c = detail::to_c(problem, example);
    vecina_plan* plan = nullptr;
    detail::check(vecina_plan_forward(context.get(), &problem.fields(), &c, &plan));
    return Plan(plan, problem);
  }
  static Plan backward(const Context& context, const Problem& problem,
                       const BackwardArgs& example) {
    const vecina_backward_args c = detail::to_c(problem, example);
    vecina_plan* plan = nullptr;
    detail::check(vecina_plan_backward(context.get(), &problem.fields(), &c, &plan));
    return Plan(plan, problem);
  }

  // Runs it; may be called from many threads at once. Throws Error (VECINA_INVALID_ARGUMENT) if a
  // tensor is missing or less aligned than the example's, or the plan is one of the other pass.
  // run({.query = ...}) is a forward run; a backward one is run(BackwardArgs{...}).
  template <PassArgs Args = ForwardArgs>
  void run(const Args& args, void* queue = nullptr) const {
    const auto c = detail::to_c(problem_, args);
    if constexpr (std::same_as<Args, ForwardArgs>) {
      detail::check(vecina_run_forward(get(), &c, queue));
    } else {
      detail::check(vecina_run_backward(get(), &c, queue));
    }
  }

  // Bytes of device workspace that run() needs (0 on the CPU).
  std::size_t workspace_bytes() const { return vecina_plan_workspace_bytes(get()); }
  // JSON: backend, kernel, tiles, work, why.
  std::string describe() const {
    return detail::text_of(
        [this](char* text, std::size_t size) { return vecina_plan_describe(get(), text, size); });
  }
  // Runs it `repeats` times and says where the time went, as JSON.
  template <PassArgs Args = ForwardArgs>
  std::string profile(const Args& args, int repeats) const {
    const auto c = detail::to_c(problem_, args);
    return detail::text_of([&](char* text, std::size_t size) {
      return vecina_profile(get(), &c, repeats, text, size);
    });
  }

  const Problem& problem() const { return problem_; }
  const vecina_plan* get() const { return plan_.get(); }

 private:
  struct Destroy {
    void operator()(vecina_plan* plan) const { vecina_plan_destroy(plan); }
  };
  Plan(vecina_plan* plan, const Problem& problem) : plan_(plan), problem_(problem) {}

  std::unique_ptr<vecina_plan, Destroy> plan_;
  Problem problem_;
};

// Attentions over different keys, made one. All outputs have one shape [..., head_dim_value] and
// dtype; lses have the shape of outputs without the last dimension (f32; f64 for f64).
struct MergeArgs {
  std::vector<ConstTensorView> outputs = {}, lses = {};  // two or more of each
  TensorView output = {}, lse = {};
};
// Gradients of a merge. grad_outputs and grad_lses hold one entry for each of outputs; an entry
// that is not given is not computed.
struct MergeBackwardArgs {
  std::vector<ConstTensorView> outputs = {}, lses = {};
  ConstTensorView grad_output = {};
  ConstTensorView grad_lse = {};  // optional
  std::vector<TensorView> grad_outputs = {}, grad_lses = {};
};

namespace detail {

// Spans without a shape become [tokens, head_dim_value] and [tokens].
struct MergeShapes {
  Sizes output, lse;

  MergeShapes(const std::vector<ConstTensorView>& outputs,
              const std::vector<ConstTensorView>& lses) {
    if (outputs.size() < 2 || outputs.size() != lses.size()) {
      throw Error(VECINA_INVALID_ARGUMENT,
                  "merge takes two or more outputs and as many lses, not " +
                      std::to_string(outputs.size()) + " and " + std::to_string(lses.size()) + ".");
    }
    if (outputs[0].has_shape() || lses[0].has_shape()) return;  // then all must have one
    const std::size_t tokens = lses[0].count(), elements = outputs[0].count();
    if (tokens == 0 || elements % tokens != 0) {
      throw Error(VECINA_INVALID_ARGUMENT, "outputs[0] has " + std::to_string(elements) +
                                               " elements, lses[0] " + std::to_string(tokens) +
                                               "; the first must be a multiple of the second.");
    }
    lse.append(static_cast<std::int64_t>(tokens));
    output.append(static_cast<std::int64_t>(tokens));
    output.append(static_cast<std::int64_t>(elements / tokens));
  }
};

template <typename View>
std::vector<vecina_tensor> shaped_list(const std::vector<View>& views, const Sizes& shape,
                                       const char* name, std::size_t count) {
  if (views.size() != count) {
    throw Error(VECINA_INVALID_ARGUMENT, std::string(name) + " has " +
                                             std::to_string(views.size()) + " entries, outputs " +
                                             std::to_string(count) + ".");
  }
  std::vector<vecina_tensor> tensors;
  for (const View& view : views) tensors.push_back(view.with_shape(shape, name));
  return tensors;
}

}  // namespace detail

// output = sum_i w_i outputs[i] with w = softmax over i of lses[i]; lse = log of the sum of
// exp(lses[i]). Throws Error if counts, shapes or dtypes do not fit.
inline void merge_attentions(const Context& context, const MergeArgs& args, void* queue = nullptr) {
  const detail::MergeShapes shapes(args.outputs, args.lses);
  const std::size_t count = args.outputs.size();
  const auto outputs = detail::shaped_list(args.outputs, shapes.output, "outputs", count);
  const auto lses = detail::shaped_list(args.lses, shapes.lse, "lses", count);
  const vecina_tensor output = args.output.with_shape(shapes.output, "output");
  const vecina_tensor lse = args.lse.with_shape(shapes.lse, "lse");
  detail::check(vecina_merge_attentions(context.get(), static_cast<std::int32_t>(count),
                                        outputs.data(), lses.data(), &output, &lse, queue));
}

// Gradients of merge_attentions. Errors as there.
inline void merge_attentions_backward(const Context& context, const MergeBackwardArgs& args,
                                      void* queue = nullptr) {
  const detail::MergeShapes shapes(args.outputs, args.lses);
  const std::size_t count = args.outputs.size();
  const auto outputs = detail::shaped_list(args.outputs, shapes.output, "outputs", count);
  const auto lses = detail::shaped_list(args.lses, shapes.lse, "lses", count);
  const auto grad_outputs =
      detail::shaped_list(args.grad_outputs, shapes.output, "grad_outputs", count);
  const auto grad_lses = detail::shaped_list(args.grad_lses, shapes.lse, "grad_lses", count);
  const vecina_tensor grad_output = args.grad_output.with_shape(shapes.output, "grad_output");
  const vecina_tensor grad_lse = args.grad_lse.with_shape(shapes.lse, "grad_lse");
  detail::check(vecina_merge_attentions_backward(
      context.get(), static_cast<std::int32_t>(count), outputs.data(), lses.data(), &grad_output,
      &grad_lse, grad_outputs.data(), grad_lses.data(), queue));
}

}  // namespace v0
}  // namespace vecina
#endif  // VECINA_VECINA_HPP_
