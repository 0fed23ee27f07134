// SPDX-License-Identifier: MIT
// The problem of vecina.hpp: its fields by name, its line, the shapes of its tensors, its windows.
#ifndef VECINA_PROBLEM_HPP_
#define VECINA_PROBLEM_HPP_

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "vecina/tensor.hpp"
#include "vecina/vecina.h"

namespace vecina {
inline namespace v0 {

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

// The same; throws Error if what was written is the sentence of an error.
template <typename Print>
std::string checked_text_of(Print print) {
  std::string text = text_of(print);
  check(vecina_last_status());
  return text;
}

}  // namespace detail

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
  // Experimental: query and key in VECINA_E4M3 (vecina.h says what that costs and who takes it).
  Problem& query_key_dtype(vecina_dtype v) { return set(fields_.query_key_dtype, v); }
  Problem& scale(double v) { return set(fields_.has_scale, 1).set(fields_.scale, v); }
  Problem& bias(bool v = true) { return set(fields_.has_bias, v); }
  Problem& lengths_padded() { return set(fields_.lengths, VECINA_LENGTHS_PADDED); }
  Problem& lengths_packed(std::int32_t samples) {
    return set(fields_.lengths, VECINA_LENGTHS_PACKED).set(fields_.samples, samples);
  }
  Problem& allow(vecina_flags v) {
    return set(fields_.flags, fields_.flags | static_cast<std::uint32_t>(v));
  }

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
    return {samples(), fields_.additional_tokens, heads_kv_or(), fields_.head_dim};
  }
  Sizes additional_value_shape() const {
    return {samples(), fields_.additional_tokens, heads_kv_or(), head_dim_value_or()};
  }
  Sizes bias_shape() const {
    Sizes shape{fields_.heads};
    for (int a = 0; a < rank(); ++a) shape.append(2 * fields_.kernel_size[a] - 1);
    return shape;
  }
  Sizes head_scale_shape() const { return {fields_.heads}; }
  Sizes lengths_shape() const { return {samples(), rank()}; }

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
  std::int64_t samples() const {
    return fields_.lengths == VECINA_LENGTHS_PACKED ? fields_.samples : fields_.batch;
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

}  // namespace v0
}  // namespace vecina
#endif  // VECINA_PROBLEM_HPP_
